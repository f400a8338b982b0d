"""Checkpoints: one safetensors file each, with every tensor, and the rest as JSON in its header. No pickles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically

HEADER = "fewshot"


def save_checkpoint(path: Path, groups: Mapping[str, Mapping[str, torch.Tensor]], header: Mapping[str, Any]) -> None:
    """Write groups of named tensors (such as params, state, outer) and a JSON-able header."""
    flat = {
        f"{group}/{name}": t.detach().cpu().clone(memory_format=torch.contiguous_format)
        for group, ts in groups.items()
        for name, t in ts.items()
    }
    write_atomically(path, save(flat, metadata={HEADER: json.dumps(header)}))


def load_checkpoint(
    path: Path, device: torch.device | str
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """The groups and the header that `save_checkpoint` wrote.

    Raises:
        FewshotError: the file is missing, damaged, or not one of this project's.
    """
    groups: dict[str, dict[str, torch.Tensor]] = {}
    with _opened(path, device) as (file, header):
        for key in file.keys():  # noqa: SIM118  (not a dict)
            group, name = key.split("/", 1)
            groups.setdefault(group, {})[name] = file.get_tensor(key)
    return groups, header


def read_header(path: Path) -> dict[str, Any]:
    """The header alone, without the tensors. Raises FewshotError as `load_checkpoint` does."""
    with _opened(path, "cpu") as (_, header):
        return header


@contextmanager
def _opened(path: Path, device: torch.device | str) -> Iterator[tuple[Any, dict[str, Any]]]:
    if not path.is_file():
        raise FewshotError(f"{path}: no checkpoint there; give the folder of a run that has trained for a while")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            yield file, json.loads((file.metadata() or {})[HEADER])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise FewshotError(f"{path}: damaged, or not a checkpoint of this project ({error}); train again") from error


def check_state(
    path: Path, tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint in the order of `expected`.

    Raises:
        FewshotError: names or shapes differ, so the checkpoint belongs to another algorithm or backbone.
    """
    for name in expected.keys() | tensors.keys():
        if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape:
            shapes = [tuple(group[name].shape) if name in group else "absent" for group in (tensors, expected)]
            raise FewshotError(
                f"{path}: from another algorithm or backbone: {name} is {shapes[0]} there, {shapes[1]} here"
            )
    return {name: tensors[name] for name in expected}


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names and bytes of tensors in their order."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
