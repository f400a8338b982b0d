"""tools/prepare.py: from every layout that people have on disk to a trained and tested learner."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewshot.data.bank import SPLITS, open_banks
from fewshot.data.datasets import mini_imagenet
from fewshot.data.sources.published import published_split

from .conftest import read_test
from .data.made_sources import as_archive, as_folder, encoded

SIDE, EACH = 16, 4  # pixels of an image, images of a class
TEST = ("protocol.common.episodes=3", "protocol.common.query=2", "protocol.common.setting=transductive")
QUICK = (
    "backbone.network.filters=4", "train.steps=2", "train.meta_batch=2", "train.validate_every=1", "way=2",
    "validation.episodes=2", "validation.query=2", "recipe=none", "logger=none", "protocol=common", *TEST,
)  # fmt: skip
Images = dict[str, dict[str, np.ndarray]]  # [EACH, SIDE, SIDE, 3] of each class of each split
Files = dict[str, bytes]


def images(dataset: str) -> Images:
    """A few images of the first three classes of each published split."""
    random = np.random.RandomState(0)
    return {
        split: {name: random.randint(0, 256, (EACH, SIDE, SIDE, 3)).astype(np.uint8) for name in names[:3]}
        for split, names in published_split(dataset).items()
    }


def files_of(given: Images, form: str, kind: str = "PNG") -> Files:
    """Image files by a path such as "{split}/{name}/{number}.png"; numbers start at 1."""
    return {
        form.format(split=split, name=name, number=number): encoded(image, kind)
        for split, classes in given.items()
        for name, stack in classes.items()
        for number, image in enumerate(stack, start=1)
    }


def class_folders(given: Images) -> Files:
    return files_of(given, "{split}/{name}/{name}_{number}.png")


def unsplit(given: Images) -> Files:
    return files_of(given, "{name}/{name}_{number}.jpg", "JPEG")


def stacked(classes: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of a split."""
    return np.concatenate(list(classes.values())), np.repeat(np.arange(len(classes)), EACH)


def caches(given: Images) -> Files:
    files = {}
    for split, classes in given.items():
        data, labels = stacked(classes)
        rows = {name: np.flatnonzero(labels == i).tolist() for i, name in enumerate(classes)}
        word = "validation" if split == "val" else split
        files[f"mini-imagenet-cache-{word}.pkl"] = pickle.dumps({"image_data": data, "class_dict": rows})
    return files


def categories(given: Images) -> Files:
    files = {}
    for split, classes in given.items():
        data, labels = stacked(classes)
        content = {"data": data, "labels": labels.tolist(), "catname2label": {n: i for i, n in enumerate(classes)}}
        word = "train_phase_train" if split == "train" else split
        files[f"miniImageNet_category_split_{word}.pickle"] = pickle.dumps(content)
    return files


def lists(given: Images) -> Files:
    """The CSV files of miniImageNet, which name the i-th image of a class."""
    return {
        f"{split}.csv": "\n".join(
            ["filename,label", *(f"{name}{i:08d}.jpg,{name}" for name in classes for i in range(1, EACH + 1))]
        ).encode()
        for split, classes in given.items()
    }


def flat_with_lists(given: Images) -> Files:
    return files_of(given, "images/{name}{number:08d}.jpg", "JPEG") | lists(given)


def whole_imagenet(given: Images) -> Files:
    return files_of(given, "train/{name}/{name}_{number}.JPEG", "JPEG") | lists(given)


def tiered_labels(given: Images) -> Files:
    return {
        f"{split}_labels.pkl": pickle.dumps({"label_specific": stacked(of)[1], "label_specific_str": list(of)}, 2)
        for split, of in given.items()
    }


def png_pickles(given: Images) -> Files:
    files = tiered_labels(given)
    for split, classes in given.items():
        pngs = [np.frombuffer(encoded(image), np.uint8)[:, None] for image in stacked(classes)[0]]
        files[f"{split}_images_png.pkl"] = pickle.dumps(pngs, protocol=2)
    return files


def npz(given: Images) -> Files:
    files = tiered_labels(given)
    for split, classes in given.items():
        file = io.BytesIO()
        np.savez_compressed(file, images=stacked(classes)[0])
        files[f"{split}_images.npz"] = file.getvalue()
    return files


def cub_archive(given: Images) -> Files:
    return files_of(given, "CUB_200_2011/images/{name}/{number}.jpg", "JPEG")


def split_csv(given: Images) -> Files:
    rows = [f"{name},{split}" for split, classes in given.items() for name in classes]
    return files_of(given, "{name}/{number}.png") | {"split.csv": "\n".join(["class,split", *rows]).encode()}


# One of each dataset and kind of place; tests/data/datasets read every layout.
LAYOUTS: list[tuple[str, Callable[[Images], Files], str]] = [
    ("mini", caches, ""), ("mini", categories, ""), ("mini", flat_with_lists, ""), ("mini", whole_imagenet, ""),
    ("tiered", png_pickles, ""), ("tiered", npz, ""), ("cub", cub_archive, "CUB_200_2011.tgz"),
    ("folder", split_csv, ""), ("folder", class_folders, "mine.zip"), ("folder", unsplit, ""),
]  # fmt: skip


