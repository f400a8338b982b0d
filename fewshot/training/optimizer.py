"""The outer update: guards and clips the gradient of a meta-batch, and takes an optimiser step."""

from __future__ import annotations

from collections.abc import Iterable
from math import cos, pi
from pathlib import Path

import torch

from fewshot.algorithms.learner import Tensors
from fewshot.core.errors import FewshotError
from fewshot.engine.reduce import MetaGradient
from fewshot.training.settings import TrainSettings


def replace_nan(gradient: Tensors, loss: torch.Tensor, params: Tensors) -> tuple[Tensors, torch.Tensor]:
    """If the loss or the gradient holds a NaN, replace the whole gradient by the parameters themselves.

    deepmind/leo does this (`runner.py`): its comment promises the gradient of a small L2 penalty, but two names are
    exchanged there.

    Returns:
        (gradient, whether it was replaced: bool [])
    """
    broken = _flat([loss, *gradient.values()]).isnan().any()
    return {name: torch.where(broken, params[name].detach(), value) for name, value in gradient.items()}, broken


class NonFiniteGuard:
    """Handles losses and gradients that are not finite: with `nan_guard` it replaces and counts a NaN, else it raises.

    The guard lets an infinite gradient pass where it is clipped. All is counted on the device, so that no step waits.
    """

    def __init__(self, settings: TrainSettings, guarded: int, device: torch.device) -> None:
        self._guard, self._clips = settings.nan_guard, settings.clip is not None
        self._guarded = torch.full((), guarded, device=device)  # steps
        self._first = torch.full((), -1, device=device)  # the first step that was not finite

    def filter(self, outer: MetaGradient, params: Tensors, state: Tensors, step: int) -> tuple[Tensors, Tensors]:
        """The gradient for the optimiser, and the state for the next step: that before a step that is replaced."""
        if self._guard:
            gradient, replaced = replace_nan(outer.gradient, outer.loss, params)
            self._guarded += replaced
            if not self._clips:
                self._note(_flat(gradient.values()), step)
            return gradient, {n: torch.where(replaced, state[n], value) for n, value in outer.state.items()}
        self._note(_flat([outer.loss, *outer.gradient.values()]), step)
        return outer.gradient, outer.state

    def _note(self, values: torch.Tensor, step: int) -> None:
        """Remember the first step whose values are not all finite."""
        self._first = torch.where(values.isfinite().all() | (self._first >= 0), self._first, step)

    def check(self, last: Path) -> int:
        """The number of steps that were replaced so far.

        Raises:
            FewshotError: a step was not finite, and not replaced.
        """
        if (first := int(self._first)) >= 0:
            kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet"
            raise FewshotError(
                f"step {first + 1}: the loss or its gradient is not finite; lower train.outer_lr or "
                f"the rate of the inner loop, if there is one, or set train.clip; {kept}",
                everywhere=True,  # the processes share loss and gradient
            )
        return int(self._guarded)


def _flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """All their values, [M]: a check of each tensor by itself starts dozens of kernels."""
    return torch.cat([value.flatten() for value in tensors])


def clipped(gradient: Tensors, element: float | None, norm: float | None) -> Tensors:
    """Clip each element to [-element, element], then each tensor to an L2 norm of `norm` at most; None: no clipping."""
    if element is not None:
        gradient = {name: value.clamp(-element, element) for name, value in gradient.items()}
    if norm is not None:
        gradient = {name: value * (norm / value.norm().clamp_min(norm)) for name, value in gradient.items()}
    return gradient


def make_optimizer(settings: TrainSettings, params: Tensors) -> torch.optim.Optimizer | None:
    """The optimiser that `train.outer_optimizer` names, one of OPTIMIZERS; None if there are no parameters."""
    if not params:
        return None
    if settings.outer_optimizer.startswith("adam"):
        return torch.optim.Adam(params.values(), lr=settings.outer_lr)
    return torch.optim.SGD(params.values(), lr=settings.outer_lr)


def optimizer_step(
    optimizer: torch.optim.Optimizer | None, params: Tensors, gradient: Tensors, settings: TrainSettings, step: int
) -> float:
    """Take one step of the outer optimiser, in place. Returns its learning rate."""
    rate = settings.outer_lr
    if settings.outer_lr_end is not None:  # supervised-reptile: linear, from the first step to just before the last
        done = step / settings.steps
        if settings.outer_lr_schedule == "cosine":  # HowToTrainYourMAMLPytorch
            done = (1 - cos(pi * done)) / 2
        rate = settings.outer_lr * (1 - done) + settings.outer_lr_end * done
    if settings.outer_lr_halve_every is not None:  # prototypical-networks
        rate *= 0.5 ** (step // settings.outer_lr_halve_every)
    if optimizer is None:
        return rate
    gradient = clipped(gradient, settings.clip, settings.clip_norm)
    for name, value in params.items():
        value.grad = gradient[name]
    for group in optimizer.param_groups:
        group["lr"] = rate
        if settings.outer_optimizer == "adam_tf":
            group["eps"] = 1e-8 / (1 - group["betas"][1] ** (step + 1)) ** 0.5
    optimizer.step()
    optimizer.zero_grad()
    return rate


def optimizer_state(optimizer: torch.optim.Optimizer | None, params: Tensors) -> Tensors:
    """The tensors that the optimiser keeps, by "<parameter>/<slot>", such as "w/exp_avg"."""
    if optimizer is None:
        return {}
    return {f"{n}/{slot}": v for n, p in params.items() for slot, v in optimizer.state[p].items()}


def load_optimizer_state(optimizer: torch.optim.Optimizer | None, params: Tensors, slots: Tensors) -> None:
    """Load what `optimizer_state` returned, in place."""
    for key, value in slots.items():
        name, slot = key.rsplit("/", 1)
        if optimizer is not None:
            # Adam keeps its step count in main memory.
            optimizer.state[params[name]][slot] = value.cpu() if slot == "step" else value
