"""`Outer`, what a meta-batch asks of the meta-parameters, and its means over groups of tasks and over processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from fewshot.algorithms.learner import Tensors
from fewshot.core.distributed import added, placed


@dataclass(frozen=True)
class Outer:
    """What a meta-batch of T tasks asks of the meta-parameters."""

    gradient: Tensors  # mean over tasks, in the parameters' shapes
    carry: Tensors  # state for the next meta-batch
    loss: torch.Tensor  # [T]
    score: torch.Tensor  # [T] see `learner.score`


def weighted_mean(parts: Iterable[Outer], tasks: int, chained: bool) -> Outer:
    """One Outer from those of consecutive groups of tasks; a chain's carry is that of its end."""
    gradient: Tensors = {}
    carry: Tensors = {}
    losses, scores = [], []
    for part in parts:
        share = len(part.loss) / tasks
        gradient = _plus(gradient, part.gradient, share)
        carry = part.carry if chained else _plus(carry, part.carry, share)
        losses.append(part.loss)
        scores.append(part.score)
    return Outer(gradient, carry, torch.cat(losses), torch.cat(scores))


def over_processes(own: Outer, tasks: range, count: int) -> Outer:
    """The Outer of a whole meta-batch of `count` tasks, the same in every process, each of which ran some of them.

    Args:
        own: of the tasks that this process ran.
        tasks: their places in the meta-batch.
    """
    if len(tasks) == count:
        return own
    weight = len(tasks) / count
    means = [weight * value for value in (*own.gradient.values(), *own.carry.values())]
    *means, loss, score = added([*means, *(placed(values, tasks, count) for values in (own.loss, own.score))])
    names = len(own.gradient)
    gradient = dict(zip(own.gradient, means[:names], strict=True))
    return Outer(gradient, dict(zip(own.carry, means[names:], strict=True)), loss, score)


def _plus(total: Tensors, values: Tensors, share: float) -> Tensors:
    return {n: torch.add(total[n], value, alpha=share) if total else share * value for n, value in values.items()}
