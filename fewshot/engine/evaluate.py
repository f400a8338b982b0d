"""From a learner and fixed episodes to one score per episode, and from scores to an interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from scipy import stats
from torch.func import vmap
from torch.utils._pytree import tree_map

from fewshot.algorithms.learner import Learner, Tensors, score
from fewshot.core.distributed import all_reduce_sum, pad_to_global, rank_slice
from fewshot.engine.engine import Engine
from fewshot.engine.probe import probe, why_not_batched
from fewshot.episodes import Episodes, Tasks
from fewshot.tasks.sampler import Sampler

TASKS_AT_ONCE = 200  # where each brings its support set only
EXAMPLES_AT_ONCE = 2000  # bounds the memory of a batch of test episodes


def query_outputs(
    learner: Learner, params: Tensors, state: Tensors, task: Episodes, transductive: bool
) -> torch.Tensor:
    """Adapt to one task and predict its queries: logits [N*Q, N], or in regression outputs [Q, D].

    Transductive: all queries are forwarded as one batch, so that norms see them together. Inductive: each query is
    forwarded with the support set and no other query, so nothing that another query holds can reach it
    (both as in supervised-reptile, `supervised_reptile/reptile.py`).
    """
    behaviour = probe(learner, task)
    adapted = learner.adapt(params, state, task)
    if transductive or behaviour.queries_independent:
        return learner.predict(adapted, task.query_x)

    def alone(query: torch.Tensor) -> torch.Tensor:
        return learner.predict(adapted, torch.cat([task.support_x, query[None]]))[-1]

    if behaviour.queries_batched:
        return vmap(alone)(task.query_x)
    return torch.stack([alone(query) for query in task.query_x])


def evaluate(
    learner: Learner,
    params: Tensors,
    state: Tensors,
    tasks: Tasks,
    episodes: int,
    *,
    transductive: bool,
    engine: Engine,
) -> np.ndarray:
    """Score of each of the first `episodes` episodes, by the tasks' own metric: [episodes] float64.

    Several processes share the batches, which are those of one process alone, and all get the same scores to the bit.

    Raises:
        FewshotError: the learner does not fit the tasks.
    """
    first = tasks.episodes(0, 2)
    independent = probe(learner, first[0], params, state).queries_independent

    def of_task(task: Episodes) -> torch.Tensor:
        return score(query_outputs(learner, params, state, task, transductive), task.query_y)

    if (
        independent
        and isinstance(tasks, Sampler)
        and _queries_cover_classes(tasks)
        and not why_not_batched(learner, first)
    ):
        batch, parts = TASKS_AT_ONCE, partial(_evaluate_by_class, learner, params, state, tasks, engine)
    else:
        per_episode = tasks.way * (tasks.shot + tasks.query)
        if not transductive and not independent:
            per_episode = tasks.way * tasks.query * (tasks.way * tasks.shot + 1)
        batch = max(1, EXAMPLES_AT_ONCE // per_episode)
        parts = partial(_on_gathered, learner, of_task, tasks, engine)
    batches = range(0, episodes, batch)
    mine = rank_slice(len(batches))
    own = range(mine.start * batch, min(mine.stop * batch, episodes))
    scores = [parts(i, min(batch, episodes - i)).double().cpu() for i in batches[mine.start : mine.stop]]
    found = torch.cat([torch.zeros(0, dtype=torch.float64), *scores])
    return all_reduce_sum([pad_to_global(found, own, episodes)])[0].numpy()


def _on_gathered(
    learner: Learner,
    of_task: Callable[[Episodes], torch.Tensor],
    tasks: Tasks,
    engine: Engine,
    first: int,
    count: int,
) -> torch.Tensor:
    """Scores [count] of tasks, each with its own copy of its queries."""
    return engine.map(of_task, tasks.episodes(first, count), learner)


def _queries_cover_classes(sampler: Sampler) -> bool:
    """Whether a task's queries are a good part of all that its classes hold, as in deepmind/leo's tests on features."""
    if len(sampler.bank.shape) != 1 or sampler.rotations != "none":
        return False
    return 3 * (sampler.shot + sampler.query) >= int(sampler.bank.sizes.max())


def _evaluate_by_class(
    learner: Learner, params: Tensors, state: Tensors, sampler: Sampler, engine: Engine, first: int, count: int
) -> torch.Tensor:
    """Scores [count] of tasks with many queries: each class is classified for all tasks that hold it at once.

    The same numbers as by gathering thousands of queries for every task, whose copies take longer than the rest.
    """
    draw, offsets = sampler.draw(first, count), sampler.bank.offsets.tolist()
    supports = sampler.load(replace(draw, rows=draw.rows[:, :, : sampler.shot]))
    adapted = engine.map(lambda task: learner.adapt(params, state, task), supports, learner)
    right = torch.zeros(count, dtype=torch.int64, device=draw.key.device)
    for label in draw.classes.unique().tolist():
        x = sampler.gather(torch.arange(offsets[label], offsets[label + 1], device=draw.key.device))
        task, place = (draw.classes == label).nonzero(as_tuple=True)
        own = tree_map(lambda value, task=task: value[task], adapted)
        logits = vmap(lambda weights, x=x: learner.predict(weights, x))(own)  # [P, M, N]
        hit = logits.argmax(-1) == place[:, None]
        queries = draw.rows[task, place, sampler.shot :] - offsets[label]
        right.index_add_(0, task, hit.gather(1, queries).sum(1))
    return right.double() / (sampler.way * sampler.query)


def ci95(scores: np.ndarray) -> float:
    """Half width of the 95 % confidence interval of the mean over episodes (Student's t); nan for one score."""
    if len(scores) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / np.sqrt(len(scores)))
