"""`MetaGradient`, the result of one meta-batch, and its means over groups of tasks and over processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from fewshot.algorithms.learner import Tensors
from fewshot.core.distributed import all_reduce_sum, pad_to_global


@dataclass(frozen=True)
class MetaGradient:
    """The result of a meta-batch of T tasks."""

    gradient: Tensors  # mean over tasks, in the parameters' shapes
    state: Tensors  # the start of the next meta-batch
    loss: torch.Tensor  # [T]
    score: torch.Tensor  # [T] see `learner.score`


def weighted_mean(parts: Iterable[MetaGradient], tasks: int, sequential: bool) -> MetaGradient:
    """The MetaGradient of `tasks` tasks from those of consecutive groups of them.

    Its state is the mean of theirs; where the groups ran one after the other (`sequential`), that of the last.
    """
    gradient: Tensors = {}
    state: Tensors = {}
    losses, scores = [], []
    for part in parts:
        weight = len(part.loss) / tasks
        gradient = _add(gradient, part.gradient, weight)
        state = part.state if sequential else _add(state, part.state, weight)
        losses.append(part.loss)
        scores.append(part.score)
    return MetaGradient(gradient, state, torch.cat(losses), torch.cat(scores))


def over_processes(own: MetaGradient, tasks: range, count: int) -> MetaGradient:
    """The mean over a meta-batch of `count` tasks that several processes share; every process gets the same.

    Args:
        own: of the tasks that this process ran.
        tasks: their indices in the meta-batch.
    """
    if len(tasks) == count:
        return own
    weight = len(tasks) / count
    means = [weight * value for value in (*own.gradient.values(), *own.state.values())]
    values = [pad_to_global(value, tasks, count) for value in (own.loss, own.score)]
    *means, loss, score = all_reduce_sum([*means, *values])
    gradient = dict(zip(own.gradient, means, strict=False))
    state = dict(zip(own.state, means[len(gradient) :], strict=True))
    return MetaGradient(gradient, state, loss, score)


def _add(total: Tensors, values: Tensors, weight: float) -> Tensors:
    return {n: torch.add(total[n], value, alpha=weight) if total else weight * value for n, value in values.items()}