def options(dataset: str) -> list[str]:
    """Small images, and what allows few classes."""
    few = "fractions=[0.34,0.33,0.33]" if dataset == "folder" else "allow_partial=true"
    return [f"dataset={dataset}", f"dataset.reader.size={SIDE}", "data_dir=data", f"dataset.reader.{few}"]


@pytest.mark.parametrize(
    ("dataset", "build", "archive"), LAYOUTS, ids=[f"{dataset}-{b.__name__}-{a}" for dataset, b, a in LAYOUTS]
)
def test_every_layout_is_prepared_and_one_is_trained_and_evaluated(
    call: Any, monkeypatch: pytest.MonkeyPatch, dataset: str, build: Callable[[Images], Files], archive: str
) -> None:
    monkeypatch.setattr(mini_imagenet, "ORIGINALS", EACH)  # of each class of ImageNet
    monkeypatch.setattr(mini_imagenet, "FEWER", {})
    files = build(images("mini" if dataset == "folder" else dataset))
    source = as_archive(Path("source") / archive, files) if archive else as_folder(Path("source"), files)
    prepared = call("prepare", *options(dataset), f"source={source}", "check=true")
    assert prepared.code == 0, prepared.err
    assert "train" in prepared.out and "checked: every byte is as it was prepared, 0 images" in prepared.out
    folder = Path(next(line for line in prepared.out.splitlines() if line.startswith(dataset)).rsplit(": ", 1)[1])
    banks = open_banks(folder)
    assert [len(banks[split].names) for split in SPLITS] == [3, 3, 3]
    assert all(bank.sizes.tolist() == [EACH] * 3 and bank.shape == (3, SIDE, SIDE) for bank in banks.values())
    with Image.open(f"{folder}.png") as sheet:
        assert min(sheet.size) > 100
    if build is caches:
        done = call("train", *options(dataset), f"dataset.reader.root={source}", "run_dir=run", *QUICK)
        assert done.code == 0, done.err
        again = call("evaluate", "run=run", "protocol.common.split=val", "out=val", *TEST)
        assert again.code == 0, again.err
        for place, split in (("run", "test"), ("val", "val")):
            record = read_test(place)
            assert (record["protocol"]["split"], record["data"]["fingerprint"]) == (split, banks[split].fingerprint)


