"""`Episodes`: the one data type that flows from a sampler through a learner to a score."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Episodes:
    """T few-shot tasks of N ways, K shots and Q queries per class, as five tensors.

    Classification labels are int64 in 0..N-1; regression targets are float. The items of a class
    are contiguous: support item `n * K + k` is shot k of class n. Indexed with an integer, the one
    task without its leading axis: the form in which an algorithm sees it.
    """

    support_x: torch.Tensor  # [T, N*K, ...]
    support_y: torch.Tensor  # [T, N*K]
    query_x: torch.Tensor  # [T, N*Q, ...]
    query_y: torch.Tensor  # [T, N*Q]
    key: torch.Tensor  # [T] int64, a hash of (seed, split, episode): the source of a task's own random draws

    def __len__(self) -> int:
        return self.key.shape[0]

    def __getitem__(self, tasks: int | slice) -> Episodes:
        return Episodes(*(value[tasks] for value in self.tensors()))

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The fields in order: what `torch.func.vmap` maps over."""
        return self.support_x, self.support_y, self.query_x, self.query_y, self.key

    def to(self, target: torch.device | torch.dtype | str) -> Episodes:
        """Moved to a device, or with its floating-point tensors cast to a dtype."""
        if isinstance(target, torch.dtype):
            return Episodes(*(v.to(target) if v.is_floating_point() else v for v in self.tensors()))
        return Episodes(*(v.to(target) for v in self.tensors()))
