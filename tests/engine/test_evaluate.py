"""Evaluation: which queries see each other, and that scores depend on nothing but the episodes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fewshot.algorithms.baseline import Baseline
from fewshot.algorithms.learner import Tensors, score
from fewshot.algorithms.maml import MAML
from fewshot.algorithms.matching_net import MatchingNet
from fewshot.algorithms.nearest import Nearest
from fewshot.backbones.identity import Identity
from fewshot.backbones.mlp import MLP
from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank
from fewshot.engine import evaluate as evaluation
from fewshot.engine.engine import Engine
from fewshot.engine.evaluate import SETTINGS, evaluate_settings, explain_nan, query_outputs, score_episodes
from fewshot.engine.probe import probe
from fewshot.episodes import Episodes
from fewshot.report.statistics import ci95
from fewshot.tasks.sampler import Sampler

from ..conftest import TRAINED
from .foreign_networks import MIXING

Make = Callable[..., Any]

# Learners with parameters and state, by name and dtype: what one is probed for once holds in all tests.
MADE: dict[tuple[str, torch.dtype], tuple[Any, tuple[Any, Any]]] = {}


@pytest.fixture(
    params=["nearest", "baseline", "maml mlp", "fomaml own", *(n for n in TRAINED if n not in ("fomaml", "meta_sgd"))]
)
def made(request: pytest.FixtureRequest, make_learner: Make, make_mlp: Make, make_episodes: Make) -> Any:
    """Each algorithm, on its own inputs, Conv-4, an MLP with norms or torch's BatchNorm, and its start."""
    torch.manual_seed(0)
    if (key := (request.param, torch.get_default_dtype())) not in MADE:
        name, *network = request.param.split()
        networks = {"mlp": make_mlp, "own": MIXING["batch norm"]}
        learner = make_learner(name, networks[network[0]]() if network else None)
        params, state = learner.init()
        state = Engine("vmap").outer(learner, params, state, make_episodes(2)).state if state else {}
        MADE[key] = learner, (params, state)
    return MADE[key]


@pytest.fixture
def learner(made: Any) -> Any:
    return made[0]


@pytest.fixture
def start(made: Any) -> tuple[Any, Any]:
    """Parameters and state after a meta-batch, so that the state is not empty."""
    return made[1]


@pytest.fixture
def task(make_episodes: Make) -> Episodes:
    return make_episodes(1, query=3)[0]


def invert(task: Episodes, query: int) -> Episodes:
    """The task with one query changed."""
    query_x = task.query_x.clone()
    query_x[query] = 1 - 3 * query_x[query]
    return replace(task, query_x=query_x)


def test_in_inductive_mode_no_query_reaches_the_prediction_of_another(learner: Any, start: Any, task: Episodes):
    before = query_outputs(learner, *start, task, setting="inductive")
    for changed in (0, 8):
        after = query_outputs(learner, *start, invert(task, changed), setting="inductive")
        others = torch.arange(9) != changed
        assert torch.equal(after[others], before[others])
        assert not torch.equal(after[changed], before[changed])


def test_in_transductive_mode_queries_share_the_norms(learner: Any, start: Any, task: Episodes):
    before, after = (query_outputs(learner, *start, each, setting="transductive") for each in (task, invert(task, 0)))
    assert torch.equal(after[1:], before[1:]) == probe(learner, task).queries_independent


def test_predictions_depend_on_the_support_set_and_not_on_the_labels_of_queries(
    learner: Any, start: Any, task: Episodes, make_episodes: Make
):
    other = replace(task, support_x=make_episodes(2, query=3)[1].support_x)
    hidden = replace(task, query_y=torch.zeros_like(task.query_y))
    for setting in SETTINGS:
        outputs, others, same = (query_outputs(learner, *start, each, setting) for each in (task, other, hidden))
        assert outputs.shape == (9, 3)
        assert float((others - outputs).abs().max()) > 1e-3
        assert torch.equal(outputs, same)


