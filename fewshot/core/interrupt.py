"""Ctrl-C that waits for a good moment to stop."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

AGAIN = 1.0  # seconds after which another Ctrl-C is a person's: `uv run` and others pass on the first one twice


@contextmanager
def hold_interrupt() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C of the block wait for its end, and the second interrupt at once.

    Only the main thread can do so; elsewhere, and where Ctrl-C means something else already, nothing changes.

    Yields:
        Whether Ctrl-C was pressed. Then the caller leaves the block as soon as it can.

    Raises:
        KeyboardInterrupt: at the end of the block, if Ctrl-C was pressed in it, also in place of an error.
    """
    pressed: float | None = None  # when

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        now = time.monotonic()
        if pressed is None:
            pressed = now
            with suppress(OSError, ValueError, RuntimeError):  # Ctrl-C may have ended the reader of stderr too
                print("\nstopping after this step; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)
        elif now - pressed > AGAIN:
            raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: pressed is not None
    except Exception as error:
        if pressed is not None:
            raise KeyboardInterrupt from error
        raise
    finally:
        if signal.getsignal(signal.SIGINT) is hold:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed is not None:
        raise KeyboardInterrupt


def never_hold_interrupt() -> None:
    """Let every Ctrl-C interrupt this process at once, for a process that ends soon after the one that started it."""
    signal.signal(signal.SIGINT, lambda number, frame: signal.default_int_handler(number, frame))
