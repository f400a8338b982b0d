"""Checkpoints: one safetensors file each, with every tensor and, in its header, the rest as JSON. No pickles."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fewshot.distributed import is_main
from fewshot.errors import FewshotError, writing

HEADER = "fewshot"
LOCK = ".lock"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file in one move: after any kind of death it holds the old content or the new, never a part.

    Of several processes on one run the main one alone writes; in the others this does nothing.

    Raises:
        FewshotError: the file cannot be written; it holds what it held.
    """
    if not is_main():
        return
    scratch = path.with_name(path.name + ".part")
    with writing(path, "another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        except OSError:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def only_process_in(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; the system lets go of it after any kind of death.

    Raises:
        FewshotError: another process has it, or it cannot be written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with writing(folder, "another run_dir"):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if not isinstance(error, BlockingIOError):
                raise
            raise FewshotError(
                f"{folder}: another process is running there; wait for it, or choose another run_dir"
            ) from error
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        file.close()
        with contextlib.suppress(OSError):  # not empty: only where nothing was written do the folders go again
            for path in made:
                path.rmdir()


def save_checkpoint(path: Path, groups: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]) -> None:
    """Write groups of named tensors (such as params, carry, outer) and a JSON-able state."""
    flat = {
        f"{group}/{name}": t.detach().cpu().clone(memory_format=torch.contiguous_format)
        for group, ts in groups.items()
        for name, t in ts.items()
    }
    write_atomically(path, save(flat, metadata={HEADER: json.dumps(state)}))


def load_checkpoint(
    path: Path, device: torch.device | str
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """The groups and the state that `save_checkpoint` wrote.

    Raises:
        FewshotError: the file is missing, damaged, or not one of this project's.
    """
    if not path.is_file():
        raise FewshotError(f"{path}: no checkpoint there; give the folder of a run that has trained for a while")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            state = json.loads((file.metadata() or {})[HEADER])
            groups: dict[str, dict[str, torch.Tensor]] = {}
            for key in file.keys():  # noqa: SIM118  (not a dict)
                group, name = key.split("/", 1)
                groups.setdefault(group, {})[name] = file.get_tensor(key)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise FewshotError(f"{path}: damaged, or not a checkpoint of this project ({error}); train again") from error
    return groups, state


def matching(
    path: Path, found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """`found` in the order of `wanted`.

    Raises:
        FewshotError: names or shapes differ: the checkpoint belongs to another algorithm or backbone.
    """
    for name in wanted.keys() | found.keys():
        if name not in found or name not in wanted or found[name].shape != wanted[name].shape:
            shapes = [tuple(g[name].shape) if name in g else "absent" for g in (found, wanted)]
            raise FewshotError(
                f"{path}: from another algorithm or backbone: {name} is {shapes[0]} there, {shapes[1]} here"
            )
    return {name: found[name] for name in wanted}
