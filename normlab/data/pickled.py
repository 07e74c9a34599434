"""A pickle as data: its constants, lists and dicts, and what it would call, but nothing is called.

Python's own unpickler calls what a file names, and even numpy's types alone let a file write where it likes in memory.
"""

import pickletools
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_T = TypeVar("_T")
_MOST_STEPS = 1_000_000  # a file of CIFAR-100 takes a quarter of that

_CONSTANTS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_FIXED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_SMALL_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_RECONSTRUCT = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
_FROM_BUFFER = {"numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer"}


@dataclass
class Name:
    """`module name`, of what a file would import."""

    name: str


@dataclass
class Call:
    """What a file would make by calling `function`, and the state that it would give the result."""

    function: str
    arguments: tuple[Any, ...]
    state: Any = None


def read(content: bytes) -> Any:
    """The value of a pickle. Raises ValueError, or what else `pickletools` makes of damaged bytes."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    argument: Any
    for step, (opcode, argument, place) in enumerate(pickletools.genops(content)):
        if step == _MOST_STEPS:
            raise ValueError(f"it has more than {_MOST_STEPS:,} steps")
        name = opcode.name
        if name in _CONSTANTS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _FIXED:
            stack.append(_FIXED[name])
        elif name in _SMALL_TUPLES:
            stack.append(tuple([stack.pop() for _ in range(_SMALL_TUPLES[name])][::-1]))
        elif name == "TUPLE":
            stack.append(tuple(above_mark()))
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name == "LIST":
            stack.append(above_mark())
        elif name == "DICT":
            stack.append(_fill({}, above_mark()))
        elif name in ("APPEND", "APPENDS"):
            values = [stack.pop()] if name == "APPEND" else above_mark()
            _need(stack[-1], list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else above_mark()
            _fill(_need(stack[-1], dict), values)
        elif name == "GLOBAL":
            stack.append(Name(argument))
        elif name == "STACK_GLOBAL":
            imported, module = _need(stack.pop(), str), _need(stack.pop(), str)
            stack.append(Name(f"{module} {imported}"))
        elif name == "REDUCE":
            arguments, function = _need(stack.pop(), tuple), _need(stack.pop(), Name)
            stack.append(Call(function.name, arguments))
        elif name == "BUILD":
            state, made = stack.pop(), _need(stack[-1], Call)
            if made.state is not None:
                raise ValueError("it gives one object two states")
            made.state = state
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"it has {name} at byte {place}, which no file of plain arrays has")
    (value,) = stack
    return value


def rows_of_bytes(value: Any, columns: int, most: int) -> NDArray[np.uint8]:
    """The uint8 array of shape (1 to most, columns) that a value of `read` stands for. Raises ValueError if it is none.

    Its bytes are one constant of just that length; numpy learns of nothing else in the file.
    """
    match value:
        case Call(function, (Name("numpy ndarray"), *_), (_, shape, kind, fortran, constant)) if (
            function in _RECONSTRUCT
        ):
            order = "F" if fortran else "C"
        case Call(function, (constant, kind, shape, order)) if function in _FROM_BUFFER:
            pass
        case _:
            raise ValueError("its images are no array")
    match kind:
        case Call("numpy dtype", ("u1" | "|u1" | "uint8", *_)):
            pass
        case _:
            raise ValueError("its images are not of uint8")
    match shape:
        case (int(rows), int(width)) if 0 < rows <= most and width == columns and order in ("C", "F"):
            pass
        case _:
            raise ValueError(f"its images are not of shape (1 to {most:,}, {columns})")
    match constant:
        case bytes() | bytearray():
            content = bytes(constant)
        case str():  # as Python 2 wrote bytes
            content = constant.encode("latin-1")
        case Call("_codecs encode", (str(text), "latin1")):  # as Python 3 writes bytes for Python 2
            content = text.encode("latin-1")
        case _:
            raise ValueError("its images are no bytes")
    if len(content) != rows * columns:
        raise ValueError(f"{rows} images with {len(content):,} bytes, not {rows * columns:,}")
    return np.frombuffer(content, np.uint8).reshape((rows, columns), order="F" if order == "F" else "C")


def whole_numbers(value: Any, count: int) -> NDArray[np.int64]:
    """A list of `count` whole numbers as an array. Raises ValueError if it is none."""
    if not isinstance(value, list) or len(value) != count:
        raise ValueError(f"its labels are no list of {count}, one for each image")
    if not all(type(number) is int and abs(number) < 2**31 for number in value):
        raise ValueError("its labels are no whole numbers, or too large")
    return np.array(value, np.int64)


def _need(value: Any, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise ValueError(f"it has {type(value).__name__} in the place of {kind.__name__}")
    return value


def _fill(mapping: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """Keys and values in turn."""
    for key, value in zip(values[::2], values[1::2], strict=True):
        mapping[_need(key, str)] = value
    return mapping
