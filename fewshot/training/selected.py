"""The checkpoints of a training, and the parameters that its test takes."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import Any

import torch

from fewshot.algorithms.learner import Learner, Tensors, backbone_constants
from fewshot.core.errors import FewshotError
from fewshot.core.paths import expand_path
from fewshot.training.checkpoint import check_state, load_checkpoint, read_header
from fewshot.training.settings import TrainSettings
from fewshot.training.trained import Trained


def load_selected(
    learner: Learner, settings: TrainSettings, folder: str | Path, device: torch.device, checkpoint: str | None = None
) -> Trained:
    """The parameters to test: the best in validation, or the last, as `settings.select` says.

    Args:
        folder: of the run.
        checkpoint: `best`, `last` or a file, in place of `settings.select`.

    Raises:
        FewshotError: there is no such checkpoint, or it is damaged or of another learner.
    """
    last, best = checkpoints(expand_path(folder))
    progress = read_header(last)
    path = best if settings.select == "best" and progress["best"] is not None else last
    if checkpoint is not None:
        path = {"best": best, "last": last}.get(checkpoint, expand_path(checkpoint))
        if path.resolve().parent != last.resolve().parent:
            raise FewshotError(f"checkpoint={checkpoint}: no checkpoint of the run; name a file in {last.parent}")
        if not path.exists():
            raise FewshotError(f"checkpoint={checkpoint}: {path} is not there; was the run ever validated?")
    groups, header = load_checkpoint(path, device)
    if header["step"] > progress["step"]:  # of a training that goes on, or was killed
        progress = header
    selection = "last"
    if path.resolve() == best.resolve():
        selection = f"best validation {_metric(header['validation'])}"
    elif path.resolve() != last.resolve():
        progress, selection = header, f"checkpoint of step {header['step']}"
    params, state = (
        check_state(path, groups.get(name, {}), expected)
        for name, expected in zip(("params", "state"), learner.init(), strict=True)
    )
    load_constants(learner, path, groups)
    if hasattr(learner, "begin_step") and settings.steps:  # what it changes in training is as after the last step
        learner.begin_step(settings.steps, settings.steps)  # pyright: ignore[reportAttributeAccessIssue]
    return Trained(
        learner,
        params,
        state,
        validation=header["validation"],
        selection=selection,
        steps=progress["step"],
        nan_guarded=progress["nan_guarded"],
        train_seconds=progress["train_seconds"],
        devices=tuple(progress.get("devices", ())),
        processors=tuple(progress.get("processors", ())),
        software=tuple(progress.get("software", ())),
        code=tuple(progress.get("code", ())),
        processes=progress.get("processes"),
        peak_memory_bytes=progress.get("peak_memory_bytes"),
    )


def load_constants(learner: Learner, path: Path, groups: dict[str, Tensors]) -> None:
    """Give the backbone the frozen parameters and buffers that it was trained with."""
    constants = backbone_constants(learner.backbone)
    with torch.no_grad():
        for name, value in check_state(path, groups.get("constants", {}), constants).items():
            if not torch.equal(constants[name], value):  # an expanded buffer cannot be written to
                constants[name].copy_(value)


def checkpoints(folder: Path) -> tuple[Path, Path]:
    """The paths of a run's last and of its best checkpoint."""
    return folder / "checkpoints/last.safetensors", folder / "checkpoints/best.safetensors"


def _metric(validation: dict[str, Any]) -> str:
    return "mse" if "mse" in validation else "accuracy"


def is_better(metric: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one validation is better than another; any is better than one that is not a number."""
    if isnan(other[metric]):
        return not isnan(one[metric])
    return one[metric] < other[metric] if metric == "mse" else one[metric] > other[metric]
