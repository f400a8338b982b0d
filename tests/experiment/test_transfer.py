"""A run is not tested on classes that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fewshot.core.errors import FewshotError
from fewshot.experiment.run_dir import DATA
from fewshot.experiment.transfer import check_disjoint_classes


def source(*names: str) -> Any:
    return SimpleNamespace(split="test", names=names, image_fingerprint="b")


@pytest.mark.parametrize(
    ("trained", "tested", "classes", "said"),
    [
        ("cifar_fs", "fc100", ["bed", "cup"], "1 of its 2 classes of test are classes that the run was trained on"),
        ("fc100", "cifar_fs", ["train 001"], "the classes of pickles have no names, such as train 001"),
        ("cifar_fs", "mini", ["train 001"], None),
        ("cifar_fs", "cifar_fs", ["train 001"], None),
        ("cifar_fs", "fc100", ["cup"], None),
    ],
)
def test_classes_of_the_training_are_found_or_the_test_is_refused(
    tmp_path: Path, trained: str, tested: str, classes: list[str], said: str | None
) -> None:
    info = {"train": "a", "val": "c", "test": "d", "shape": [3, 32, 32], "classes": classes}
    (tmp_path / DATA).write_text(json.dumps(info))
    if said is None:
        check_disjoint_classes(tmp_path, trained, tested, source("bed", "road"))
        return
    with pytest.raises(FewshotError, match=said):
        check_disjoint_classes(tmp_path, trained, tested, source("bed", "road"))


def test_a_test_on_classes_that_selected_the_checkpoint_is_refused(tmp_path: Path) -> None:
    info = {"train": "a", "val": "c", "test": "d", "shape": [3, 8, 8], "classes": ["cup"], "selection_classes": ["bed"]}
    (tmp_path / DATA).write_text(json.dumps(info))
    with pytest.raises(FewshotError, match="1 of its 2 classes of test are classes that the run chose its checkpoint"):
        check_disjoint_classes(tmp_path, "mini", "tiered", source("bed", "road"))
