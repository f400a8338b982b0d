"""Several processes on one run, as torchrun starts them.

Each process (rank) runs a slice of the tasks of every meta-batch and of every test, and holds the same parameters.
Episodes keep the global numbers that they have in a single process. Only rank 0 writes files. Without torchrun there
is one process, and nothing here does anything; torch is then not even imported.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from fewshot.core.errors import FewshotError, one_line

if TYPE_CHECKING:
    import torch

RANK_ZERO_TIMEOUT = timedelta(days=30)  # for what rank 0 does alone, such as training an extractor

_alone = False  # True while this process does what the other processes have no part in

P = ParamSpec("P")
T = TypeVar("T")


class RankZeroFailed(Exception):
    """Raised by the other ranks when rank 0 failed in what it does alone. Rank 0 says why."""


def fails_everywhere(error: BaseException | None) -> bool:
    """Whether every process of the run has failed by now with this error, or with what it became in the others.

    After another error the others may wait for this process.
    """
    if launched() == 1 or isinstance(error, RankZeroFailed):
        return True
    while error is not None:
        if getattr(error, "everywhere", False):
            return True
        error = error.__cause__
    return False


def launched() -> int:
    """The number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE") or 1)


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes that torchrun started, and leave them at the end of the outermost block.

    The backend is NCCL if each process has a GPU of its own, which becomes its current one; else gloo. A process that
    waits longer than `$FEWSHOT_TIMEOUT` seconds (600 by default) for the others gives up.

    Raises:
        FewshotError: the other processes do not come, or one of them is lost. On ranks other than 0 every message
            begins with the rank.
    """
    size = launched()
    if size == 1:
        yield
        return
    import torch.distributed as dist

    outermost = not dist.is_initialized()
    if outermost:
        _join(size)
    try:
        yield
    except FewshotError as error:
        if is_main():
            raise
        raise FewshotError(f"process {dist.get_rank()}: {error}") from error
    if outermost:
        dist.destroy_process_group()  # not after an error: it would wait for the others


def _join(size: int) -> None:
    import torch
    import torch.distributed as dist

    seconds = os.environ.get("FEWSHOT_TIMEOUT", "600")
    if not seconds.isdecimal() or int(seconds) < 1:
        raise FewshotError(f"FEWSHOT_TIMEOUT={seconds}: must be a whole number of seconds, at least 1")
    own_gpu = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", size))
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT", *(("LOCAL_RANK",) if own_gpu else ()))
    if missing := [name for name in needed if name not in os.environ]:
        raise FewshotError(
            f"WORLD_SIZE={size}: several processes, but these are not set: {', '.join(missing)}; start them by "
            "torchrun, or unset WORLD_SIZE for one process"
        )
    # When a process dies, torchrun ends the others with this signal. Treat it like Ctrl-C, which says how to go on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if own_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with _translate_dist_errors():
        dist.init_process_group("cpu:gloo,cuda:nccl" if own_gpu else "gloo", timeout=timedelta(seconds=int(seconds)))


def world() -> tuple[int, int]:
    """(rank of this process, number of processes); (0, 1) without torchrun."""
    if _alone or launched() == 1:
        return 0, 1
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def is_rank_zero() -> bool:
    """Whether torchrun started this process first, or there is only one; asked of torchrun, at any time."""
    return launched() == 1 or os.environ.get("RANK", "0") == "0"


def is_main() -> bool:
    """Whether this is rank 0, the process that writes files."""
    return world()[0] == 0


def rank_slice(count: int) -> range:
    """The indices of 0..count-1 that this rank works on: consecutive, and as many as on other ranks, or one more."""
    rank, size = world()
    return range(count * rank // size, count * (rank + 1) // size)


def all_reduce_sum(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Each tensor summed over the processes, in one message; every process gets the same bits.

    Args:
        tensors: of the same shapes in every process, on the device of the process.

    Raises:
        FewshotError: a process is lost.
    """
    values = list(tensors)
    if world()[1] == 1:
        return values
    import torch
    import torch.distributed as dist

    message = torch.cat([value.flatten() for value in values])
    with _translate_dist_errors():
        dist.all_reduce(message)
    parts = message.split([value.numel() for value in values])
    return [part.view_as(value).to(value.dtype, copy=True) for part, value in zip(parts, values, strict=True)]


def pad_to_global(values: torch.Tensor, indices: range, count: int) -> torch.Tensor:
    """Zero-filled [count, ...] with this rank's values at its indices; an all-reduce gives the whole."""
    whole = values.new_zeros(count, *values.shape[1:])
    whole[indices.start : indices.stop] = values
    return whole


def on_rank_zero(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: rank 0 alone calls the function; every rank returns its result.

    The other ranks wait, for days if need be. If the function fails, rank 0 raises the error, and the others
    RankZeroFailed.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        rank, size = world()
        if size == 1:
            return function(*args, **kwargs)
        import torch.distributed as dist

        outcome: list[Any] = [False, None]  # whether it succeeded, and the result
        with _translate_dist_errors():
            group = dist.new_group(backend="gloo", timeout=RANK_ZERO_TIMEOUT)
            assert isinstance(group, dist.ProcessGroup)  # of all processes, so this one is in it
        try:
            if rank == 0:
                with _as_single_process():
                    outcome = [True, function(*args, **kwargs)]
        except Exception as error:
            error.everywhere = True  # type: ignore[attr-defined]
            raise
        finally:
            with _translate_dist_errors():
                dist.broadcast_object_list(outcome, 0, group)
                dist.destroy_process_group(group)
        succeeded, result = outcome
        if not succeeded:
            raise RankZeroFailed
        return result

    return call


def main_first(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: rank 0 calls the function, then the other ranks do, and find on disk what the first call left there.

    Results need not be sent between processes. Of a mistake in the input only rank 0 speaks.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        results: list[T] = []
        on_rank_zero(lambda: results.append(function(*args, **kwargs)))()
        if results:
            return results[0]
        with _as_single_process():
            return function(*args, **kwargs)

    return call


@main_first
def check_shared_device(name: str, processes: int) -> None:
    """Raises FewshotError if several processes would compute on one numbered GPU."""
    if ":" in name and processes > 1:
        raise FewshotError(f"device={name}: each process takes the GPU of its number; write device=cuda")


@contextmanager
def on_all_cores() -> Iterator[None]:
    """In what rank 0 does alone, let it compute on the cores of the processes that wait."""
    import torch

    before = torch.get_num_threads()
    if _alone:
        torch.set_num_threads(before * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _as_single_process() -> Iterator[None]:
    """Run the block as if there were one process: in the validation of an extractor, say, no other takes part."""
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
