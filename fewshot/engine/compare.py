"""Whether torch.func.vmap, on several tasks at once, gives what single tasks give."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fewshot.algorithms.learner import Learner, Tensors
from fewshot.backbones.checks import copy_network
from fewshot.backbones.failures import error_reason
from fewshot.core.device import out_of_memory
from fewshot.core.errors import FewshotError
from fewshot.engine.contract import check_init
from fewshot.engine.lift import autograd_copy, lift_all, lift_one, mean_outer
from fewshot.engine.reduce import weighted_mean
from fewshot.episodes import Episodes

QUERIES = 6  # of a task, on which both are compared
# Largest difference between the results of vmap and of single tasks, relative to their norm. Float32 rounds a gradient
# of zero to noise, which the Adam of an inner loop of its own then turns into whole steps.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 0.01}
OF_INNER_ADAM = 0.1  # in float32


def compare_vmap(learner: Any, episodes: Episodes) -> str:
    """Why vmap does not give what single tasks give, in float64 where the network can, otherwise in float32.

    On few queries and few inner steps. Where even those do not fit into memory, vmap is taken and finds its own chunks.
    """
    support_x, support_y, query_x, query_y, key = episodes.tensors()
    few = torch.linspace(0, query_x.shape[1] - 1, min(QUERIES, query_x.shape[1]), device=key.device).long()
    episodes = episodes.with_tensors(support_x, support_y, query_x[:, few], query_y[:, few], key)
    for dtype in (torch.float64, torch.float32):
        tasks = episodes.to(dtype)
        try:
            expected = _results(_with_few_steps(learner, dtype), tasks, at_once=False)
        except FewshotError:
            raise
        except Exception as error:
            if out_of_memory(error) or dtype == torch.float64:
                continue  # a network that makes float32 tensors by itself
            raise FewshotError(
                f"backbone: meta-training fails on it ({error_reason(error)}); choose another network"
            ) from error
        try:
            with strict_vmap():
                results = _results(_with_few_steps(learner, dtype), tasks, at_once=True)
        except FewshotError:
            raise
        except Exception as error:
            if out_of_memory(error):
                continue
            return f"torch.func.vmap cannot batch this network ({error_reason(error)})"
        rounds = dtype == torch.float32 and not hasattr(learner, "outer_loss")
        tolerance = OF_INNER_ADAM if rounds else TOLERANCE[dtype]
        for ours, theirs in zip(results, expected, strict=True):
            if not (ours - theirs).norm() <= tolerance * theirs.norm() + 1e-12:
                return "torch.func.vmap gives other results for this network than single tasks do"
        break
    return ""


@contextmanager
def strict_vmap() -> Iterator[None]:
    """Let vmap fail, instead of warn, where it would run an operation in a hidden loop."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="There is a performance drop")
        yield


def _with_few_steps(learner: Any, dtype: torch.dtype) -> Any:
    """A copy of the learner in a dtype, with two inner steps and one test step at most."""
    copy = copy_network(learner)
    if isinstance(getattr(copy, "backbone", None), nn.Module):
        copy.backbone.to(dtype)
    if isinstance(getattr(copy, "inner_steps", None), int):
        copy.inner_steps = min(2, copy.inner_steps)
    copy.test_steps = min(1, copy.test_steps)
    return copy


def _results(learner: Any, tasks: Episodes, *, at_once: bool) -> tuple[torch.Tensor, ...]:
    """Predictions of some tasks after a step, and their mean outer gradient, flat; at once or task by task."""
    params, state = initial_values(learner, tasks)

    def adapt_and_predict(task: Episodes) -> torch.Tensor:
        x = task.query_x if len(task.query_x) else task.support_x
        return learner.predict(learner.adapt(params, state, task), x)

    groups = [tasks] if at_once else [tasks[i : i + 1] for i in range(len(tasks))]
    lift = lift_all if at_once else lift_one
    outputs = torch.cat([lift(adapt_and_predict, group).detach().flatten() for group in groups])
    by_loss = hasattr(learner, "outer_loss") and tasks.query_x.shape[1] > 0
    if not params or not (by_loss or hasattr(learner, "outer_gradient")):
        return (outputs,)
    trained = learner if at_once else autograd_copy(learner)
    parts = [mean_outer(trained, params, state, group, lift) for group in groups]
    gradient = weighted_mean(parts, len(tasks), sequential=False).gradient
    return outputs, torch.cat([value.flatten() for value in gradient.values()])


def initial_values(learner: Learner, tasks: Episodes) -> tuple[Tensors, Tensors]:
    """The learner's params and state at the start, on the tasks' device and in their dtype."""
    x = tasks.support_x

    def like_tasks(value: torch.Tensor) -> torch.Tensor:
        return value.to(x.device, x.dtype if value.is_floating_point() else value.dtype)

    initial = learner.init()
    check_init(learner, initial)
    params, state = ({name: like_tasks(value) for name, value in group.items()} for group in initial)
    return params, state
