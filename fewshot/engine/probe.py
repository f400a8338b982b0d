"""What a learner does, found out by running it on one task.

Looked at once for each learner and shape of task: whether its network fits, whether one query's prediction depends on
the other queries, and whether torch.func.vmap can run several tasks at once with the right gradients.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
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
    copy_network,
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


@dataclass
class Findings:
    """All that is known of a learner, by the shape of the tasks."""

    of: tuple[int, int]  # the learner and the backbone that it was found out of: a copy knows nothing
    behaviours: dict[Any, Behaviour] = field(default_factory=dict)
    faults_of_vmap: dict[Any, str] = field(default_factory=dict)
    training_notes: dict[Any, str] = field(default_factory=dict)
    parameters: int | None = None


def probe(learner: Learner, task: Episodes, params: Tensors | None = None, state: Tensors | None = None) -> Behaviour:
    """Run a copy of the learner on a task, once for each shape of task. The learner's backbone is in eval() then.

    Args:
        task: one task; under vmap one of a shape that was probed before.
        params, state: those of a trained learner, to look with them whether queries still are independent.

    Raises:
        FewshotError: the network keeps state, draws at random, fails on such examples, or does not fit the task.
    """
    known = _findings(with_defaults(learner)).behaviours
    key = task.support_x.shape[1:], task.way, task.support_y.shape[1:], task.support_x.dtype
    if key not in known:
        with _own_generators():
            known[key] = _look(learner, task)
    if params is not None and known[key].queries_independent:
        with _own_generators(), torch.no_grad():
            adapted = learner.adapt(params, state or {}, task)
            if _mixes(partial(learner.predict, adapted), _queries(task)):
                batched = _same_by_vmap(partial(learner.predict, adapted), _queries(task))
                known[key] = Behaviour(False, batched, known[key].notes)
    return known[key]


def why_not_batched(learner: Learner, episodes: Episodes) -> str:
    """Why vmap cannot run this learner's tasks at once; empty where it can, with equal results.

    Raises:
        FewshotError: as `probe`; or single tasks cannot be trained on either.
    """
    known = _findings(learner).faults_of_vmap
    key = episodes.support_x.shape[1:], episodes.way, episodes.support_x.dtype
    if key not in known:
        probe(learner, episodes[0])
        with _own_generators():
            known[key] = _fault_of_vmap(learner, episodes[[0, len(episodes) - 1]])
    return known[key]


def parameter_count(learner: Learner) -> int:
    """How many meta-parameters a learner has, counted once."""
    known = _findings(learner)
    if known.parameters is None:
        known.parameters = sum(value.numel() for value in learner.init()[0].values())
    return known.parameters


def check_training(learner: Any, episodes: Episodes) -> str:
    """Meta-train a copy on the only task of `episodes`, once; what a person should know of it.

    Raises:
        FewshotError: as `probe`; or the network cannot be trained, in one line instead of in the middle of a run.
    """
    probe(learner, episodes[0])
    known = _findings(learner).training_notes
    key = episodes.support_x.shape[1:], episodes.query_x.shape[1:]
    if key not in known:
        single = eager_copy(copy_network(learner))
        named = named_failures(getattr(single, "backbone", None), episodes.support_x[0])
        with _own_generators(), named:
            outer_of(single, *_initial(single, episodes), episodes, lift_one)
            second = not getattr(learner, "first_order", True)
            some = episodes.support_x[0, :EXAMPLES]
            known[key] = check_second_derivatives(learner.backbone, some) if second else ""
    return known[key]


def _findings(learner: Any) -> Findings:
    of = id(learner), id(getattr(learner, "backbone", None))
    known = learner.__dict__.get("_findings")
    if known is None or known.of != of:
        known = learner.__dict__["_findings"] = Findings(of)
    return known


@contextmanager
def _own_generators() -> Iterator[None]:
    """The process's generators of random numbers are left as they were."""
    numpy, python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(0)
            yield
    finally:
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
    x = (x + 0.1 * torch.randn_like(x)).clamp(x.min(), x.max())
    twin = copy_network(learner)
    backbone = getattr(twin, "backbone", None)
    backbone = backbone.to(x.dtype) if isinstance(backbone, nn.Module) else None
    notes = () if backbone is None else prepare_backbone(backbone, x)
    params, state = _initial(learner, task)
    if not params and (hasattr(learner, "outer_loss") or hasattr(learner, "outer_gradient")):
        frozen = backbone is not None and any(True for _ in backbone.parameters())
        raise FewshotError(
            f"this backbone has no parameters to train{' (all have requires_grad=False)' if frozen else ''}; choose "
            "another, such as backbone=conv4, or mlp_40 for functions"
        )
    with named_failures(backbone, x), torch.no_grad():
        with override_test_steps(twin, 0):
            adapted = twin.adapt(params, state, task)
        check_outputs(twin.predict(adapted, x), len(x), task.support_y, task.way)
        if backbone is not None and params and params.keys() <= dict(backbone.named_parameters()).keys():
            check_parameters(copy_network(learner.backbone).to(x.dtype).eval(), params, x)
        shaken = add_noise(adapted)
        if not twin.predict(shaken, x).isfinite().all():
            shaken = adapted
        predict = partial(twin.predict, shaken)
        mixing = _mixes(predict, _queries(task))
        batched = not mixing or _same_by_vmap(predict, x)
    with named_failures(backbone, x), override_test_steps(twin, min(1, twin.test_steps)):
        twin.adapt(params, state, task)
    if backbone is not None:
        learner.backbone.eval()
        with torch.no_grad(), suppress(RuntimeError):  # parameters of another dtype than the tasks
            learner.backbone(x)  # what a first forward makes, such as a table of positions, is made outside torch.func
    return Behaviour(not mixing, batched, (*notes, *getattr(learner, "notes", ())))


