"""`Episodes`: the data type that flows from a sampler through a learner to a score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Episodes:
    """T few-shot tasks of N ways, K shots and Q queries per class, as five tensors.

    Classification labels are int64 in 0..N-1. In regression targets are float and N is 1: one value for each item, or D
    values in a further axis. The items of a class are contiguous: support item `n * K + k` is shot k of class n.
    An integer index gives one task without the leading axis, which is the form that an algorithm sees.
    """

    support_x: torch.Tensor  # [T, N*K, ...]
    support_y: torch.Tensor  # [T, N*K], or in regression also [T, K, D]
    query_x: torch.Tensor  # [T, N*Q, ...]
    query_y: torch.Tensor  # [T, N*Q], or in regression also [T, Q, D]
    key: torch.Tensor  # [T] int64, a hash of (seed, split, episode): the source of a task's own random draws
    way: int = 0  # N; if not given, it is counted from the labels

    def __post_init__(self) -> None:
        if not self.way:
            way = 1 if self.support_y.is_floating_point() else int(self.support_y.max()) + 1
            object.__setattr__(self, "way", way)

    def __len__(self) -> int:
        return self.key.shape[0]

    def __getitem__(self, tasks: int | slice | list[int]) -> Episodes:
        return self.with_tensors(*(value[tasks] for value in self.tensors()))

    @property
    def shot(self) -> int:
        """K: support items of one task for each of its ways."""
        return self.support_y.shape[self.key.dim()] // self.way

    def with_tensors(self, *tensors: torch.Tensor) -> Episodes:
        """Episodes of as many ways with other tensors, in the order of `tensors()`."""
        return Episodes(*tensors, way=self.way)

    def without_queries(self) -> Episodes:
        """As a learner adapts to them in a test, where it cannot read the queries."""
        axis = self.key.dim()
        query_x, query_y = self.query_x.narrow(axis, 0, 0), self.query_y.narrow(axis, 0, 0)
        return self.with_tensors(self.support_x, self.support_y, query_x, query_y, self.key)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The five tensors in order, which `torch.func.vmap` maps over."""
        return self.support_x, self.support_y, self.query_x, self.query_y, self.key

    def to(self, target: torch.device | torch.dtype | str) -> Episodes:
        """Moved to a device, or with the floating-point tensors cast to a dtype."""
        if isinstance(target, torch.dtype):
            return self.with_tensors(*(v.to(target) if v.is_floating_point() else v for v in self.tensors()))
        return self.with_tensors(*(v.to(target) for v in self.tensors()))


class Source(Protocol):
    """The data of one split, from which tasks are drawn: a Bank of examples, Functions or Tables."""

    @property
    def split(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]: ...  # of the classes or tables; empty for functions

    @property
    def shape(self) -> tuple[int, ...]: ...  # of one example

    @property
    def fingerprint(self) -> str: ...  # SHA-256 of the whole content

    @property
    def image_fingerprint(self) -> str:
        """Fingerprint of the underlying images (of the source itself if it does not hold features)."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...  # description for the record


class Tasks(Protocol):
    """Episodes of N ways, K shots and Q queries, each a function of (seed, split, number): Sampler or Regression."""

    @property
    def source(self) -> Source: ...

    @property
    def way(self) -> int: ...

    @property
    def shot(self) -> int: ...

    @property
    def query(self) -> int: ...

    @property
    def metric(self) -> str: ...  # `accuracy`; or `mse`, where less is better

    @property
    def device(self) -> torch.device: ...

    def episodes(self, first: int, count: int) -> Episodes:
        """Episodes first..first+count-1."""
        ...

    def manifest(self, first: int, count: int) -> str:
        """SHA-256 of these episodes: two scores may stand in one column of a table only when it is equal."""
        ...
