"""A run is not tested on classes that it was trained or selected on."""

from __future__ import annotations

import json
import unicodedata
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank
from fewshot.experiment.run_dir import DATA, EXTRACTOR
from fewshot.experiment.transfer import check_disjoint_classes, is_mostly_light


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
        ("mini", "tiered", ["n01532829"], "a class is named bed, and not by its WordNet id"),
    ],
)
def test_classes_of_the_training_are_found_or_the_test_is_refused(
    tmp_path: Path, trained: str, tested: str, classes: list[str], said: str | None
) -> None:
    info = {"train": "a", "val": "c", "test": "d", "shape": [3, 32, 32], "classes": classes}
    (tmp_path / DATA).write_text(json.dumps(info))
    if said is None:
        check_disjoint_classes(tmp_path, trained, tested, source("bed", "road"), "last")
        return
    with pytest.raises(FewshotError, match=said):
        check_disjoint_classes(tmp_path, trained, tested, source("bed", "road"), "last")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_class_is_known_in_either_form_of_its_letters(tmp_path: Path, form: Any) -> None:
    one, other = unicodedata.normalize(form, "Häher"), unicodedata.normalize("NFC", "Häher")
    info = {"train": "a", "val": "c", "test": "d", "shape": [3, 32, 32], "classes": [one]}
    (tmp_path / DATA).write_text(json.dumps(info))
    with pytest.raises(FewshotError, match="1 of its 2 classes"):
        check_disjoint_classes(tmp_path, "birds", "own", source(other, "road"), "last")


def test_light_images_are_told_from_dark_ones() -> None:
    light = torch.full((600, 1, 4, 4), 200, dtype=torch.uint8)
    for examples, expected in ((light, True), (255 - light, False), (light.float(), False)):
        assert is_mostly_light(Bank.from_tensors(examples, [0, 1] * 300)) == expected


@pytest.mark.parametrize("selection", ["last", "best validation accuracy"])
@pytest.mark.parametrize("extractor", [None, {"name": "conv4"}])
def test_classes_of_the_validation_are_refused_where_they_selected_the_checkpoint_or_the_extractor(
    tmp_path: Path, selection: str, extractor: dict[str, str] | None
) -> None:
    info = {
        "train": "a",
        "val": "c",
        "test": "d",
        "shape": [3, 8, 8],
        "classes": ["cup"],
        "validation_classes": ["bed"],
    }
    (tmp_path / DATA).write_text(json.dumps(info | ({EXTRACTOR: extractor} if extractor else {})))
    refused = pytest.raises(FewshotError, match="1 of its 2 classes of test are classes that the run was selected on")
    with nullcontext() if selection == "last" and not extractor else refused:
        check_disjoint_classes(tmp_path, "cub", "mini", source("bed", "road"), selection)
