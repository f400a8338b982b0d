"""`MetaGradient`, the result of one meta-batch, and its means over groups of tasks and over processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from fewshot.algorithms.learner import Tensors
from fewshot.core.distributed import all_reduce_sum, pad_to_global


@dataclass(frozen=True)
class MetaGradient:
    """What a meta-batch of T tasks asks of the meta-parameters."""

    gradient: Tensors  # mean over tasks, in the parameters' shapes
    state: Tensors  # what the next meta-batch starts from
    loss: torch.Tensor  # [T]
    score: torch.Tensor  # [T] see `learner.score`


def weighted_mean(parts: Iterable[MetaGradient], tasks: int, sequential: bool) -> MetaGradient:
    """One MetaGradient from those of consecutive groups of tasks; a chain's state is that of its end."""
    gradient: Tensors = {}
    state: Tensors = {}
    losses, scores = [], []
    for part in parts:
        share = len(part.loss) / tasks
        gradient = _plus(gradient, part.gradient, share)
        state = part.state if sequential else _plus(state, part.state, share)
        losses.append(part.loss)
        scores.append(part.score)
    return MetaGradient(gradient, state, torch.cat(losses), torch.cat(scores))


def over_processes(own: MetaGradient, tasks: range, count: int) -> MetaGradient:
    """The mean over a whole meta-batch of `count` tasks, the same in every process, each of which ran some of them.

    Args:
        own: of the tasks that this process ran.
        tasks: their places in the meta-batch.
    """
    if len(tasks) == count:
        return own
    weight = len(tasks) / count
    means = [weight * value for value in (*own.gradient.values(), *own.state.values())]
    *means, loss, score = all_reduce_sum(
        [*means, *(pad_to_global(values, tasks, count) for values in (own.loss, own.score))]
    )
    names = len(own.gradient)
    gradient = dict(zip(own.gradient, means[:names], strict=True))
    return MetaGradient(gradient, dict(zip(own.state, means[names:], strict=True)), loss, score)


def _plus(total: Tensors, values: Tensors, share: float) -> Tensors:
    return {n: torch.add(total[n], value, alpha=share) if total else share * value for n, value in values.items()}
