"""Regression tasks from functions or from tables: task i is a pure function of (seed, split, i)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from fewshot.core.checks import check_number, check_seed
from fewshot.core.errors import FewshotError
from fewshot.core.random import fold_in, stream
from fewshot.episodes import Episodes, Source

_LEARNER = 4  # stream of one task; those before it belong to the source


class Points(Protocol):
    """P points of each of T tasks, in random order: Curves or Rows."""

    @property
    def x(self) -> torch.Tensor: ...  # [T, P, inputs]

    @property
    def y(self) -> torch.Tensor: ...  # [T, P], or [T, P, outputs]

    def identity(self) -> Iterator[bytes]:
        """What tells these draws from others of the same source."""
        ...


class PointSource(Source, Protocol):
    """The data of one split of a regression: Functions or Tables."""

    @property
    def outputs(self) -> tuple[str, ...]: ...  # names of the values of y

    @property
    def description(self) -> str: ...  # one line for tables

    @property
    def device(self) -> torch.device: ...

    def to(self, device: torch.device | str) -> PointSource:
        """The same source, with tasks drawn on a device."""
        ...

    def draw(self, task: torch.Tensor, count: int) -> Points:
        """Draw `count` points of T tasks, each a function of its stream: task [T] int64.

        Raises:
            FewshotError: a task has fewer points.
        """
        ...


@dataclass(frozen=True)
class Regression:
    """K-shot regression: K support points and Q query points of a function, or rows of a table.

    Raises:
        FewshotError: fewer than one support point, less than no query point, or more points than a task has.
    """

    source: PointSource
    shot: int
    query: int
    seed: int = 0

    way = 1  # there are no classes
    metric = "mse"

    def __post_init__(self) -> None:
        if not callable(getattr(self.source, "draw", None)):
            words = ": take one of its values" if isinstance(self.source, Mapping) else ""
            wanted = "functions or tables are wanted"
            raise FewshotError(f"Regression: source is a {type(self.source).__name__}, and {wanted}{words}")
        for name, least in (("shot", 1), ("query", 0)):
            object.__setattr__(self, name, check_number(name, getattr(self, name), int, least))
        object.__setattr__(self, "seed", check_seed("seed", self.seed))
        self.draw(0, 1)  # the source has so many points

    @property
    def device(self) -> torch.device:
        """The device on which tasks are drawn."""
        return self.source.device

    def _streams(self, first: int, count: int) -> torch.Tensor:
        """The streams [T] of tasks first..first+count-1."""
        number = torch.arange(first, first + count, dtype=torch.int64, device=self.device)
        return fold_in(stream(self.seed, self.source.split), number)

    def draw(self, first: int, count: int) -> Points:
        """The points of tasks first..first+count-1; the first K are the support set."""
        return self.source.draw(self._streams(first, count), self.shot + self.query)

    def episodes(self, first: int, count: int) -> Episodes:
        """Tasks first..first+count-1: support x [T, K, inputs] and y [T, K] or [T, K, outputs], query likewise."""
        task, k = self._streams(first, count), self.shot
        points = self.source.draw(task, k + self.query)
        support, query = (points.x[:, :k], points.y[:, :k]), (points.x[:, k:], points.y[:, k:])
        return Episodes(*support, *query, fold_in(task, _LEARNER), self.way)

    def manifest(self, first: int, count: int) -> str:
        """SHA-256 of the source and of the draws of these tasks: equal means the very same tasks."""
        digest = hashlib.sha256(self.source.fingerprint.encode())
        for start in range(first, first + count, 1000):
            for part in self.draw(start, min(1000, first + count - start)).identity():
                digest.update(part)
        digest.update(f"{self.shot}/{self.query}".encode())
        return digest.hexdigest()
