"""Regression tasks: functions of their number alone, with the distribution and the noise that were asked for."""

from __future__ import annotations

from math import pi
from typing import Any

import pytest
import torch
from scipy import stats

from fewshot.core.errors import FewshotError
from fewshot.tasks import functions
from fewshot.tasks.functions import read_functions
from fewshot.tasks.regression import Regression

SINE = {"amplitude": [0.1, 5.0], "phase": [0.0, pi]}
LINE = {"slope": [-3.0, 3.0], "intercept": [-2.0, 1.0]}


def make_tasks(noise: float = 0.0, seed: int = 0, split: str = "train", shot: int = 5, **families: Any) -> Regression:
    return Regression(read_functions(families or {"sine": SINE, "line": LINE}, [-5, 5], noise)[split], shot, 4, seed)


def test_a_task_is_the_same_in_any_batch_and_order():
    tasks = make_tasks(noise=0.3)
    whole, one = tasks.episodes(0, 20), tasks.episodes(13, 1)
    for mine, theirs in zip(whole[13:14].tensors(), one.tensors(), strict=True):
        assert torch.equal(mine, theirs)
    assert tasks.manifest(0, 20) == make_tasks(noise=0.3).manifest(0, 20)


def test_points_say_nothing_of_the_parameters_of_their_function():
    curves = make_tasks(sine=SINE).draw(0, 2000)
    (parameters,) = curves.parameters.values()
    for values in parameters:
        for point in curves.x[..., 0].unbind(1):
            assert abs(stats.pearsonr(values.flatten(), point).statistic) < 0.1


@pytest.mark.parametrize("other", [{"seed": 1}, {"split": "val"}, {"shot": 6}, {"noise": 0.1}, {"sine": SINE}])
def test_other_tasks_have_another_manifest(other: dict[str, Any]):
    assert make_tasks(**other).manifest(0, 5) != make_tasks().manifest(0, 5)
    if "seed" in other or "split" in other:
        assert not torch.equal(make_tasks(**other).episodes(0, 8).support_x, make_tasks().episodes(0, 8).support_x)


def test_y_is_the_drawn_function_of_x_for_support_and_query():
    tasks = make_tasks()
    curves, episodes = tasks.draw(3, 50), tasks.episodes(3, 50)
    assert episodes.support_x.shape == (50, 5, 1) and episodes.support_y.shape == (50, 5)
    assert episodes.query_x.shape == (50, 4, 1) and episodes.query_y.shape == (50, 4)
    assert episodes.support_y.dtype == torch.float32
    x = torch.cat([episodes.support_x, episodes.query_x], 1)[..., 0]
    y = torch.cat([episodes.support_y, episodes.query_y], 1)
    names = list(curves.parameters)
    for i in range(50):
        name = names[int(curves.family[i])]
        first, second = (float(value[i, 0]) for value in curves.parameters[name])
        wanted = first * torch.sin(x[i] - second) if name == "sine" else first * x[i] + second
        torch.testing.assert_close(y[i], wanted, rtol=1e-5, atol=1e-5)


def test_families_are_fair_and_parameters_and_x_are_uniform():
    curves = make_tasks().draw(0, 4000)
    assert stats.binomtest(int(curves.family.sum()), 4000).pvalue > 1e-3
    ranges = {"sine": SINE, "line": LINE}
    samples = [(curves.x.flatten(), -5.0, 5.0)]
    for name, values in curves.parameters.items():
        samples += [(value[:, 0], *limits) for value, limits in zip(values, ranges[name].values(), strict=True)]
    for values, low, high in samples:
        assert stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3
        assert low <= values.min() and values.max() <= high
    amplitude, phase = (value[:, 0].numpy() for value in curves.parameters["sine"])
    assert stats.pearsonr(amplitude, phase).pvalue > 1e-3


def test_the_tests_of_uniformity_see_what_is_not_uniform(monkeypatch: pytest.MonkeyPatch):
    uniform = functions.uniform
    monkeypatch.setattr(functions, "uniform", lambda bits: uniform(bits) ** 1.2)
    with pytest.raises(AssertionError):
        test_families_are_fair_and_parameters_and_x_are_uniform()


def test_noise_is_gaussian_of_its_size_on_support_and_query_and_new_for_every_task():
    plain, noisy = (make_tasks(noise, sine=SINE).episodes(0, 500) for noise in (0.0, 0.3))
    assert torch.equal(plain.support_x, noisy.support_x)
    for clean, dirty in ((plain.support_y, noisy.support_y), (plain.query_y, noisy.query_y)):
        noise = ((dirty - clean) / 0.3).flatten().numpy()
        assert stats.kstest(noise, stats.norm.cdf).pvalue > 1e-3
        assert abs(stats.pearsonr(noise[:-1], noise[1:]).statistic) < 0.1


def test_what_is_no_source_of_points_is_named_with_what_to_give(make_bank: Any):
    sources, wanted = read_functions({"sine": SINE}, [-5, 5], 0), "and functions or tables are wanted"
    for source, words in ((sources, f"a dict, {wanted}: take one of its values"), (make_bank(), f"a Bank, {wanted}")):
        with pytest.raises(FewshotError, match=f"^Regression: source is {words}$"):
            Regression(source, 4, 5)


@pytest.mark.parametrize(
    ("shot", "query", "seed", "message"),
    [(0, 1, 0, "shot=0: must be"), (1, -1, 0, "query=-1: must be"), (1, 1, 0.5, "seed=0.5: must be")],
)
def test_what_makes_no_tasks_is_refused(shot: int, query: int, seed: Any, message: str):
    with pytest.raises(FewshotError, match=message):
        Regression(read_functions({"sine": SINE}, [-5, 5], 0)["train"], shot, query, seed)
