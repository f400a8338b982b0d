"""What the folder of a training by `fewshot.train` holds: training.json, by which the same call continues it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

from fewshot.algorithms.learner import Learner, Tensors, backbone_constants
from fewshot.backbones.checks import copy_network
from fewshot.core.errors import FewshotError
from fewshot.core.files import LOCK, write_atomically
from fewshot.core.random import seeded
from fewshot.episodes import Tasks
from fewshot.tasks.regression import Regression
from fewshot.tasks.sampler import Sampler
from fewshot.training.checkpoint import digest_tensors
from fewshot.training.settings import LATER_SETTINGS, TrainSettings

LISTED = "training.json"
CONTINUED = ("steps", "validate_every", "select", "checkpoint_every", "log_every")  # may change when a training goes on
# Attributes of a learner that its training does not depend on, or that are described by others.
NOT_OPTIONS = ("backbone", "embedding", "features_once", "test_steps", "notes", "use_autograd")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def describe_training(
    learner: Learner, tasks: Tasks, settings: TrainSettings, validation: Mapping[str, Any] | None
) -> dict[str, Any]:
    """All that makes a training this one, as JSON has it: {learner, network, tasks, validation, settings}.

    The start values of trained parameters are left out, since a script without a seed draws them anew; those of the
    checkpoint take their place. But a parameter that starts at one value, such as a rate of LEO, is a setting. Neither
    the code of a learner or network is compared, nor attributes whose names begin with an underscore.

    Args:
        learner: with the weights that it has before the training, on any device.
        validation: as `describe_tasks` and the arguments of `train` describe it; None without validation.
    """
    backbone, in_stages = learner.backbone, hasattr(learner, "begin_step")
    if in_stages:  # what it changes is described as it is at the start
        learner = copy_network(learner)
        learner.begin_step(0, max(1, settings.steps))  # pyright: ignore[reportAttributeAccessIssue]
    described = asdict(settings)
    for name in CONTINUED:
        if name != "steps" or not (in_stages or settings.outer_lr_end is not None):  # else each depends on their number
            del described[name]
    with seeded(0):
        params, state = learner.init()
    starts = {_digest_tensor(value) for value in (*params.values(), *state.values())}
    weights = {_digest_tensor(value) for value in (*backbone.parameters(), *backbone.buffers())}
    names = [name for name in vars(learner) if not name.startswith("_") and name not in NOT_OPTIONS]
    options = {name: _describe(getattr(learner, name), starts) for name in names}
    if hasattr(learner, "adaptation_steps"):  # of both LEO learners, whose test_steps count in training too
        options["adaptation_steps"] = learner.adaptation_steps  # pyright: ignore[reportAttributeAccessIssue]
    training = {
        "learner": {"learner": type(learner).__name__, **options},
        "network": {
            "network": _digest(describe_modules(backbone)),
            "tensor attributes": _digest(describe_modules(backbone, weights)),
            "parameters": _digest([_start(params), _start(state)]),
            "frozen values": digest_tensors(backbone_constants(backbone)),
        },
        "tasks": {"tasks": type(tasks).__name__, **describe_tasks(tasks)},
        "validation": validation,
        "settings": described,
    }
    return json.loads(json.dumps(training))


def describe_tasks(tasks: Tasks) -> dict[str, Any]:
    """The data of some tasks, and how they are drawn and seen.

    Of a person's own tasks also what they hold under names without a `_`, but for cached properties.
    """
    names = [name for name in ("way", "shot", "query", "seed", "rotations", "view") if hasattr(tasks, name)]
    described: dict[str, Any] = {"data": tasks.source.fingerprint, "split": tasks.source.split}
    described |= {name: _describe(getattr(tasks, name)) for name in names}
    if type(tasks) not in (Sampler, Regression):
        known = {*names, "source", "bank", "device", "metric"}
        held = [name for name in getattr(tasks, "__dict__", {}) if not name.startswith("_") and name not in known]
        held = [name for name in held if not isinstance(getattr(type(tasks), name, None), cached_property)]
        described["attributes"] = {name: _describe(getattr(tasks, name), ()) for name in held}
    return described


def describe_modules(network: nn.Module, starts: Collection[str] | None = None) -> dict[str, Any]:
    """The class and the plain attributes of each part of a network, by its name; `starts` as in `_describe`."""
    return {name: [type(module).__name__, _settings(module, starts)] for name, module in network.named_modules()}


def claim_folder(folder: Path, training: Mapping[str, Any]) -> None:
    """Write what the folder holds, or check that it holds this training.

    Raises:
        FewshotError: it holds another.
    """
    listed = folder / LISTED
    if listed.exists():
        try:
            saved = json.loads(listed.read_text(encoding="utf-8"))
            other = [name for part in training for name in _differences(part, saved[part], training[part])]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FewshotError(f"{listed}: damaged, or of another version; choose another folder") from error
        if other:
            raise FewshotError(f"{folder}: holds another training (other {', '.join(other)}); choose another folder")
    elif other := _other_files(folder):
        raise FewshotError(f"{folder}: holds {other[0]}, but no training by fewshot.train; choose another folder")
    else:
        write_atomically(listed, (json.dumps(training, indent=1) + "\n").encode())


def _other_files(folder: Path) -> list[str]:
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(name for name in names if name not in (LOCK, f"{LISTED}.part"))


def _differences(part: str, saved: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> list[str]:
    """The names of what differs in a part of two trainings; the part alone where it is of another kind."""
    if saved is None or wanted is None:
        return [] if saved == wanted else [part]
    # An older listing does not say these.
    later = ("test_steps", "steps", "tensor attributes", "attributes")
    saved = {name: wanted.get(name) for name in later} | {**saved}
    shapes = {name: value for name, value in saved.items() if isinstance(value, str) and value.startswith("tensor [")}
    saved |= {name: wanted.get(name) for name, shape in shapes.items() if f"{wanted.get(name)}".startswith(f"{shape} ")}
    names = [name for name in {**wanted, **saved} if saved.get(name, LATER_SETTINGS.get(name)) != wanted.get(name)]
    if part in names:
        return [part]
    return [f"validation {name}" for name in names] if part == "validation" else names


def _settings(module: nn.Module, starts: Collection[str] | None) -> dict[str, Any]:
    """The plain attributes of a module, without those of its parts."""
    return {n: _describe(v, starts) for n, v in vars(module).items() if not n.startswith("_") and n != "training"}


def _describe(value: Any, starts: Collection[str] | None = None) -> Any:
    """A setting as JSON has it, the same in each process.

    Args:
        starts: digests of the tensors that training begins with, of which the shape alone counts; None: of any tensor.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value != value:
        return "nan"  # which is equal to itself
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _describe(each, starts) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_describe(each, starts) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.tensor(value)
    if isinstance(value, torch.Tensor):
        shape = f"tensor {list(value.shape)}"
        return shape if starts is None or (digest := _digest_tensor(value)) in starts else f"{shape} {digest:.12}"
    if isinstance(value, nn.Module):
        return {"module": repr(value), **{name: _describe(each, starts) for name, each in value.state_dict().items()}}
    name = getattr(value, "__qualname__", None) or ADDRESS.sub("", repr(value))
    if isinstance(value, FunctionType) and "<" in name:  # a lambda or a local function, of which many have one name
        around = [*_enclosed(value), *(value.__defaults__ or ())]
        around = [_describe_code(v.__code__) if isinstance(v, FunctionType) else _describe(v, starts) for v in around]
        name += f" {_digest([_describe_code(value.__code__), around]):.12}"
    return name


def _enclosed(function: FunctionType) -> list[Any]:
    """The values of the enclosing functions that a function uses."""
    values = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a name that has no value yet
            values.append(cell.cell_contents)
    return values


def _describe_code(code: CodeType) -> list[Any]:
    """What a function does, without its place in a file."""
    constants = [_describe_code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return [code.co_code.hex(), code.co_names, constants]


def _digest_tensor(tensor: torch.Tensor) -> str:
    return digest_tensors({"": tensor})


def _start(tensors: Tensors) -> dict[str, Any]:
    """The shape of each tensor, and its value where all its elements have one."""
    return {name: [list(value.shape), _only_value(value)] for name, value in tensors.items()}


def _only_value(tensor: torch.Tensor) -> float | None:
    first = tensor.flatten()[:1]
    return float(first) if tensor.numel() > 1 and bool((tensor == first).all()) else None


def _digest(described: Any) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