@pytest.mark.usefixtures("float64")
def test_queries_are_forwarded_with_the_support_set_or_with_all_queries_alone(
    learner: Any, start: Any, make_episodes: Make
):
    task = make_episodes(1, query=3)[0]
    adapted = learner.adapt(*start, task)
    inductive = torch.stack([learner.predict(adapted, torch.cat([task.support_x, q[None]]))[-1] for q in task.query_x])
    together = learner.predict(adapted, task.query_x)
    for setting, expected in (("inductive", inductive), ("transductive", together)):
        outputs = query_outputs(learner, *start, task, setting)
        torch.testing.assert_close(outputs, expected, rtol=1e-9, atol=1e-10)


def test_a_learner_adapts_to_a_task_without_queries(make_bank: Make):
    class Peeking(Nearest):
        """Looks at the queries: each class is taken for the next one where there are any."""

        def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
            shift = task.support_x.flip(0) - task.support_x if len(task.query_x) else 0
            return super().adapt(params, state, replace(task, support_x=task.support_x + shift))

    def scored(kind: type[Nearest], bank: Bank, query: int) -> list[Any]:
        learner, sampler = kind(Identity(bank.shape, 3)), Sampler(bank, 3, 1, query)
        scores = [
            score_episodes(learner, {}, {}, sampler, 20, setting="inductive", engine=Engine(name)).tolist()
            for name in ("vmap", "loop")
        ]
        return [*scores, query_outputs(learner, {}, {}, sampler.episodes(0, 1)[0], setting="transductive").tolist()]

    features = Bank.from_tensors(torch.randn(30, 4), [0, 1, 2] * 10)
    for bank, query in ((make_bank(), 2), (features, 2), (features, 9)):  # the last is scored by class
        assert scored(Peeking, bank, query) == scored(Nearest, bank, query)


# Scores


def test_scores_are_shares_of_right_queries_in_any_batch_on_any_engine_and_thread(
    monkeypatch: pytest.MonkeyPatch, learner: Any, start: Any, make_bank: Make
):
    sampler = Sampler(make_bank(noise=150), 3, 2, 3, seed=1)
    expected: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    for episode in (sampler.episodes(i, 1)[0] for i in range(6)):
        for setting, shares in expected.items():
            logits = query_outputs(learner, *start, episode, setting)
            shares.append(int((logits.argmax(1) == episode.query_y).sum()) / 9)
    assert all(len(set(shares)) > 1 for shares in expected.values())
    for name, chunk, examples, values, threads in (
        ("vmap", None, 1, 10**6, 1), ("vmap", 5, 2000, 1, 1), ("loop", None, 2000, 1000, 1), ("auto", None, 40, 1, 2),
    ):  # fmt: skip
        monkeypatch.setattr(evaluation, "EXAMPLES_AT_ONCE", examples)
        monkeypatch.setattr(evaluation, "VALUES_AT_ONCE", values)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        scores = evaluate_settings(learner, *start, sampler, 6, engine=Engine(name, chunk))
        for setting, shares in expected.items():
            assert scores[setting].shape == (6,) and scores[setting].dtype == np.float64
            assert scores[setting] == pytest.approx(shares, abs=1e-6)
    labels = evaluate_settings(learner, *start, sampler, 6, engine=Engine("vmap", 5), labels=True)
    for setting, shares in expected.items():
        assert labels[setting].shape == (6, 9) and labels[setting].dtype == np.int64
        assert (labels[setting] == sampler.episodes(0, 6).query_y.numpy()).mean(1) == pytest.approx(shares)


