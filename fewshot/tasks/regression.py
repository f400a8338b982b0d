"""Regression tasks from a distribution over functions: task i is a pure function of (seed, split, i)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.func import vmap

from fewshot.core.errors import FewshotError
from fewshot.core.random import fold_in, normal, randint, split, stream, uniform
from fewshot.episodes import Episodes
from fewshot.tasks.functions import FAMILIES, Functions, Range

_FAMILY, _PARAMETERS, _X, _NOISE, _LEARNER = range(5)  # streams of one task


@dataclass(frozen=True)
class Curves:
    """What was drawn for T tasks: everything but the noise."""

    family: torch.Tensor  # [T] place of the task's function in the families of its distribution
    parameters: Mapping[str, tuple[torch.Tensor, ...]]  # family to [T, 1] of each parameter, as if every task had it
    x: torch.Tensor  # [T, K+Q] where the function is seen; the first K are the support set
    key: torch.Tensor  # [T] stream of a task

    def at(self, x: torch.Tensor) -> torch.Tensor:
        """The functions without noise, [T, M] at x [T, M]."""
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
        for name, least in (("shot", 1), ("query", 0)):
            if getattr(self, name) < least:
                raise FewshotError(f"{name}={getattr(self, name)}: must be at least {least}")

    @property
    def device(self) -> torch.device:
        """Where tasks are drawn."""
        return self.source.device

    def draw(self, first: int, count: int) -> Curves:
        """The functions of tasks first..first+count-1, and where they are seen."""
        number = torch.arange(first, first + count, dtype=torch.int64, device=self.device)
        task = fold_in(stream(self.seed, self.source.split), number)  # [T]

        def branch(which: int, counters: int) -> torch.Tensor:
            return split(fold_in(task, which), counters)  # [T, counters]

        families = self.source.families
        family = randint(branch(_FAMILY, 1)[:, 0], len(families))
        bits = branch(_PARAMETERS, sum(map(len, families.values()))).unbind(1)
        taken = iter(bits)
        parameters = {
            name: tuple(_within(limits, next(taken)[:, None]) for limits in ranges.values())
            for name, ranges in families.items()
        }
        x = _within(self.source.x, branch(_X, self.shot + self.query))
        return Curves(family, parameters, x, task)

    def episodes(self, first: int, count: int) -> Episodes:
        """Tasks first..first+count-1: support x [T, K, 1] and y [T, K], query x [T, Q, 1] and y [T, Q]."""
        curves = self.draw(first, count)
        y = curves.at(curves.x)
        if self.source.noise:
            keys = fold_in(curves.key, _NOISE)
            y = y + self.source.noise * vmap(lambda key: normal(key, (curves.x.shape[1],)))(keys)
        x, k = curves.x[..., None], self.shot
        own = fold_in(curves.key, _LEARNER)
        return Episodes(x[:, :k], y[:, :k], x[:, k:], y[:, k:], own, self.way)

    def manifest(self, first: int, count: int) -> str:
        """SHA-256 of the distribution and of what was drawn for these tasks: equal means the very same tasks."""
        digest = hashlib.sha256(self.source.fingerprint.encode())
        for start in range(first, first + count, 1000):
            curves = self.draw(start, min(1000, first + count - start))
            drawn = [p for parameters in curves.parameters.values() for p in parameters]
            for values, kind in ((curves.family, "<i8"), *((v, "<f4") for v in (*drawn, curves.x))):
                digest.update(values.cpu().numpy().astype(kind).tobytes())
        digest.update(f"{self.shot}/{self.query}".encode())
        return digest.hexdigest()


def _within(limits: Range, bits: torch.Tensor) -> torch.Tensor:
    low, high = limits
    return low + (high - low) * uniform(bits)
