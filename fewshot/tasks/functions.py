"""Distributions over functions of one variable: what stands in regression where a Bank of examples stands elsewhere.

Sine waves are those of MAML (Finn et al. 2017, section 5.1), and mixed with lines those of LEO (Rusu et al. 2019,
section 4.1); the ranges stand in conf/dataset, each with what is known of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import torch

from fewshot.core.errors import FewshotError
from fewshot.data.bank import SPLITS

# Each family's parameters, and its function of x [T, M] and of each parameter [T, 1].
FAMILIES: Mapping[str, tuple[tuple[str, ...], Callable[..., torch.Tensor]]] = {
    "sine": (("amplitude", "phase"), lambda x, amplitude, phase: amplitude * (x - phase).sin()),
    "line": (("slope", "intercept"), lambda x, slope, intercept: slope * x + intercept),
}
Range = tuple[float, float]


@dataclass(frozen=True)
class Functions:
    """One split of a distribution over functions: a family by a fair draw, its parameters and x uniform, y with noise.

    The distribution is the same for every split; tasks differ, since a split's name is part of their stream.
    """

    families: Mapping[str, Mapping[str, Range]]  # family to parameter to [low, high]
    x: Range
    noise: float  # standard deviation of the Gaussian noise on y, of support and query points alike
    split: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    shape = (1,)  # of one x
    names: tuple[str, ...] = ()  # there are no classes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the distribution is."""
        what = [{name: dict(ranges) for name, ranges in self.families.items()}, self.x, self.noise]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    @property
    def image_fingerprint(self) -> str:
        """The same: nothing stands behind them."""
        return self.fingerprint

    @property
    def metadata(self) -> dict[str, Any]:
        """The distribution, for the record."""
        return {"functions": self.words}

    @property
    def words(self) -> str:
        """The distribution for a person, such as `sine: amplitude 0.1 to 5, phase 0 to 3.142; x -5 to 5; noise 0`."""
        parts = [
            f"{family}: " + ", ".join(f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in ranges.items())
            for family, ranges in self.families.items()
        ]
        return "; ".join([*parts, "x {:.4g} to {:.4g}".format(*self.x), f"noise {self.noise:.4g}"])

    def to(self, device: torch.device | str) -> Functions:
        """The same, drawn on a device."""
        return replace(self, device=torch.device(device))


def read(
    families: Mapping[str, Mapping[str, Sequence[float]]], x: Sequence[float], noise: float
) -> dict[str, Functions]:
    """The splits train, val and test of a distribution over functions.

    Args:
        families: of FAMILIES, each with a range [low, high] for every parameter, drawn with equal probability; None
            is not drawn.
        x: range [low, high].
        noise: standard deviation of Gaussian noise on y.

    Raises:
        FewshotError: an unknown family or parameter, a range that is none, or a noise below 0.
    """
    key = "dataset.reader"
    if not isinstance(families, Mapping) or all(ranges is None for ranges in families.values()):
        raise FewshotError(f"{key}.families={families}: give at least one of {', '.join(FAMILIES)} its ranges")
    found: dict[str, dict[str, Range]] = {}
    for family in sorted(families):
        if family not in FAMILIES:
            raise FewshotError(f"{key}.families.{family}: no such family; there are {', '.join(FAMILIES)}")
        wanted, given = FAMILIES[family][0], families[family]
        if given is None:
            continue
        if not isinstance(given, Mapping) or set(given) != set(wanted):
            raise FewshotError(f"{key}.families.{family}: its parameters are {' and '.join(wanted)}")
        found[family] = {name: _range(f"{key}.families.{family}.{name}", given[name]) for name in wanted}
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < float("inf"):
        raise FewshotError(f"{key}.noise={noise}: must be a number of at least 0")
    limits = _range(f"{key}.x", x)
    return {split: Functions(found, limits, float(noise), split) for split in SPLITS}


def _range(key: str, given: Any) -> Range:
    try:
        low, high = (float(value) for value in given)
    except (TypeError, ValueError):
        raise FewshotError(f"{key}={given}: a range has two numbers, [low,high]") from None
    if not (isfinite(low) and isfinite(high) and low <= high):
        raise FewshotError(f"{key}={given}: a range goes from low to high")
    return low, high
