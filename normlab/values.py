"""Values as a type asks for them, and types in a user's words; no torch here.

coerce("2", float, "lr") raises UserError: lr=2: expected a finite number
"""

import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Literal

from normlab.errors import UserError

_HOLDS: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
}


class _RangeError(ValueError):
    """A value of the right type that lies outside its range: in a list, the element and its own type."""

    def __init__(self, value: Any, hint: Any) -> None:
        super().__init__()
        self.value, self.hint = value, hint


MISMATCH = (TypeError, OverflowError, _RangeError)  # what `coercion` raises


def coerce(value: Any, hint: Any, path: str) -> Any:
    """`value` as `hint` asks: an int for a float becomes one, a tuple a list. Raises UserError on a mismatch.

    A value of another type is told the type, one out of range the range; of a list, that is the element.
    """
    try:
        return coercion(hint)(value)
    except _RangeError as error:
        raise UserError(f"{path}={shown(error.value)}: expected {describe(error.hint)}") from None
    except MISMATCH:
        expected = describe(hint, ranges=False)
        raise UserError(f"{path}={shown(value)}: expected {expected}{_suggestion(value, hint)}") from None


def _suggestion(value: Any, hint: Any) -> str:
    """`; did you mean ...?` where a list lacks its brackets, or where a choice is near; else nothing."""
    try:
        near = [shown(coercion(hint)([value]))]
    except MISMATCH:
        near = difflib.get_close_matches(shown(value), _choices(hint), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def shown(value: Any) -> str:
    """A value as a command line spells it: true, null, [in,ln]."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{shown(v)}' for key, v in value.items())}}}"
    return str(value)


@cache
def coercion(hint: Any) -> Callable[[Any], Any]:
    """What makes a value as a type asks; a type is taken apart once, since records hold millions of values.

    It raises TypeError on a value of another type, OverflowError and _RangeError on one that is too large: MISMATCH.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _as_it_is
    if origin is Annotated:
        return _ranged(hint, coercion(arguments[0]))
    if origin in (typing.Union, types.UnionType):
        return _any_of(hint, [coercion(t) for t in sorted(arguments, key=lambda t: t is str)])  # a str takes numbers
    if origin is tuple and Ellipsis not in arguments:
        return _tuple([coercion(t) for t in arguments])
    if origin in (Sequence, list, tuple):
        return _list(arguments[0])
    if origin in (Mapping, dict):
        return _mapping(arguments[1])
    if origin is Literal:
        return _where(lambda value: value in arguments)
    if hint in (None, type(None)):
        return _where(lambda value: value is None)
    if hint is float:
        return _float
    if hint is str:
        return _str
    if hint is Path:
        return _where(lambda value: isinstance(value, str) and bool(value))
    if hint in (int, Real):
        return _where(lambda value: isinstance(value, hint) and not isinstance(value, bool))
    return _where(lambda value: isinstance(value, hint))


_PLAIN: dict[Any, tuple[type, ...]] = {str: (str,), int: (int,), bool: (bool,), Real: (float, int)}  # as they are


def _as_it_is(value: Any) -> Any:
    return value


def _where(holds: Callable[[Any], bool]) -> Callable[[Any], Any]:
    def coerced(value: Any) -> Any:
        if not holds(value):
            raise TypeError
        return value

    return coerced


def _float(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise TypeError


def _str(value: Any) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise TypeError


def _ranged(hint: Any, inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
    bounds = [(_HOLDS[side], bound) for side, bound in _bounds(hint).items()]

    def coerced(value: Any) -> Any:
        found = inner(value)
        for holds, bound in bounds:
            if not holds(found, bound):
                raise _RangeError(value, hint)
        return found

    return coerced


def _any_of(hint: Any, choices: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def coerced(value: Any) -> Any:
        outside: Exception = TypeError()
        for choice in choices:
            try:
                return choice(value)
            except _RangeError as error:
                outside = _RangeError(value, hint) if error.value is value else error
            except TypeError:
                pass
        raise outside

    return coerced


def _tuple(each: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def coerced(value: Any) -> list[Any]:
        if not isinstance(value, list | tuple) or len(value) != len(each):
            raise TypeError
        return [inner(v) for inner, v in zip(each, value, strict=True)]

    return coerced


def _list(hint: Any) -> Callable[[Any], Any]:
    inner, plain = coercion(hint), _PLAIN.get(hint, ())

    def coerced(value: Any) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise TypeError
        return [v if type(v) in plain else inner(v) for v in value]

    return coerced


def _mapping(hint: Any) -> Callable[[Any], Any]:
    inner, plain = coercion(hint), _PLAIN.get(hint, ())

    def coerced(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise TypeError
        return {str(k): v if type(v) in plain else inner(v) for k, v in value.items()}

    return coerced


def describe(hint: Any, ranges: bool = True) -> str:
    """A type in a user's words: "a whole number of 1 or more", "var or std"; its ranges may be left out."""
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a finite number",
        str: "a word",
        type(None): "null",
        Path: "a path",
    }
    words |= {Real: "a number"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return "settings with names"
    if hint in words:
        return words[hint]
    if origin is Annotated:
        bounds = _bounds(hint) if ranges else {}
        kind = describe(arguments[0], ranges)
        return f"{kind.replace(' finite', '')} {_range_words(bounds)}" if bounds else kind
    if origin in (typing.Union, types.UnionType):
        bounded = ranges and any(typing.get_origin(t) is Annotated for t in arguments)
        return (", or " if bounded else " or ").join(describe(t, ranges) for t in arguments)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)}, each {describe(arguments[0], ranges)}"
    if origin in (Sequence, list, tuple):
        return f"a list, each {describe(arguments[0], ranges)}"
    if origin in (Mapping, dict):
        return "settings with names" + (f", each {describe(arguments[1], ranges)}" if arguments[1] is not Any else "")
    return getattr(hint, "__name__", str(hint))


def _bounds(hint: Any) -> dict[str, Any]:
    """Of an Annotated type: {"ge": 0, "lt": 1}."""
    return {
        side: bound
        for stated in hint.__metadata__
        for side in _HOLDS
        if (bound := getattr(stated, side, None)) is not None
    }


def _range_words(bounds: Mapping[str, Any]) -> str:
    """What follows "a number": of 0 or more; above 0, up to 1; from 0 to below 1; between 0 and 1."""
    number = {side: f"{bound:g}" if isinstance(bound, float) else str(bound) for side, bound in bounds.items()}
    if number.keys() == {"gt", "lt"}:
        return f"between {number['gt']} and {number['lt']}"
    if number.keys() == {"ge", "lt"}:
        return f"from {number['ge']} to below {number['lt']}"
    words = {"gt": "above {}", "ge": "of {} or more", "lt": "below {}", "le": "up to {}"}
    return ", ".join(words[side].format(number[side]) for side in words if side in number)


def _choices(hint: Any) -> list[str]:
    if typing.get_origin(hint) is Literal:
        return [str(a) for a in typing.get_args(hint)]
    return [choice for argument in typing.get_args(hint) for choice in _choices(argument)]
