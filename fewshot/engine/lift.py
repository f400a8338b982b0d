"""One task's functions lifted to several tasks: batched by torch.func.vmap, or one task by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.func import vmap
from torch.utils._pytree import tree_map

from fewshot.algorithms.learner import Tensors, differentiate
from fewshot.backbones.checks import copy_network
from fewshot.engine.reduce import MetaGradient
from fewshot.episodes import Episodes

Lift = Callable[[Callable[[Episodes], Any], Episodes], Any]  # (function of one task, T tasks) to results [T, ...]


def lift_all(function: Callable[[Episodes], Any], episodes: Episodes) -> Any:
    """Apply a function of one task to T tasks as one batched computation: its results along a new leading axis [T]."""

    def of_tensors(*tensors: torch.Tensor) -> Any:
        return function(episodes.with_tensors(*tensors))

    return vmap(of_tensors)(*episodes.tensors())


def lift_one(function: Callable[[Episodes], Any], episodes: Episodes) -> Any:
    """Apply a function of one task to the only task of `episodes`: its results along a new leading axis [1]."""
    return tree_map(lambda value: value[None], function(episodes[0]))


def mean_outer(
    learner: Any, params: Tensors, state: Tensors, episodes: Episodes, lift: Lift, *, use_autograd: bool = True
) -> MetaGradient:
    """Mean outer gradient of some tasks, run together by `lift`.

    Args:
        learner: one with `outer_loss` or `outer_gradient`.
        use_autograd: how the outer loss is differentiated, see `differentiate`.
    """
    if hasattr(learner, "outer_loss"):

        def mean_loss(params: Tensors) -> tuple[torch.Tensor, Any]:
            loss, score = lift(lambda task: learner.outer_loss(params, task), episodes)
            return loss.mean(), (loss.detach(), score)

        gradient, (loss, score) = differentiate(mean_loss, params, use_autograd=use_autograd, create_graph=False)
        return MetaGradient(gradient, state, loss, score)
    gradient, state, loss, score = lift(lambda task: learner.outer_gradient(params, state, task), episodes)
    gradient, state = tree_map(lambda value: value.mean(0), (gradient, state))
    return MetaGradient(gradient, state, loss, score)


def autograd_copy(learner: Any) -> Any:
    """A copy of the learner, with a network of its own, that runs single tasks by torch.autograd."""
    learner = copy_network(learner)
    learner.use_autograd = True
    return learner
