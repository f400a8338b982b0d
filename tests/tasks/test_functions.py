"""Distributions over functions: their descriptions and fingerprints, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.tasks.functions import Functions, read_functions

SINE = {"amplitude": [0.1, 5.0], "phase": [0.0, 3.0]}
LINE = {"slope": [-3, 3], "intercept": [-1, 1]}


def test_the_three_splits_are_of_one_distribution():
    sources = read_functions({"sine": SINE}, [-5, 5], 0)
    assert list(sources) == ["train", "val", "test"] == [source.split for source in sources.values()]
    assert len({source.fingerprint for source in sources.values()}) == 1


def test_the_description_names_every_range():
    assert read_functions({"sine": SINE, "line": LINE}, [-5, 5], 0.3)["test"].description == (
        "line: slope -3 to 3, intercept -1 to 1; sine: amplitude 0.1 to 5, phase 0 to 3; x -5 to 5; noise 0.3"
    )


def test_the_order_in_which_things_are_named_makes_no_difference():
    one = read_functions({"sine": SINE, "line": LINE}, [-5, 5], 0)["test"]
    other = read_functions({"line": LINE, "sine": dict(reversed(SINE.items()))}, [-5, 5], 0)["test"]
    assert one == other and one.fingerprint == other.fingerprint


def test_the_order_of_the_mappings_makes_no_difference_to_the_draws():
    families = {"line": {"slope": (1, 1), "intercept": (0, 0)}, "sine": {"amplitude": (5, 5), "phase": (0, 0)}}
    turned = {name: dict(reversed(ranges.items())) for name, ranges in reversed(families.items())}
    drawn = [Functions(each, (-5, 5), 0.0, "test").draw(torch.arange(20), 4) for each in (families, turned)]
    assert torch.equal(drawn[0].y, drawn[1].y)
    x, is_sine = drawn[0].x[..., 0], drawn[0].family[:, None] == 1
    torch.testing.assert_close(drawn[0].y, torch.where(is_sine, 5 * x.sin(), x))


@pytest.mark.parametrize("families", [{}, {"cosine": SINE}, {"sine": {"amplitude": (0, 1)}}])
def test_functions_of_python_have_known_families_and_parameters(families: Any):
    with pytest.raises(FewshotError, match=r"dataset.reader.families"):
        Functions(families, (-5, 5), 0.0, "test")


@pytest.mark.parametrize(
    ("families", "x", "noise"),
    [
        ({"sine": SINE | {"phase": [0.0, 3.1]}}, [-5, 5], 0),
        ({"sine": SINE}, [-5, 5.1], 0),
        ({"sine": SINE}, [-5, 5], 0.1),
        ({"sine": SINE, "line": LINE}, [-5, 5], 0),
    ],
)
def test_another_distribution_has_another_fingerprint(families: Any, x: Any, noise: float):
    assert (
        read_functions(families, x, noise)["test"].fingerprint
        != read_functions({"sine": SINE}, [-5, 5], 0)["test"].fingerprint
    )


@pytest.mark.parametrize(
    ("families", "x", "noise", "message"),
    [
        ({}, [-5, 5], 0, "families={}: give at least one of sine, line its ranges"),
        ({"sine": None}, [-5, 5], 0, "give at least one of sine, line its ranges"),
        (5, [-5, 5], 0, "families=5: give at least one"),
        ({"sine": 3}, [-5, 5], 0, "families.sine: its parameters are"),
        ({"cubic": SINE}, [-5, 5], 0, "families.cubic: no such family; there are sine, line"),
        ({"sine": SINE, "lines": None}, [-5, 5], 0, "families.lines: no such family; there are sine, line"),
        ({"sine": {"amplitude": [0, 1]}}, [-5, 5], 0, "families.sine: its parameters are amplitude and phase"),
        ({"sine": SINE | {"slope": [0, 1]}}, [-5, 5], 0, "families.sine: its parameters are"),
        ({"sine": SINE | {"phase": [3, 0]}}, [-5, 5], 0, r"families.sine.phase=\[3, 0\]: a range goes from low"),
        ({"sine": SINE | {"phase": 3}}, [-5, 5], 0, "families.sine.phase=3: a range has two numbers"),
        ({"sine": SINE | {"phase": [0, "pi"]}}, [-5, 5], 0, "a range has two numbers"),
        ({"sine": SINE | {"phase": [0, float("nan")]}}, [-5, 5], 0, "a range goes from low to high"),
        ({"sine": SINE}, [1, 2, 3], 0, r"dataset.reader.x=\[1, 2, 3\]: a range has two numbers"),
        ({"sine": SINE}, [-5, 5], -0.1, "dataset.reader.noise=-0.1: must be a number >= 0"),
        ({"sine": SINE}, [-5, 5], True, "noise=True: must be a number"),
    ],
)
def test_what_is_no_distribution_is_refused_in_one_line(families: Any, x: Any, noise: Any, message: str):
    with pytest.raises(FewshotError, match=message) as caught:
        read_functions(families, x, noise)
    assert "\n" not in str(caught.value)
