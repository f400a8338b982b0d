"""Meta-training: fixed episodes, an outer optimiser, validation, checkpoints from which to resume to the same bits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, isnan
from pathlib import Path
from typing import Any

import torch

from fewshot.algorithms.learner import Learner, Tensors, backbone_constants, check_choice
from fewshot.core.distributed import added, is_main, placed, share, world
from fewshot.core.errors import FewshotError
from fewshot.core.paths import expand_path
from fewshot.engine.engine import Engine
from fewshot.engine.probe import check_training
from fewshot.engine.reduce import over_processes
from fewshot.episodes import Tasks
from fewshot.training.checkpoint import load_checkpoint, matching, save_checkpoint, write_atomically
from fewshot.training.optimizer import Faults, apply, make_optimizer, restore, slots


@dataclass
class TrainSettings:
    """How to train, as `train` in conf/train.yaml says it; the values stand there."""

    steps: int  # outer steps
    meta_batch: int  # tasks per outer step
    shot: int | None  # K of training tasks; None: that of the test
    query: int | None  # Q of training tasks; None: K
    outer_optimizer: str  # adam | adam_tf (epsilon beside the uncorrected root, as TensorFlow has it) | sgd
    outer_lr: float
    outer_lr_end: float | None  # the rate falls linearly to this; None: constant
    clip: float | None  # each element of the outer gradient to [-clip, clip]
    clip_norm: float | None  # after that, the L2 norm of each tensor of it
    nan_guard: bool  # see `outer.guarded`; False: a loss or gradient that is not finite ends the run
    train_on_val: bool  # validation classes join the training classes (train_on_val in deepmind/leo)
    validate_every: int  # outer steps between validations; 0: none
    select: str  # best (on validation) | last
    checkpoint_every: int  # outer steps
    log_every: int  # outer steps


@dataclass(frozen=True)
class Trained:
    """What training leaves: the selected parameters, and what they cost."""

    params: Tensors
    carry: Tensors
    validation: dict[str, Any] | None  # {accuracy or mse, step} of these parameters, where they were validated
    selection: str  # "best validation accuracy" (or mse) or "last", whichever these parameters are
    steps: int  # outer steps of the whole training
    nan_guarded: int  # steps whose gradient `outer.guarded` replaced
    train_seconds: float  # of these steps: sampling, adaptation and update, without validation


def train(
    learner: Learner,
    tasks: Tasks,
    settings: TrainSettings,
    engine: Engine,
    folder: str | Path,
    validate: Callable[[Tensors, Tensors], float],
    show: Callable[[int, dict[str, float]], None],
) -> None:
    """Train to `settings.steps`, from the last checkpoint in `folder` where there is one. `selected` has the result.

    Args:
        tasks: of the training; outer step s takes episodes s*meta_batch to (s+1)*meta_batch - 1, of which each process
            runs a share.
        validate: mean score of (params, carry) on the validation episodes, by the metric of the tasks.
        show: told each outer step that is done, and what is known of it by its names in metrics.jsonl: the rate, and
            where it is logged the rest.

    Raises:
        FewshotError: a loss or gradient that is not finite; the checkpoints stay as they were.
    """
    folder = expand_path(folder)
    check_choice("train.select", settings.select, ("best", "last"))
    for name in ("clip", "clip_norm"):
        if (limit := getattr(settings, name)) is not None and not limit > 0:
            raise FewshotError(f"train.{name}={limit}: must be above 0, or null")
    last, best = checkpoints(folder)
    if trained := is_trained(learner, tasks):
        check_training(learner, tasks.episodes(0, 1))
    params, carry = learner.initial()
    params, carry = ({k: v.to(tasks.device) for k, v in group.items()} for group in (params, carry))
    optimizer = make_optimizer(settings, params)
    state: dict[str, Any] = {"step": 0, "train_seconds": 0.0, "validation": None, "best": None, "nan_guarded": 0}
    if last.exists():
        groups, state = load_checkpoint(last, tasks.device)
        with torch.no_grad():
            for name, value in matching(last, groups.get("params", {}), params).items():
                params[name].copy_(value)
        carry = matching(last, groups.get("carry", {}), carry)
        _load_constants(learner, last, groups)
        restore(optimizer, params, groups.get("outer", {}))
        _take_chunks(engine, state.get("chunks", []))
    constants = backbone_constants(learner.backbone)
    metrics = folder / "metrics.jsonl"
    _cut(metrics, state["step"])
    steps = settings.steps if trained else 0
    batch, own = settings.meta_batch, share(settings.meta_batch)

    def checkpoint() -> None:
        groups = {"params": params, "carry": carry, "constants": constants, "outer": slots(optimizer, params)}
        save_checkpoint(last, groups, state)

    # What a step finds stays on the device until it is logged: to ask for it earlier is to wait for a GPU.
    faults = Faults(settings.nan_guard, state["nan_guarded"], tasks.device)
    for step in range(state["step"], steps):
        start = time.perf_counter()
        done = step + 1
        episodes = tasks.episodes(step * batch + own.start, len(own))
        outer = over_processes(engine.outer(learner, params, carry, episodes), own, batch)
        gradient, carry = faults.handled(outer, params, step), outer.carry
        values = {"outer_lr": apply(optimizer, params, gradient, settings, step)}
        validated = bool(settings.validate_every) and (done % settings.validate_every == 0 or done == steps)
        kept = done % settings.checkpoint_every == 0 or done == steps
        logged = done % settings.log_every == 0 or done == steps or validated
        if logged or kept:
            state["nan_guarded"] = faults.told(last)
            values |= {"loss": float(outer.loss.mean()), tasks.metric: float(outer.score.mean())}
        state["train_seconds"] += time.perf_counter() - start
        state["step"] = done
        if validated:
            found = values[f"validation_{tasks.metric}"] = validate(params, carry)
            state["validation"] = {tasks.metric: found, "step": done}
            if state["best"] is None or _better(tasks.metric, state["validation"], state["best"]):
                state["best"] = state["validation"]
                save_checkpoint(best, {"params": params, "carry": carry, "constants": constants}, state)
        if logged and is_main():
            if hasattr(learner, "figures"):
                values |= learner.figures(params)  # pyright: ignore[reportAttributeAccessIssue]
            with metrics.open("a", encoding="utf-8") as file:
                line = {"step": done, **values, "train_seconds": round(state["train_seconds"], 3)}
                # JSON knows no NaN, which `nan_guard` lets pass.
                known = {name: value if isfinite(value) else None for name, value in line.items()}
                file.write(json.dumps(known) + "\n")
        show(done, values)
        if kept:
            state["chunks"] = _chunks(engine, tasks.device)
            checkpoint()
    if not last.exists():
        checkpoint()


def is_trained(learner: Learner, tasks: Tasks) -> bool:
    """Whether there is anything to train.

    Raises:
        FewshotError: there should be, but the tasks have no queries to learn from.
    """
    by_loss = hasattr(learner, "outer_loss")
    if not by_loss and not hasattr(learner, "outer_gradient"):
        return False
    if by_loss and tasks.query < 1:
        raise FewshotError("train.query=0: this algorithm learns from its queries; set at least 1, or null")
    return True


def check_shareable(learner: Learner, meta_batch: int, processes: int) -> None:
    """Raises FewshotError where so many processes cannot share the tasks of a meta-batch."""
    if processes > 1 and learner.chained:
        raise FewshotError(
            f"algorithm.learner.adam_state=chained: each task waits for the one before, which {processes} processes "
            "cannot share; set algorithm.learner.adam_state=shared, or start one process"
        )
    if meta_batch < processes:
        raise FewshotError(
            f"train.meta_batch={meta_batch}: fewer tasks than processes ({processes}); raise it, or start fewer"
        )


def selected(
    learner: Learner, settings: TrainSettings, folder: str | Path, device: torch.device, checkpoint: str | None = None
) -> Trained:
    """The parameters that the test is about: the best on validation, or the last, as `settings.select` says.

    Args:
        folder: of the run.
        checkpoint: `best`, `last` or a file, in place of `settings.select`.

    Raises:
        FewshotError: there is no such checkpoint, or it is damaged or of another learner.
    """
    last, best = checkpoints(expand_path(folder))
    _, state = load_checkpoint(last, "cpu")
    path = best if settings.select == "best" and state["best"] is not None else last
    if checkpoint is not None:
        path = {"best": best, "last": last}.get(checkpoint, expand_path(checkpoint))
        if path.resolve().parent != last.resolve().parent:
            raise FewshotError(f"checkpoint={checkpoint}: no checkpoint of the run; name a file in {last.parent}")
        if not path.exists():
            raise FewshotError(f"checkpoint={checkpoint}: {path} is not there; was the run ever validated?")
    groups, own = load_checkpoint(path, device)
    selection = "last"
    if path.resolve() == best.resolve():
        selection = f"best validation {_metric(own['validation'])}"
    elif path.resolve() != last.resolve():
        state, selection = own, f"checkpoint of step {own['step']}"
    params, carry = (
        matching(path, groups.get(name, {}), wanted)
        for name, wanted in zip(("params", "carry"), learner.initial(), strict=True)
    )
    _load_constants(learner, path, groups)
    return Trained(
        params,
        carry,
        validation=own["validation"],
        selection=selection,
        steps=state["step"],
        nan_guarded=state["nan_guarded"],
        train_seconds=state["train_seconds"],
    )


def _load_constants(learner: Learner, path: Path, groups: dict[str, Tensors]) -> None:
    """Give the backbone the frozen parameters and buffers that it was trained with."""
    own = backbone_constants(learner.backbone)
    with torch.no_grad():
        for name, value in matching(path, groups.get("constants", {}), own).items():
            if not torch.equal(own[name], value):  # an expanded buffer cannot be written to
                own[name].copy_(value)


def checkpoints(folder: Path) -> tuple[Path, Path]:
    """Where a run keeps its last checkpoint and its best."""
    return folder / "checkpoints/last.safetensors", folder / "checkpoints/best.safetensors"


def _metric(validation: dict[str, Any]) -> str:
    return "mse" if "mse" in validation else "accuracy"


def _better(metric: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    if isnan(other[metric]):
        return not isnan(one[metric])
    return one[metric] < other[metric] if metric == "mse" else one[metric] > other[metric]


def _chunks(engine: Engine, device: torch.device) -> list[int]:
    """What each process found to fit into memory, 0 where all did."""
    rank, processes = world()
    own = torch.tensor([engine.found.get("outer", 0)], device=device)
    return added([placed(own, range(rank, rank + 1), processes)])[0].tolist()


def _take_chunks(engine: Engine, chunks: list[int]) -> None:
    """Go on with the chunks that as many processes found before, for the same bits."""
    rank, processes = world()
    if len(chunks) == processes and chunks[rank]:
        engine.found["outer"] = chunks[rank]


def _cut(metrics: Path, step: int) -> None:
    """Drop the lines after the step to resume from, and one that the death of the run cut short."""
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            continue
    write_atomically(metrics, "".join(kept).encode())
