"""The engine: lifts an algorithm written for one task to all tasks of a meta-batch.

`vmap` runs a chunk of tasks as one batched computation; `loop` runs task by task, on as many threads as torch uses,
each keeping one core busy: tiny convolutions gain nothing from sharing one; `learn2learn` is the reference
implementation of MAML and FOMAML. All give the same gradients.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import vmap
from torch.utils._pytree import tree_map

from fewshot.algorithms.learner import Learner, Tensors, check_choice, differentiate
from fewshot.device import keep_freed_memory
from fewshot.distributed import added, placed
from fewshot.episodes import Episodes
from fewshot.errors import FewshotError

ENGINES = ("auto", "vmap", "loop", "learn2learn")
# Examples with more values than this gain on CPU from `loop` (see tools/bench.py): per-task weights turn into grouped
# convolutions, which pay on 28x28 images and cost on 84x84 ones.
SMALL = 40 * 40


@dataclass(frozen=True)
class Outer:
    """What a meta-batch of T tasks asks of the meta-parameters."""

    gradient: Tensors  # mean over tasks, in the parameters' shapes
    carry: Tensors  # state for the next meta-batch
    loss: torch.Tensor  # [T]
    score: torch.Tensor  # [T] see `learner.score`


class Engine:
    """Runs tasks by the method `name`, `chunk` tasks at a time (None: all at once; `vmap` only)."""

    def __init__(self, name: str = "auto", chunk: int | None = None) -> None:
        if chunk is not None and chunk < 1:
            raise FewshotError(f"chunk={chunk}: must be at least 1, or null for all tasks at once")
        self.name = check_choice("engine", name, ENGINES)
        self.chunk = chunk
        self._own = threading.local()
        self._pool: ThreadPoolExecutor | None = None

    def method(self, episodes: Episodes) -> str:
        """The method that `auto` stands for with these episodes: vmap on a GPU and for small examples."""
        if self.name != "auto":
            return self.name
        return "vmap" if _small(episodes) or episodes.support_x.device.type != "cpu" else "loop"

    def outer(self, learner: Learner, params: Tensors, carry: Tensors, episodes: Episodes) -> Outer:
        """Outer gradient of a meta-batch.

        Args:
            learner: one with `outer_loss` or `outer_gradient`.
            params, carry: the meta-parameters and the state that tasks pass on.
        """
        method = self.method(episodes)
        if method == "learn2learn":
            from fewshot.algorithms.reference import outer_by_learn2learn

            return outer_by_learn2learn(learner, params, episodes)
        if learner.chained:
            parts = _in_a_chain(learner, params, carry, episodes)
        elif method == "loop":
            parts = self._on_threads(learner, params, carry, episodes)
        else:
            step = self.chunk or len(episodes)
            chunks = (episodes[i : i + step] for i in range(0, len(episodes), step))
            parts = (_outer(learner, params, carry, chunk, _lift_all) for chunk in chunks)
        return _weighted_mean(parts, len(episodes), learner.chained)

    def map(self, function: Callable[[Episodes], Any], episodes: Episodes) -> Any:
        """A function of one task over all: its results, stacked along a new leading axis [T]."""
        step = (self.chunk or len(episodes)) if self.method(episodes) == "vmap" else 1
        lift = _lift_all if step > 1 else _lift_one
        results = [lift(function, episodes[i : i + step]) for i in range(0, len(episodes), step)]
        return tree_map(lambda *parts: torch.cat(parts), *results)

    def _on_threads(self, learner: Learner, params: Tensors, carry: Tensors, episodes: Episodes) -> Iterator[Outer]:
        def work(group: Episodes) -> Outer:
            # functional_call swaps a module's parameters while it runs: each thread needs a module of its own.
            if getattr(self._own, "source", None) is not learner:
                self._own.source, self._own.learner = learner, _eager_copy(learner)
            tasks = (group[i : i + 1] for i in range(len(group)))
            parts = (_outer(self._own.learner, params, carry, task, _lift_one) for task in tasks)
            return _weighted_mean(parts, len(group), chained=False)

        on_cpu = episodes.key.device.type == "cpu"
        if on_cpu and not _small(episodes):
            episodes = _channels_last(episodes)
            keep_freed_memory(one_arena=True)
        threads = torch.get_num_threads() if on_cpu else 1
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        # Each thread adds up its own tasks: were this thread to do it meanwhile, its helpers would hold the cores.
        size = -(-len(episodes) // threads)
        return self._pool.map(work, [episodes[i : i + size] for i in range(0, len(episodes), size)])


def _lift_all(function: Callable[[Episodes], Any], episodes: Episodes) -> Any:
    return vmap(lambda sx, sy, qx, qy, key: function(Episodes(sx, sy, qx, qy, key)))(*episodes.tensors())


def _lift_one(function: Callable[[Episodes], Any], episodes: Episodes) -> Any:
    return tree_map(lambda value: value[None], function(episodes[0]))


def _outer(learner: Any, params: Tensors, carry: Tensors, episodes: Episodes, lift: Callable[..., Any]) -> Outer:
    """Mean outer gradient of some tasks, run together by `lift`."""
    if hasattr(learner, "outer_loss"):

        def mean_loss(params: Tensors) -> tuple[torch.Tensor, Any]:
            loss, score = lift(lambda task: learner.outer_loss(params, task), episodes)
            return loss.mean(), (loss.detach(), score)

        gradient, (loss, score) = differentiate(mean_loss, params, eager=True, create_graph=False)
        return Outer(gradient, carry, loss, score)
    gradient, carry, loss, score = lift(lambda task: learner.outer_gradient(params, carry, task), episodes)
    gradient, carry = tree_map(lambda value: value.mean(0), (gradient, carry))
    return Outer(gradient, carry, loss, score)


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
    return Episodes(stored(sx), sy, stored(qx), qy, key)


def _eager_copy(learner: Any) -> Any:
    learner = copy.deepcopy(learner)
    learner.eager = True
    return learner


def _in_a_chain(learner: Learner, params: Tensors, carry: Tensors, episodes: Episodes) -> Iterator[Outer]:
    learner = _eager_copy(learner)
    for task in range(len(episodes)):
        part = _outer(learner, params, carry, episodes[task : task + 1], _lift_one)
        carry = part.carry
        yield part


def _weighted_mean(parts: Iterable[Outer], tasks: int, chained: bool) -> Outer:
    """One Outer from those of consecutive groups of tasks; a chain's carry is that of its end."""
    gradient: Tensors = {}
    carry: Tensors = {}
    losses, scores = [], []
    for part in parts:
        share = len(part.loss) / tasks
        gradient = _plus(gradient, part.gradient, share)
        carry = part.carry if chained else _plus(carry, part.carry, share)
        losses.append(part.loss)
        scores.append(part.score)
    return Outer(gradient, carry, torch.cat(losses), torch.cat(scores))


def over_processes(own: Outer, tasks: range, count: int) -> Outer:
    """The Outer of a whole meta-batch of `count` tasks, the same in every process, each of which ran some of them.

    Args:
        own: of the tasks that this process ran.
        tasks: their places in the meta-batch.
    """
    if len(tasks) == count:
        return own
    weight = len(tasks) / count
    means = [weight * value for value in (*own.gradient.values(), *own.carry.values())]
    *means, loss, score = added([*means, *(placed(values, tasks, count) for values in (own.loss, own.score))])
    names = len(own.gradient)
    gradient = dict(zip(own.gradient, means[:names], strict=True))
    return Outer(gradient, dict(zip(own.carry, means[names:], strict=True)), loss, score)


def _plus(total: Tensors, values: Tensors, share: float) -> Tensors:
    return {name: total[name] + share * value if total else share * value for name, value in values.items()}
