"""Configs as JSON and back."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any, TypeVar

Config = TypeVar("Config", bound=Any)


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain dicts, lists, numbers and strings."""
    return dataclasses.asdict(config)


def from_json(kind: type[Config], values: dict[str, Any]) -> Config:
    """The config that `to_json` wrote. Raises ValueError on unknown or missing keys."""
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {', '.join(unknown)}; it has {', '.join(hints)}")
    found = dict[str, Any]()
    for name, value in values.items():
        try:
            found[name] = _parse(hints[name], value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{kind.__name__}, {name}: {error}") from None
    try:
        return kind(**found)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None


def _parse(hint: Any, value: Any) -> Any:
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return None if value is None else _parse(arguments[0], value)
    if typing.get_origin(hint) is tuple:
        return tuple(_parse(arguments[0], item) for item in value)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} holds no fields")
        return from_json(typing.cast(type, hint), typing.cast("dict[str, Any]", value))
    if hint in (int, bool, float):
        fits = isinstance(value, (int, float) if hint is float else hint) and isinstance(value, bool) == (hint is bool)
        if not fits or not math.isfinite(value):
            raise ValueError(f"{value!r} is no {hint.__name__}")
    return hint(value)
