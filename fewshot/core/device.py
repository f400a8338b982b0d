"""The device that a process computes on, and its memory.

Torch is imported where it is used: the command line is answered before torch is there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import resource
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fewshot.core.errors import FewshotError
from fewshot.core.progress import print_note

if TYPE_CHECKING:
    import torch

_STATUS = Path("/proc/self/status")
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # glibc, malloc.h


def pick_device(name: str | None) -> torch.device:
    """The device of this name; `auto` and None are a GPU where there is one, else the CPU.

    A GPU computes convolutions in full float32 from then on: TensorFloat-32, torch's default for them, moved a
    meta-gradient of MAML on Omniglot by a quarter of its length (H200).

    Raises:
        FewshotError: there is no such device here, or it is neither a CPU nor a GPU of CUDA.
    """
    import torch

    if name in (None, "auto"):
        name = "cuda" if torch.cuda.is_available() else "cpu"
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if name == "cuda" and 0 < (gpus := torch.cuda.device_count()) < processes:
        print_note(f"{processes} processes share {gpus} GPU{'s' * (gpus > 1)}, which is seldom faster")
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % gpus}"
    try:
        device = torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise FewshotError(f"device={name}: not available here; use device=cpu or device=auto") from error
    if device.type not in ("cpu", "cuda"):  # others lack float64, in which scores are kept
        raise FewshotError(f"device={name}: choose cpu, cuda or auto")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return device


def count_cores() -> int:
    """The cores that this process may use, and at most 16: each that decodes an image holds it whole."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(16, len(usable))


def device_name(device: torch.device) -> str:
    """The GPU's name, or `cpu`."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def fits_on_device(size: int, device: torch.device) -> bool:
    """Whether data of `size` bytes may lie on the device: on a GPU only if half of its free memory remains."""
    import torch

    return device.type != "cuda" or 2 * size <= torch.cuda.mem_get_info(device)[0]


def out_of_memory(error: BaseException | None) -> BaseException | None:
    """The error, or the cause in its chain, that says that memory is full; None if none does.

    That is the memory of a GPU, or what this process may have (`ulimit -d`).
    """
    while error is not None and not _says_full(error):
        error = error.__cause__
    return error


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which may not be loaded
        return True
    # Messages of torch's allocator, of oneDNN, of C++ itself, and of CUDA's driver and libraries.
    messages = ("DefaultCPUAllocator: ", "could not create a primitive", "std::bad_alloc")
    messages += ("CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
    return any(message in str(error) for message in messages)


def release_memory() -> None:
    """Free what nothing refers to any more, on the GPU and in the C library's heap."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def set_single_threaded(single: bool) -> None:
    """Let torch compute on one thread, or on as many as it was started with.

    Matrices of some thousand numbers gain nothing from a second thread. Where another process uses that core, every
    operation waits for it: a step of sinusoids then takes twenty times as long.
    """
    import torch

    threads = _default_threads()
    torch.set_num_threads(1 if single else threads)


@cache
def _default_threads() -> int:
    """The number of threads that torch or the person chose, asked before this process changes it."""
    import torch

    return torch.get_num_threads()


def tune_malloc(*, one_arena: bool = False, as_glibc_does: bool = False) -> None:
    """Ask glibc to keep large freed blocks for the next allocation, and torch for large pages; elsewhere, do nothing.

    Otherwise every large activation is mapped, zeroed by the kernel page by page and unmapped again: up to half the
    time of a meta-training step on a CPU, in any engine. Torch reads its part once, before its first tensor.

    Args:
        one_arena: let all threads share one heap, since those of further threads are too small for large blocks;
            it costs threads that allocate many small ones.
        as_glibc_does: keep only what glibc by itself comes to keep, blocks of up to 32 MiB; to compare speeds.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # c10/core/impl/alloc_cpu.cpp
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        # The largest to which malloc.c raises its thresholds, which happens as soon as a program frees such a block.
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20 if as_glibc_does else 1 << 30)
        libc.mallopt(_TRIM_THRESHOLD, 64 << 20 if as_glibc_does else 1 << 30)
        if one_arena:
            libc.mallopt(_ARENA_MAX, 1)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory since the start or the last `reset_peak_memory`: of the GPU if one is used, else of this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        peaks = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        if peaks:  # some containers do not count it
            return int(peaks[0].split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: torch.device) -> None:
    """Start a new count of peak memory, where the system can: on a GPU and on Linux."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _STATUS.exists():
        release_memory()  # what was freed and kept is no longer in use
        with contextlib.suppress(OSError):
            _STATUS.with_name("clear_refs").write_text("5")
