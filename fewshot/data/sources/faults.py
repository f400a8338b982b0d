"""Mistakes that come in numbers, such as damaged images: the message says how many, a file lists them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fewshot.core.errors import FewshotError

NAMED, LETTERS = 3, 300  # of many in a message: at most so many, in so many letters


class FaultsError(FewshotError):
    """Several mistakes of one kind: the message names a few of them, `faults` are all."""

    def __init__(self, message: str, faults: Sequence[str]) -> None:
        super().__init__(message)
        self.faults = faults


def raise_faults(kind: str, faults: Sequence[str], remedy: str) -> None:
    """Raise the one error of all mistakes of a kind; nothing where there are none.

    Args:
        kind: of several, in words, such as "damaged images".
        faults: one text each: where it is, and what is wrong.
        remedy: for one of them.

    Raises:
        FewshotError: there are any.
    """
    if len(faults) == 1:
        raise FewshotError(f"{faults[0]}; {remedy}")
    if faults:
        named = next((n for n in range(NAMED, 1, -1) if len("; ".join(faults[:n])) <= LETTERS), 1)
        first, more = "; ".join(faults[:named]), max(0, len(faults) - named)
        message = f"{len(faults):,} {kind}: {first}; {f'and {more:,} more; ' * bool(more)}of each: {remedy}"
        raise FaultsError(message, faults)


@contextmanager
def faults_listed(path: Path) -> Iterator[None]:
    """Write all mistakes that end the block to a file, and name it in the message; without mistakes remove it.

    Raises:
        FewshotError: the error of the block.
    """
    try:
        yield
    except FaultsError as error:
        with suppress(OSError):  # where nothing can be written, the first of them are in the message
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{fault}\n" for fault in error.faults), encoding="utf-8", errors="replace")
            raise FewshotError(f"{error}; all are listed in {path}") from error
        raise
    with suppress(OSError):
        path.unlink(missing_ok=True)
