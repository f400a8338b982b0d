"""What results can depend on beside their settings: the code's version and commit, packages and machine."""

from __future__ import annotations

import platform
import subprocess
import tomllib
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshot.core.device import device_name
from fewshot.core.distributed import world
from fewshot.core.progress import print_note

if TYPE_CHECKING:
    import torch

NOTES = ("devices", "processors", "software", "code")  # what checkpoints say of where they were trained, each a list


@cache
def code() -> dict[str, Any]:
    """The version of the code, and the commit and state of its git checkout, null where there is none.

    They are of the first call: the tools make it at their start, since a checkout may change while they run.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            return subprocess.check_output(["git", *arguments], cwd=root, stderr=subprocess.DEVNULL, text=True).strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    state = {"version": _own_version(root), "commit": None, "dirty": None}
    top = git("rev-parse", "--show-toplevel")
    if top is not None and Path(top).resolve() == root:  # not installed somewhere inside another project's checkout
        # A file that git does not know yet, such as a new algorithm, is a change too.
        changes = git("status", "--porcelain", "--", "fewshot", "conf", "tools")
        state |= {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    return state


def _own_version(root: Path) -> str:
    """The version that is installed, else that of the checkout from which this runs."""
    installed, described = _version("fewshot"), root / "pyproject.toml"
    if installed != "absent" or not described.is_file():
        return installed
    project = tomllib.loads(described.read_text(encoding="utf-8")).get("project", {})
    return project.get("version", installed) if project.get("name") == "fewshot" else installed


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def environment() -> dict[str, Any]:
    """Versions of the packages and properties of the machine of this process; a record has those of its test.

    `instructions` are the widest vectors that torch uses, as AVX2 or AVX512.
    """
    import torch

    packages = ("torch", "torchvision", "learn2learn", "hydra-core", "numpy", "pillow")
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "platform": platform.platform(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def note_machine(notes: dict[str, Any], device: torch.device, begun: bool) -> None:
    """Add what a training runs on, from now on, to `notes`; print a note where that changes its last digits.

    Args:
        notes: of the checkpoint; changed in place.
        begun: whether a part was trained before, by what older checkpoints do not say.
    """
    import torch

    # A virtual machine may hide the model of its processor, and its speed with it.
    processor = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"
    software = f"torch {_version('torch')}, processes: {world()[1]}"
    if device.type == "cpu":  # elsewhere they change no digit
        software += f", threads of each: {torch.get_num_threads()}"
    last = notes.get("software", ["unknown"])[-1]
    if last not in (software, "unknown"):
        print_note(f"trained so far by {last}; from here by {software}: equal up to rounding, not bit for bit")
        notes["software"] = [each for each in notes["software"] if each != software]  # now the last again
    for name, own in zip(NOTES, (device_name(device), processor, software, code()), strict=True):
        before = notes.get(name, ["unknown"] if begun and name != "code" else [])
        notes[name] = before if own in before else [*before, own]


def _processor() -> str:
    """The name of the processor, as far as the system says it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
