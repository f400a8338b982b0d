"""Read pickles of arrays, strings and numbers without running anything that they ask for.

A pickle is a program that may call whatever it names. Here it gets stand-ins for the few names that NumPy's arrays
need, which check their arguments, and an error for any other name.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterator
from types import MethodType
from typing import IO, Any

import numpy as np

from fewshot.core.errors import one_line

# Booleans, integers, floats, bytes and text of a fixed width, or objects; no type with fields.
PLAIN = re.compile(r"[|<>=]?([biufSU][1-9][0-9]{0,8}|O8?)", re.ASCII)
SMALL = 64  # size of text or bytes that a stream remembers: NumPy repeats shorter names, and images are longer


def load(file: IO[bytes]) -> Any:
    """The content of a pickle of any protocol, written by Python 2 or 3: dicts, lists, arrays, strings and numbers.

    Strings of Python 2 are decoded as latin1. An array may be of a subclass of `np.ndarray`; `np.asarray` changes that.

    Raises:
        ValueError: the pickle is damaged, or asks for anything else.
    """
    try:
        return _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # damaged pickles raise many kinds of errors
        raise ValueError(f"no whole pickle of arrays, strings and numbers: {one_line(error)[:200]}") from error


def stream_items(file: IO[bytes]) -> Iterator[np.ndarray | bytes | str]:
    """Yield the items of a pickle that is one list of arrays, bytes or strings, without keeping them.

    It reads the same kinds of pickles as `load`, as safely. It needs the memory of the items that are appended to the
    list at once, which are 1,000 in pickles that Python writes.

    Raises:
        ValueError: the pickle is damaged, asks for anything else, is no such list, or repeats an item by reference.
    """
    try:
        yield from _Stream(file, encoding="latin1").items()
    except Exception as error:
        raise ValueError(f"no whole pickle of one list of arrays, bytes or strings: {one_line(error)[:200]}") from error


def with_text_keys(content: Any) -> dict[Any, Any]:
    """A dict of a pickle with text for its keys of bytes, which Python 2 wrote.

    Raises:
        AttributeError: it is no dict.
    """
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}


class _Type:
    """Stand-in for a numpy.dtype."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # NumPy would accept any size, flags and fields here, even wrong ones; only the byte order is used.
        _, order, subarray, names, fields, *_ = state
        if (subarray, names, fields) != (None, None, None) or order not in ("|", "<", ">", "="):
            raise ValueError("it asks for an array of another type")
        self.dtype = self.dtype.newbyteorder(order)

    def check(self, shape: Any, data: Any) -> np.dtype[Any]:
        """The type, after a check that `data` has the size of an array of this shape."""
        if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("the shape of an array is not a tuple of whole numbers")
        objects = self.dtype.hasobject
        if isinstance(data, list) != objects or len(data) != math.prod(shape) * (1 if objects else self.dtype.itemsize):
            raise ValueError("the data of an array do not fit its shape")
        return self.dtype


class _Array(np.ndarray):
    """Stand-in for a numpy.ndarray."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # pyright: ignore
        _, shape, kind, fortran, data = state
        data = _bytes(data)
        super().__setstate__((1, shape, _type(kind).check(shape, data), bool(fortran), data))  # pyright: ignore


def _bytes(data: Any) -> Any:
    """A string of Python 2, which was decoded as latin1, as bytes again; anything else unchanged."""
    return data.encode("latin1") if isinstance(data, str) else data


def _type(kind: Any) -> _Type:
    if not isinstance(kind, _Type):
        raise ValueError("the type of an array is not a dtype")
    return kind


class _StandIns:
    """What a pickle may call. They are methods because a pickle could set attributes of functions, such as defaults."""

    __slots__ = ()

    def dtype(self, spec: str, align: Any = False, copy: Any = True) -> _Type:
        if not PLAIN.fullmatch(spec):
            raise ValueError(f"it asks for an array of type {spec[:40]!r}")
        return _Type(np.dtype(object if "O" in spec else spec))

    def array(self, subtype: Any, shape: Any, kind: Any) -> _Array:
        if subtype != NDARRAY or shape != (0,):
            raise ValueError("it asks for a new array that is not empty")
        return _Array((0,), np.int8)  # __setstate__ fills it later

    def scalar(self, kind: Any, data: Any) -> Any:
        return np.frombuffer(data := _bytes(data), _type(kind).check((1,), data))[0]

    def frombuffer(self, data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
        return np.frombuffer(data, _type(kind).check(shape, data)).reshape(shape, order=order)

    def nothing(self) -> bytes:
        return b""

    def encode(self, text: str, encoding: str) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError("it asks for an encoding other than latin1")
        return text.encode("latin1")


NDARRAY = "numpy.ndarray"  # it is only an argument of `_reconstruct`, so its name suffices
STAND_INS = _StandIns()
ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): STAND_INS.dtype,
    ("_codecs", "encode"): STAND_INS.encode,  # bytes that Python 3 writes for Python 2; empty ones as bytes():
    ("__builtin__", "bytes"): STAND_INS.nothing,
    ("builtins", "bytes"): STAND_INS.nothing,
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    ADMITTED[f"{_core}.multiarray", "_reconstruct"] = STAND_INS.array
    ADMITTED[f"{_core}.multiarray", "scalar"] = STAND_INS.scalar
    ADMITTED[f"{_core}.numeric", "_frombuffer"] = STAND_INS.frombuffer


# The unpickler written in Python: the one in C allocates as much memory as a pickle of ten bytes claims to need.
class _Unpickler(pickle._Unpickler):
    # Byte arrays are read as bytes: for an array it would first fill the claimed length with zeros.
    dispatch = pickle._Unpickler.dispatch | {pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]]}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'[:80]!r}")
        return ADMITTED[module, name]


class _Stream(_Unpickler):
    def items(self) -> Iterator[np.ndarray | bytes | str]:
        """What is appended to the one list at the bottom of the stack, as soon as it is appended."""
        # As in `load` of the parent class, which cannot be interrupted between two opcodes.
        self._unframer = framer = pickle._Unframer(self._file_read, self._file_readline)  # pyright: ignore
        self.read, self.readinto, self.readline = framer.read, framer.readinto, framer.readline
        self.stack, self.metastack, self.memo = [], [], _Memo()
        self.append = self.stack.append
        outer: list[Any] | None = None
        while (opcode := self.read(1)) != pickle.STOP:
            if not opcode:
                raise EOFError("it ends early")
            self.dispatch[opcode[0]](self)  # pyright: ignore
            if outer is None and self.stack:
                # Checked at the first object, before a tuple or an array of objects fills the memory.
                if self.metastack or type(self.stack[0]) is not list:
                    raise ValueError("it is something else than a list")
                outer = self.stack[0]
            if outer:
                for item in outer:
                    if not isinstance(item, np.ndarray | bytes | str):
                        raise ValueError(f"the list holds something else, {type(item).__name__}")
                    yield item
                outer.clear()
        if self.metastack or len(self.stack) != 1 or self.stack[0] is not outer:
            raise ValueError("it is something else than a list")


class _Memo(dict[int, Any]):
    """What a pickle may refer to again: stand-ins and short strings, but no image. The length counts dropped values."""

    count = 0

    def __setitem__(self, index: int, value: Any) -> None:
        self.count += 1
        if isinstance(value, _Type | MethodType) or (isinstance(value, str | bytes) and len(value) <= SMALL):
            super().__setitem__(index, value)

    def __len__(self) -> int:
        return self.count

    def __missing__(self, index: int) -> Any:
        raise ValueError("it refers to one image twice: write each image anew")
