"""``--tables FILE``: the names of a database's tables and columns, from YAML over the defaults."""

from __future__ import annotations

import difflib
from pathlib import Path

from pydantic import ValidationError

from hpcrl.config.explain import broken_sections, explain
from hpcrl.config.tables import Tables
from hpcrl.config.yaml_file import Layer, read_mapping
from hpcrl.types import HpcrlError


def load_tables(path: Path | None) -> Tables:
    """The mapping of a YAML file such as yaml/tables.yaml; None: the defaults. HpcrlError names the key."""
    if path is None:
        return Tables()
    tree = read_mapping(path)
    layer = Layer(f"tables {path}", tree)
    broken = list(broken_sections(tree, Tables))
    if broken:
        raise HpcrlError(f"{layer.origin}: {'; '.join(broken)}")
    try:
        return Tables.model_validate(tree)
    except ValidationError as error:
        raise HpcrlError(explain(error.errors(), [layer], layer.origin, Tables)) from None


def timeframe_seconds(tables: Tables, timeframe: str) -> int:
    """Seconds of a bar of the database's ``timeframe``; HpcrlError lists those known."""
    seconds = tables.timeframes.get(timeframe)
    if seconds is None:
        known = ", ".join(tables.timeframes)
        spelt = {name.casefold(): name for name in tables.timeframes}
        close = difflib.get_close_matches(timeframe.casefold(), spelt, n=1, cutoff=0.4)
        nearest = f"; nearest: {spelt[close[0]]}" if close else ""
        raise HpcrlError(
            f"timeframe {timeframe!r} is not known{nearest}; known: {known} "
            "(add your database's own under `timeframes:` of a --tables file)"
        )
    return seconds
