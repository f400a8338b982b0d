"""Signs of life of long work: notes, and a progress bar on a terminal, else a line every 15 seconds."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache

from fewshot.core.distributed import is_rank_zero

SECONDS = 15.0  # between two lines where stdout is no terminal


@contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Show how much of `total` is done: a bar on a terminal, else a line at the start and every 15 seconds.

    Yields:
        advance(text, by=1): `by` more are done; `text` says more about it, such as a score.
    """
    if sys.stdout.isatty() and os.environ.get("TTY_COMPATIBLE") != "0":
        with _bar(title, total, done) as advance:
            yield advance
        return
    start, first, text, stop = time.perf_counter(), done, "", threading.Event()

    def advance(new_text: str = "", by: int = 1) -> None:
        nonlocal done, text
        done, text = done + by, new_text

    def report() -> None:
        while not stop.wait(SECONDS):
            seconds = time.perf_counter() - start
            known = first < done <= total  # a download may not say how long it is
            left = f"{_duration(seconds / (done - first) * (total - done))} left" if known else ""
            parts = [f"{done:,.0f} of {total:,}", text, left or f"{_duration(seconds)} so far"]
            with suppress(BrokenPipeError):  # as in `| head`: the next line of the main thread ends the process
                print(f"{title}: {', '.join(part for part in parts if part)}", flush=True)

    print(f"{title}: starts, {done:,} of {total:,}", flush=True)
    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield advance
    finally:
        stop.set()
        reporter.join()


@contextmanager
def _bar(title: str, total: int, done: int) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    # On a narrow terminal the texts give way, not the count and the time.
    console, count, left = Console(), len(f"{total}/{total}"), len("0:00:00")
    columns = (
        TextColumn("{task.description}", table_column=Column(max_width=console.width - count - left - 4, no_wrap=True)),
        BarColumn(bar_width=10),
        MofNCompleteColumn(table_column=Column(min_width=count, no_wrap=True)),
        TimeRemainingColumn(table_column=Column(min_width=left, no_wrap=True)),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done, text="")
        yield lambda text="", by=1: bar.update(task, advance=by, text=text)


def _duration(seconds: float) -> str:
    """Whole seconds as [hours:]minutes:seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@contextmanager
def show_training(
    track: Callable[[Mapping[str, float], int], None],
    title: str,
    steps: int,
    done: int,
    meta_batch: int,
    log_every: int,
    task: str = "",
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Show outer steps as they are done: score, tasks per second and time left; and track their metrics.

    Args:
        track: called as track(metrics, step) at the steps that metrics.jsonl has too.
        done: outer steps that were done before, in an earlier process.
        task: what a training task is where a test's is another, such as "15-way".

    Yields:
        callback(step, metrics), to be called after every outer step with the names of metrics.jsonl.
    """
    if done >= steps:
        yield lambda step, metrics: None
        return
    start, texts = time.perf_counter(), {"score": "", "validation": ""}
    with progress_bar(title, steps, done) as advance:

        def show(step: int, metrics: Mapping[str, float]) -> None:
            for name, value in metrics.items():
                if name in ("accuracy", "mse"):
                    texts["score"] = f"{task} {name} {_format_score(name, value)}".lstrip()
                elif name.startswith("validation_"):
                    texts["validation"] = f"validation {_format_score(name, value)}"
            rate = (step - done) * meta_batch / max(1e-9, time.perf_counter() - start)
            advance(", ".join(text for text in (*texts.values(), f"{rate:.0f} tasks/s") if text))
            if step % log_every == 0 or step == steps or any(name.startswith("validation_") for name in metrics):
                track(metrics, step)

        yield show


def _format_score(name: str, value: float) -> str:
    return f"{value:.4g}" if name.endswith("mse") else f"{value:.1%}"


@cache
def print_note(note: str) -> None:
    """Print a note on stderr, once in a process, and on rank 0 alone."""
    if is_rank_zero():  # inside `main_first` every rank is a main process of its own
        print(f"note: {note}", file=sys.stderr)
