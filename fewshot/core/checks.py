"""Checks of single settings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from math import inf
from numbers import Integral, Real
from typing import Any

from fewshot.core.errors import FewshotError


def check_number(name: str, value: object, kind: type, least: float) -> Any:
    """The value as a number of Python. Raises FewshotError if it is of another kind, below `least` or infinite."""
    number = plain_number(value)
    kinds = (int,) if kind is int else (int, float)
    if isinstance(number, bool) or not isinstance(number, kinds) or not least <= number < inf:
        words = "a whole number" if kind is int else "a number"
        words += f" >= {least}{', and finite' if number == inf else ''}"
        raise FewshotError(f"{name}={_shown(value)}: must be {words}")
    return number


def check_rate(name: str, value: Any) -> None:
    """Raises FewshotError if a rate of dropout is no number from 0 to below 1."""
    number = plain_number(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 1:
        raise FewshotError(f"{name}={_shown(value)}: must be at least 0 and below 1")


def check_seed(name: str, value: object) -> int:
    """The seed as Python's own int. Raises FewshotError if it is no whole number of 64 bits with a sign."""
    number = plain_number(value)
    if isinstance(number, bool) or not isinstance(number, int) or not -(2**63) <= number < 2**63:
        raise FewshotError(f"{name}={value!r}: must be a whole number from -2**63 to 2**63 - 1")
    return number


def plain_number(value: Any) -> Any:
    """A number, such as one of numpy, as Python's own; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def check_bool(name: str, value: object) -> None:
    """Raises FewshotError if a setting is neither true nor false."""
    if not isinstance(value, bool):
        raise FewshotError(f"{name}={_shown(value)}: must be true or false")


def _shown(value: object) -> object:
    """The value; a text that looks like what is wanted, such as "0.1", in quotes."""
    return repr(value) if isinstance(value, str) and re.fullmatch(r"[-+.\deE]+|[Tt]rue|[Ff]alse", value) else value


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Returns the value. Raises FewshotError if it is none of the choices."""
    if value not in choices:
        raise FewshotError(f"{name}={value}: choose one of {', '.join(choices)}")
    return value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean a or b?` for the known names that are closest to `name`; empty if none is close."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    likeness = [difflib.SequenceMatcher(None, known_name, name).ratio() for known_name in close]
    close = [one for one, ratio in zip(close, likeness, strict=True) if ratio > likeness[0] - 0.1]
    return f", did you mean {' or '.join(close)}?" if close else ""
