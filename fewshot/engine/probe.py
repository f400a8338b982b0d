"""What a learner does, found out by running it on one task.

Looked at once for each learner and shape of task: whether its network fits, whether one query's prediction depends on
the other queries, and whether torch.func.vmap can run several tasks at once with the right gradients.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import vmap

from fewshot.algorithms.learner import Learner, Tensors, override_test_steps, with_defaults
from fewshot.backbones.checks import (
    SAME,
    add_noise,
    check_outputs,
    check_parameters,
    error_reason,
    is_same,
    named_failures,
    prepare_backbone,
)
from fewshot.backbones.second_derivatives import check_second_derivatives
from fewshot.core.device import out_of_memory
from fewshot.core.errors import FewshotError
from fewshot.engine.lift import eager_copy, lift_all, lift_one, outer_of
from fewshot.engine.reduce import weighted_mean
from fewshot.episodes import Episodes

EXAMPLES = 6  # of a task that a network is looked at with
# How far the results of vmap may be from those of single tasks, relative to their length. Float32 rounds a gradient
# that is zero to noise, which Adam then turns into whole steps.
ALIKE = {torch.float64: 1e-6, torch.float32: 0.1}


@dataclass(frozen=True)
class Behaviour:
    """What was found out of a learner on tasks of one shape."""

    queries_independent: bool  # no query's prediction depends on another query: both settings are one
    queries_batched: bool  # vmap over queries, each beside the support set, gives what one query at a time gives
    notes: tuple[str, ...]  # what a person should know, a line each


def probe(learner: Learner, task: Episodes) -> Behaviour:
    """Run the learner on a task, once for each shape of task. Its backbone is in eval() from then on.

    Args:
        task: one task; under vmap one of a shape that was probed before.

    Raises:
        FewshotError: the network keeps state, draws at random, fails on such examples, or does not fit the tasks.
    """
    known = _memory(with_defaults(learner))
    key = "behaviour", task.support_x.shape[1:], task.way, task.support_y.shape[1:]
    if key not in known:
        with _own_generators(task.key.device):
            known[key] = _look(learner, task)
    return known[key]


def why_not_batched(learner: Learner, episodes: Episodes) -> str:
    """Why vmap cannot run this learner's tasks at once; empty where it can, with equal results.

    Raises:
        FewshotError: as `probe`; or single tasks cannot be trained on either.
    """
    known = _memory(learner)
    key = "batched", episodes.support_x.shape[2:]
    if key not in known:
        probe(learner, episodes[0])
        with _own_generators(episodes.key.device):
            known[key] = _fault_of_vmap(learner, episodes[[0, len(episodes) - 1]])
    return known[key]


def parameter_count(learner: Learner) -> int:
    """How many meta-parameters a learner has, counted once."""
    known = _memory(learner)
    if "size" not in known:
        known["size"] = sum(value.numel() for value in learner.init()[0].values())
    return known["size"]


def check_training(learner: Any, episodes: Episodes) -> str:
    """Meta-train on the only task of `episodes`, once, and forget the result; what a person should know of it.

    Raises:
        FewshotError: as `probe`; or the network cannot be trained, in one line instead of in the middle of a run.
    """
    probe(learner, episodes[0])
    known = _memory(learner)
    if "training" not in known:
        single = eager_copy(learner)
        with (
            _own_generators(episodes.key.device),
            named_failures(getattr(single, "backbone", None), episodes.support_x[0]),
        ):
            outer_of(single, *_initial(single, episodes), episodes, lift_one)
            second = not getattr(learner, "first_order", True)
            some = episodes.support_x[0, :EXAMPLES]
            known["training"] = check_second_derivatives(learner.backbone, some) if second else ""
    return known["training"]


def _memory(learner: Any) -> dict[Any, Any]:
    """What is known of a learner; a copy of it knows the same."""
    return learner.__dict__.setdefault("_probed", {})


@contextmanager
def _own_generators(device: torch.device) -> Iterator[None]:
    """The process's generators of random numbers are left as they were."""
    numpy, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
    np.random.set_state(numpy)
    random.setstate(python)


