"""One task's functions lifted to several tasks: batched by torch.func.vmap, or one task by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.func import vmap
from torch.utils._pytree import tree_map

from fewshot.algorithms.learner import Tensors, differentiate
from fewshot.engine.reduce import Outer
from fewshot.episodes import Episodes

Lift = Callable[[Callable[[Episodes], Any], Episodes], Any]  # (function of one task, T tasks) to results [T, ...]


def lift_all(function: Callable[[Episodes], Any], episodes: Episodes) -> Any:
    """A function of one task over T tasks as one batched computation: its results along a new leading axis [T]."""

    def of_tensors(*tensors: torch.Tensor) -> Any:
        return function(episodes.with_tensors(*tensors))

    return vmap(of_tensors)(*episodes.tensors())


def lift_one(function: Callable[[Episodes], Any], episodes: Episodes) -> Any:
    """A function of one task over the only task of `episodes`: its results along a new leading axis [1]."""
    return tree_map(lambda value: value[None], function(episodes[0]))


def outer_of(
    learner: Any, params: Tensors, carry: Tensors, episodes: Episodes, lift: Lift, *, eager: bool = True
) -> Outer:
    """Mean outer gradient of some tasks, run together by `lift`.

    Args:
        learner: one with `outer_loss` or `outer_gradient`.
        eager: how the outer loss is differentiated, see `differentiate`.
    """
    if hasattr(learner, "outer_loss"):

        def mean_loss(params: Tensors) -> tuple[torch.Tensor, Any]:
            loss, score = lift(lambda task: learner.outer_loss(params, task), episodes)
            return loss.mean(), (loss.detach(), score)

        gradient, (loss, score) = differentiate(mean_loss, params, eager=eager, create_graph=False)
        return Outer(gradient, carry, loss, score)
    gradient, carry, loss, score = lift(lambda task: learner.outer_gradient(params, carry, task), episodes)
    gradient, carry = tree_map(lambda value: value.mean(0), (gradient, carry))
    return Outer(gradient, carry, loss, score)


def eager_copy(learner: Any) -> Any:
    """A copy of the learner that runs single tasks, with a backbone of its own; see `differentiate`."""
    learner = copy.deepcopy(learner)
    learner.eager = True
    return learner
