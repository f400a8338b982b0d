"""Pickles of arrays, strings and numbers, read without running anything that they ask for.

A pickle is a program, and it may call whatever it names. Here it gets none of what it names: for the few names that
NumPy's arrays need it gets the stand-ins below, which check what they are given, and for any other an error.
"""

from __future__ import annotations

import math
import pickle
import re
from typing import Any, BinaryIO

import numpy as np

from fewshot.errors import FewshotError

# Truth values, whole and floating numbers, bytes and text, of a fixed width; or any objects. Nothing with fields.
PLAIN = re.compile(r"[|<>=]?([biufSU][1-9][0-9]{0,8}|O8?)", re.ASCII)


def load(file: BinaryIO) -> Any:
    """The content of a pickle of any protocol, made by Python 2 or 3: dicts, lists, arrays, strings and numbers.

    Strings of Python 2 are read as latin1. An array may be of a subclass of `np.ndarray` (`np.asarray` mends that).

    Raises:
        FewshotError: the pickle is damaged, or asks for anything else.
    """
    try:
        return _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # damage can look like anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        where = getattr(file, "name", "pickle")
        raise FewshotError(f"{where}: no whole pickle of arrays, strings and numbers alone ({reason})") from error


class _Type:
    """Stands for numpy.dtype."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # NumPy would take any size, flags and fields from here, fitting or not: only the byte order is of use.
        _, order, subarray, names, fields, *_ = state
        if (subarray, names, fields) != (None, None, None) or order not in ("|", "<", ">", "="):
            raise ValueError("it asks for an array of another type")
        self.dtype = self.dtype.newbyteorder(order)

    def fit(self, shape: Any, data: Any) -> np.dtype[Any]:
        """The type, where `data` are as many as an array of this shape has."""
        if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("the shape of an array is none")
        objects = self.dtype.hasobject
        if isinstance(data, list) != objects or len(data) != math.prod(shape) * (1 if objects else self.dtype.itemsize):
            raise ValueError("an array's data do not fill its shape")
        return self.dtype


class _Array(np.ndarray):
    """Stands for numpy.ndarray."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # pyright: ignore
        _, shape, kind, fortran, data = state
        data = _bytes(data)
        super().__setstate__((1, shape, _type(kind).fit(shape, data), bool(fortran), data))  # pyright: ignore


def _bytes(data: Any) -> Any:
    """What Python 2 called a string and latin1 made text of, as bytes again; anything else as it is."""
    return data.encode("latin1") if isinstance(data, str) else data


def _type(kind: Any) -> _Type:
    if not isinstance(kind, _Type):
        raise ValueError("the type of an array is none")
    return kind


class _StandIns:
    """What a pickle gets to call. Methods, for it could set attributes of plain functions, defaults among them."""

    __slots__ = ()

    def dtype(self, spec: str, align: Any = False, copy: Any = True) -> _Type:
        if not PLAIN.fullmatch(spec):
            raise ValueError(f"it asks for an array of type {spec[:40]!r}")
        return _Type(np.dtype(object if "O" in spec else spec))

    def array(self, subtype: Any, shape: Any, kind: Any) -> _Array:
        if subtype != NDARRAY or shape != (0,):
            raise ValueError("it asks for an array that is not empty at first")
        return _Array((0,), np.int8)  # its state comes later and makes it what it is

    def scalar(self, kind: Any, data: Any) -> Any:
        return np.frombuffer(data := _bytes(data), _type(kind).fit((1,), data))[0]

    def frombuffer(self, data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
        return np.frombuffer(data, _type(kind).fit(shape, data)).reshape(shape, order=order)

    def nothing(self) -> bytes:
        return b""

    def encode(self, text: str, encoding: str) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError("it asks for an encoding other than latin1")
        return text.encode("latin1")


NDARRAY = "numpy.ndarray"  # only ever handed on to `_reconstruct`, so its name will do
STAND_INS = _StandIns()
ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): STAND_INS.dtype,
    ("_codecs", "encode"): STAND_INS.encode,  # how Python 3 writes bytes for Python 2, and without any, as bytes():
    ("__builtin__", "bytes"): STAND_INS.nothing,
    ("builtins", "bytes"): STAND_INS.nothing,
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    ADMITTED[f"{_core}.multiarray", "_reconstruct"] = STAND_INS.array
    ADMITTED[f"{_core}.multiarray", "scalar"] = STAND_INS.scalar
    ADMITTED[f"{_core}.numeric", "_frombuffer"] = STAND_INS.frombuffer


# The unpickler that is written in Python: the one in C allots as many places as a pickle of ten bytes claims to need.
class _Unpickler(pickle._Unpickler):
    # Bytes in place of byte arrays, for which it would fill the claimed length with zeros.
    dispatch = pickle._Unpickler.dispatch | {pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]]}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'[:80]!r}")
        return ADMITTED[module, name]
