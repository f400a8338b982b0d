"""The figures of a record that no test of its own has."""

from __future__ import annotations

import numpy as np

from fewshot.experiment.make_record import query_variances
from fewshot.tasks.functions import read_functions
from fewshot.tasks.regression import Regression


def test_the_error_of_predicting_the_mean_of_an_episodes_queries_is_their_variance() -> None:
    sources = read_functions({"sine": {"amplitude": [1, 2], "phase": [0, 3]}}, [-5, 5], 0)
    tasks = Regression(sources["test"], 3, 4, 0)
    y = tasks.episodes(0, 5).query_y.double().numpy()
    expected = ((y - y.mean(1, keepdims=True)) ** 2).mean(1)
    np.testing.assert_allclose(query_variances(tasks, 5), expected)
