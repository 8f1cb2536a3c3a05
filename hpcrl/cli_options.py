"""What verbs of several groups share: options, and what they are made of."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpcrl.types import HpcrlError, RunFailed

if TYPE_CHECKING:  # pydantic and numpy: not for --help
    from hpcrl.config.secrets import Secrets
    from hpcrl.market.request import DatabaseRequest

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a config key.")]
TablesFile = Annotated[
    Path | None,
    typer.Option("--tables", metavar="YAML", help="Names of tables and columns: yaml/tables.yaml."),
]


def names(text: str, option: str) -> tuple[str, ...]:
    """ "A, B" as ("A", "B"), "" as (). HpcrlError, which shows the option: something, but no name."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if text and not found:
        raise HpcrlError(f"{option} {text!r} holds no name: write A,B or leave it out")
    return found


def database_request(
    tables: Path | None, symbols: str, features: str, symbols_option: str = "--symbols", **options: Any
) -> DatabaseRequest:
    """HpcrlError: words that contradict each other, before anything is reached."""
    from hpcrl.config.load_tables import load_tables
    from hpcrl.market.request import DatabaseRequest

    request = DatabaseRequest(
        tables=load_tables(tables),
        symbols=names(symbols, symbols_option),
        features=names(features, "--features"),
        **options,
    )
    _ = request.options  # what is wrong with the words comes before what is wrong with the world
    return request


@contextlib.contextmanager
def known_secrets(of: Sequence[str]) -> Iterator[Secrets]:
    """The secrets of this folder; whatever goes wrong meanwhile is told without them."""
    from hpcrl.config.secrets import read_secrets, redact

    secrets = read_secrets(Path.cwd(), names=of)
    try:
        yield secrets
    except HpcrlError as error:
        kind = RunFailed if error.exit_code == RunFailed.exit_code else HpcrlError
        raise kind(redact(str(error), secrets)) from None
    except OSError as error:
        where = f"{str(error.filename)[:200]}: " if error.filename else ""
        raise RunFailed(redact(f"{where}{error.strerror or error}", secrets)) from None
    except Exception:  # a bug of ours: its traceback is of use, what libraries put into it may be secret
        import traceback

        print(redact(traceback.format_exc(), secrets), file=sys.stderr, flush=True)
        sys.exit(1)
