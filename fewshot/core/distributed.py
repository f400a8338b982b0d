"""Several processes on one run, as torchrun starts them: who does what, and what all know afterwards.

Each works on a share of the tasks of every meta-batch and of every test, by the same global numbers of episodes as one
process alone, and holds the same parameters. Process 0 alone writes. Without torchrun all of this does nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fewshot.core.errors import FewshotError, one_line

PATIENCE = timedelta(days=30)  # with what process 0 does alone, such as training an extractor

_alone = False  # while this process does what the others have no part in

T = TypeVar("T")


@contextmanager
def process_group() -> Iterator[None]:
    """Meet the other processes that torchrun started, and leave them at the end.

    They talk by NCCL where each has a GPU of its own, which becomes its current one, else by gloo. A process that
    waits longer for the others than `$FEWSHOT_TIMEOUT` seconds, 600 where it is not set, gives up.

    Raises:
        FewshotError: the others do not come, or one of them is lost; in another process than the main
            one an error says its number.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield
        return
    seconds = os.environ.get("FEWSHOT_TIMEOUT", "600")
    if not seconds.isdecimal() or int(seconds) < 1:
        raise FewshotError(f"FEWSHOT_TIMEOUT={seconds}: must be a whole number of seconds, at least 1")
    # torchrun ends what is left after a death by this signal: like Ctrl-C, it is to say how to continue.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    own_gpu = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", size))
    if own_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with _translate_dist_errors():
        dist.init_process_group("cpu:gloo,cuda:nccl" if own_gpu else "gloo", timeout=timedelta(seconds=int(seconds)))
    try:
        yield
    except FewshotError as error:
        if is_main():
            raise
        raise FewshotError(f"process {dist.get_rank()}: {error}") from error
    dist.destroy_process_group()  # not after an error: it would wait for the others


def world() -> tuple[int, int]:
    """The number of this process, and how many work on the run: (0, 1) without torchrun."""
    if _alone or not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def is_main() -> bool:
    """Whether this is the process that writes."""
    return world()[0] == 0


def rank_slice(count: int) -> range:
    """The places of 0..count-1 that are this process's: consecutive, in the order of the processes, equal within 1."""
    rank, size = world()
    return range(count * rank // size, count * (rank + 1) // size)


def all_reduce_sum(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Each tensor summed over the processes, in one message; all of them get the same bits.

    Args:
        tensors: of the same shapes, on the devices of the processes.

    Raises:
        FewshotError: a process is lost.
    """
    own = list(tensors)
    if world()[1] == 1:
        return own
    message = torch.cat([value.flatten() for value in own])
    with _translate_dist_errors():
        dist.all_reduce(message)
    parts = message.split([value.numel() for value in own])
    return [part.view_as(value).to(value.dtype, copy=True) for part, value in zip(parts, own, strict=True)]


def pad_to_global(own: torch.Tensor, places: range, count: int) -> torch.Tensor:
    """Values [count] of which this process knows those at `places`; added up over the processes, all of them."""
    whole = own.new_zeros(count)
    whole[places.start : places.stop] = own
    return whole


def on_rank_zero(function: Callable[[], T]) -> T:
    """What the function returns in process 0, which calls it alone while the others wait, for days if need be.

    Where it fails, process 0 raises its error, and the others leave without a word.
    """
    rank, size = world()
    if size == 1:
        return function()
    found: list[Any] = [False, None]
    with _translate_dist_errors():
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(group, dist.ProcessGroup)  # of all processes, so this one is of it
    try:
        if rank == 0:
            with _by_itself():
                found = [True, function()]
    finally:
        with _translate_dist_errors():
            dist.broadcast_object_list(found, 0, group)
            dist.destroy_process_group(group)
    succeeded, result = found
    if not succeeded:
        sys.exit(1)
    return result


def main_first(function: Callable[[], T]) -> T:
    """Call the function in process 0, then in the others, who find on disk what the first call left there."""
    done: list[T] = []
    on_rank_zero(lambda: done.append(function()))
    if done:
        return done[0]
    with _by_itself():
        return function()


@contextmanager
def _by_itself() -> Iterator[None]:
    """What happens here is no common work: an extractor's validation, say, in which no other process takes part."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextmanager
def _translate_dist_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise FewshotError(
            "another process of this run ended or hangs; the same command, or resume=<run folder>, continues from the "
            f"last checkpoint ({one_line(error)})"
        ) from error