def test_a_gpu_forwards_images_up_to_what_its_library_takes():
    def most(*shape: int) -> int:
        return evaluation._most_examples(torch.empty(*shape, device="meta"))

    assert most(25, 1, 28, 28) == most(25, 640) == evaluation.GPU_EXAMPLES_AT_ONCE
    assert most(25, 3, 84, 84) * 84 * 84 <= evaluation.GPU_PIXELS_AT_ONCE < (most(25, 3, 84, 84) + 1) * 84 * 84
    assert evaluation._most_examples(torch.empty(25, 3, 84, 84)) == evaluation.EXAMPLES_AT_ONCE


def test_every_learner_is_better_than_chance_on_easy_tasks(make_learner: Make, make_bank: Make, algorithm: str):
    by_steps = algorithm not in ("nearest", "protonet", "r2d2")
    choices: dict[str, Any] = {"test_steps": 20} if by_steps else {}
    choices |= {"test_batch": 6} if "reptile" in algorithm else {}
    choices |= {"inner_lr": 1.0} if algorithm == "anil" else {}  # of a random body's features
    if algorithm == "leo":  # untrained codes say little; its weights can still be tuned
        choices = {"finetune_steps": 20, "finetune_lr": 0.1}
    learner = make_learner(algorithm, **choices)
    easy = Sampler(make_bank(noise=30), 3, 3, 3, seed=1)
    scores = score_episodes(learner, *learner.init(), easy, 10, setting="transductive", engine=Engine("vmap"))
    assert scores.mean() - ci95(scores) > 0.6


@pytest.mark.parametrize(("name", "engine"), [("leo", "vmap"), ("leo", "loop"), ("nearest", "vmap")])
@pytest.mark.parametrize("counts", [(9,) * 5, (9, 12, 20, 11, 9)])
def test_scoring_whole_classes_is_scoring_each_query(
    make_bank: Make, make_learner: Make, name: str, engine: str, counts: Any, monkeypatch: pytest.MonkeyPatch
):
    bank = make_bank(counts=counts, noise=200, shape=(64,))  # on features alone it is the faster way
    learner, sampler = make_learner(name), Sampler(bank, 3, 2, 7, seed=1)
    params, state = learner.init()
    by_class, calls = evaluation._evaluate_by_class, []
    monkeypatch.setattr(evaluation, "_evaluate_by_class", lambda *given: calls.append(1) or by_class(*given))
    scores = score_episodes(learner, params, state, sampler, 20, setting="inductive", engine=Engine(engine))
    assert calls == [1]
    tasks = sampler.episodes(0, 20)
    wanted = [score(query_outputs(learner, params, state, task, "inductive"), task.query_y) for task in tasks]
    assert scores.tolist() == pytest.approx([float(score) for score in wanted])
    assert len(set(scores)) > 4


# Peak memory after so many batches of evaluation as the words say, one after the other.
BATCHES = """
import sys
import torch
from fewshot.engine import evaluate as evaluation
from fewshot.engine.engine import Engine
from fewshot.algorithms.maml import MAML
from fewshot.backbones.conv4 import Conv4
from fewshot.data.bank import Bank
from fewshot.core.device import tune_malloc, peak_memory_bytes
from fewshot.tasks.sampler import Sampler
tune_malloc()
torch.manual_seed(0)
evaluation.EXAMPLES_AT_ONCE = int(sys.argv[1])
network = Conv4((1, 28, 28), 5, filters=8, downsample="max_pool", pool="valid", readout="flatten", norm="batch",
                norm_scale=True, norm_eps=1e-3, adapt_norm=True, conv_init="xavier", head_init="xavier")
learner = MAML(network, inner_lr=0.01, inner_steps=1, test_steps=3, first_order=False, inner_loss="mean",
               outer_loss="mean")
images = torch.randint(256, (400, 1, 28, 28), dtype=torch.uint8)
bank = Bank(images, torch.arange(21) * 20, tuple("abcdefghijklmnopqrst"), "test", "random", {})
sampler, (params, state) = Sampler(bank, 5, 1, 15, 0), learner.init()
for batches in map(int, sys.argv[2:]):
    episodes = batches * (evaluation.EXAMPLES_AT_ONCE // 80)
    scores = evaluation.score_episodes(learner, params, state, sampler, episodes, setting="transductive")
    print(len(scores), peak_memory_bytes(torch.device("cpu")))
"""


