"""Layouts: published splits, what folders say of classes and splits, and what is held against what was published."""

import itertools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshot.core.errors import FewshotError
from fewshot.data.sources.archives import Files, open_files
from fewshot.data.sources.faults import FaultsError
from fewshot.data.sources.images import HEAD_BYTES, is_image
from fewshot.data.sources.layouts import (
    SPLITS,
    check_official,
    find_images,
    known_folders,
    other_ways,
    passed_over,
    published_split,
)
from fewshot.data.sources.parts import SplitSource, part_of_labels

from ..made_sources import as_archive, as_folder, encoded, noise

SPLIT = {"train": ["n01", "n02"], "val": ["n03"], "test": ["n04"]}


def refused(match: str, call: Any, *args: Any) -> str:
    with pytest.raises(FewshotError, match=match) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "sizes", "name"),
    [("mini", [64, 16, 20], r"n\d{8}"), ("tiered", [351, 97, 160], r"n\d{8}"), ("cub", [100, 50, 50], r"\d{3}\.\w+")],
)
def test_the_published_splits_have_their_sizes_and_share_no_class(dataset: str, sizes: list[int], name: str):
    splits = published_split(dataset)
    assert list(splits) == list(SPLITS) and [len(names) for names in splits.values()] == sizes
    every = list(itertools.chain(*splits.values()))
    assert len(set(every)) == sum(sizes)
    assert all(re.fullmatch(name, each.replace("-", "_")) for each in every)
    assert all(names == sorted(names) for names in splits.values())


@pytest.mark.parametrize(
    ("dataset", "split", "name"),
    [
        ("mini", "train", "n01532829"),
        ("mini", "val", "n01855672"),
        ("mini", "test", "n01930112"),
        ("cub", "train", "001.Black_footed_Albatross"),
    ],
)
def test_well_known_classes_are_where_they_belong(dataset: str, split: str, name: str):
    assert [each for each, names in published_split(dataset).items() if name in names] == [split]


@pytest.mark.parametrize(
    ("name", "good"),
    [("a.png", True), ("b/A.JPEG", True), ("a.jpg", True), ("a.txt", False), ("png", False), ("a.png.part", False)],
)
def test_images_are_known_by_the_ends_of_their_names(name: str, good: bool):
    assert is_image(name) is good


def made(root: Path, names: list[str]) -> Files:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return open_files(root)


@pytest.mark.parametrize(
    "folder_of",
    [
        {"n01": "n01", "n03": "n03", "n04": "n04"},
        {"n01": "a/b/n01", "n03": "a/c/n03", "n04": "n04"},
        {"n01": "train/n01", "n03": "val/n03", "n04": "test/n04"},
        {"n01": "mini/Train/n01", "n03": "mini/validation/n03", "n04": "mini/test/n04"},
        {"n01": "train/n01", "n03": "train/n03", "n04": "train/n04"},  # ImageNet's training images
    ],
)
def test_classes_are_found_by_the_names_of_their_folders(tmp_path: Path, folder_of: dict[str, str]):
    images = {name: [f"{folder}/{i}.png" for i in "ab"] for name, folder in folder_of.items()}
    files = made(tmp_path, [*itertools.chain(*images.values()), "train/n99/a.png", "n01.png", "n01/read.me"])
    assert known_folders(files, SPLIT) == images


