"""Ctrl-C that waits: where it does, where it cannot, and what becomes of it."""

import signal
import sys
import threading
from collections.abc import Callable

import pytest

from fewshot.core import interrupt
from fewshot.core.interrupt import hold_interrupt, never_hold_interrupt

pytestmark = pytest.mark.usefixtures("usual_ctrl_c")


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def fail() -> None:
    raise ValueError("nan")


def run_block(*steps: Callable[[], object]) -> tuple[list[bool], BaseException | None]:
    """Whether Ctrl-C was known after each step of a block that was reached, and what ended it."""
    known = []
    try:
        with hold_interrupt() as interrupted:
            for step in steps:
                step()
                known.append(interrupted())
    except (KeyboardInterrupt, ValueError) as error:
        return known, error
    return known, None


def test_the_first_waits_for_the_end_of_the_block_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    known, error = run_block(lambda: None, press, lambda: None)
    assert known == [False, True, True] and isinstance(error, KeyboardInterrupt)
    assert capsys.readouterr().err == "\nstopping after this step; press Ctrl-C again to stop at once\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run_block(lambda: None) == ([False], None)


def test_the_second_interrupts_at_once_unless_it_is_the_first_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_block(press, press, lambda: None)[0] == [True, True, True]
    monkeypatch.setattr(interrupt, "AGAIN", -1.0)
    known, error = run_block(press, press, lambda: None)
    assert known == [True] and isinstance(error, KeyboardInterrupt)


def test_it_is_not_lost_where_the_block_ends_by_an_error() -> None:
    known, error = run_block(press, fail)
    assert known == [True] and isinstance(error, KeyboardInterrupt) and isinstance(error.__cause__, ValueError)
    assert isinstance(run_block(fail)[1], ValueError)


def test_it_waits_also_where_nobody_reads_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def write(self, text: str) -> None:
            raise BrokenPipeError

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Closed())
        known, error = run_block(press, lambda: None)
    assert known == [True, True] and isinstance(error, KeyboardInterrupt)


def test_a_handler_of_ones_own_stays_before_and_within_the_block() -> None:
    pressed: list[int] = []
    own: Callable[..., None] = lambda number, frame: pressed.append(number)  # noqa: E731
    signal.signal(signal.SIGINT, own)
    assert run_block(press) == ([False], None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_block(lambda: signal.signal(signal.SIGINT, own))
    press()
    assert pressed == [signal.SIGINT] * 2


def test_a_thread_and_a_worker_do_not_wait() -> None:
    handlers = []
    thread = threading.Thread(target=run_block, args=(lambda: handlers.append(signal.getsignal(signal.SIGINT)),))
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]
    never_hold_interrupt()
    known, error = run_block(press, lambda: None)
    assert not known and isinstance(error, KeyboardInterrupt)
