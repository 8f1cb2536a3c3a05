"""YAML as settings: files with their includes, and single values. A key given twice is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hpcrl.types import HpcrlError

LARGEST = 1_000_000
"""Characters of a YAML file; /dev/zero has no end. Guessed."""


class Layer(NamedTuple):
    """Settings and who said them, as an error names it."""

    origin: str
    tree: dict[Any, Any]


class GivenTwice(yaml.MarkedYAMLError):
    """A mapping holds the same key twice, of which YAML would silently keep the last."""


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked as composed, not as constructed: there, keys that `<<` merges in look like given ones.
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise GivenTwice(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node


def read_value(text: str, origin: str) -> Any:
    """A value as YAML reads it; what is not YAML is a text."""
    try:
        return _load(text)
    except GivenTwice as error:
        raise HpcrlError(f"{origin}: {error.problem}") from None
    except yaml.YAMLError:
        return text


def read_layers(path: str | Path, including: tuple[Path, ...] = ()) -> list[Layer]:
    """The settings of a YAML file after those of its ``include: other.yaml`` (beside it), lowest first.

    ``including``: the files whose includes led here, outermost first. Raises HpcrlError, one line.
    """
    path = Path(path)
    seen = [each.resolve() for each in including]
    if path.resolve() in seen:
        circle = [*including[seen.index(path.resolve()) :], path]
        raise HpcrlError(f"config {circle[0]}: includes itself: {' -> '.join(map(str, circle))}")
    tree = _read(path, including)
    if "include" not in tree:
        return [Layer(f"config {path}", tree)]
    name = tree.pop("include")
    if not isinstance(name, str) or not name.strip():
        found = "is empty" if name is None or name == "" else f"= {name!r}"
        raise HpcrlError(f"config {path}: include {found}; write one YAML file's name (include: base.yaml)")
    return [*read_layers(path.parent / name, (*including, path)), Layer(f"config {path}", tree)]


def read_mapping(path: str | Path) -> dict[Any, Any]:
    """The mapping in one YAML file without includes; {} where it is empty. Raises HpcrlError, one line."""
    tree = _value(Path(path), ())
    if tree is not None and not isinstance(tree, dict):
        raise HpcrlError(f"config {path}: expected lines of the form key: value, found {tree!r:.60}")
    return tree or {}


def _read(path: Path, including: tuple[Path, ...]) -> dict[Any, Any]:
    """The mapping in one file of sections."""
    tree = _value(path, including)
    if not isinstance(tree, dict) or not tree:
        found = "it is empty" if not tree and tree not in (False, 0) else f"found {tree!r:.60}"
        raise HpcrlError(f"config {path}: expected sections (train:, env:, ...), {found}")
    return tree


def _value(path: Path, including: tuple[Path, ...]) -> Any:
    """What one file holds."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise HpcrlError(f"config {path}: longer than {LARGEST:,} characters; a YAML file was expected")
        return _load(text)
    except OSError as error:
        what = f"{including[-1]}: its include {path}" if including else f"{path}:"
        raise HpcrlError(f"config {what} cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise HpcrlError(f"config {path}: is not a text file") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"config {path}, line {mark.line + 1}" if mark else f"config {path}"
        if isinstance(error, GivenTwice):
            raise HpcrlError(f"{where}: {problem}") from None
        raise HpcrlError(f"{where}: not valid YAML ({' '.join(str(problem or error).split())})") from None


def _load(text: str) -> Any:
    """YAML's value of a text; raises YAMLError only."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        # PyYAML lets these through for values that are not of their tag: 2024-13-45, !!bool x
        raise yaml.YAMLError(f"a value is not of its type: {error}") from None
