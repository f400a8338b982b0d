"""The engine: runs an algorithm, which is written for one task, on all tasks of a meta-batch.

All methods give the same gradients:

- `vmap` runs a chunk of tasks as one batched computation;
- `compiled` is `vmap` fused by torch.compile, in meta-training, once for each learner and shape;
- `loop` runs task by task, on as many threads as torch uses, one core each: tiny convolutions gain nothing from several
  cores, while large networks do and run one task at a time on all of them;
- `learn2learn` is an independent implementation of MAML and FOMAML, as a reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils._pytree import tree_map

from fewshot.algorithms.learner import Learner, Tensors
from fewshot.backbones.precision import uses_bfloat16
from fewshot.core.checks import check_choice, check_number
from fewshot.core.device import out_of_memory, release_memory, tune_malloc
from fewshot.core.errors import FewshotError, one_line
from fewshot.core.progress import print_note
from fewshot.engine.compile import compiled, has_compiler
from fewshot.engine.cuda_graph import RecordedStep, is_recording
from fewshot.engine.lift import autograd_copy, lift_all, lift_one, mean_outer
from fewshot.engine.probe import parameter_count, probe, why_not_batched
from fewshot.engine.reduce import MetaGradient, weighted_mean
from fewshot.episodes import Episodes

T = TypeVar("T")

ENGINES = ("auto", "vmap", "compiled", "loop", "learn2learn")
# Images with more values are faster on CPU by `loop` (see tools/bench.py): the weights of each task turn into grouped
# convolutions, which pay on 28x28 images and cost on 84x84. Vectors are slower by `loop`: LEO on 2,048 values 4 times.
SMALL = 40 * 40
# Learners with more parameters than this run, on CPU, by `loop`, one task on all cores: 14.2 seconds for two tasks of
# ResNet-12, second order, against 16.8 on two threads, in half the memory; for Conv-4 it is the other way round.
LARGE = 1_000_000
# A training of so many steps on vectors earns back its compilation. On one core of an AMD EPYC this takes 46 to 53
# seconds for LEO, whose step is then 27 to 46 ms shorter, and 4 to 19 seconds for MAML on sinusoids (3 ms; Reptile 10).
LONG = 10_000


class KeptStep(NamedTuple):
    """A compiled or recorded step of a learner, for as long as the learner and its settings stay the same."""

    learner: Any
    settings: Any
    run: Any  # a compiled function, or a RecordedStep


class Engine:
    """Runs the tasks of a meta-batch or of a test.

    Args:
        name: the method, one of ENGINES; `auto` takes the fastest that the learner and the device allow.
        task_chunk: tasks at once under `vmap` and `compiled`; None: all. Where so many do not fit into memory, half as
            many are tried.
        steps: outer steps of the whole training, by which `auto` decides whether compiling them pays.

    Attributes:
        fitted_chunk: the number of tasks that fitted into memory, for "outer" and for "map". A resumed run goes on
            with that of "outer", since other chunks round otherwise.
        compiles: whether `auto` compiles steps on vectors on a CPU; a resumed run goes on as it began.
    """

    def __init__(self, name: str = "auto", task_chunk: int | None = None, steps: int = 0) -> None:
        if task_chunk is not None:
            check_number("task_chunk", task_chunk, int, 1)
        self.name = check_choice("engine", name, ENGINES)
        self.task_chunk = task_chunk
        self.compiles = name == "auto" and steps >= LONG and has_compiler()
        self.fitted_chunk: dict[str, int] = {}
        self._compiled: KeptStep | None = None
        self._recorded: KeptStep | None = None
        self._pool: ThreadPoolExecutor | None = None

    def method(self, episodes: Episodes, learner: Any = None) -> str:
        """The method for these tasks. `auto` is vmap on a GPU and for small examples, if vmap can batch the learner.

        On a CPU it is `compiled` in a long training on vectors, such as features, where there is a compiler. It is
        `loop` where the products of the network are in bfloat16, see `products_in`.

        Raises:
            FewshotError: vmap or compiled was asked for, and vmap cannot batch the learner, or its products are in
                bfloat16.
        """
        name = self.name
        if uses_bfloat16(getattr(learner, "backbone", None)):
            check_precision(name, "bfloat16")
            return "loop"
        if name == "auto":
            small = is_small(episodes.support_x.shape[2:])
            fast = small and (learner is None or parameter_count(learner) <= LARGE)
            name = "vmap" if fast or episodes.support_x.device.type != "cpu" else "loop"
        if learner is None:
            return name
        if name not in ("vmap", "compiled"):
            probe(learner, episodes[0])  # checks its network, and puts it into eval()
            return name
        if not (reason := why_not_batched(learner, episodes)):
            vectors = episodes.support_x.dim() == 3 and episodes.support_x.device.type == "cpu"
            return "compiled" if self.compiles and vectors and not hasattr(learner, "begin_step") else name
        if self.name == "auto":
            print_note(f"engine=auto takes loop: {reason}")
            return "loop"
        raise FewshotError(f"engine={name}: {reason}; choose engine=loop or engine=auto")

    def outer(self, learner: Learner, params: Tensors, state: Tensors, episodes: Episodes) -> MetaGradient:
        """The outer gradient of a meta-batch, the mean over its tasks.

        Args:
            learner: one with `outer_loss` or `outer_gradient`.
            params, state: the meta-parameters, and the tensors that tasks hand on, see `Learner.init`.
            episodes: T tasks.
        """
        method = self.method(episodes, learner)
        if method == "learn2learn":
            from fewshot.engine.learn2learn import outer_by_learn2learn

            return outer_by_learn2learn(learner, params, episodes)
        if method != "loop" and episodes.key.device.type == "cuda":
            return self._run_recorded(method, learner, params, state, episodes)
        try:
            return self._outer(method, learner, params, state, episodes)
        except FewshotError as error:
            if method != "compiled" or not self.compiles:
                raise
            print_note(f"engine=auto takes vmap after all: {one_line(error)}")
        self.compiles = False
        return self._outer(self.method(episodes, learner), learner, params, state, episodes)

    def _outer(
        self, method: str, learner: Learner, params: Tensors, state: Tensors, episodes: Episodes
    ) -> MetaGradient:
        if learner.sequential:
            parts = self._one_after_the_other(method, learner, params, state, episodes)
            return weighted_mean(parts, len(episodes), sequential=True)
        if method == "loop":

            def add_up(learner: Learner, group: Episodes) -> MetaGradient:
                parts = (mean_outer(learner, params, state, task, lift_one) for task in _groups(group, 1))
                return weighted_mean(parts, len(group), sequential=False)

            parts = self._on_threads(add_up, learner, episodes, -(-len(episodes) // torch.get_num_threads()))
            return weighted_mean(parts, len(episodes), sequential=False)
        run = self._run_compiled if method == "compiled" else partial(mean_outer, lift=lift_all)

        def run_chunks(chunks: Iterator[Episodes]) -> MetaGradient:
            parts = (run(learner, params, state, chunk) for chunk in chunks)
            return weighted_mean(parts, len(episodes), sequential=False)

        return self._in_chunks("outer", episodes, run_chunks)

    def map(self, function: Callable[[Any, Episodes], Any], learner: Learner, episodes: Episodes) -> Any:
        """Apply a function of one task to all tasks: its results, stacked along a new leading axis [T].

        Args:
            function: takes the learner, which may be a copy, and one task; returns a tensor or a structure of tensors.
        """

        def lift_chunks(chunks: Iterator[Episodes]) -> Any:
            return _concatenate(lift_all(partial(function, learner), chunk) for chunk in chunks)

        if self.method(episodes, learner) in ("vmap", "compiled"):
            return self._in_chunks("map", episodes, lift_chunks)
        return _concatenate(
            self._on_threads(lambda copy, task: lift_one(partial(function, copy), task), learner, episodes, 1)
        )

    def _in_chunks(self, what: str, episodes: Episodes, run: Callable[[Iterator[Episodes]], Any]) -> Any:
        """Call `run` with consecutive groups of the tasks, in groups that fit into memory."""
        while True:
            limits = self.task_chunk, self.fitted_chunk.get(what), len(episodes)
            size = min(limit for limit in limits if limit is not None)
            try:
                return run(_groups(episodes, size))
            except (RuntimeError, MemoryError) as error:
                if size == 1 or is_recording() or not out_of_memory(error):
                    raise
            # Outside of `except`, whose traceback holds on to what filled the memory.
            release_memory()
            self.fitted_chunk[what] = -(-size // 2)

    def _run_compiled(self, learner: Learner, params: Tensors, state: Tensors, episodes: Episodes) -> MetaGradient:
        """`mean_outer`, compiled when a learner first meets a shape; kept while learner and settings stay the same."""
        kept, plain = self._compiled, _plain_settings(learner)
        if kept is None or kept.learner is not learner or kept.settings != plain:
            if self.compiles and kept is not None and kept.learner is learner:
                raise FewshotError("engine=compiled: the learner changes its settings")
            if self.compiles:
                print_note("engine=auto compiles the step, since the training is long: up to a minute")
            kept = self._compiled = KeptStep(learner, plain, compiled(partial(_outer_tensors, learner)))
        return MetaGradient(*kept.run(episodes.way, params, state, *episodes.tensors()))

    def _run_recorded(
        self, method: str, learner: Learner, params: Tensors, state: Tensors, episodes: Episodes
    ) -> MetaGradient:
        """`_outer` as a CUDA graph: recorded when a learner first meets a shape, then replayed."""
        way = episodes.way
        kept, key = self._recorded, (method, way, _plain_settings(learner))
        if kept is None or kept.learner is not learner or kept.settings != key:

            def step(inputs: Any) -> Any:
                outer = self._outer(method, learner, inputs[0], inputs[1], Episodes(*inputs[2], way=way))
                return outer.gradient, outer.state, outer.loss, outer.score

            kept = self._recorded = KeptStep(learner, key, RecordedStep(step))
        return MetaGradient(*kept.run((params, state, episodes.tensors())))

    def _one_after_the_other(
        self, method: str, learner: Learner, params: Tensors, state: Tensors, episodes: Episodes
    ) -> Iterator[MetaGradient]:
        """Run the tasks in order, each from the state that the one before left."""
        run = self._run_compiled
        if method != "compiled":
            learner, run = autograd_copy(learner), partial(mean_outer, lift=lift_one)
        for task in _groups(episodes, 1):
            outer = run(learner, params, state, task)
            state = outer.state
            yield outer

    def _on_threads(
        self, function: Callable[[Learner, Episodes], T], learner: Learner, episodes: Episodes, size: int
    ) -> Iterator[T]:
        """Apply a function to consecutive groups of `size` tasks, on as many threads as pay: its results in order."""
        on_cpu = episodes.key.device.type == "cpu"
        large_examples = on_cpu and not is_small(episodes.support_x.shape[2:])
        if large_examples:
            tune_malloc(one_arena=True)
        threads = torch.get_num_threads()
        if not on_cpu or parameter_count(learner) > LARGE:
            threads = 1
        # functional_call swaps a module's parameters while it runs: each thread needs a module of its own. New copies
        # each time, since the learner's settings may have changed.
        copies: SimpleQueue[Learner] = SimpleQueue()
        for _ in range(threads):
            copies.put(autograd_copy(learner))

        def run(group: Episodes) -> T:
            copy = copies.get()
            try:
                return function(copy, _channels_last(group) if large_examples else group)
            finally:
                copies.put(copy)

        if threads == 1:
            return map(run, _groups(episodes, size))
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        return self._pool.map(run, _groups(episodes, size))


def check_precision(engine: str, precision: str) -> None:
    """Raises FewshotError if an engine cannot multiply in a precision; in torch.func.vmap, autocast does nothing."""
    if precision == "bfloat16" and engine not in ("auto", "loop"):
        raise FewshotError(f"engine={engine}: not with train.precision=bfloat16; choose engine=loop or engine=auto")


def _concatenate(parts: Iterable[Any]) -> Any:
    return tree_map(lambda *values: torch.cat(values), *parts)


def _outer_tensors(learner: Learner, way: int, params: Tensors, state: Tensors, *tensors: torch.Tensor) -> Any:
    """The fields of `mean_outer` in a form that torch.compile takes: tensors to tensors."""
    outer = mean_outer(learner, params, state, Episodes(*tensors, way=way), lift_all, use_autograd=False)
    return outer.gradient, outer.state, outer.loss, outer.score


def _groups(episodes: Episodes, size: int) -> Iterator[Episodes]:
    return (episodes[i : i + size] for i in range(0, len(episodes), size))


def is_small(shape: Sequence[int]) -> bool:
    """Whether examples of this shape run faster on CPU by `vmap` than by `loop`: vectors, and small images."""
    return len(shape) == 1 or prod(shape) <= SMALL


def _channels_last(episodes: Episodes) -> Episodes:
    """Store images with their channels innermost: the layout in which convolutions on a CPU are fastest."""

    def stored(x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 5:
            return x
        return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])

    support_x, support_y, query_x, query_y, key = episodes.tensors()
    return episodes.with_tensors(stored(support_x), support_y, stored(query_x), query_y, key)


def _plain_settings(learner: Learner) -> dict[str, Any]:
    """The attributes of a learner that a step compiled or recorded takes as constants."""
    return {name: value for name, value in vars(learner).items() if isinstance(value, bool | int | float | str)}
