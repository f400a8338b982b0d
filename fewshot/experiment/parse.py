"""From the words of a command line to Hydra's overrides, with one line for a word that is none."""

from __future__ import annotations

import re
import shlex

from hydra._internal.hydra import Hydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from fewshot.core.errors import FewshotError, one_line
from fewshot.experiment.config import NULLABLE
from fewshot.experiment.paths import literal

LISTS = ("protocol", "rows", "cols")  # keys that take one value or several, beside those of `NULLABLE["list"]`

TYPOGRAPHIC_QUOTES = "\u2018\u2019\u201c\u201d"  # which text programs write


def typed(key: str, *texts: str) -> str:
    """What to type to give a key this very text, or a sweep of several, quoted for Hydra and for a POSIX shell."""
    return shlex.quote(f"{key}={','.join(map(_quoted, texts))}")


def _quoted(text: str) -> str:
    return QuotedString(literal(text), Quote.double).with_quotes()


def parse_overrides(words: list[str], hydra: Hydra, sweep: bool) -> list[Override]:
    """Parse overrides as Hydra does. A value that begins with `~` is a path, which Hydra needs in quotes.

    Raises:
        FewshotError: a word that is no override, or several values without a sweep.
    """
    parser = OverridesParser.create(config_loader=hydra.config_loader)
    overrides = []
    for place, word in enumerate(words):
        key, _, value = word.partition("=")
        if re.fullmatch(r"~[^,]*", value) and not key.startswith("~"):
            word = f"{key}={_quoted(value)}"
        try:
            (override,) = parser.parse_overrides([word])
        except HydraException as error:
            before = words[place - 1] if place else ""
            message = _badly_quoted(words[place:]) or _no_override(parser, before, word, sweep, error)
            raise FewshotError(message) from error
        if not override.key_or_group:
            raise FewshotError(f"{word}: has no key; write key=value")
        if override.is_sweep_override() and not sweep:
            raise FewshotError(f"{word}: {_instead_of_a_sweep(key, value, hydra)}")
        overrides.append(override)
    return overrides


def _instead_of_a_sweep(key: str, value: str, hydra: Hydra) -> str:
    """What to write in place of several values without -m."""
    is_plain = not set("([") & set(value)  # no glob(*), no list of lists
    if is_plain and (key in LISTS or key.rpartition(".")[2] in NULLABLE["list"]):
        return f"several are a list: {key}=[{value}]"
    remedy = "several values are a sweep; add -m, or give one"
    is_group = hydra.config_loader.get_group_options(key, ObjectType.CONFIG)
    return remedy if is_group else f"{remedy}; as one text it is typed {typed(key, value)}"


def _badly_quoted(words: list[str]) -> str:
    """The message for a list that spaces cut into several words, or for quotes of a text program; else empty."""
    key, _, value = words[0].partition("=")
    if (plain := words[0].translate(dict.fromkeys(map(ord, TYPOGRAPHIC_QUOTES)))) != words[0]:
        return f"{words[0]}: these quotes are no shell's; type '{plain}'"
    whole, end, _ = "".join(words).partition("]")
    if not value.startswith("[") or "]" in value or not end or whole.count("[") > 1 or "'" in whole:
        return ""
    return f"{key}: spaces cut the list into several words; type '{whole}]'"


def _no_override(parser: OverridesParser, before: str, word: str, sweep: bool, error: HydraException) -> str:
    """The message for an argument that Hydra cannot parse."""
    key, equal, value = word.partition("=")
    if not equal:
        if "=" in before:
            path = typed(*f"{before} {word}".split("=", 1))
            return f"command line: {word!r} is no key=value; if it belongs to the value before it, type {path}"
        return f"command line: {word!r} is no key=value"
    try:
        parser.parse_override(f"{key}=1")
    except HydraException:
        return f"{word}: {key!r} cannot be a key; write key=value, and dots between the parts of a key"
    bare = re.fullmatch(r"""(["'])(.*?)\1?|(.*)""", value, re.DOTALL)
    assert bare is not None
    text = value if bare[1] is None else bare[2]
    reason = f": {one_line(error).split(': ', 1)[1]}" if "while evaluating" in str(error) else ""
    as_sweep = f", as several {typed(key, *text.split(','))}" if sweep and "," in text else ""
    return f"{key}: Hydra cannot read the value {value}{reason}; as text it is typed {typed(key, text)}{as_sweep}"
