"""The engine: lifts an algorithm written for one task to all tasks of a meta-batch.

`vmap` runs a chunk of tasks as one batched computation; `compiled` has torch.compile fuse that one, in meta-training
and where no task waits for another, once for each learner and shape; `loop` runs task by task, on as many threads as
torch uses, each keeping one core busy (tiny convolutions gain nothing from sharing one, large networks do);
`learn2learn` is the reference implementation of MAML and FOMAML. All give the same gradients.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_map

from fewshot.algorithms.learner import Learner, Tensors
from fewshot.core.checks import check_choice
from fewshot.core.device import out_of_memory, release_memory, tune_malloc
from fewshot.core.errors import FewshotError
from fewshot.engine.compile import compiled
from fewshot.engine.lift import eager_copy, lift_all, lift_one, outer_of
from fewshot.engine.probe import parameter_count, why_not_batched
from fewshot.engine.reduce import MetaGradient, weighted_mean
from fewshot.episodes import Episodes

ENGINES = ("auto", "vmap", "compiled", "loop", "learn2learn")
# Examples with more values than this gain on CPU from `loop` (see tools/bench.py): per-task weights turn into grouped
# convolutions, which pay on 28x28 images and cost on 84x84 ones.
SMALL = 40 * 40
# Learners of more parameters than this run, on CPU, by `loop`, one task on all cores: 14.2 seconds for two tasks of
# ResNet-12, second order, against 16.8 on two threads, in half the memory; Conv-4 is the other way about.
LARGE = 1_000_000


class Engine:
    """Runs tasks by the method `name`, `task_chunk` tasks at a time.

    Args:
        name: one of ENGINES.
        task_chunk: of `vmap` and `compiled`; None: all at once. Where so many do not fit into memory, half as many are
            tried.

    Attributes:
        fitted_chunk: what fitted then, apart for `outer` and for `map`; a resumed run goes on with that of `outer`,
            since other chunks round otherwise.
        fallback: why `auto` took `loop` where it takes vmap for other learners; empty where it did not.
    """

    def __init__(self, name: str = "auto", task_chunk: int | None = None) -> None:
        if task_chunk is not None and task_chunk < 1:
            raise FewshotError(f"task_chunk={task_chunk}: must be at least 1, or null for all tasks at once")
        self.name = check_choice("engine", name, ENGINES)
        self.task_chunk = task_chunk
        self.fitted_chunk: dict[str, int] = {}
        self.fallback = ""
        self._compiled: tuple[Any, Callable[..., Any]] | None = None  # the last learner's
        self._own = threading.local()
        self._pool: ThreadPoolExecutor | None = None

    def method(self, episodes: Episodes, learner: Any = None) -> str:
        """The method that `auto` stands for: vmap on a GPU and for small examples, if the learner can be batched.

        Raises:
            FewshotError: the method was named, and the learner cannot be batched.
        """
        name = self.name
        if name == "auto":
            fast = _small(episodes) and (learner is None or parameter_count(learner) <= LARGE)
            name = "vmap" if fast or episodes.support_x.device.type != "cpu" else "loop"
        if learner is None or name not in ("vmap", "compiled") or not (fault := why_not_batched(learner, episodes)):
            return name
        if self.name == "auto":
            self.fallback = fault
            return "loop"
        raise FewshotError(f"engine={name}: {fault}; choose engine=loop or engine=auto")

    def outer(self, learner: Learner, params: Tensors, state: Tensors, episodes: Episodes) -> MetaGradient:
        """Outer gradient of a meta-batch.

        Args:
            learner: one with `outer_loss` or `outer_gradient`.
            params, state: the meta-parameters, and what tasks pass on.
        """
        method = self.method(episodes, learner)
        if method == "learn2learn":
            from fewshot.engine.learn2learn import outer_by_learn2learn

            return outer_by_learn2learn(learner, params, episodes)
        if learner.sequential:
            parts = _in_a_chain(learner, params, state, episodes)
        elif method == "loop":
            parts = self._on_threads(learner, params, state, episodes)
        else:
            run = self._fused if method == "compiled" else partial(outer_of, lift=lift_all)
            return self._in_chunks(
                "outer",
                episodes,
                lambda chunks: weighted_mean((run(learner, params, state, c) for c in chunks), len(episodes), False),
            )
        return weighted_mean(parts, len(episodes), learner.sequential)

    def map(self, function: Callable[[Episodes], Any], episodes: Episodes, learner: Any = None) -> Any:
        """A function of one task over all: its results, stacked along a new leading axis [T].

        Args:
            learner: the one whose methods `function` calls; without it the function is taken to be one for vmap.
        """

        def run(chunks: Iterator[Episodes], lift: Callable[..., Any] = lift_all) -> Any:
            return tree_map(lambda *parts: torch.cat(parts), *(lift(function, chunk) for chunk in chunks))

        if self.method(episodes, learner) in ("vmap", "compiled"):
            return self._in_chunks("map", episodes, run)
        return run((episodes[i : i + 1] for i in range(len(episodes))), lift_one)

    def _in_chunks(self, what: str, episodes: Episodes, run: Callable[[Iterator[Episodes]], Any]) -> Any:
        """A function of consecutive groups of the tasks, in groups that fit into memory."""
        while True:
            size = min(
                limit for limit in (self.task_chunk, self.fitted_chunk.get(what), len(episodes)) if limit is not None
            )
            try:
                return run(episodes[i : i + size] for i in range(0, len(episodes), size))
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not out_of_memory(error):
                    raise
            # Outside of `except`, whose traceback holds on to what filled the memory.
            release_memory()
            self.fitted_chunk[what] = -(-size // 2)

    def _fused(self, learner: Learner, params: Tensors, state: Tensors, episodes: Episodes) -> MetaGradient:
        """`outer_of`, compiled when a learner first meets a shape; kept while the learner stays the same."""
        if self._compiled is None or self._compiled[0] is not learner:
            self._compiled = learner, compiled(partial(_tensors_of_outer, learner))
        return MetaGradient(*self._compiled[1](episodes.way, params, state, *episodes.tensors()))

    def _on_threads(
        self, learner: Learner, params: Tensors, state: Tensors, episodes: Episodes
    ) -> Iterator[MetaGradient]:
        def work(group: Episodes) -> MetaGradient:
            # functional_call swaps a module's parameters while it runs: each thread needs a module of its own.
            if getattr(self._own, "source", None) is not learner:
                self._own.source, self._own.learner = learner, eager_copy(learner)
            tasks = (group[i : i + 1] for i in range(len(group)))
            parts = (outer_of(self._own.learner, params, state, task, lift_one) for task in tasks)
            return weighted_mean(parts, len(group), sequential=False)

        on_cpu = episodes.key.device.type == "cpu"
        if on_cpu and not _small(episodes):
            episodes = _channels_last(episodes)
            tune_malloc(one_arena=True)
        threads = torch.get_num_threads()
        if not on_cpu or threads == 1 or sum(value.numel() for value in params.values()) > LARGE:
            return iter([work(episodes)])
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        # Each thread adds up its own tasks: were this thread to do it meanwhile, its helpers would hold the cores.
        size = -(-len(episodes) // threads)
        return self._pool.map(work, [episodes[i : i + size] for i in range(0, len(episodes), size)])


def _tensors_of_outer(
    learner: Learner, way: int, params: Tensors, state: Tensors, *tensors: torch.Tensor
) -> tuple[Any, ...]:
    outer = outer_of(learner, params, state, Episodes(*tensors, way=way), lift_all, use_autograd=False)
    return outer.gradient, outer.state, outer.loss, outer.score


def is_small(values: int) -> bool:
    """Whether examples of so many values each run faster on CPU by `vmap` than by `loop`."""
    return values <= SMALL


def _small(episodes: Episodes) -> bool:
    return is_small(episodes.support_x[0, 0].numel())


def _channels_last(episodes: Episodes) -> Episodes:
    """Images stored with their channels innermost: the layout that convolutions on a CPU are fastest in."""

    def stored(x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 5:
            return x
        return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])

    sx, sy, qx, qy, key = episodes.tensors()
    return episodes.with_tensors(stored(sx), sy, stored(qx), qy, key)


def _in_a_chain(learner: Learner, params: Tensors, state: Tensors, episodes: Episodes) -> Iterator[MetaGradient]:
    learner = eager_copy(learner)
    for task in range(len(episodes)):
        part = outer_of(learner, params, state, episodes[task : task + 1], lift_one)
        state = part.state
        yield part
