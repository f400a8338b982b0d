"""Evaluation: who sees whom, and what the scores depend on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from fewshot.algorithms.learner import score
from fewshot.engine import evaluate as evaluation
from fewshot.engine.engine import Engine
from fewshot.engine.evaluate import ci95, evaluate, query_outputs
from fewshot.engine.probe import probe
from fewshot.tasks.sampler import Sampler

Make = Callable[..., Any]

# Peak memory after so many batches of evaluation as the words say, one after the other.
BATCHES = """
import sys
import torch
from fewshot.engine import evaluate as evaluation
from fewshot.engine.engine import Engine
from fewshot.algorithms.maml import Maml
from fewshot.backbones.conv4 import Conv4
from fewshot.data.bank import Bank
from fewshot.core.device import tune_malloc, peak_memory_bytes
from fewshot.tasks.sampler import Sampler
tune_malloc()
torch.manual_seed(0)
evaluation.EXAMPLES_AT_ONCE = int(sys.argv[1])
network = Conv4((1, 28, 28), 5, filters=8, downsample="max_pool", pool="valid", readout="flatten", norm="batch",
                norm_scale=True, norm_eps=1e-3, adapt_norm=True, conv_init="xavier", head_init="xavier")
learner = Maml(network, inner_lr=0.01, inner_steps=1, test_steps=3, first_order=False, inner_loss="mean",
               outer_loss="mean")
