"""``--tables FILE``: the names of a database's tables and columns, from YAML over the defaults."""

from __future__ import annotations

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
