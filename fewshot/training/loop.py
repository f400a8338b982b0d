"""Meta-training: fixed episodes, outer optimiser, validation, and checkpoints to resume from, bit for bit on CPU."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from fewshot.algorithms.learner import Learner, Tensors, backbone_constants
from fewshot.backbones.precision import products_in
from fewshot.core.device import peak_memory_bytes
from fewshot.core.distributed import all_reduce_sum, is_main, pad_to_global, rank_slice, world
from fewshot.core.environment import note_machine
from fewshot.core.errors import FewshotError, writing
from fewshot.core.files import write_atomically
from fewshot.core.interrupt import hold_interrupt
from fewshot.core.paths import expand_path
from fewshot.core.random import seeded
from fewshot.engine.contract import check_names
from fewshot.engine.engine import Engine
from fewshot.engine.probe import check_bfloat16_training
from fewshot.engine.reduce import over_processes
from fewshot.episodes import Tasks
from fewshot.tasks.ahead import draw_ahead
from fewshot.training.checkpoint import check_state, digest_tensors, load_checkpoint, read_header, save_checkpoint
from fewshot.training.optimizer import (
    NonFiniteGuard,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    optimizer_step,
)
from fewshot.training.selected import checkpoints, is_better, load_constants
from fewshot.training.settings import TrainSettings, check_train_settings

DRAWN_STEPS = 16  # outer steps whose tasks are drawn at once


def run_training(
    learner: Learner,
    tasks: Tasks,
    settings: TrainSettings,
    engine: Engine,
    folder: str | Path,
    validate: Callable[[Tensors, Tensors], float],
    show: Callable[[int, dict[str, float]], None],
) -> None:
    """Train to `settings.steps`, from the last checkpoint in `folder` if there is one. `load_selected` has the result.

    Args:
        learner: one that `check_training` accepts.
        tasks: of the training. Outer step s takes episodes s*meta_batch to (s+1)*meta_batch - 1; each process runs
            its slice of them.
        validate: gives the mean score of (params, state) on the validation episodes.
        show: callback(step, metrics), called after every outer step. The metrics have the names of metrics.jsonl:
            always the learning rate, the others at the steps that are logged.

    Raises:
        FewshotError: a loss or gradient is not finite; the checkpoints stay as they were.
        KeyboardInterrupt: by Ctrl-C. A process alone first ends its step, with its validation if one is due, and writes
            a checkpoint; several cannot agree on the step, and stop at once.
    """
    folder = expand_path(folder)
    check_train_settings(settings)
    last, best = checkpoints(folder)
    trained = is_trainable_on(learner, tasks)
    if trained and settings.precision == "bfloat16":
        check_bfloat16_training(learner, tasks.episodes(0, 1))
    params, state = _start_values(learner, tasks, fresh=not last.exists())
    optimizer = make_optimizer(settings, params)
    progress: dict[str, Any] = {"step": 0, "train_seconds": 0.0, "validation": None, "best": None, "nan_guarded": 0}
    if last.exists():
        groups, progress = load_checkpoint(last, tasks.device)
        with torch.no_grad():
            for name, value in check_state(last, groups.get("params", {}), params).items():
                params[name].copy_(value)
        state = check_state(last, groups.get("state", {}), state)
        load_constants(learner, last, groups)
        load_optimizer_state(optimizer, params, groups.get("outer", {}))
        _take_chunks(engine, progress.get("chunks", []))
        engine.compiles = engine.compiles and progress.get("compiles", False)
        if progress["best"] and progress["best"]["step"] == progress["step"]:
            if not best.exists() or read_header(best)["step"] < progress["step"]:  # it died before it wrote this
                kept = {name: groups[name] for name in ("params", "state", "constants") if name in groups}
                save_checkpoint(best, kept, progress)
        else:
            progress["best"] = _kept_validation(best, progress["step"])
    constants = backbone_constants(learner.backbone)
    _check_same_start({**params, **state, **constants}, tasks.device)
    log = folder / "metrics.jsonl"
    _truncate_log(log, progress["step"])
    steps = settings.steps if trained else 0
    if progress["step"] < steps:
        note_machine(progress, tasks.device, progress["step"] > 0)
        progress["processes"] = world()[1]
    batch, indices = settings.meta_batch, rank_slice(settings.meta_batch)
    ahead = draw_ahead(tasks, batch, DRAWN_STEPS)

    def note_peak() -> None:
        if progress["step"]:
            progress["peak_memory_bytes"] = max(progress.get("peak_memory_bytes", 0), peak_memory_bytes(tasks.device))

    def checkpoint() -> None:
        progress["nan_guarded"] = guard.check(last)
        progress["chunks"] = _chunks(engine, tasks.device)
        progress["compiles"] = engine.compiles
        note_peak()
        groups = {"params": params, "state": state, "constants": constants, "outer": optimizer_state(optimizer, params)}
        save_checkpoint(last, groups, progress)

    # The scores of a step stay on the device until they are logged: reading them earlier would wait for the GPU.
    guard = NonFiniteGuard(settings, progress["nan_guarded"], tasks.device)
    hold = hold_interrupt() if world()[1] == 1 else nullcontext(lambda: False)
    with _stages(learner, steps) as begin_step, hold as interrupted, _noted_step(progress, last):
        for step in range(progress["step"], steps):
            start = time.perf_counter()
            done, compiles = step + 1, engine.compiles
            begin_step(step, steps)
            episodes = ahead(step * batch + indices.start, len(indices))
            with products_in(learner.backbone, settings.precision):
                outer = over_processes(engine.outer(learner, params, state, episodes), indices, batch)
            if interrupted() and engine.compiles != compiles:
                raise KeyboardInterrupt  # Ctrl-C ended the compiler too: that it failed is not to be kept
            gradient, state = guard.filter(outer, params, state, step)
            metrics = {"outer_lr": optimizer_step(optimizer, params, gradient, settings, step)}
            validates = bool(settings.validate_every) and (done % settings.validate_every == 0 or done == steps)
            logs = done % settings.log_every == 0 or done == steps or validates
            if logs or done % settings.checkpoint_every == 0:
                progress["nan_guarded"] = guard.check(last)  # waits for a GPU, whose work belongs to the step
            if logs:
                metrics |= {"loss": float(outer.loss.mean()), tasks.metric: float(outer.score.mean())}
            progress["train_seconds"] += time.perf_counter() - start
            progress["step"], improved = done, False
            if validates:
                score = metrics[f"validation_{tasks.metric}"] = validate(params, state)
                progress["validation"] = {tasks.metric: score, "step": done}
                improved = not progress["best"] or is_better(tasks.metric, progress["validation"], progress["best"])
                if improved:
                    progress["best"] = progress["validation"]
            if logs and is_main():
                if hasattr(learner, "scalars"):
                    metrics |= learner.scalars(params)  # pyright: ignore[reportAttributeAccessIssue]
                spent = {"tasks": done * batch, "train_seconds": round(progress["train_seconds"], 3)}
                line = {"step": done, **metrics, **spent}
                # JSON has no NaN, which `nan_guard` lets pass.
                line = {name: value if isfinite(value) else None for name, value in line.items()}
                with writing(log, "another folder"), log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            show(done, metrics)
            stops = interrupted()
            if stops or improved or done % settings.checkpoint_every == 0 or done == steps:
                checkpoint()
            if improved:  # after the last one, from which it can be made again
                save_checkpoint(best, {"params": params, "state": state, "constants": constants}, progress)
            if stops:
                raise KeyboardInterrupt
    if not steps and not last.exists():  # with steps, another process may not have written it yet
        checkpoint()


@contextmanager
def _noted_step(progress: dict[str, Any], last: Path) -> Iterator[None]:
    """Add to an exception of the block, such as one of a person's own learner, in which step it was raised."""
    try:
        yield
    except FewshotError:
        raise
    except Exception as error:
        step = f"{read_header(last)['step']:,}" if last.exists() else "none"
        error.add_note(f"in step {progress['step'] + 1:,} of the training (last checkpoint: {step})")
        raise


