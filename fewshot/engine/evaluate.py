"""From a learner and fixed episodes to one score per episode, and from scores to an interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch.func import vmap
from torch.utils._pytree import tree_map

from fewshot.algorithms.learner import Learner, Tensors, score
from fewshot.core.distributed import all_reduce_sum, pad_to_global, rank_slice
from fewshot.engine.engine import Engine
from fewshot.engine.probe import probe, why_not_batched
from fewshot.episodes import Episodes, Tasks
from fewshot.tasks.sampler import Sampler

TASKS_AT_ONCE = 200  # where only support sets are gathered
EXAMPLES_AT_ONCE = 2000  # bounds the memory of a batch of test episodes


def query_outputs(
    learner: Learner, params: Tensors, state: Tensors, task: Episodes, transductive: bool
) -> torch.Tensor:
    """Adapt to one task and predict its queries: logits [N*Q, N], or in regression outputs [Q, D].

    Transductive: all queries are forwarded as one batch, so that norms see them together. Inductive: each query is
    predicted alone, in a batch with the support set (both as in supervised-reptile, `supervised_reptile/reptile.py`).
    """
    behaviour = probe(learner, task)
    adapted = learner.adapt(params, state, task)
    if transductive or behaviour.queries_independent:
        return learner.predict(adapted, task.query_x)

    def predict_alone(query: torch.Tensor) -> torch.Tensor:
        return learner.predict(adapted, torch.cat([task.support_x, query[None]]))[-1]

    if behaviour.queries_batched:
        return vmap(predict_alone)(task.query_x)
    return torch.stack([predict_alone(query) for query in task.query_x])


def evaluate(
    learner: Learner,
    params: Tensors,
    state: Tensors,
    tasks: Tasks,
    episodes: int,
    *,
    transductive: bool,
    engine: Engine,
    advance: Callable[..., None] | None = None,
) -> np.ndarray:
    """Score of each of the first `episodes` episodes, by the tasks' own metric: [episodes] float64.

    Several processes share the batches, which are those of one process alone, and all return the same scores.

    Args:
        advance: called after each batch of this process with `by`, its number of episodes; see `progress_bar`.

    Raises:
        FewshotError: the learner does not fit the tasks.
    """
    first = tasks.episodes(0, 2)
    independent = probe(learner, first[0], params, state).queries_independent
    by_class = independent and _queries_cover_classes(tasks) and not why_not_batched(learner, first)
    queries = tasks.way * tasks.query
    size = tasks.way * tasks.shot + queries  # examples that one episode forwards
    if not transductive and not independent:
        size = queries * (tasks.way * tasks.shot + 1)
    batch = TASKS_AT_ONCE if by_class else max(1, EXAMPLES_AT_ONCE // size)

    def score_task(task: Episodes) -> torch.Tensor:
        return score(query_outputs(learner, params, state, task, transductive), task.query_y)

    def score_batch(first: int) -> torch.Tensor:
        count = min(batch, episodes - first)
        if by_class:
            assert isinstance(tasks, Sampler)
            return _evaluate_by_class(learner, params, state, tasks, engine, first, count)
        return engine.map(score_task, tasks.episodes(first, count), learner)

    batches = range(0, episodes, batch)
    own = rank_slice(len(batches))
    scores = []
    for first in batches[own.start : own.stop]:
        scores.append(score_batch(first).double().cpu())
        if advance is not None:
            advance(by=len(scores[-1]))
    own_scores = torch.cat([torch.zeros(0, dtype=torch.float64), *scores])
    own_episodes = range(own.start * batch, min(own.stop * batch, episodes))
    return all_reduce_sum([pad_to_global(own_scores, own_episodes, episodes)])[0].numpy()


def _queries_cover_classes(tasks: Tasks) -> bool:
    """Whether a task's queries are a third or more of its classes, as in deepmind/leo's tests on features."""
    if not isinstance(tasks, Sampler) or len(tasks.bank.shape) != 1 or tasks.rotations != "none":
        return False
    return 3 * (tasks.shot + tasks.query) >= int(tasks.bank.sizes.max())


def _evaluate_by_class(
    learner: Learner, params: Tensors, state: Tensors, sampler: Sampler, engine: Engine, first: int, count: int
) -> torch.Tensor:
    """Scores [count] of tasks with many queries: each class is classified at once for all tasks that hold it.

    The same numbers as from gathered queries, whose copies would take longer than all the rest.
    """
    draw, offsets = sampler.draw(first, count), sampler.bank.offsets.tolist()
    supports = sampler.load(replace(draw, rows=draw.rows[:, :, : sampler.shot]))
    adapted = engine.map(lambda task: learner.adapt(params, state, task), supports, learner)
    correct = torch.zeros(count, dtype=torch.int64, device=draw.key.device)
    for label in draw.classes.unique().tolist():
        x = sampler.gather(torch.arange(offsets[label], offsets[label + 1], device=draw.key.device))
        task, way = (draw.classes == label).nonzero(as_tuple=True)
        adapted_to_label = tree_map(lambda value, task=task: value[task], adapted)
        logits = vmap(lambda adapted, x=x: learner.predict(adapted, x))(adapted_to_label)  # [tasks, examples, N]
        is_right = logits.argmax(-1) == way[:, None]
        queries = draw.rows[task, way, sampler.shot :] - offsets[label]
        correct.index_add_(0, task, is_right.gather(1, queries).sum(1))
    return correct.double() / (sampler.way * sampler.query)


def ci95(scores: np.ndarray) -> float:
    """Half width of the 95 % confidence interval of the mean over episodes (Student's t); nan for one score."""
    from scipy.special import stdtrit  # the quantile of scipy.stats.t, whose import takes much longer

    if len(scores) < 2:
        return float("nan")
    return float(stdtrit(len(scores) - 1, 0.975) * scores.std(ddof=1) / np.sqrt(len(scores)))
