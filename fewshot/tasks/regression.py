"""Regression tasks from a distribution over functions: task i is a pure function of (seed, split, i)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.func import vmap

from fewshot.core.checks import check_number
from fewshot.core.random import fold_in, normal, randint, split, stream, uniform
from fewshot.episodes import Episodes
from fewshot.tasks.functions import FAMILIES, Functions, Range

_FAMILY, _PARAMETERS, _X, _NOISE, _LEARNER = range(5)  # streams of one task


@dataclass(frozen=True)
class Curves:
    """The functions of T tasks and their points, without noise."""

    family: torch.Tensor  # [T] index of the task's family in `parameters`
    parameters: Mapping[str, tuple[torch.Tensor, ...]]  # family to [T, 1] of each parameter, drawn for every task
    x: torch.Tensor  # [T, K+Q] the points; the first K are the support set
    key: torch.Tensor  # [T] stream of a task

    def at(self, x: torch.Tensor) -> torch.Tensor:
        """The values of the functions, [T, M] at x [T, M]."""
        values = [FAMILIES[name][1](x, *parameters) for name, parameters in self.parameters.items()]
        return torch.stack(values).gather(0, self.family[None, :, None].expand(1, *x.shape))[0]


@dataclass(frozen=True)
class Regression:
    """K-shot regression: K support points and Q query points of a function.

    Raises:
        FewshotError: fewer than one support point, or less than no query point.
    """

    source: Functions
    shot: int
    query: int
    seed: int

    way = 1  # a function has one output
    metric = "mse"

    def __post_init__(self) -> None:
        check_number("shot", self.shot, int, 1)
        check_number("query", self.query, int, 0)

    @property
    def device(self) -> torch.device:
        """The device on which tasks are drawn."""
        return self.source.device

    def draw(self, first: int, count: int) -> Curves:
        """The functions of tasks first..first+count-1, and their points."""
        number = torch.arange(first, first + count, dtype=torch.int64, device=self.device)
        task = fold_in(stream(self.seed, self.source.split), number)  # [T]

        def bits(of: int, count: int) -> torch.Tensor:
            return split(fold_in(task, of), count)  # [T, count]

        families = self.source.families
        family = randint(bits(_FAMILY, 1)[:, 0], len(families))
        unused = iter(bits(_PARAMETERS, sum(map(len, families.values()))).unbind(1))
        parameters = {
            name: tuple(_uniform(limits, next(unused)[:, None]) for limits in ranges.values())
            for name, ranges in families.items()
        }
        x = _uniform(self.source.x, bits(_X, self.shot + self.query))
        return Curves(family, parameters, x, task)

    def episodes(self, first: int, count: int) -> Episodes:
        """Tasks first..first+count-1: support x [T, K, 1] and y [T, K], query x [T, Q, 1] and y [T, Q]."""
        curves = self.draw(first, count)
        y = curves.at(curves.x)
        if self.source.noise:
            keys = fold_in(curves.key, _NOISE)
            y = y + self.source.noise * vmap(lambda key: normal(key, (curves.x.shape[1],)))(keys)
        x, k = curves.x[..., None], self.shot
        return Episodes(x[:, :k], y[:, :k], x[:, k:], y[:, k:], fold_in(curves.key, _LEARNER), self.way)

    def manifest(self, first: int, count: int) -> str:
        """SHA-256 of the distribution and of the draws of these tasks: equal means the very same tasks."""
        digest = hashlib.sha256(self.source.fingerprint.encode())
        for start in range(first, first + count, 1000):
            curves = self.draw(start, min(1000, first + count - start))
            digest.update(curves.family.cpu().numpy().astype("<i8").tobytes())
            for values in (*(p for parameters in curves.parameters.values() for p in parameters), curves.x):
                digest.update(values.cpu().numpy().astype("<f4").tobytes())
        digest.update(f"{self.shot}/{self.query}".encode())
        return digest.hexdigest()


def _uniform(limits: Range, bits: torch.Tensor) -> torch.Tensor:
    low, high = limits
    return low + (high - low) * uniform(bits)
