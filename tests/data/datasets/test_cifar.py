"""CIFAR-FS and FC100: a few images of each of CIFAR-100's classes, in every layout."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshot.data.datasets import cifar
from fewshot.data.sources.published import published_split

from ..made_sources import as_archive, as_folder, encoded, fingerprints, refused_by

CLASSES = sorted(name for names in published_split("cifar_fs").values() for name in names)
PIXELS = np.random.RandomState(0).randint(0, 256, (3, 100, 32, 32, 3)).astype(np.uint8)  # 2 of train, 1 of test
READERS: dict[str, Any] = {"cifar_fs": cifar.read_cifar_fs, "fc100": cifar.read_fc100}


@pytest.fixture(params=READERS)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two datasets in turn, of three images for each class."""
    monkeypatch.setattr(cifar, "IMAGES", 3)
    return request.param


def original(names: list[str] = CLASSES) -> dict[str, bytes]:
    """The files of CIFAR-100 for Python."""
    planes = PIXELS.transpose(0, 1, 4, 2, 3).reshape(3, 100, 3072)
    files = {
        "train": {b"data": planes[:2].reshape(200, 3072), b"fine_labels": [*range(100)] * 2},
        "test": {b"data": planes[2], b"fine_labels": [*range(100)]},
        "meta": {b"fine_label_names": [each.encode() for each in names]},
    }
    return {f"cifar-100-python/{key}": pickle.dumps(value, protocol=2) for key, value in files.items()}


def folders() -> dict[str, bytes]:
    return {f"{each}/{i}.png": encoded(PIXELS[i, label]) for label, each in enumerate(CLASSES) for i in range(3)}


def split_folders(name: str) -> dict[str, bytes]:
    """Class folders in folders of their splits; one of the classes has the name of a split."""
    split_of = {each: split for split, names in published_split(name).items() for each in names}
    assert "train" in split_of
    return {f"{split_of[path.split('/')[0]]}/{path}": data for path, data in folders().items()}


def numbered(name: str, *, images: int = 3) -> dict[str, bytes]:
    """MetaOptNet's files, whose classes have numbers."""
    files = {}
    for split, names in published_split(name).items():
        labels = [CLASSES.index(each) for each in names for _ in range(images)]
        data = PIXELS[[*range(images)] * len(names), labels]
        content = pickle.dumps({"data": data, "labels": labels}, protocol=2)
        files[f"{'CIFAR_FS' if name == 'cifar_fs' else 'FC100'}_{split}.pickle"] = content
    return files


def test_every_layout_gives_the_same_images(name: str, tmp_path: Path) -> None:
    roots = [
        as_archive(tmp_path / "a" / "cifar-100-python.tar.gz", original()).parent,
        as_folder(tmp_path / "b", original()),
        as_folder(tmp_path / "c", folders()),
        as_folder(tmp_path / "d", split_folders(name)),
    ]
    banks = [READERS[name](root, tmp_path / f"cache{i}", size=32) for i, root in enumerate(roots)]
    assert {split: list(bank.names) for split, bank in banks[0].items()} == published_split(name)
    assert all(fingerprints(each) == fingerprints(banks[0]) for each in banks)
    label = CLASSES.index(banks[0]["val"].names[1])
    assert np.array_equal(banks[0]["val"].examples[3:6].numpy(), PIXELS[:, label].transpose(0, 3, 1, 2))


def test_files_that_number_their_classes_are_taken_by_their_own_splits(name: str, tmp_path: Path) -> None:
    banks = READERS[name](as_folder(tmp_path / "root", numbered(name)), tmp_path / "cache", size=32)
    label = CLASSES.index(published_split(name)["test"][2])
    assert banks["test"].names[2] == f"test {label:03d}"
    assert np.array_equal(banks["test"].examples[6:9].numpy(), PIXELS[:, label].transpose(0, 3, 1, 2))
    assert banks["test"].metadata["split_source"] == "the files' own"


def test_what_is_no_cifar_is_refused(name: str, tmp_path: Path) -> None:
    read, root, cache = READERS[name], tmp_path / "root", tmp_path / "cache"
    refused_by(read, root, cache, "is there: put cifar-100-python.tar.gz there")
    refused_by(
        read, as_folder(tmp_path / "other", original([*CLASSES[1:], "zebra"])), cache, "classes of another dataset"
    )
    lacking = {key: value for key, value in original().items() if not key.endswith("meta")}
    refused_by(read, as_folder(tmp_path / "lacking", lacking), cache, "is there, but none of meta")
    twice = original() | {f"copy/{key}": value for key, value in lacking.items()}
    refused_by(read, as_folder(tmp_path / "twice", twice), cache, "are both there: leave one of them")
    floats = original()
    content = pickle.loads(floats["cifar-100-python/train"])
    floats["cifar-100-python/train"] = pickle.dumps(content | {b"fine_labels": np.array(content[b"fine_labels"]) / 1})
    refused_by(read, as_folder(tmp_path / "floats", floats), cache, "with 200 labels of float64")
    refused_by(read, as_folder(tmp_path / "few", numbered(name, images=2)), cache, "has 2 images, not 3")
