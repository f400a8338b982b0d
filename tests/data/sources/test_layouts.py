"""Layouts: what folders say of classes and splits, and which files are images."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from fewshot.core.errors import FewshotError
from fewshot.data.sources.archives import Files, open_files
from fewshot.data.sources.images import HEAD_BYTES
from fewshot.data.sources.layouts import find_images, known_folders

from ..made_sources import as_archive, as_folder, encoded, noise

SPLIT = {"train": ["n01", "n02"], "val": ["n03"], "test": ["n04"]}


def refused(match: str, call: Any, *args: Any) -> str:
    with pytest.raises(FewshotError, match=match) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def source(root: Path, names: list[str]) -> Files:
    return open_files(as_folder(root, dict.fromkeys(names, b"")))


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
    files = source(tmp_path, [*itertools.chain(*images.values()), "train/n99/a.png", "n01.png", "n01/read.me"])
    assert known_folders(files, SPLIT) == images


def test_without_folders_of_known_names_there_are_no_classes(tmp_path: Path):
    assert known_folders(source(tmp_path, ["train/a.png", "cat/b.png"]), SPLIT) == {}


def test_one_member_of_a_zip_that_cannot_be_read_hides_no_other_without_a_suffix(tmp_path: Path):
    names = [f"cat/{number}" for number in range(3)]
    archive = as_archive(tmp_path / "a.zip", {name: encoded(noise(1, 4, 4)) for name in names})
    data = archive.read_bytes()
    first = data.index(b"PK\x01\x02")  # of the directory: its first member asks for a compression that there is not
    archive.write_bytes(data[: first + 10] + b"\x63\0" + data[first + 12 :])
    assert find_images(open_files(archive)) == names[1:]


def test_a_class_in_two_places_is_refused(tmp_path: Path):
    files = source(tmp_path, ["train/n01/a.png", "val/n01/b.png"])
    refused("class n01 is in train/n01 and in val/n01; leave it in one place", known_folders, files, SPLIT)


def test_folders_that_split_the_classes_in_another_way_are_refused(tmp_path: Path):
    files = source(tmp_path, ["train/n01/a.png", "train/n03/b.png", "test/n04/c.png"])
    refused("class n03 is in train/n03, but belongs to val .*dataset=folder", known_folders, files, SPLIT)


@pytest.mark.parametrize("between", ["images", "x"])
def test_one_folder_below_a_known_class_is_looked_through(tmp_path: Path, between: str):
    images = {name: [f"all/{name}/{between}/{i}.JPEG" for i in "ab"] for name in ("n01", "n03", "n04")}
    files = source(tmp_path, [*itertools.chain(*images.values()), "all/n01/boxes.txt", "val/images/a.JPEG"])
    assert known_folders(files, SPLIT) == images


def test_images_in_a_classs_own_folder_come_before_those_below_it(tmp_path: Path):
    files = source(tmp_path, ["n01/a.png", "n01/masks/a.png"])
    assert known_folders(files, SPLIT) == {"n01": ["n01/a.png"]}


def test_a_class_in_two_folders_below_its_own_is_refused(tmp_path: Path):
    files = source(tmp_path, ["n01/a/a.png", "n01/b/b.png"])
    refused("class n01 is in n01/a and in n01/b; leave it in one place", known_folders, files, SPLIT)


@pytest.mark.parametrize("packed", ["", "zip", "tar"])
def test_files_without_a_suffix_are_known_by_their_first_bytes_alone(
    tmp_path: Path, packed: str, monkeypatch: pytest.MonkeyPatch
):
    image = encoded(noise(1, 64, 64))  # longer than what is read of it
    data = {"cat/1": image, "cat/2": image[:HEAD_BYTES] + b"damage", "cat/README": b"BMW and others", "cat/3": bytes(9)}
    path = as_archive(tmp_path / f"a.{packed}", data) if packed else as_folder(tmp_path / "a", data)
    monkeypatch.setattr("fewshot.data.sources.archives.MAX_BYTES", HEAD_BYTES)  # how long a file is does not matter
    assert len(image) > HEAD_BYTES and find_images(open_files(path)) == ["cat/1", "cat/2"]
