"""Meta-training: fixed episodes, an outer optimiser, validation, checkpoints from which to resume to the same bits."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fewshot.algorithms.engine import Engine, Outer
from fewshot.algorithms.learner import Learner, Tensors, check_choice
from fewshot.checkpoint import load_checkpoint, matching, save_checkpoint, write_atomically
from fewshot.errors import FewshotError
from fewshot.tasks.sampler import Sampler


@dataclass
class TrainSettings:
    """How to train, as `train` in conf/train.yaml says it; the values stand there."""

    steps: int  # outer steps
    meta_batch: int  # tasks per outer step
    shot: int | None  # K of training tasks; None: that of the test
    query: int | None  # Q of training tasks; None: K
    outer_optimizer: str  # adam | sgd
    outer_lr: float
    outer_lr_end: float | None  # the rate falls linearly to this; None: constant
    clip: float | None  # each element of the outer gradient to [-clip, clip]
    validate_every: int  # outer steps between validations; 0: none
    select: str  # best (on validation) | last
    checkpoint_every: int  # outer steps
    log_every: int  # outer steps


class Display(Protocol):
    """Where training shows how it goes; see `fewshot.progress`."""

    def update(self, step: int, values: dict[str, float]) -> None:
        """`values` of the outer step just done: names as in metrics.jsonl."""


@dataclass
class Trained:
    """What training leaves in memory: the selected parameters, and what it cost."""

    params: Tensors
    carry: Tensors
    validation: dict[str, Any] | None  # {accuracy, step} of the selected parameters
    train_seconds: float  # outer steps only: sampling, adaptation and update


def train(
    learner: Learner,
    sampler: Sampler,
    settings: TrainSettings,
    engine: Engine,
    folder: Path,
    validate: Callable[[Tensors, Tensors], float],
    display: Display,
) -> Trained:
    """Train to `settings.steps`, from `folder/checkpoints/last.safetensors` where there is one.

    Args:
        sampler: of the training tasks; outer step s takes episodes s*meta_batch to (s+1)*meta_batch - 1.
        validate: mean accuracy of (params, carry) on the validation episodes.

    Raises:
        FewshotError: a loss or gradient that is not finite; the checkpoints stay as they were.
    """
    check_choice("train.select", settings.select, ("best", "last"))
    last, best = folder / "checkpoints/last.safetensors", folder / "checkpoints/best.safetensors"
    params, carry = learner.initial()
    device = sampler.bank.offsets.device
    params, carry = ({k: v.to(device) for k, v in group.items()} for group in (params, carry))
    optimizer = _optimizer(settings, params)
    state: dict[str, Any] = {"step": 0, "train_seconds": 0.0, "best": None}
    if last.exists():
        groups, state = load_checkpoint(last, device)
        with torch.no_grad():
            for name, value in matching(last, groups.get("params", {}), params).items():
                params[name].copy_(value)
        carry = matching(last, groups.get("carry", {}), carry)
        _restore(optimizer, params, groups.get("outer", {}))
    metrics = _Metrics(folder / "metrics.jsonl", keep_until=state["step"])
    steps = settings.steps if params else 0  # a learner without parameters has nothing to train
    for step in range(state["step"], steps):
        start = time.perf_counter()
        outer = engine.outer(learner, params, carry, sampler.episodes(step * settings.meta_batch, settings.meta_batch))
        _check_finite(outer, step, last)
        carry = outer.carry
        rate = _apply(optimizer, params, outer.gradient, settings, step)
        loss, accuracy = float(outer.loss.mean()), float(outer.accuracy.mean())
        state["train_seconds"] += time.perf_counter() - start
        done = state["step"] = step + 1
        values = {"loss": loss, "accuracy": accuracy, "outer_lr": rate, "train_seconds": state["train_seconds"]}
        if settings.validate_every and (done % settings.validate_every == 0 or done == settings.steps):
            values["validation_accuracy"] = validate(params, carry)
            if state["best"] is None or values["validation_accuracy"] > state["best"]["accuracy"]:
                state["best"] = {"accuracy": values["validation_accuracy"], "step": done}
                save_checkpoint(best, {"params": params, "carry": carry}, state)
        if done % settings.log_every == 0 or done == settings.steps or "validation_accuracy" in values:
            metrics.write(done, values)
        display.update(done, values)
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            save_checkpoint(last, {"params": params, "carry": carry, "outer": _slots(optimizer, params)}, state)
    if settings.select == "best" and state["best"] is not None:
        groups, _ = load_checkpoint(best, device)
        params, carry = matching(best, groups["params"], params), matching(best, groups.get("carry", {}), carry)
        return Trained(params, carry, state["best"], state["train_seconds"])
    final = {"accuracy": metrics.last_validation, "step": settings.steps} if metrics.last_validation else None
    return Trained({n: p.detach() for n, p in params.items()}, carry, final, state["train_seconds"])


def _optimizer(settings: TrainSettings, params: Tensors) -> torch.optim.Optimizer | None:
    check_choice("train.outer_optimizer", settings.outer_optimizer, ("adam", "sgd"))
    if not params:
        return None
    if settings.outer_optimizer == "adam":
        return torch.optim.Adam(params.values(), lr=settings.outer_lr)
    return torch.optim.SGD(params.values(), lr=settings.outer_lr)


def _apply(
    optimizer: torch.optim.Optimizer | None, params: Tensors, gradient: Tensors, settings: TrainSettings, step: int
) -> float:
    """One step of the outer optimiser, in place; returns the rate it took."""
    rate = settings.outer_lr
    if settings.outer_lr_end is not None:  # supervised-reptile: linear, from the first step to just before the last
        done = step / settings.steps
        rate = settings.outer_lr * (1 - done) + settings.outer_lr_end * done
    if optimizer is None:
        return rate
    for name, value in params.items():
        value.grad = gradient[name]
    if settings.clip is not None:
        torch.nn.utils.clip_grad_value_(params.values(), settings.clip)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return rate


def _slots(optimizer: torch.optim.Optimizer | None, params: Tensors) -> Tensors:
    """The optimiser's tensors by parameter name and slot."""
    if optimizer is None:
        return {}
    return {f"{n}/{slot}": v for n, p in params.items() for slot, v in optimizer.state[p].items()}


def _restore(optimizer: torch.optim.Optimizer | None, params: Tensors, slots: Tensors) -> None:
    for key, value in slots.items():
        name, slot = key.rsplit("/", 1)
        if optimizer is not None:
            # Adam keeps its step count in main memory.
            optimizer.state[params[name]][slot] = value.cpu() if slot == "step" else value


def _check_finite(outer: Outer, step: int, last: Path) -> None:
    values = [outer.loss, *outer.gradient.values()]
    if not all(bool(torch.isfinite(value).all()) for value in values):
        kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet"
        raise FewshotError(
            f"step {step + 1}: the loss or its gradient is not finite; lower train.outer_lr or "
            f"algorithm.inner_lr, or set train.clip; {kept}"
        )


class _Metrics:
    """metrics.jsonl: one line per logged step. Lines after the step to resume from are dropped."""

    def __init__(self, path: Path, keep_until: int) -> None:
        self.path = path
        self.last_validation: float | None = None
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # a line that the death of the run cut short
                continue
            if entry["step"] <= keep_until:
                kept.append(line + "\n")
                self.last_validation = entry.get("validation_accuracy", self.last_validation)
        write_atomically(path, "".join(kept).encode())

    def write(self, step: int, values: dict[str, float]) -> None:
        entry = {k: v if math.isfinite(v) else None for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **entry}) + "\n")
        self.last_validation = values.get("validation_accuracy", self.last_validation)
