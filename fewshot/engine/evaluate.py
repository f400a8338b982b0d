"""From a learner and fixed episodes to one score per episode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch
from torch.func import vmap
from torch.utils._pytree import tree_map

from fewshot.algorithms.learner import Learner, Tensors, score
from fewshot.core.checks import check_choice
from fewshot.core.distributed import all_reduce_sum, pad_to_global, rank_slice
from fewshot.core.errors import FewshotError
from fewshot.engine.contract import check_sorted
from fewshot.engine.engine import Engine
from fewshot.engine.probe import Behaviour, probe, why_not_batched
from fewshot.episodes import Episodes, Tasks
from fewshot.tasks.sampler import Sampler

SETTINGS = ("transductive", "inductive")
TASKS_AT_ONCE = 200  # where only support sets are gathered
EXAMPLES_AT_ONCE = 2000  # bounds the memory of a batch of test episodes
# A GPU has more of it, and fewer batches are fewer kernels to start. cuDNN refuses a layer of more than 2^31 values;
# 256 channels of so many pixels are below.
GPU_EXAMPLES_AT_ONCE, GPU_PIXELS_AT_ONCE = 10_000, 2**23 - 1
# Values of the examples that inductive mode forwards at once on a CPU: 25 queries of 28x28 pixels, each with 5 support
# images, and a single one of 3x84x84. More of them leave the cache, and fewer are not worth a call.
VALUES_AT_ONCE = 120_000


def query_outputs(learner: Learner, params: Tensors, state: Tensors, task: Episodes, setting: str) -> torch.Tensor:
    """Adapt to one task and predict its queries: logits [N*Q, N], or in regression outputs [Q, D].

    Transductive: all queries are forwarded as one batch, so that norms see them together. Inductive: each query is
    predicted alone, in a batch with the support set (both as in supervised-reptile, `supervised_reptile/reptile.py`).

    Raises:
        FewshotError: an unknown setting, or a learner that does not fit the task.
    """
    check_choice("setting", setting, SETTINGS)
    behaviour = probe(learner, task)
    with torch.no_grad():
        adapted = learner.adapt(params, state, task.without_queries())
        return predict_queries(learner, adapted, task, behaviour, setting)


def predict_queries(
    learner: Learner, adapted: Tensors, task: Episodes, behaviour: Behaviour, setting: str
) -> torch.Tensor:
    """Outputs [N*Q, N] of the queries of a task that the learner has adapted to; `setting` is one of SETTINGS."""
    support, queries = task.support_x, task.query_x
    if setting == "transductive" or behaviour.queries_independent:
        return learner.predict(adapted, queries)

    def predict_alone(query: torch.Tensor) -> torch.Tensor:
        return learner.predict(adapted, torch.cat([support, query]))[-1]

    if queries.device.type == "cpu":
        most = VALUES_AT_ONCE // queries[0].numel()
    else:
        most = _most_examples(queries)
    size = max(1, most // (len(support) + 1))
    if size == 1 or not behaviour.queries_batched:
        # `split`, unlike an index, keeps the memory format of images, in which convolutions are fastest.
        return torch.stack([predict_alone(query) for query in queries.split(1)])
    return torch.cat([vmap(predict_alone)(group) for group in queries[:, None].split(size)])


def _most_examples(x: torch.Tensor) -> int:
    """How many examples like those of `x`, [..., C, H, W] or [B, D], a device forwards at once."""
    if x.device.type == "cpu":
        return EXAMPLES_AT_ONCE
    return min(GPU_EXAMPLES_AT_ONCE, GPU_PIXELS_AT_ONCE // prod(x.shape[-2:] if x.dim() > 3 else ()))


def score_episodes(
    learner: Learner,
    params: Tensors,
    state: Tensors,
    tasks: Tasks,
    episodes: int,
    *,
    setting: str,
    engine: str | Engine = "auto",
) -> np.ndarray:
    """Score of each of the first `episodes` episodes in one setting: [episodes] float64; see `evaluate_settings`.

    Args:
        setting: `transductive` or `inductive`; see `query_outputs`.

    Raises:
        FewshotError: an unknown setting, or as `evaluate_settings`.
    """
    check_choice("setting", setting, SETTINGS)
    engine = engine if isinstance(engine, Engine) else Engine(engine)
    (scores,) = evaluate_settings(learner, params, state, tasks, episodes, settings=(setting,), engine=engine).values()
    return scores


def evaluate_settings(
    learner: Learner,
    params: Tensors,
    state: Tensors,
    tasks: Tasks,
    episodes: int,
    *,
    settings: Sequence[str] = SETTINGS,
    engine: Engine,
    labels: bool = False,
    advance: Callable[..., None] | None = None,
) -> dict[str, np.ndarray]:
    """Scores of the first `episodes` episodes in each setting, by the tasks' own metric: [episodes] float64.

    The learner adapts to each task once for all settings. Several processes share the batches, which are those of one
    process alone, and all return the same scores.

    Args:
        settings: of SETTINGS; where no query depends on another, all have the same scores.
        labels: return the label 0..N-1 that is predicted for each query, [episodes, N*Q] int64, in place of scores; -1
            where a logit is NaN.
        advance: called after each batch of this process with `by`, its number of episodes; see `progress_bar`.

    Raises:
        FewshotError: the learner does not fit the tasks, or they have no queries.
    """
    check_queries(tasks)
    first = tasks.episodes(0, 2)
    check_sorted(learner, first[0])  # which `probe` does once for each shape, whatever the tasks
    behaviour = probe(learner, first[0], params, state)
    independent = behaviour.queries_independent
    different = settings[:1] if independent else settings
    whole_classes = independent and not labels and _queries_cover_classes(tasks)
    by_class = whole_classes and not why_not_batched(learner, first)
    alone = "inductive" in different and not independent
    if alone and engine.name == "auto" and tasks.device.type == "cpu":
        engine = Engine("loop")  # so many examples for each task leave nothing to batch over tasks
    queries = tasks.way * tasks.query
    size = tasks.way * tasks.shot + queries  # examples that one episode forwards at once
    if alone and engine.method(first, learner) != "loop":
        size = queries * (tasks.way * tasks.shot + 1)
    batch = TASKS_AT_ONCE if by_class else max(1, _most_examples(first.support_x[0]) // size)

    @torch.no_grad()
    def test_task(learner: Learner, task: Episodes) -> torch.Tensor:
        adapted = learner.adapt(params, state, task.without_queries())
        outputs = [predict_queries(learner, adapted, task, behaviour, setting) for setting in different]
        return torch.stack([_labels(each) if labels else score(each, task.query_y) for each in outputs])

    def test_batch(first: int) -> torch.Tensor:
        count = min(batch, episodes - first)
        if by_class:
            assert isinstance(tasks, Sampler)
            return _evaluate_by_class(learner, params, state, tasks, engine, first, count)[:, None]
        return engine.map(test_task, learner, tasks.episodes(first, count))

    batches = range(0, episodes, batch)
    own_batches = rank_slice(len(batches))
    shape, dtype = ((queries,), torch.int64) if labels else ((), torch.float64)
    results = [torch.zeros(0, len(different), *shape, dtype=dtype)]
    for first in batches[own_batches.start : own_batches.stop]:
        results.append(test_batch(first).to(dtype).cpu())
        if advance is not None:
            advance(by=len(results[-1]))
    own_episodes = range(own_batches.start * batch, min(own_batches.stop * batch, episodes))
    columns = [pad_to_global(column, own_episodes, episodes) for column in torch.cat(results).unbind(1)]
    summed = [column.numpy() for column in all_reduce_sum(columns)]
    return {setting: summed[0 if independent else number] for number, setting in enumerate(settings)}


def explain_nan(learner: Learner) -> str:
    """Why outputs may not be numbers, and what to do, for a message."""
    if learner.test_steps:
        rate = next((name for name in ("inner_lr", "finetune_lr", "lr") if hasattr(learner, name)), "")
        where = f" (algorithm.learner.{rate})" if rate else ""
        return f"adaptation diverges: take fewer steps, or lower the rate of the inner loop{where}"
    return "look for NaN in the network or the examples"


def _labels(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1).masked_fill(logits.isnan().any(-1), -1)


def check_queries(tasks: Tasks) -> None:
    """Raises FewshotError if tasks that are to be scored have no queries."""
    if tasks.query < 1:
        raise FewshotError(f"query={tasks.query}: a score needs queries; set query to at least 1 in the tasks")


def _queries_cover_classes(tasks: Tasks) -> bool:
    """Whether a task's queries are a third or more of its classes, as in deepmind/leo's tests on features."""
    if not isinstance(tasks, Sampler) or len(tasks.bank.shape) != 1 or tasks.rotations != "none":
        return False
    return 3 * (tasks.shot + tasks.query) >= int(tasks.bank.sizes.max())


def _evaluate_by_class(
    learner: Learner, params: Tensors, state: Tensors, sampler: Sampler, engine: Engine, first: int, count: int
) -> torch.Tensor:
    """Scores [count] of tasks with many queries: each class is classified at once for all tasks that hold it.

    The same accuracies as from gathered queries, in float64; the copies of these would take longer than all the rest.
    """
    draw, offsets = sampler.draw(first, count), sampler.bank.offsets.tolist()
    supports = sampler.load(replace(draw, rows=draw.rows[:, :, : sampler.shot]))

    @torch.no_grad()  # also in the threads of the engine
    def adapt(learner: Learner, task: Episodes) -> Tensors:
        return learner.adapt(params, state, task)

    adapted = engine.map(adapt, learner, supports)
    correct = torch.zeros(count, dtype=torch.float64, device=draw.key.device)
    for label in draw.classes.unique().tolist():
        x = sampler.gather(torch.arange(offsets[label], offsets[label + 1], device=draw.key.device))
        task, way = (draw.classes == label).nonzero(as_tuple=True)
        adapted_to_label = tree_map(lambda value, task=task: value[task], adapted)
        with torch.no_grad():
            logits = vmap(lambda adapted, x=x: learner.predict(adapted, x))(adapted_to_label)  # [tasks, examples, N]
        is_right = (logits.argmax(-1) == way[:, None]).double().masked_fill(logits.isnan().any(-1), float("nan"))
        queries = draw.rows[task, way, sampler.shot :] - offsets[label]
        correct.index_add_(0, task, is_right.gather(1, queries).sum(1))
    return correct / (sampler.way * sampler.query)