images = torch.randint(256, (400, 1, 28, 28), dtype=torch.uint8)
bank = Bank(images, torch.arange(21) * 20, tuple("abcdefghijklmnopqrst"), "test", "random", {})
sampler, (params, state) = Sampler(bank, 5, 1, 15, 0), learner.init()
for batches in map(int, sys.argv[2:]):
    episodes = batches * (evaluation.EXAMPLES_AT_ONCE // 80)
    scores = evaluation.evaluate(learner, params, state, sampler, episodes, transductive=True, engine=Engine())
    print(len(scores), peak_memory_bytes(torch.device("cpu")))
"""

TRAINED = ("maml", "fomaml", "meta_sgd", "reptile-sequential", "reptile-shared", "reptile-sgd")
BACKBONES = ("make_conv4", "make_mlp")


@pytest.fixture(params=["nearest", "leo", *(f"{name} {backbone}" for name in TRAINED for backbone in BACKBONES)])
def learner(request: pytest.FixtureRequest, make_learner: Make) -> Any:
    """Each algorithm on each backbone with norms (nearest neighbour and LEO take inputs as they are)."""
    if request.param in ("nearest", "leo"):
        return make_learner(request.param)
    name, backbone = request.param.split()
    return make_learner(name, request.getfixturevalue(backbone)())


def carried(learner: Any, make_episodes: Make) -> tuple[Any, Any]:
    """Parameters and state after a meta-batch, so that the state is not empty."""
    params, state = learner.init()
    return params, Engine("vmap").outer(learner, params, state, make_episodes(2)).state if state else {}


def test_in_inductive_mode_no_query_reaches_the_prediction_of_another(learner: Any, make_episodes: Make):
    params, state = carried(learner, make_episodes)
    task = make_episodes(1, query=3)[0]
    before = query_outputs(learner, params, state, task, transductive=False)
    for changed in (0, 4, 8):
        query_x = task.query_x.clone()
        query_x[changed] = 1 - 3 * query_x[changed]
        after = query_outputs(learner, params, state, replace(task, query_x=query_x), transductive=False)
        others = torch.arange(9) != changed
        assert torch.equal(after[others], before[others])
        assert not torch.equal(after[changed], before[changed])


def test_in_transductive_mode_queries_share_the_norms(learner: Any, make_episodes: Make):
    params, state = carried(learner, make_episodes)
    task = make_episodes(1, query=3)[0]
    before = query_outputs(learner, params, state, task, transductive=True)
    query_x = task.query_x.clone()
    query_x[0] = 1 - 3 * query_x[0]
    after = query_outputs(learner, params, state, replace(task, query_x=query_x), transductive=True)
    assert torch.equal(after[1:], before[1:]) == probe(learner, task).queries_independent


@pytest.mark.parametrize("transductive", [False, True])
def test_the_support_set_matters(learner: Any, make_episodes: Make, transductive: bool):
    params, state = carried(learner, make_episodes)
    task, other = make_episodes(2, query=3)
    before = query_outputs(learner, params, state, task, transductive)
    after = query_outputs(learner, params, state, replace(task, support_x=other.support_x), transductive)
    assert before.shape == (9, 3)
    assert float((after - before).abs().max()) > 1e-3


@pytest.mark.parametrize("transductive", [False, True])
def test_query_labels_do_not_reach_the_predictions(learner: Any, make_episodes: Make, transductive: bool):
    params, state = carried(learner, make_episodes)
    task = make_episodes(1, query=3)[0]
    hidden = replace(task, query_y=torch.zeros_like(task.query_y))
    mine, theirs = (query_outputs(learner, params, state, one, transductive) for one in (task, hidden))
    assert torch.equal(mine, theirs)


@pytest.mark.usefixtures("float64")
def test_queries_are_forwarded_with_the_support_set_or_with_all_queries_alone(learner: Any, make_episodes: Make):
    params, state = carried(learner, make_episodes)
    task = make_episodes(1, query=3)[0]
    adapted = learner.adapt(params, state, task)
    inductive = torch.stack([learner.predict(adapted, torch.cat([task.support_x, q[None]]))[-1] for q in task.query_x])
    transductive = learner.predict(adapted, task.query_x)
    for expected, mode in ((inductive, False), (transductive, True)):
        found = query_outputs(learner, params, state, task, mode)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


# Scores


@pytest.fixture
def sampler(make_bank: Make) -> Sampler:
    return Sampler(make_bank(noise=150), 3, 2, 3, seed=1)


@pytest.mark.parametrize("transductive", [False, True])
def test_scores_do_not_depend_on_the_batch_or_the_engine(
    monkeypatch: pytest.MonkeyPatch,
    learner: Any,
    make_episodes: Make,
    sampler: Sampler,
    transductive: bool,
):
    params, state = carried(learner, make_episodes)

    def scores(examples: int, engine: Engine) -> np.ndarray:
        monkeypatch.setattr(evaluation, "EXAMPLES_AT_ONCE", examples)
        return evaluate(learner, params, state, sampler, 12, transductive=transductive, engine=engine)

    reference = scores(2000, Engine("vmap"))
    assert reference.shape == (12,)
    assert reference.dtype == np.float64
    assert reference.std() > 0
    for examples, engine in (
        (1, Engine("vmap")),
        (200, Engine("vmap")),
        (2000, Engine("vmap", 5)),
        (2000, Engine("loop")),
    ):
        assert scores(examples, engine) == pytest.approx(reference, abs=1e-6)


def test_scores_are_the_share_of_queries_whose_largest_logit_is_the_labels(
    learner: Any, make_episodes: Make, sampler: Sampler
):
    params, state = carried(learner, make_episodes)
    found = evaluate(learner, params, state, sampler, 6, transductive=False, engine=Engine("loop"))
    episodes = sampler.episodes(0, 6)
    for i in range(6):
        logits = query_outputs(learner, params, state, episodes[i], transductive=False)
        right = int((logits.argmax(1) == episodes[i].query_y).sum())
        assert found[i] == pytest.approx(right / 9, abs=1e-6)


def test_every_learner_is_better_than_chance_on_easy_tasks(
    make_conv4: Make, make_learner: Make, make_bank: Make, algorithm: str
):
    choices: dict[str, Any] = {"test_steps": 20} if algorithm != "nearest" else {}
    choices |= {"test_batch": 6} if "reptile" in algorithm else {}
    if algorithm == "leo":  # untrained codes say little; its weights can still be tuned
        choices = {"finetune_steps": 20, "finetune_lr": 0.1}
    learner = make_learner(algorithm, make_conv4(), **choices)
    easy = Sampler(make_bank(noise=30), 3, 3, 3, seed=1)
    params, state = learner.init()
    scores = evaluate(learner, params, state, easy, 20, transductive=False, engine=Engine("vmap"))
    assert scores.mean() - ci95(scores) > 0.6


@pytest.mark.parametrize("name", ["leo", "nearest"])
@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("counts", [(9,) * 5, (9, 12, 20, 11, 9)])
def test_scoring_whole_classes_is_scoring_each_query(
    make_bank: Make,
    make_learner: Make,
    name: str,
    engine: str,
    counts: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
):
    bank = make_bank(counts=counts, noise=200, shape=(64,))  # for features alone it is the faster way
    learner, sampler = make_learner(name), Sampler(bank, 3, 2, 7, seed=1)
    params, state = learner.init()
    monkeypatch.setattr(evaluation, "_on_gathered", None)
    scores = evaluate(learner, params, state, sampler, 30, transductive=False, engine=Engine(engine))
    tasks = sampler.episodes(0, 30)
    wanted = [score(query_outputs(learner, params, state, task, False), task.query_y) for task in tasks]
    assert len(tasks[0].query_y) == 21
    assert scores.tolist() == pytest.approx([float(score) for score in wanted])
    assert len(set(scores)) > 5


# The interval


@pytest.mark.slow
def test_memory_stays_flat_over_a_thousand_batches():
    done = subprocess.run(
        [sys.executable, "-c", BATCHES, "400", "50", "1000"], capture_output=True, text=True, check=True, timeout=600
    )
    (few, early), (many, late) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (few, many) == (50 * 5, 1000 * 5)
    assert late < 1.02 * early


@pytest.mark.parametrize("count", [2, 5, 600])
def test_the_interval_is_students(count: int):
    scores = np.random.RandomState(count).rand(count)
    low, high = stats.t.interval(0.95, count - 1, loc=scores.mean(), scale=stats.sem(scores))
    assert ci95(scores) == pytest.approx((high - low) / 2, rel=1e-12)


def test_one_score_has_no_interval():
    assert np.isnan(ci95(np.array([0.5])))


def test_equal_scores_have_an_interval_of_no_width():
    assert ci95(np.full(10, 0.25)) == 0