def test_classes_are_found_in_archives(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("all/n03/x.jpg", b"")
    assert known_folders(open_files(tmp_path / "a.zip"), SPLIT) == {"n03": ["all/n03/x.jpg"]}


def test_without_folders_of_known_names_there_are_no_classes(tmp_path: Path):
    assert known_folders(made(tmp_path, ["train/a.png", "cat/b.png"]), SPLIT) == {}


def test_a_class_in_two_places_is_refused(tmp_path: Path):
    files = made(tmp_path, ["train/n01/a.png", "val/n01/b.png"])
    refused("class n01 lies in train/n01 and in val/n01; leave it in one place", known_folders, files, SPLIT)


def test_folders_that_split_the_classes_in_another_way_are_refused(tmp_path: Path):
    files = made(tmp_path, ["train/n01/a.png", "train/n03/b.png", "test/n04/c.png"])
    refused("class n03 lies in train/n03, but belongs to val .*dataset=folder", known_folders, files, SPLIT)


def parts(counts: Mapping[str, Mapping[str, int]]) -> dict[str, SplitSource]:
    """Of each split the classes, and how many images they have."""
    return {
        split: part_of_labels(
            list(of), np.repeat(np.arange(len(of)), list(of.values())), lambda i: iter(()), lambda i: f"image {i}"
        )
        for split, of in counts.items()
    }


WHOLE: dict[str, dict[str, int]] = {"train": {"n02": 2, "n01": 2}, "val": {"n03": 2}, "test": {"n04": 2}}


@pytest.mark.parametrize("totals", [2, {"train": 4, "val": 2, "test": 2}])
def test_what_is_as_published_passes(totals: Any):
    check_official("here", parts(WHOLE), SPLIT, totals)


def test_totals_of_splits_say_nothing_of_classes():
    check_official("here", parts(WHOLE | {"train": {"n01": 1, "n02": 3}}), SPLIT, {"train": 4, "val": 2, "test": 2})


PARTLY = "; to convert the part that is there, set dataset.reader.complete=false"
TOTALS = {"train": 4, "val": 2, "test": 2}
UNLIKE = {
    "a class missing": ({"train": {"n02": 2}}, 2, f"1 of 2 classes of train are missing, such as n01{PARTLY}"),
    "all classes missing": ({"val": {}}, 2, f"1 of 1 classes of val are missing, such as n03{PARTLY}"),
    "a class too many": ({"val": {"n03": 2, "n77": 2}}, 2, "n77 is no class of val in the published split; remove it"),
    "a class of another split": ({"test": {"n04": 2, "n01": 2}}, TOTALS, "n01 is no class of test in the published"),
    "an image missing": ({"train": {"n01": 2, "n02": 1}}, 2, f"class n02 has 1 images, not 2{PARTLY}"),
    "an image too many": ({"test": {"n04": 3}}, 2, f"class n04 has 3 images, not 2{PARTLY}"),
    "an image of a split missing": ({"train": {"n01": 2, "n02": 1}}, TOTALS, f"3 images of train, not 4{PARTLY}"),
    "an image of a split too many": ({"test": {"n04": 3}}, TOTALS, f"3 images of test, not 2{PARTLY}"),
}


@pytest.mark.parametrize("unlike", UNLIKE)
def test_what_is_not_as_published_is_named_with_what_to_do(unlike: str):
    change, totals, match = UNLIKE[unlike]
    refused(f"^here: {match}", check_official, "here", parts(WHOLE | change), SPLIT, totals)


def test_a_split_that_is_not_there_at_all_is_missing():
    given = {split: part for split, part in parts(WHOLE).items() if split != "test"}
    refused("1 of 1 classes of test are missing", check_official, "here", given, SPLIT, 2)


@pytest.mark.parametrize("between", ["images", "train", "x"])
def test_one_folder_below_a_known_class_is_looked_through(tmp_path: Path, between: str):
    images = {name: [f"all/{name}/{between}/{i}.JPEG" for i in "ab"] for name in ("n01", "n03", "n04")}
    files = made(tmp_path, [*itertools.chain(*images.values()), "all/n01/boxes.txt", "val/images/a.JPEG"])
    assert known_folders(files, SPLIT) == images
    assert passed_over(files, SPLIT)["passed_over"] == {".txt": 1}


def test_images_in_a_classs_own_folder_come_before_those_below_it(tmp_path: Path):
    files = made(tmp_path, ["n01/a.png", "n01/masks/a.png"])
    assert known_folders(files, SPLIT) == {"n01": ["n01/a.png"]}


def test_a_class_in_two_folders_below_its_own_is_refused(tmp_path: Path):
    files = made(tmp_path, ["n01/a/a.png", "n01/b/b.png"])
    refused("class n01 lies in n01/a and in n01/b; leave it in one place", known_folders, files, SPLIT)


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("download", [True, False])
def test_a_remedy_is_none_that_was_tried(tmp_path: Path, exists: bool, download: bool):
    ways = other_ways(tmp_path if exists else tmp_path / "none", "python tools/prepare.py dataset=mini", download)
    assert ("download=true" in ways) is not download
    assert ("dataset=mini source=<path>" in ways) is not exists and ("dataset=folder" in ways) is exists


def test_all_missing_classes_are_known():
    with pytest.raises(FaultsError, match="2 of 2 classes of train are missing, such as n01") as caught:
        check_official("here", parts(WHOLE | {"train": {}}), SPLIT, 2)
    assert len(caught.value.faults) == 2


@pytest.mark.parametrize("packed", ["", "zip", "tar"])
def test_files_without_a_suffix_are_known_by_their_first_bytes_alone(
    tmp_path: Path, packed: str, monkeypatch: pytest.MonkeyPatch
):
    image = encoded(noise(1, 64, 64))  # longer than what is read of it
    data = {"cat/1": image, "cat/2": image[:HEAD_BYTES] + b"damage", "cat/README": b"BMW and others", "cat/3": bytes(9)}
    path = as_archive(tmp_path / f"a.{packed}", data) if packed else as_folder(tmp_path / "a", data)
    monkeypatch.setattr("fewshot.data.sources.archives.MAX_BYTES", HEAD_BYTES)  # how long a file is does not matter
    assert len(image) > HEAD_BYTES and find_images(open_files(path)) == ["cat/1", "cat/2"]
