"""A comparison with an original program never passes because nothing was compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewshot.algorithms.learner import Tensors

from .originals import Deviations, Original, deviations_of

OURS = {name: torch.ones(2) for name in ("conv.weight", "conv.bias", "norm.offset", "head.weight", "inner_step")}
SAME = {name: value for name, value in OURS.items() if name != "inner_step"}


@pytest.fixture
def original(tmp_path: Path) -> Original:
    """A file of weights "param/w", "param/b" and "part/w"."""
    arrays: dict[str, Any] = {name: np.ones((2, 2)) for name in ("param/w", "param/b", "part/w")}
    np.savez(tmp_path / "some.npz", config_json=json.dumps({"compute_dtype": "float64"}), **arrays)
    file = Original(tmp_path / "some.npz")
    file.names = {"w": "head.weight", "b": "head.bias"}
    return file


def test_weights_come_by_our_names(original: Original):
    assert original.weights("param").keys() == {"head.weight", "head.bias"}


@pytest.mark.parametrize(("prefix", "missing"), [("parm", "w, b"), ("param/", "w, b"), ("part", "b")])
def test_a_misspelt_prefix_or_a_missing_weight_fails(original: Original, prefix: str, missing: str):
    with pytest.raises(AssertionError, match=f"below {prefix}/ the file has no {missing}"):
        original.weights(prefix)


def test_a_file_whose_names_are_not_said_fails(original: Original):
    original.names = {}
    with pytest.raises(AssertionError):
        original.weights("param")


def test_offsets_of_norms_may_be_missing():
    table = Deviations()
    for theirs in (SAME, {name: value for name, value in SAME.items() if name != "norm.offset"}):
        table.compare("weights", OURS, theirs, 0.0)
    assert table.rows == {"weights": (0.0, 0.0)}


@pytest.mark.parametrize(
    "theirs",
    [
        {},
        {"conv.weight": torch.ones(2)},
        {name: value for name, value in SAME.items() if name != "head.weight"},
        SAME | {"other.weight": torch.ones(2)},
        SAME | {"head.weight": torch.ones(3)},
        SAME | {"head.weight": torch.ones(0)},
    ],
)
def test_a_reference_that_is_empty_or_of_other_names_or_shapes_fails(theirs: Tensors):
    with pytest.raises(AssertionError, match="weights"):
        Deviations().compare("weights", OURS, theirs, 1.0)


def test_empty_tensors_and_an_empty_table_fail(tmp_path: Path):
    with pytest.raises(AssertionError, match="losses"):
        Deviations().compare("losses", torch.ones(0), torch.ones(0), 1.0)
    with pytest.raises(AssertionError), deviations_of(tmp_path):
        pass