@contextmanager
def _strict_vmap() -> Iterator[None]:
    """Where vmap would run an operation in a hidden loop, which it warns of, it fails."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="There is a performance drop")
        yield


def _look(learner: Learner, task: Episodes) -> Behaviour:
    x = torch.cat([task.support_x, task.query_x])
    x = x[torch.linspace(0, len(x) - 1, EXAMPLES, device=x.device).long()] if len(x) > EXAMPLES else x
    x = torch.cat([x, x, x])[:3] if len(x) < 3 else x
    noisy = x + 0.1 * torch.randn_like(x)
    backbone = getattr(learner, "backbone", None)
    backbone = backbone if isinstance(backbone, nn.Module) else None
    notes = () if backbone is None else prepare_backbone(backbone, noisy - 0.5)
    params, state = _initial(learner, task)
    if not params and (hasattr(learner, "outer_loss") or hasattr(learner, "outer_gradient")):
        raise FewshotError(
            "this backbone has no parameters to train; choose another, such as backbone=conv4, or mlp_40 for functions"
        )
    with named_failures(backbone, x), torch.no_grad():
        with override_test_steps(learner, 0):
            adapted = learner.adapt(params, state, task)
        check_outputs(learner.predict(adapted, x), len(x), task.support_y, task.way)
        if backbone is not None and params and params.keys() <= dict(backbone.named_parameters()).keys():
            check_parameters(backbone, params, noisy)
        shaken = add_noise(adapted)
        if not learner.predict(shaken, noisy).isfinite().all():
            shaken = adapted
        mixing = _mixes(lambda z: learner.predict(shaken, z), noisy)
        batched = not mixing or _same_by_vmap(lambda z: learner.predict(shaken, z), noisy)
    with named_failures(backbone, x), override_test_steps(learner, min(1, learner.test_steps)):
        learner.adapt(params, state, task)
    return Behaviour(not mixing, batched, notes)


def _mixes(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> bool:
    """Whether the output of an example changes with the examples beside it, by values or by gradients."""
    outputs, rows = function(x), (0, len(x) - 1)
    place = torch.arange(len(x), device=x.device)
    for row in rows:
        own = (place == row).view(-1, *(1,) * (x.dim() - 1))
        beside = function(torch.where(own, x, 3 * torch.randn_like(x)))[row]
        if not is_same(beside, outputs[row], scale=outputs):
            return True
    half = len(x) // 2 + 1
    if not is_same(function(x[:half]), outputs[:half], scale=outputs, tolerance=10 * SAME):
        return True
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        outputs = function(leaf)
        for row in rows if outputs.requires_grad else ():
            some = (outputs[row] * torch.randn_like(outputs[row])).sum()
            (slope,) = torch.autograd.grad(some, leaf, retain_graph=True, allow_unused=True)
            if slope is not None and slope[place != row].any():
                return True
    return False


def _same_by_vmap(predict: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> bool:
    """Whether vmap over queries gives what one query at a time gives, each beside the same support set."""
    support, queries = x[:-2], x[-2:]

    def alone(query: torch.Tensor) -> torch.Tensor:
        return predict(torch.cat([support, query[None]]))[-1]

    try:
        with _strict_vmap():
            found = vmap(alone)(queries)
        return is_same(found, torch.stack([alone(query) for query in queries]), tolerance=10 * SAME)
    except Exception as error:
        if out_of_memory(error):
            raise
        return False


def _fault_of_vmap(learner: Any, episodes: Episodes) -> str:
    """Why vmap does not give what single tasks give, in float64 where the network can, otherwise in float32."""
    for dtype in (torch.float64, torch.float32):
        twin, tasks = copy.deepcopy(learner), episodes.to(dtype)
        backbone = getattr(twin, "backbone", None)
        if isinstance(backbone, nn.Module):
            backbone.to(dtype)
        params, state = ({name: v.to(dtype) for name, v in group.items()} for group in _initial(twin, tasks))
        try:
            wanted = _results(twin, params, state, tasks, at_once=False)
        except Exception as error:
            if out_of_memory(error):
                raise
            if dtype == torch.float64:
                continue  # a network that makes float32 tensors of its own
            raise FewshotError(
                f"backbone: meta-training fails on it ({error_reason(error)}); choose another network"
            ) from error
        try:
            with _strict_vmap():
                found = _results(twin, params, state, tasks, at_once=True)
        except Exception as error:
            if out_of_memory(error):
                raise
            return f"torch.func.vmap cannot batch this network ({error_reason(error)})"
        for ours, theirs in zip(found, wanted, strict=True):
            if not (ours - theirs).norm() <= ALIKE[dtype] * theirs.norm() + 1e-12:
                return "torch.func.vmap gives other results for this network than single tasks do"
        break
    return ""


def _results(
    learner: Any, params: Tensors, state: Tensors, tasks: Episodes, *, at_once: bool
) -> tuple[torch.Tensor, ...]:
    """Predictions of some tasks after a step, and their mean outer gradient, flat; at once or task by task."""

    def predicted(task: Episodes) -> torch.Tensor:
        x = task.query_x if len(task.query_x) else task.support_x
        return learner.predict(learner.adapt(params, state, task), x)

    groups = [tasks] if at_once else [tasks[i : i + 1] for i in range(len(tasks))]
    lift = lift_all if at_once else lift_one
    with override_test_steps(learner, min(1, learner.test_steps)):
        outputs = torch.cat([lift(predicted, group).detach().flatten() for group in groups])
    by_loss = hasattr(learner, "outer_loss") and tasks.query_x.shape[1] > 0
    if not params or learner.sequential or not (by_loss or hasattr(learner, "outer_gradient")):
        return (outputs,)
    trained = learner if at_once else eager_copy(learner)
    parts = [outer_of(trained, params, state, group, lift) for group in groups]
    gradient = weighted_mean(parts, len(tasks), sequential=False).gradient
    return outputs, torch.cat([value.flatten() for value in gradient.values()])


def _initial(learner: Learner, tasks: Episodes) -> tuple[Tensors, Tensors]:
    params, state = ({name: v.to(tasks.key.device) for name, v in group.items()} for group in learner.init())
    return params, state
