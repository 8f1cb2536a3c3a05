"""What verbs of several groups share: options, and what they are made of."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from hpcrl.types import HpcrlError, RunFailed

UsageError: Any = typer.BadParameter.__base__
"""Typer's own, whichever Click it brings."""

if TYPE_CHECKING:  # pydantic and numpy: not for --help
    from hpcrl.config.secrets import Secrets
    from hpcrl.market.request import DatabaseRequest


class _Verbs(TyperGroup):
    """Its help shows all of a verb's first paragraph, where Click would cut it off."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        verbs = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        shown = [(name, (verb.help or "").partition("\n\n")[0]) for name, verb in verbs.items() if verb]
        with formatter.section("Commands"):
            formatter.write_dl(shown)


def group(about: str | None) -> typer.Typer:
    """A Typer of verbs with plain help: it fits into 80 columns, and needs no Rich."""
    return typer.Typer(
        cls=_Verbs, help=about, no_args_is_help=True, rich_markup_mode=None,
        add_completion=False, pretty_exceptions_enable=False,
    )  # fmt: skip


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a config key.")]
TablesFile = Annotated[
    Path | None,
    typer.Option("--tables", metavar="YAML", help="Names of tables and columns: yaml/tables.yaml."),
]


def usage_words(error: Any) -> str:
    """What Typer refuses, in one line: ``--bars '0': must be greater than or equal to 1``."""
    found = getattr(error.__cause__, "errors", None)  # pydantic's, of a value that is not of its type
    if found is None or getattr(error, "param", None) is None:
        words = str(error.format_message()).rstrip(".")
        return f"{words[:1].lower()}{words[1:]}"
    from hpcrl.config.explain import needed

    item, param = found()[0], error.param
    name = next((each for each in param.opts if each[0] == "-"), param.metavar or param.name)
    return f"{name} {item['input']!r:.80}: {needed(item).removeprefix(repr(item['input'])).strip(' .')}"


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
