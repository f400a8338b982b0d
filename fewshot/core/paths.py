"""Paths as people write them: with `~` and with environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from fewshot.core.errors import FewshotError


def find_own(name: str) -> Path:
    """A file or folder of this project that is no module: in the package if a wheel put it there, else beside it."""
    package = Path(__file__).resolve().parents[1]
    return package / name if (package / name).exists() else package.parent / name


CONF = find_own("conf")  # the configuration of the tools
VARIABLE = re.compile(r"\$([A-Za-z_]\w*)|\$\{([A-Za-z_]\w*)\}", re.ASCII)


def expand_path(path: str | os.PathLike[str]) -> Path:
    """The path with `~`, `~user`, `$NAME` and `${NAME}` replaced; of one that exists as it is written, `~` alone.

    Raises:
        FewshotError: there is no such user or variable.
    """
    return Path(expand_text(os.fspath(path)))


def expand_text(text: str, variable: re.Pattern[str] = VARIABLE, escape: Callable[[str], str] = str) -> str:
    """As `expand_path`.

    Args:
        variable: matches a variable; the group that matched is the name.
        escape: applied to each value that is put in.
    """
    if os.path.lexists(text) or os.path.lexists(os.path.expanduser(text)):
        return os.path.expanduser(text)

    def replaced(match: re.Match[str]) -> str:
        name = match[match.lastindex or 0]
        if name not in os.environ:
            raise FewshotError(
                f"{text}: the environment variable {name} is not defined; define it, or write the path out"
            )
        return escape(os.environ[name])

    path = variable.sub(replaced, text)
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        user = path.split("/")[0]
        raise FewshotError(f"{text}: there is no user {user[1:]}; for a file of this name write its whole path")
    return expanded
