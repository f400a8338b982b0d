"""Distributions over functions of one variable, which take the place of a Bank in regression.

Sine waves are those of MAML (Finn et al. 2017, section 5.1); mixed with lines they are those of LEO (Rusu et al. 2019,
section 4.1). The ranges are in conf/dataset, with their sources.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import torch
from torch.func import vmap

from fewshot.core.checks import check_number
from fewshot.core.errors import FewshotError
from fewshot.core.random import fold_in, normal, randint, split, uniform

# The parameters of each family, and its function of x [T, M] and of each parameter [T, 1].
FAMILIES: Mapping[str, tuple[tuple[str, ...], Callable[..., torch.Tensor]]] = {
    "sine": (("amplitude", "phase"), lambda x, amplitude, phase: amplitude * (x - phase).sin()),
    "line": (("slope", "intercept"), lambda x, slope, intercept: slope * x + intercept),
}
Range = tuple[float, float]
_FAMILY, _PARAMETERS, _X, _NOISE = range(4)  # streams of one task


@dataclass(frozen=True)
class Curves:
    """The functions of T tasks and P points of each."""

    family: torch.Tensor  # [T] index of the task's family in `parameters`
    parameters: Mapping[str, tuple[torch.Tensor, ...]]  # family to [T, 1] of each parameter, drawn for every task
    x: torch.Tensor  # [T, P, 1]
    y: torch.Tensor  # [T, P], with noise

    def identity(self) -> Iterator[bytes]:
        """What tells these draws from others."""
        yield self.family.cpu().numpy().astype("<i8").tobytes()
        for values in (*(p for parameters in self.parameters.values() for p in parameters), self.x):
            yield values.cpu().numpy().astype("<f4").tobytes()

    def at(self, x: torch.Tensor) -> torch.Tensor:
        """The values of the functions without noise, [T, M] at x [T, M]."""
        return _values(self.family, self.parameters, x)


@dataclass(frozen=True)
class Functions:
    """One split of a distribution over functions: a random family, uniform parameters, uniform x, and y with noise.

    All splits have the same distribution and different tasks, since a split's name is part of the tasks' stream.

    Raises:
        FewshotError: no family, or an unknown family or parameter.
    """

    families: Mapping[str, Mapping[str, Range]]  # family to parameter to [low, high]
    x: Range
    noise: float  # standard deviation of the Gaussian noise on y, of support and query points alike
    split: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    shape = (1,)  # of one x
    outputs = ("y",)
    names: tuple[str, ...] = ()  # there are no classes

    def __post_init__(self) -> None:
        check_families(self.families)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the distribution."""
        content = [{name: dict(ranges) for name, ranges in self.families.items()}, self.x, self.noise]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def image_fingerprint(self) -> str:
        """The same: functions are not features of images."""
        return self.fingerprint

    @property
    def metadata(self) -> dict[str, Any]:
        """The distribution, for the record."""
        return {"functions": self.description}

    @property
    def description(self) -> str:
        """The distribution in words, such as `sine: amplitude 0.1 to 5, phase 0 to 3.142; x -5 to 5; noise 0`."""
        parts = []
        for family, ranges in self.families.items():
            limits = (f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in ranges.items())
            parts.append(f"{family}: {', '.join(limits)}")
        return "; ".join([*parts, "x {:.4g} to {:.4g}".format(*self.x), f"noise {self.noise:.4g}"])

    def to(self, device: torch.device | str) -> Functions:
        """The same distribution, with tasks drawn on a device."""
        return replace(self, device=torch.device(device))

    def draw(self, task: torch.Tensor, count: int) -> Curves:
        """The functions of T tasks, and `count` points of each.

        Args:
            task: [T] int64, the stream of each task.
        """

        def bits(of: int, count: int) -> torch.Tensor:
            return split(fold_in(task, of), count)  # [T, count]

        family = randint(bits(_FAMILY, 1)[:, 0], len(self.families))
        unused = iter(bits(_PARAMETERS, sum(map(len, self.families.values()))).unbind(1))
        # Sorted by name: the order of the mappings changes no draw, as it does not change `fingerprint`.
        parameters = {
            name: tuple(_uniform(self.families[name][of], next(unused)[:, None]) for of in FAMILIES[name][0])
            for name in sorted(self.families)
        }
        x = _uniform(self.x, bits(_X, count))
        y = _values(family, parameters, x)
        if self.noise:
            y = y + self.noise * vmap(lambda key: normal(key, (count,)))(fold_in(task, _NOISE))
        return Curves(family, parameters, x[..., None], y)


def _values(family: torch.Tensor, parameters: Mapping[str, tuple[torch.Tensor, ...]], x: torch.Tensor) -> torch.Tensor:
    values = [FAMILIES[name][1](x, *own) for name, own in parameters.items()]
    return torch.stack(values).gather(0, family[None, :, None].expand(1, *x.shape))[0]


def _uniform(limits: Range, bits: torch.Tensor) -> torch.Tensor:
    low, high = limits
    return low + (high - low) * uniform(bits)


def check_families(families: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises FewshotError where there is no family, or where a family or a parameter is not one of FAMILIES."""
    key = "dataset.reader.families"
    if not isinstance(families, Mapping) or not families:
        raise FewshotError(f"{key}={families}: give at least one of {', '.join(FAMILIES)} its ranges")
    for family, ranges in families.items():
        if family not in FAMILIES:
            raise FewshotError(f"{key}.{family}: no such family; there are {', '.join(FAMILIES)}")
        if not isinstance(ranges, Mapping) or set(ranges) != set(FAMILIES[family][0]):
            raise FewshotError(f"{key}.{family}: its parameters are {' and '.join(FAMILIES[family][0])}")


def read_functions(
    families: Mapping[str, Mapping[str, Sequence[float]]], x: Sequence[float], noise: float
) -> dict[str, Functions]:
    """The splits train, val and test of a distribution over functions.

    Args:
        families: of FAMILIES, each with a range [low, high] for every parameter; all are equally likely. A family that
            is None is left out.
        x: range [low, high].
        noise: standard deviation of Gaussian noise on y.

    Raises:
        FewshotError: an unknown family or parameter, a range that is none, or a noise below 0.
    """
    key = "dataset.reader"
    if isinstance(families, Mapping):
        families = {name: ranges for name, ranges in families.items() if ranges is not None or name not in FAMILIES}
    check_families(families)
    checked: dict[str, dict[str, Range]] = {
        family: {of: _range(f"{key}.families.{family}.{of}", families[family][of]) for of in FAMILIES[family][0]}
        for family in sorted(families)
    }
    check_number(f"{key}.noise", noise, float, 0)
    limits = _range(f"{key}.x", x)
    return {split: Functions(checked, limits, float(noise), split) for split in ("train", "val", "test")}


def _range(key: str, value: Any) -> Range:
    try:
        low, high = (float(limit) for limit in value)
    except (TypeError, ValueError):
        raise FewshotError(f"{key}={value}: a range has two numbers, [low,high]") from None
    if not (isfinite(low) and isfinite(high) and low <= high):
        raise FewshotError(f"{key}={value}: a range goes from low to high")
    return low, high
