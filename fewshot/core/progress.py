"""How training shows itself: a progress bar on a terminal, TensorBoard files, nothing else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter


@contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """A bar on a terminal, one line of words elsewhere; yields what shows some words and advances it, by 1 or `by`."""
    console = Console(stderr=True)
    if not console.is_terminal:
        print(title, file=sys.stderr, flush=True)
    with _bar(console) as bar:
        task = bar.add_task(title, total=total, completed=done, words="")
        yield lambda words, by=1: bar.update(task, advance=by, words=words)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


class TrainingDisplay:
    """A context that shows outer steps as they are done: a bar with the score, tasks per second and remaining time.

    Quiet when stdout is no terminal. TensorBoard files go to `folder`, at the steps that metrics.jsonl has too.
    """

    def __init__(self, folder: Path, title: str, steps: int, start: int, meta_batch: int, log_every: int) -> None:
        self._board = SummaryWriter(str(folder), purge_step=start + 1)
        self._meta_batch, self._log_every = meta_batch, log_every
        self._bar = _bar(Console())
        self._task = self._bar.add_task(title, total=steps, completed=start, words="")
        self._start, self._clock = start, time.perf_counter()
        self._score = self._validation = ""

    def __enter__(self) -> TrainingDisplay:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()
        self._board.close()

    def update(self, step: int, values: dict[str, float]) -> None:
        """Outer step `step` is done; `values`, as far as they are known, are named as in metrics.jsonl."""
        validated = [name for name in values if name.startswith("validation_")]
        self._score = next((_said(name, values[name]) for name in ("accuracy", "mse") if name in values), self._score)
        if validated:
            self._validation = f", {_said(validated[0], values[validated[0]])}"
        rate = (step - self._start) * self._meta_batch / max(1e-9, time.perf_counter() - self._clock)
        words = f"{self._score}{self._validation}, {rate:.0f} tasks/s"
        self._bar.update(self._task, completed=step, words=words)
        if step % self._log_every == 0 or validated:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)


def _said(name: str, value: float) -> str:
    return f"{name.replace('_', ' ')} {value:.4g}" if name.endswith("mse") else f"{name.replace('_', ' ')} {value:.1%}"
