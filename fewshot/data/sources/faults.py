"""Errors with many causes, such as damaged images: the message says how many, and a file lists them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fewshot.core.errors import FewshotError

MAX_SHOWN, MAX_LETTERS = 3, 300  # faults in one message, and their letters


class FaultsError(FewshotError):
    """Several faults of one kind: the message names a few of them, `faults` holds all."""

    def __init__(self, message: str, faults: Sequence[str]) -> None:
        super().__init__(message)
        self.faults = faults


def raise_faults(kind: str, faults: Sequence[str], remedy: str) -> None:
    """Raise one error for all faults of a kind; do nothing if there are none.

    Args:
        kind: the name of several such faults, for example "damaged images".
        faults: one text each: where it is and what is wrong.
        remedy: what to do about one of them.

    Raises:
        FewshotError: there are faults.
    """
    if len(faults) == 1:
        raise FewshotError(f"{faults[0]}; {remedy}")
    if faults:
        shown = next((n for n in range(MAX_SHOWN, 1, -1) if len("; ".join(faults[:n])) <= MAX_LETTERS), 1)
        rest = f"and {len(faults) - shown:,} more; " if len(faults) > shown else ""
        message = f"{len(faults):,} {kind}: {'; '.join(faults[:shown])}; {rest}for each: {remedy}"
        raise FaultsError(message, faults)


@contextmanager
def list_faults(path: Path) -> Iterator[None]:
    """Write all faults that end the block to a file and name the file in the message; without faults remove it.

    Raises:
        FewshotError: the error of the block.
    """
    try:
        yield
    except FaultsError as error:
        with suppress(OSError):  # if the file cannot be written, the message still names the first faults
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{fault}\n" for fault in error.faults), encoding="utf-8", errors="replace")
            raise FewshotError(f"{error}; all are listed in {path}") from error
        raise
    with suppress(OSError):
        path.unlink(missing_ok=True)
