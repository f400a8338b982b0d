"""Ctrl-C that waits for a good moment to stop."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def hold_interrupt() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C of the block wait, and the second interrupt at once.

    Only the main thread can do so; elsewhere, and where Ctrl-C means something else already, nothing changes.

    Yields:
        Whether Ctrl-C was pressed; then the caller is to stop, by KeyboardInterrupt.
    """
    pressed = False

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(number, signal.default_int_handler)
        print("\nstops after this step; Ctrl-C again: at once", file=sys.stderr, flush=True)

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
