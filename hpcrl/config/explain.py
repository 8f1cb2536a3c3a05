"""What is wrong with a configuration, in words: who set the key, its value, what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from hpcrl.config.base import Mistake
from hpcrl.config.env import SymbolCosts
from hpcrl.config.root import Config
from hpcrl.config.yaml_file import Layer

NEEDED = {
    "int_type": "a whole number is needed",
    "int_parsing": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_type": "a number is needed",
    "float_parsing": "a number is needed",
    "finite_number": "a finite number is needed",
    "bool_type": "true or false is needed",
    "bool_parsing": "true or false is needed",
    "string_type": "a text is needed; put it in quotes",
    "dict_type": "keys and their values are needed",
}
"""pydantic's types of error that have plainer words; numbers out of range keep pydantic's own."""


def needed(item: Any) -> str:
    """What would be right, of one of pydantic's errors."""
    message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    if item["type"] == "too_short":
        return f"at least {item['ctx']['min_length']} must be given"
    message = NEEDED.get(item["type"], message)
    return f"{message[:1].lower()}{message[1:]}"


def explain(
    errors: Sequence[Any], layers: Sequence[Layer], origin: str, model: type[BaseModel] = Config
) -> str:
    """All errors in one line, each with its source; ``origin`` names what no layer has set, ``model`` has
    the valid keys."""
    found: dict[str, list[str]] = {}
    for item in errors:
        found.setdefault(_source(item, layers) or origin, []).append(_words(item, model))
    return "; ".join(f"{source}: {'; '.join(lines)}" for source, lines in found.items())


def broken_sections(tree: dict[Any, Any], model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """A line for each section that holds something other than keys (which a merge would hide)."""
    for name, section in _sections(model):
        if name in tree:
            value = tree[name]
            if isinstance(value, dict):
                yield from broken_sections(value, section, f"{prefix}{name}.")
            else:
                yield _not_a_section(prefix + name, value)


def _words(item: Any, model: type[BaseModel]) -> str:
    kind, value = item["type"], item.get("input")
    key = _dotted(item["loc"])
    if kind == "extra_forbidden":
        valid = _all_keys(model) + _symbol_keys(item["loc"])
        close = difflib.get_close_matches(key, valid, n=1, cutoff=0.4)
        return f"unknown key {key} = {_short(value)}" + (f"; nearest valid key: {close[0]}" if close else "")
    if kind == "invalid_key":
        return f"unknown key {_dotted((*item['loc'][:-1], repr(value)))}: a key is a word"
    if kind == "model_type":
        return _not_a_section(key, value)
    message = item["msg"].removeprefix("Value error, ")
    if kind == "value_error" and (not key or isinstance(value, (dict, BaseModel))):
        return f"{key}: {message}" if key else message
    return f"{key} = {_short(value)}: {_list_needed(value) if kind == 'tuple_type' else needed(item)}"


def _not_a_section(key: str, value: Any) -> str:
    if value is None or value == "":
        return f"the section {key} is empty; give it keys or leave it out"
    return f"{key} = {_short(value)}: expected a section of keys" if key else f"{_short(value)} is no section"


def _list_needed(value: Any) -> str:
    if isinstance(value, (str, int, float)) and value != "":
        return f"a list is needed: write [{', '.join(part.strip() for part in str(value).split(','))}]"
    return "a list is needed, in brackets"


def _source(item: Any, layers: Sequence[Layer]) -> str | None:
    """The last layer that set the key, or any of the keys that a check compared."""
    place = tuple(item["loc"])
    error = (item.get("ctx") or {}).get("error")
    related = error.keys if isinstance(error, Mistake) else ()
    places = [place + tuple(key.split(".")) for key in related] or [place]
    if item["type"] == "invalid_key":
        places = [(*place[:-1], item["input"])]
    return next((each.origin for each in reversed(layers) if any(sets(each.tree, p) for p in places)), None)


def sets(tree: Any, place: Sequence[Any]) -> bool:
    """Whether the tree says something about the key at ``place``."""
    for part in place:
        if not isinstance(tree, dict):
            return True
        if part not in tree:
            return False
        tree = tree[part]
    return True


def _dotted(place: Sequence[Any]) -> str:
    """("market", "symbols", 0) -> market.symbols[0]"""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield name, field.annotation


def _symbol_keys(place: Sequence[Any]) -> list[str]:
    """What may stand beside a key of one symbol's costs."""
    if tuple(place[-3:-2]) != ("symbols",):
        return []
    return [_dotted((*place[:-1], name)) for name in SymbolCosts.model_fields]


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = [prefix + name for name in model.model_fields]
    for name, section in _sections(model):
        keys += _all_keys(section, f"{prefix}{name}.")
    return keys