def _start_values(learner: Learner, tasks: Tasks, *, fresh: bool) -> tuple[Tensors, Tensors]:
    """The params and the state at the start, on the tasks' device. What `init` draws follows from the tasks' seed.

    Args:
        fresh: whether the training begins, so that `state_of` is asked for the state.
    """
    with seeded(int(getattr(tasks, "seed", None) or 0)):
        params, state = learner.init()
    if state and hasattr(learner, "state_of") and fresh:
        if not hasattr(tasks, "blocks"):
            raise FewshotError("this algorithm needs the training examples, and functions have none; choose another")
        examples_state = learner.state_of(tasks.blocks())  # pyright: ignore[reportAttributeAccessIssue]
        check_names(learner, "state of the training examples", examples_state, state)
        state = examples_state
    # Copies, so that the learner's network stays as it is.
    params, state = ({k: v.detach().clone().to(tasks.device) for k, v in group.items()} for group in (params, state))
    return params, state


def _kept_validation(best: Path, step: int) -> dict[str, Any] | None:
    """The validation of the best checkpoint so far, {metric, step}; None if there is none.

    One that is ahead of the last checkpoint is of a training that was lost, and may not come again.
    """
    kept = read_header(best) if best.exists() else None
    return kept["validation"] if kept and kept["step"] <= step else None


