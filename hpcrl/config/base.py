"""The base of every config section: frozen, no unknown keys, and numbers read in one way everywhere."""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, field_validator


class Mistake(ValueError):
    """A check of several keys that failed; ``keys`` (dotted, relative to the section) tell who set them."""

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: Any, info: Any) -> Any:
        """``yes`` is no number, and "1e-4" is one, which YAML 1.1 reads as a text."""
        kind = number_kind(cls.model_fields[info.field_name].annotation)
        if kind is None:
            return value
        if isinstance(value, (list, tuple)):
            return [_number(kind, each) for each in value]
        return _number(kind, value)


def _number(kind: type, value: Any) -> Any:
    """``value`` as pydantic shall see it; Mistake for a boolean."""
    if isinstance(value, bool):
        raise Mistake("a whole number is needed" if kind is int else "a number is needed")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    whole = kind is int and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


def number_kind(annotation: Any) -> type | None:
    """int or float where that is what the annotation (or its elements) takes, else None."""
    if annotation in (int, float):
        return annotation
    parts, origin = get_args(annotation), get_origin(annotation)
    if origin is Literal:
        return int if all(type(part) is int for part in parts) else None
    if origin in (Union, UnionType, tuple):
        kinds = {number_kind(part) for part in parts if part not in (type(None), Ellipsis)}
        return kinds.pop() if len(kinds) == 1 else None
    return None
