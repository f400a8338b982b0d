"""What every learner must keep to, with a line for a person's own learner that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fewshot.algorithms.learner import Tensors
from fewshot.backbones.checks import check_outputs
from fewshot.backbones.failures import error_reason
from fewshot.backbones.purity import generator_states
from fewshot.core.errors import FewshotError, error_location
from fewshot.engine.reduce import MetaGradient
from fewshot.episodes import Episodes

LOGGED = {"step", "loss", "outer_lr", "accuracy", "mse", "tasks", "train_seconds"}  # in every metrics.jsonl


def check_init(learner: Any, made: Any) -> None:
    """Raises FewshotError where what `init` made is something else than two dicts of tensors of floats."""
    if not isinstance(made, tuple) or len(made) != 2 or not all(isinstance(group, Mapping) for group in made):
        raise FewshotError(f"{_name(learner)}.init: must return (params, state), two dicts of tensors; {{}} for none")
    for name, value in (*made[0].items(), *made[1].items()):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise FewshotError(f"{_name(learner)}.init: {name} is {kind}; params and state are tensors of floats")


def check_names(learner: Any, what: str, given: Tensors, wanted: Tensors) -> None:
    """Raises FewshotError where what a method of the learner returns has other names or shapes than init's."""
    for name in given.keys() | wanted.keys():
        shapes = [tuple(group[name].shape) if name in group else "absent" for group in (given, wanted)]
        if shapes[0] != shapes[1]:
            raise FewshotError(
                f"algorithm.learner: the {what} that {type(learner).__name__} returns has {name} {shapes[0]}, and init "
                f"has {shapes[1]}; return it with the same names and shapes"
            )


def check_predictions(learner: Any, outputs: Any, x: torch.Tensor, task: Episodes) -> None:
    """Raises FewshotError where `predict` gives no logits; of the network where it is the network that gives none."""
    wanted = len(x), task.support_y, task.way
    try:
        check_outputs(outputs, *wanted)
    except FewshotError as error:
        try:
            check_outputs(learner.backbone(x), *wanted)
        except Exception:
            raise error from None
        returned = type(outputs).__name__
        if isinstance(outputs, torch.Tensor):
            returned = f"{str(outputs.dtype).removeprefix('torch.')} {list(outputs.shape)}"
        raise FewshotError(
            f"{_name(learner)}.predict: must return finite outputs [B, N] of B examples, as the network itself does, "
            f"and returns {returned} of {len(x)}"
        ) from error


def checked_outer_loss(learner: Any) -> Callable[[Tensors, Episodes], tuple[torch.Tensor, torch.Tensor]]:
    """The learner's `outer_loss`, which raises FewshotError where it returns something else than two scalars."""
    outer_loss = learner.outer_loss

    def checked(params: Tensors, task: Episodes) -> tuple[torch.Tensor, torch.Tensor]:
        results = outer_loss(params, task)
        shapes = [getattr(each, "shape", None) for each in results] if isinstance(results, tuple) else []
        if shapes != [torch.Size(), torch.Size()]:
            raise FewshotError(f"{_name(learner)}.outer_loss: must return (loss, score), two tensors of shape []")
        if not results[0].requires_grad:
            raise FewshotError(_unused(learner))
        _check_no_other_weights(learner, results[0])
        return results

    return checked


def _check_no_other_weights(learner: Any, loss: torch.Tensor) -> None:
    """Raises FewshotError where a loss depends on a weight of the learner itself, which no step would change."""
    weights = dict(learner.named_parameters()) if isinstance(learner, nn.Module) else {}
    for name, value in vars(learner).items():
        named = value.named_parameters(name) if isinstance(value, nn.Module) else [(name, value)]
        weights |= {name: each for name, each in named if isinstance(each, nn.Parameter) and each.requires_grad}
    if not weights:
        return
    gradients = torch.autograd.grad(loss, list(weights.values()), retain_graph=True, allow_unused=True)
    used = [name for name, gradient in zip(weights, gradients, strict=True) if gradient is not None and gradient.any()]
    if used:
        raise FewshotError(
            f"{_name(learner)}: its loss depends on self.{used[0]}, which is not in params and would not be trained; "
            "return its start from init and call the network by functional_forward(network, params, x), or freeze it "
            "by requires_grad_(False)"
        )


def check_gradient(learner: Any, gradient: Tensors, elsewhere: Callable[[], MetaGradient]) -> None:
    """Raises FewshotError where the outer gradient is zero at the start, and near it, where `elsewhere` takes it."""

    def is_zero(gradient: Tensors) -> bool:
        return not any(value.any() for value in gradient.values())

    if is_zero(gradient) and is_zero(elsewhere().gradient):
        raise FewshotError(_unused(learner))


def check_begin_step(learner: Any) -> None:
    """Raises FewshotError where `begin_step` fails at the first of two steps, as one of another signature does."""
    try:
        learner.begin_step(0, 2)
    except FewshotError:
        raise
    except Exception as error:
        location = error_location(error)
        raise FewshotError(
            f"{_name(learner)}.begin_step(step, steps){location and f' at {location}'}: {error_reason(error)}"
        ) from error


def check_sorted(learner: Any, task: Episodes) -> None:
    """Raises FewshotError where a support set is not sorted by class, or its classes differ in size and may not.

    Args:
        learner: takes classes of different sizes where its `unequal_shots` says so.
        task: one task, support_y [N*K].
    """
    labels, unequal = task.support_y, getattr(learner, "unequal_shots", False)
    if labels.is_floating_point() or len(labels) < 2:
        return
    if (labels.diff() < 0).any() or (not unequal and len(set(labels.bincount(minlength=task.way).tolist())) > 1):
        raise FewshotError(
            f"tasks: the labels of a support set are {labels.tolist()[:10]}; sort its examples by class, with as many "
            "of each of the classes 0 to N-1, as `Episodes` says"
        )


def check_scalars(learner: Any, params: Tensors) -> None:
    """Raises FewshotError where `scalars` returns something else than numbers by names of its own."""
    values = learner.scalars(params)
    if not isinstance(values, Mapping) or not all(isinstance(value, int | float) for value in values.values()):
        raise FewshotError(f"{_name(learner)}.scalars: must return a dict of Python's numbers")
    if taken := LOGGED & values.keys():
        raise FewshotError(f"{_name(learner)}.scalars: the log has {taken.pop()} of its own; take another name")


@contextmanager
def check_unchanged(learner: Any, device: torch.device) -> Iterator[None]:
    """Raises FewshotError where the learner draws from a global generator or changes an attribute in the block."""
    drawn, before = generator_states(device), _plain_attributes(learner)
    yield
    if generator_states(device) != drawn:
        raise FewshotError(
            f"{_name(learner)}: draws from a global generator, so that its results do not repeat; draw from task.key "
            "(fewshot.core.random)"
        )
    after = _plain_attributes(learner)
    if changed := [name for name in {**before, **after} if before.get(name) != after.get(name)]:
        raise FewshotError(
            f"{_name(learner)}: changes its attribute {changed[0]} while it learns a task; tasks run at once and on "
            "copies, so change it in begin_step(step, steps)"
        )


def _plain_attributes(learner: Any) -> dict[str, Any]:
    plain = (bool, int, float, str)
    return {name: repr(value) for name, value in vars(learner).items() if isinstance(value, plain)}


def _unused(learner: Any) -> str:
    return (
        f"{_name(learner)}: its outer gradient is zero, so that nothing would be learned; let the loss depend on "
        "params, as by functional_forward(self.backbone, params, x)"
    )


def _name(learner: Any) -> str:
    return f"algorithm.learner: {type(learner).__name__}"