def _check_same_start(tensors: Tensors, device: torch.device) -> None:
    """Raises FewshotError where the processes of a run would train from different values."""
    processes = world()[1]
    if processes == 1:
        return
    digest = int(digest_tensors(tensors)[:12], 16)
    (total,) = all_reduce_sum([torch.tensor([digest], device=device)])
    if int(total) != digest * processes:
        raise FewshotError(
            "the processes start with different parameters: let the learner and its network draw them by torch, NumPy "
            "or random, whose generators the seed sets, or start one process"
        )


@contextmanager
def _stages(learner: Learner, steps: int) -> Iterator[Callable[[int, int], None]]:
    """`begin_step` of the learner, if it has one; after the block, interrupted or not, it is called for the end."""
    begin_step = getattr(learner, "begin_step", lambda step, steps: None)
    try:
        yield begin_step
    finally:
        if steps:
            begin_step(steps, steps)


def is_trainable(learner: Learner) -> bool:
    """Whether the learner can be trained: whether it has `outer_loss` or `outer_gradient`."""
    return hasattr(learner, "outer_loss") or hasattr(learner, "outer_gradient")


def is_trainable_on(learner: Learner, tasks: Tasks) -> bool:
    """As `is_trainable`.

    Raises:
        FewshotError: it can be, but the tasks have no queries to learn from.
    """
    if hasattr(learner, "outer_loss") and tasks.query < 1:
        raise FewshotError("train.query=0: this algorithm learns from its queries; set at least 1, or null")
    return is_trainable(learner)


def check_shareable(learner: Learner, meta_batch: int, processes: int) -> None:
    """Raises FewshotError if this number of processes cannot share the tasks of a meta-batch."""
    if processes > 1 and learner.sequential:
        raise FewshotError(
            f"algorithm.learner.adam_state=sequential: each task waits for the one before, which {processes} processes "
            "cannot share; set algorithm.learner.adam_state=shared, or start one process"
        )
    if meta_batch < processes:
        raise FewshotError(
            f"train.meta_batch={meta_batch}: fewer tasks than processes ({processes}); raise it, or start fewer"
        )


def _chunks(engine: Engine, device: torch.device) -> list[int]:
    """For each process the number of tasks at once that fitted into its memory; 0 if all did."""
    rank, processes = world()
    chunk = torch.tensor([engine.fitted_chunk.get("outer", 0)], device=device)
    return all_reduce_sum([pad_to_global(chunk, range(rank, rank + 1), processes)])[0].tolist()


def _take_chunks(engine: Engine, chunks: list[int]) -> None:
    """Continue with the same numbers of tasks at once, which give the same bits, if there are as many processes."""
    rank, processes = world()
    if len(chunks) == processes and chunks[rank]:
        engine.fitted_chunk["outer"] = chunks[rank]


def _truncate_log(log: Path, step: int) -> None:
    """Drop the lines after the step to resume from, and a last line that an interruption cut short."""
    lines = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line + "\n")
        except json.JSONDecodeError:
            continue
    write_atomically(log, "".join(lines).encode())