def test_a_source_is_converted_once_unless_forced_and_a_changed_byte_is_found_by_check(call: Any) -> None:
    for number, build in enumerate((class_folders, png_pickles)):
        as_folder(Path(str(number)), build(images("tiered")))
    first = call("prepare", *options("tiered"), "source=0")
    listed = next(Path("data/banks").glob("tiered*/val.npy"))
    content = bytearray(listed.read_bytes())
    content[-1] ^= 1
    listed.write_bytes(content)
    second = call("prepare", *options("tiered"), "source=1")
    assert second.code == 0 and "1 was not read, since these banks were there" in second.err
    assert "there already" not in first.err
    banks = next(line for line in first.out.splitlines() if line.startswith("tiered, from "))
    assert banks == second.out.splitlines()[0]
    checked = call("prepare", *options("tiered"), "check=true")
    assert checked.code == 1 and "val.npy: its content has changed" in checked.err
    assert len([line for line in checked.err.splitlines() if line.startswith("error")]) == 1
    third = call("prepare", *options("tiered"), "source=1", "force=true", "check=true")
    assert third.code == 0 and banks not in third.out.splitlines()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dataset=glyphs", "source=."), "glyphs are drawn, not read; name the source's dataset"),
        (("dataset=folder",), "dataset.reader.root: has no value"),
        (("dataset=mini", "source=nowhere"), "nowhere"),
        (("dataset=mini",), "dataset.reader.download=true"),
        (("dataset=min",), "did you mean mini?"),
        (("dataset=cub", "dataset.reader.resize=stretch"), "choose one of squash, crop"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(call: Any, words: tuple[str, ...], said: str) -> None:
    done = call("prepare", "data_dir=nothing", *words)
    assert done.code == 1 and len(done.err.splitlines()) == 1
    assert said in done.err, done.err
    assert not Path("nothing").exists()


def test_a_run_is_tested_on_the_classes_of_another_dataset(call: Any) -> None:
    as_folder(Path("birds"), class_folders(images("cub")))
    done = call("train", "run_dir=run", *QUICK, "dataset.reader.size=28")
    assert done.code == 0, done.err
    for word in ("dataset.mean=[0.5]", "dataset.std=[0.5]", "dataset.shape=[1,9,9]"):  # only the run can say this
        done = call("evaluate", "run=run", *options("cub"), "dataset.reader.root=birds", word)
        assert (done.code, len(done.err.splitlines())) == (1, 1)
        assert "is as in the run's training; leave it out" in done.err
    done = call("evaluate", "run=run", *options("cub"), "dataset.reader.root=birds", "out=birds_test", *TEST)
    assert done.code == 0, done.err
    record = read_test("birds_test")
    assert (record["dataset"], record["protocol"]["dataset"]) == ("glyphs", "cub (part)")
    assert record["data"]["view"]["from"] == [3, SIDE, SIDE] and record["data"]["view"]["to"] == [1, 28, 28]
    assert record["protocol"]["view"] == "seen as 1x28x28"
    began = json.loads(Path("run/data.json").read_text())
    assert record["data"]["train_fingerprint"] == began["train"] != record["data"]["fingerprint"]
    assert "trained on glyphs" in call("table", "runs=birds_test").out


def test_a_run_is_tested_on_sources_of_other_classes_than_its_own(call: Any) -> None:
    own = ("dataset=folder", "data_dir=data", f"dataset.reader.size={SIDE}", "dataset.name=mine")
    for dataset in ("cub", "mini", "tiered"):
        as_folder(Path(dataset), class_folders(images(dataset)))
    given = images("cub")
    exchanged = {"train": given["test"], "val": given["val"], "test": given["train"]}
    as_folder(Path("exchanged"), class_folders(exchanged))
    assert call("train", "run_dir=run", *QUICK, *own, "dataset.reader.root=cub").code == 0
    for root in ("mini", "tiered"):  # two tests, though the sources have one name
        done = call("evaluate", "run=run", *own, f"dataset.reader.root={root}", *TEST)
        assert done.code == 0, done.err
    assert len(list(Path("run/tests").iterdir())) == 3
    for root, message in (
        ("cub", "the data that the run began with"),
        ("exchanged", "3 of its 3 classes of test are classes that the run was trained on"),
    ):
        done = call("evaluate", "run=run", *own, f"dataset.reader.root={root}", *TEST)
        assert done.code == 1 and len([line for line in done.err.splitlines() if "error" in line]) == 1
        assert message in done.err


def test_photos_are_upright_but_for_runs_from_before_that_could_be_said(call: Any) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # turned by a quarter
    for split, classes in images("mini").items():
        for name, stack in classes.items():
            for number, image in enumerate(stack):
                path = Path(f"photos/{split}/{name}/{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path, exif=exif)
    own = ("dataset=folder", "data_dir=data", f"dataset.reader.size={SIDE}", "dataset.reader.root=photos")
    assert call("train", "run_dir=upright", *QUICK, *own).code == 0
    assert call("train", "run_dir=before", *QUICK, *own, "dataset.reader.upright=false").code == 0
    upright, before = (json.loads(Path(f"{run}/data.json").read_text()) for run in ("upright", "before"))
    assert upright["test"] != before["test"]
    config = Path("before/config.yaml")
    older = config.read_text().replace("    upright: false\n", "")
    assert older != config.read_text()
    config.write_text(older)
    assert call("evaluate", "run=before", "protocol.common.query=1", *TEST[::2]).code == 0
    again = call("train", "run_dir=before", *QUICK, *own)  # now upright, which is another test split
    assert again.code == 1 and "before: this run is on other data" in again.err


def test_a_run_on_cropped_normalised_and_changed_images_can_be_told_from_its_record(call: Any) -> None:
    as_folder(Path("source"), class_folders(images("mini")))
    done = call(
        "train", "run_dir=run", *QUICK, *options("mini"), "dataset.reader.root=source", "dataset.reader.size=20",
        "dataset.reader.resize=crop", "dataset.crop=16", "dataset.augment.episodes=natural",
        "dataset.mean=[0.5,0.5,0.5]", "dataset.std=[0.2,0.2,0.2]",
    )  # fmt: skip
    assert done.code == 0, done.err
    view = read_test("run")["data"]["view"]
    assert (view["crop"], view["mean"], view["to"]) == (16, [0.5] * 3, [3, 16, 16])
    assert view["augment"] == "natural"  # in training


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dataset.augment=natural",), "dataset.augment=natural: has parts; set dataset.augment.episodes"),
        (("dataset.rotations=true",), "dataset.rotations=True: choose one of none, per_class, as_classes"),
        (("dataset.mean=[120.0]",), "in units of 0..1; divide by 255"),
        (("dataset.mean=0.5",), "must be a list of numbers"),
        (("dataset.crop=40",), "crop=40: the images are 28x28"),
        (("dataset.mean=[0.5,0.5,0.5]",), "mean has 3 values, the images 1 channels"),
        (("dataset.augment.episodes=wild",), "choose one of none, gentle, natural"),
        (("dataset.std=[0.0]",), "must be above 0"),
        (("dataset.shape=[1,28,28]",), "is for tests on another dataset"),
        (("features=conv4", "backbone=linear", "dataset.augment.episodes=natural"), "not of features; leave it out"),
    ],
)
def test_a_view_that_does_not_fit_the_images_is_one_line(call: Any, words: tuple[str, ...], said: str) -> None:
    quick = [word for word in QUICK if "filters" not in word or "backbone=linear" not in words]
    done = call("train", "run_dir=run", *quick, *words)
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert said in done.err
    assert not Path("run").exists()
