"""Settings by name: fields of nested frozen dataclasses, set from `NAME=VALUE`, written as JSON and read again.

A name is a dotted path, `prior.computing.precision`. Entries of a tuple have their number, `epochs.2.prediction`, and
without one all are meant; entries of a mapping have their key, `depths.24`.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

Settings = TypeVar("Settings")


def changed(settings: Settings, assignments: Iterable[str]) -> Settings:
    """`settings` with the fields that "NAME=VALUE" name set; values are JSON, or else text.

    Raises:
        ValueError: no such name (the message lists those there are), or a value that its field cannot have.
    """
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment}: it takes NAME=VALUE")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        settings = _set(type(settings), settings, name.split("."), value, name)
    return settings


def _set(hint: Any, held: Any, path: list[str], value: Any, name: str) -> Any:
    """`held`, of type `hint`, with what `path` leads to set to `value`."""
    if not path:
        return parsed(hint, value, name)
    first, *rest = path
    arguments = typing.get_args(hint)
    if type(None) in arguments and held is not None:
        return _set(arguments[0], held, path, value, name)
    if dataclasses.is_dataclass(held) and not isinstance(held, type):
        hints = typing.get_type_hints(type(held))
        if first not in hints:
            raise _unknown(name, first, hints)
        return _replaced(held, name, **{first: _set(hints[first], getattr(held, first), rest, value, name)})
    if isinstance(held, tuple):
        if not first.isdigit() and held and dataclasses.is_dataclass(held[0]):
            return tuple(_set(arguments[0], entry, path, value, name) for entry in held)
        if first not in map(str, range(len(held))):
            raise _unknown(name, first, map(str, range(len(held))))
        index = int(first)
        return (*held[:index], _set(arguments[0], held[index], rest, value, name), *held[index + 1 :])
    if isinstance(held, abc.Mapping) and not rest:
        key, entry = (parsed(kind, part, name) for kind, part in zip(arguments, (first, value), strict=True))
        return {**held, key: entry}
    raise ValueError(f"--set {name}: nothing is below {name.removesuffix('.'.join(['', *path]))}")


def _unknown(name: str, part: str, known: Iterable[str]) -> ValueError:
    return ValueError(f"no setting {name}: {part!r} is none of {', '.join(known)}")


def _replaced(held: Any, name: str, **values: Any) -> Any:
    try:
        return dataclasses.replace(held, **values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def parsed(hint: Any, value: Any, name: str) -> Any:
    """The value of type `hint` that plain JSON stands for. Raises ValueError with `name`."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return None if value is None else parsed(arguments[0], value, name)
    if kind is typing.Literal:
        return _expected(value in arguments, ", ".join(map(str, arguments)), value, name)
    if kind is tuple:
        items = cast("list[Any]", _expected(isinstance(value, list | tuple), "a list", value, name))
        return tuple(parsed(arguments[0], item, f"{name}.{index}") for index, item in enumerate(items))
    if kind is abc.Mapping:
        entries = cast("dict[Any, Any]", _expected(isinstance(value, dict), "an object", value, name))
        return {parsed(arguments[0], key, name): parsed(arguments[1], item, name) for key, item in entries.items()}
    if dataclasses.is_dataclass(hint):
        return _parsed_fields(cast("type[Any]", hint), value, name)
    if issubclass(hint, enum.Enum):
        members = [member.value for member in hint]
        return hint(_expected(value in members, ", ".join(map(str, members)), value, name))
    if hint is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(_expected(is_number, "a number", value, name))
    if hint is int:
        # A key of a JSON object is text.
        value = int(value) if isinstance(value, str) and value.isdigit() else value
        return _expected(isinstance(value, int) and not isinstance(value, bool), "a whole number", value, name)
    return _expected(isinstance(value, hint), "true or false" if hint is bool else "text", value, name)


def _parsed_fields(kind: type[Any], value: Any, name: str) -> Any:
    hints = typing.get_type_hints(kind)
    entries = cast("dict[str, Any]", _expected(isinstance(value, dict), "an object", value, name))
    if unknown := [key for key in entries if key not in hints]:
        raise _unknown(f"{name}.{unknown[0]}", unknown[0], hints)
    fields = {key: parsed(hints[key], item, f"{name}.{key}".lstrip(".")) for key, item in entries.items()}
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None


def _expected(is_so: bool, wanted: str, value: Any, name: str) -> Any:
    if not is_so:
        raise ValueError(f"{name} must be {wanted}; not {json.dumps(value)}")
    return value


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass as JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def differences(held: Any, other: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Name, value in `held` and value in `other` of everything in `held` that differs, both plain."""
    if isinstance(held, dict) and isinstance(other, dict):
        pairs = {key: (held[key], other.get(key)) for key in held}
    elif isinstance(held, list) and isinstance(other, list) and len(held) == len(other):
        pairs = {str(index): pair for index, pair in enumerate(zip(held, other, strict=True))}
    else:
        if held != other:
            yield name, held, other
        return
    for key, pair in pairs.items():
        yield from differences(*pair, f"{name}.{key}".lstrip("."))


def refuse_other(held: Mapping[str, Any], other: Mapping[str, Any], owner: object, or_else: str) -> None:
    """Raises ValueError, in one line with the first difference, where plain settings are not those that `owner` holds.
    Those that it does not hold came later, with a default that is as before."""
    for name, ours, theirs in differences(held, other):
        raise ValueError(
            f"{owner} was begun with {name} {json.dumps(ours)}, not {json.dumps(theirs)}: go on with the same, "
            f"or {or_else}"
        )


def at_least(settings: Any, limit: float, *names: str) -> None:
    """Raises ValueError where one of these numbers is less; None is nothing to say."""
    _checked(settings, names, lambda value: value >= limit, f"{limit:g} or more")


def above(settings: Any, limit: float, *names: str) -> None:
    """Raises ValueError where one of these numbers is not more."""
    _checked(settings, names, lambda value: value > limit, f"above {limit:g}")


def below(settings: Any, limit: float, *names: str) -> None:
    """Raises ValueError where one of these numbers is not less."""
    _checked(settings, names, lambda value: value < limit, f"below {limit:g}")


def _checked(settings: Any, names: Iterable[str], holds: Callable[[float], bool], wanted: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not holds(value):
            raise ValueError(f"{name} must be {wanted}; not {value}")