@pytest.mark.slow
def test_memory_stays_flat_over_a_thousand_batches():
    done = subprocess.run(
        [sys.executable, "-c", BATCHES, "400", "50", "1000"], capture_output=True, text=True, check=True, timeout=600
    )
    (few, early), (many, late) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (few, many) == (50 * 5, 1000 * 5)
    assert late < 1.02 * early


def test_whole_classes_are_scored_without_gradients_in_every_thread(make_bank: Make, monkeypatch: pytest.MonkeyPatch):
    with_gradients: list[bool] = []

    class Watching(Nearest):
        def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
            with_gradients.append(torch.is_grad_enabled())
            return super().adapt(params, state, task)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    sampler, learner = Sampler(make_bank(shape=(6,)), 3, 2, 5), Watching(Identity((6,), 3))
    for _ in range(2):  # what it is probed for in the first test is known in the second
        with_gradients.clear()
        score_episodes(learner, {}, {}, sampler, 20, setting="inductive", engine="loop")
    assert len(with_gradients) >= 20 and not any(with_gradients)


def test_tasks_that_are_not_sorted_are_refused_also_after_others_that_are(make_bank: Make):
    class Mixed(Sampler):
        def episodes(self, first: int, count: int) -> Episodes:
            tasks, order = super().episodes(first, count), torch.tensor([0, 2, 4, 1, 3, 5])
            return replace(tasks, support_x=tasks.support_x[:, order], support_y=tasks.support_y[:, order])

    learner = Nearest(Identity((6,), 3))
    tasks, mixed = (kind(make_bank(shape=(6,)), 3, 2, 5) for kind in (Sampler, Mixed))
    score_episodes(learner, {}, {}, tasks, 2, setting="inductive")
    with pytest.raises(FewshotError, match="sort its examples by class"):
        score_episodes(learner, {}, {}, mixed, 2, setting="inductive")


@pytest.mark.parametrize("whole_classes", [False, True])
def test_a_logit_that_is_nan_makes_no_score(make_bank: Make, whole_classes: bool, monkeypatch: pytest.MonkeyPatch):
    class Broken(Nearest):
        def predict(self, adapted: Tensors, x: torch.Tensor) -> torch.Tensor:
            logits = super().predict(adapted, x)
            return torch.where(x.sum(1, keepdim=True) > adapted["limit"], torch.nan, logits)

        def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
            return super().adapt(params, state, task) | {"limit": task.support_x.sum(1).max() + 0.05}

    features = make_bank(shape=(6,), noise=40)
    sampler, learner = Sampler(features, 3, 2, 5), Broken(Identity((6,), 3))
    monkeypatch.setattr(evaluation, "_queries_cover_classes", lambda tasks: whole_classes)
    (scores,) = evaluate_settings(learner, {}, {}, sampler, 20, settings=SETTINGS[1:], engine=Engine()).values()
    (labels,) = evaluate_settings(
        learner, {}, {}, sampler, 20, settings=SETTINGS[1:], engine=Engine(), labels=True
    ).values()
    broken = (labels < 0).any(1)
    assert 0 < broken.sum() < 20
    np.testing.assert_array_equal(np.isnan(scores), broken)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: MAML(MLP((4,), 3)), "algorithm.learner.inner_lr"),
        (lambda: Baseline(Identity((4,), 3)), "algorithm.learner.lr"),
        (lambda: MatchingNet(Identity((4,), 3), test_steps=1), "algorithm.learner.finetune_lr"),
    ],
)
def test_a_test_that_diverges_names_the_rate_that_the_learner_has(make: Callable[[], Any], key: str):
    assert f"lower the rate of the inner loop ({key})" in explain_nan(make())