def _queries(task: Episodes) -> torch.Tensor:
    """The examples that a test forwards as one batch; at least three."""
    x = task.query_x if len(task.query_x) else task.support_x
    return x if len(x) >= 3 else torch.cat([x, task.support_x, task.support_x.flip(-1)])[:3]


def _mixes(predict: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> bool:
    """Whether the output of an example changes with the examples beside it, or with its place among them.

    Found by values in a batch as large as a test's (other orders, other companions, one example less), and by gradients
    in a small one.
    """
    outputs, place = predict(x), torch.arange(len(x), device=x.device)
    order = torch.randperm(len(x), device=x.device)
    if not is_same(predict(x[order]), outputs[order], scale=outputs):
        return True
    if not is_same(predict(x[1:]), outputs[1:], scale=outputs, tolerance=10 * SAME):
        return True
    kept = place % 2 == 0
    mask = kept.view(-1, *(1,) * (x.dim() - 1))
    noise = x.min() + (x.max() - x.min()) * torch.rand_like(x)
    for others in (noise, x.flip(0), x[:1].expand_as(x), torch.zeros_like(x)):
        if not is_same(predict(torch.where(mask, x, others))[kept], outputs[kept], scale=outputs):
            return True
    with torch.enable_grad():
        leaf = x[:EXAMPLES].clone().requires_grad_()
        outputs = predict(leaf)
        for row in (0, len(leaf) - 1) if outputs.requires_grad else ():
            some = (outputs[row] * torch.randn_like(outputs[row])).sum()
            (slope,) = torch.autograd.grad(some, leaf, retain_graph=True, allow_unused=True)
            if slope is not None and slope[place[: len(leaf)] != row].nan_to_num().any():
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
    """Why vmap does not give what single tasks give, in float64 where the network can, otherwise in float32.

    On few queries and few inner steps; where even those do not fit into memory, vmap is taken and finds its own chunks.
    """
    sx, sy, qx, qy, key = episodes.tensors()
    some = torch.linspace(0, qx.shape[1] - 1, min(EXAMPLES, qx.shape[1]), device=qx.device).long()
    episodes = episodes.with_tensors(sx, sy, qx[:, some], qy[:, some], key)
    for dtype in (torch.float64, torch.float32):
        tasks = episodes.to(dtype)
        try:
            wanted = _results(_few_steps(learner, dtype), tasks, at_once=False)
        except FewshotError:
            raise
        except Exception as error:
            if out_of_memory(error) or dtype == torch.float64:
                continue  # a network that makes float32 tensors of its own
            raise FewshotError(
                f"backbone: meta-training fails on it ({error_reason(error)}); choose another network"
            ) from error
        try:
            with _strict_vmap():
                found = _results(_few_steps(learner, dtype), tasks, at_once=True)
        except FewshotError:
            raise
        except Exception as error:
            if out_of_memory(error):
                continue
            return f"torch.func.vmap cannot batch this network ({error_reason(error)})"
        for ours, theirs in zip(found, wanted, strict=True):
            if not (ours - theirs).norm() <= ALIKE[dtype] * theirs.norm() + 1e-12:
                return "torch.func.vmap gives other results for this network than single tasks do"
        break
    return ""


def _few_steps(learner: Any, dtype: torch.dtype) -> Any:
    """A copy of the learner in a dtype, with two inner steps at most."""
    twin = copy_network(learner)
    if isinstance(getattr(twin, "backbone", None), nn.Module):
        twin.backbone.to(dtype)
    if isinstance(getattr(twin, "inner_steps", None), int):
        twin.inner_steps = min(2, twin.inner_steps)
    return twin


def _results(learner: Any, tasks: Episodes, *, at_once: bool) -> tuple[torch.Tensor, ...]:
    """Predictions of some tasks after a step, and their mean outer gradient, flat; at once or task by task."""
    params, state = _initial(learner, tasks)

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
    """The learner's start, where the tasks are and in their dtype."""
    x = tasks.support_x

    def like_tasks(value: torch.Tensor) -> torch.Tensor:
        return value.to(x.device, x.dtype if value.is_floating_point() else value.dtype)

    params, state = ({name: like_tasks(value) for name, value in group.items()} for group in learner.init())
    return params, state
