"""tools/prepare.py: from every layout that people have on disk to a trained and tested learner."""

from __future__ import annotations

import csv
import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewshot.data.bank import open_banks
from fewshot.data.sources.layouts import SPLITS, published_split

SIDE, EACH = 16, 4  # pixels of an image, images of a class
QUICK = (
    "backbone.network.filters=4", "train.steps=2", "train.meta_batch=2", "train.validate_every=1", "way=2", "query=2",
    "test.episodes=3", "test.validation_episodes=2", "recipe=none",
)  # fmt: skip
Images = dict[str, dict[str, np.ndarray]]  # of each class of each split, [EACH, SIDE, SIDE, 3]


def images(dataset: str) -> Images:
    """A few images of the first three classes of each published split."""
    random = np.random.RandomState(0)
    return {
        split: {name: random.randint(0, 256, (EACH, SIDE, SIDE, 3)).astype(np.uint8) for name in names[:3]}
        for split, names in published_split(dataset).items()
    }


def png(image: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def class_folders(root: Path, found: Images, split_folders: bool = True, suffix: str = ".png") -> None:
    for split, classes in found.items():
        for name, stack in classes.items():
            for number, image in enumerate(stack):
                folder = root / split / name if split_folders else root / name
                put(folder / f"{name}_{number + 1}{suffix}", png(image, "JPEG" if "jp" in suffix.lower() else "PNG"))


def stacked(classes: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(list(classes.values())), np.repeat(np.arange(len(classes)), EACH)


def caches(root: Path, found: Images) -> None:
    for split, classes in found.items():
        data, labels = stacked(classes)
        rows = {name: np.flatnonzero(labels == i).tolist() for i, name in enumerate(classes)}
        word = "validation" if split == "val" else split
        put(root / f"mini-imagenet-cache-{word}.pkl", pickle.dumps({"image_data": data, "class_dict": rows}))


def categories(root: Path, found: Images) -> None:
    for split, classes in found.items():
        data, labels = stacked(classes)
        content = {"data": data, "labels": labels.tolist(), "catname2label": {n: i for i, n in enumerate(classes)}}
        word = "train_phase_train" if split == "train" else split
        put(root / f"miniImageNet_category_split_{word}.pickle", pickle.dumps(content))


def tables(root: Path, found: Images) -> None:
    """The CSV files of miniImageNet, which name the i-th image of a class."""
    for split, classes in found.items():
        rows = [(f"{name}{number + 1:08d}.jpg", name) for name in classes for number in range(EACH)]
        with (root / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("filename", "label"), *rows])


def flat_with_tables(root: Path, found: Images) -> None:
    for classes in found.values():
        for name, stack in classes.items():
            for number, image in enumerate(stack):
                put(root / "images" / f"{name}{number + 1:08d}.jpg", png(image, "JPEG"))
    tables(root, found)


def whole_imagenet(root: Path, found: Images) -> None:
    class_folders(root / "train", found, split_folders=False, suffix=".JPEG")
    tables(root, found)


def labels(root: Path, split: str, classes: dict[str, np.ndarray]) -> None:
    content = {"label_specific": stacked(classes)[1], "label_specific_str": list(classes)}
    put(root / f"{split}_labels.pkl", pickle.dumps(content, protocol=2))


def png_pickles(root: Path, found: Images) -> None:
    for split, classes in found.items():
        files = [np.frombuffer(png(image), np.uint8)[:, None] for image in stacked(classes)[0]]
        put(root / f"{split}_images_png.pkl", pickle.dumps(files, protocol=2))
        labels(root, split, classes)


def npz(root: Path, found: Images) -> None:
    for split, classes in found.items():
        labels(root, split, classes)
        np.savez_compressed(root / f"{split}_images.npz", images=stacked(classes)[0])


def cub_archive(root: Path, found: Images) -> None:
    class_folders(root / "unpacked/CUB_200_2011/images", found, split_folders=False, suffix=".jpg")
    with tarfile.open(root / "CUB_200_2011.tgz", "w:gz") as archive:
        archive.add(root / "unpacked/CUB_200_2011", "CUB_200_2011")
    shutil.rmtree(root / "unpacked")


def split_table(root: Path, found: Images) -> None:
    class_folders(root, found, split_folders=False)
    rows = [(name, split) for split, classes in found.items() for name in classes]
    with (root / "split.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("class", "split"), *rows])


def zipped(root: Path, found: Images) -> None:
    class_folders(root / "mine", found)
    shutil.make_archive(str(root / "mine"), "zip", root / "mine")
    shutil.rmtree(root / "mine")


def unsplit(root: Path, found: Images) -> None:
    class_folders(root, found, split_folders=False, suffix=".jpg")


LAYOUTS: list[tuple[str, Callable[[Path, Images], None]]] = [
    ("mini", caches), ("mini", categories), ("mini", class_folders), ("mini", unsplit), ("mini", flat_with_tables),
    ("mini", whole_imagenet),
    ("tiered", png_pickles), ("tiered", npz), ("tiered", class_folders), ("tiered", unsplit),
    ("cub", cub_archive), ("cub", unsplit),
    ("folder", class_folders), ("folder", split_table), ("folder", unsplit), ("folder", zipped),
]  # fmt: skip


def options(dataset: str) -> list[str]:
    """Small images; of folders the share of the classes that the few here allow."""
    own = ["dataset.reader.fractions=[0.34,0.33,0.33]"] if dataset == "folder" else ["dataset.reader.complete=false"]
    return [f"dataset={dataset}", f"dataset.reader.size={SIDE}", "data_dir=data", *own]


@pytest.mark.parametrize(("dataset", "build"), LAYOUTS, ids=[f"{d}-{b.__name__}" for d, b in LAYOUTS])
def test_every_layout_goes_through_prepare_train_and_evaluate(
    call: Any, tmp_path: Path, dataset: str, build: Callable[[Path, Images], None]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    build(source, images("mini" if dataset == "folder" else dataset))
    if build is zipped:
        source = source / "mine.zip"
    prepared = call("prepare", *options(dataset), f"source={source}", "check=true")
    assert prepared.code == 0, prepared.err
    assert "train" in prepared.out and "checked: every byte is as it was prepared, 0 images" in prepared.out
    folder = Path(next(line for line in prepared.out.splitlines() if line.startswith(dataset)).rsplit(": ", 1)[1])
    banks = open_banks(folder)
    assert [len(banks[split].names) for split in SPLITS] == [3, 3, 3]
    assert all(bank.sizes.tolist() == [EACH] * 3 and bank.shape == (3, SIDE, SIDE) for bank in banks.values())
    with Image.open(f"{folder}.png") as sheet:
        assert min(sheet.size) > 100
    done = call("train", *options(dataset), f"dataset.reader.root={source}", "run_dir=run", *QUICK)
    assert done.code == 0, done.err
    again = call("evaluate", "run=run", "split=val")
    assert again.code == 0, again.err
    (of_val,) = Path("run/tests").glob("*/record.json")
    for path, split in ((Path("run/record.json"), "test"), (of_val, "val")):
        record = json.loads(path.read_text())
        assert (record["protocol"]["split"], record["data"]["fingerprint"]) == (split, banks[split].fingerprint)


def test_pixels_without_loss_give_the_same_bank_in_every_layout(call: Any, tmp_path: Path) -> None:
    found = {}
    for build in (caches, categories, class_folders):
        source = tmp_path / build.__name__
        source.mkdir()
        build(source, images("mini"))
        done = call("prepare", *options("mini"), f"data_dir={build.__name__}-data", f"source={source}")
        assert done.code == 0, done.err
        found[build.__name__] = [line.split()[-1] for line in done.out.splitlines() if line.startswith(SPLITS)]
    assert found["caches"] == found["categories"] == found["class_folders"]
    assert len(set(found["caches"])) == 3


def test_a_source_that_was_prepared_is_not_converted_again_unless_forced(call: Any, tmp_path: Path) -> None:
    for number, build in enumerate((class_folders, png_pickles)):
        (tmp_path / str(number)).mkdir()
        build(tmp_path / str(number), images("tiered"))
    first = call("prepare", *options("tiered"), "source=0")
    second = call("prepare", *options("tiered"), "source=1")
    assert second.code == 0 and "force=true converts 1 in its place" in second.out
    assert "there already" not in first.out
    assert first.out.splitlines()[0] == second.out.splitlines()[1]
    third = call("prepare", *options("tiered"), "source=1", "force=true")
    assert third.code == 0 and third.out.splitlines()[0] != first.out.splitlines()[0]


def test_a_changed_byte_is_found_by_check(call: Any, tmp_path: Path) -> None:
    class_folders(tmp_path / "source", images("mini"))
    assert call("prepare", *options("mini"), "source=source").code == 0
    listed = next(Path("data/banks").glob("mini*/val.npy"))
    content = bytearray(listed.read_bytes())
    content[-1] ^= 1
    listed.write_bytes(content)
    assert call("prepare", *options("mini"), "source=source").code == 0
    done = call("prepare", *options("mini"), "source=source", "check=true")
    assert done.code == 1 and "val.npy: its content is not what it was" in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("error")]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dataset=glyphs", "source=."), "glyphs are made, not read; say of what it is"),
        (("dataset=folder",), "dataset.reader.root: has no value"),
        (("dataset=mini", "source=nowhere"), "nowhere"),
        (("dataset=tiered", "source=nowhere"), "nowhere"),
        (("dataset=cub", "source=nowhere"), "nowhere"),
        (("dataset=folder", "source=nowhere"), "nowhere"),
        (("dataset=mini",), "dataset.reader.download=true"),
        (("dataset=tiered",), "dataset.reader.download=true"),
        (("dataset=cub",), "dataset.reader.download=true"),
        (("dataset=min",), "did you mean mini?"),
        (("dataset=cub", "dataset.reader.size=0"), "size=0"),
        (("dataset=cub", "dataset.reader.resize=stretch"), "choose squash or crop"),
        (("dataset=mini", "dataset.reader.resample=cubic"), "choose lanczos or bilinear"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(call: Any, words: tuple[str, ...], said: str) -> None:
    done = call("prepare", "data_dir=nothing", *words)
    assert done.code == 1 and len(done.err.splitlines()) == 1
    assert said in done.err, done.err
    assert not Path("nothing").exists()


def test_a_run_is_tested_on_the_classes_of_another_dataset(call: Any, tmp_path: Path) -> None:
    class_folders(tmp_path / "birds", images("cub"))
    done = call("train", "run_dir=run", *QUICK, "dataset.reader.size=28")
    assert done.code == 0, done.err
    done = call("evaluate", "run=run", *options("cub"), "dataset.reader.root=birds")
    assert done.code == 0, done.err
    record = json.loads((next(Path("run/tests").iterdir()) / "record.json").read_text())
    assert (record["dataset"], record["protocol"]["dataset"]) == ("glyphs", "cub (part)")
    assert record["data"]["view"]["from"] == [3, SIDE, SIDE] and record["data"]["view"]["to"] == [1, 28, 28]
    assert record["protocol"]["view"] == "seen as 1x28x28"
    began = json.loads(Path("run/data.json").read_text())
    assert record["data"]["train_fingerprint"] == began["train"] != record["data"]["fingerprint"]
    assert "trained on glyphs" in call("table", "runs=run").out


def test_two_sources_of_one_name_are_two_tests(call: Any, tmp_path: Path) -> None:
    own = ("dataset=folder", "data_dir=data", f"dataset.reader.size={SIDE}", "dataset.name=mine")
    for dataset in ("cub", "mini", "tiered"):
        class_folders(tmp_path / dataset, images(dataset))
    assert call("train", "run_dir=run", *QUICK, *own, "dataset.reader.root=cub").code == 0
    for root in ("mini", "tiered"):
        done = call("evaluate", "run=run", *own, f"dataset.reader.root={root}")
        assert done.code == 0, done.err
    assert len(list(Path("run/tests").iterdir())) == 2
    done = call("evaluate", "run=run", *own, "dataset.reader.root=cub")
    assert done.code == 1 and "the data that the run began with" in done.err


def test_classes_that_a_run_was_trained_on_are_no_test(call: Any, tmp_path: Path) -> None:
    found = images("mini")
    class_folders(tmp_path / "first", found)
    class_folders(tmp_path / "second", {"train": found["test"], "val": found["val"], "test": found["train"]})
    own = ("dataset=folder", "data_dir=data", f"dataset.reader.size={SIDE}")
    assert call("train", "run_dir=run", *QUICK, *own, "dataset.reader.root=first").code == 0
    done = call("evaluate", "run=run", *own, "dataset.reader.root=second")
    assert done.code == 1 and len([line for line in done.err.splitlines() if "error" in line]) == 1
    assert "3 of its 3 classes of test are classes that the run was trained on" in done.err


@pytest.mark.parametrize("word", ["dataset.mean=[0.5]", "dataset.std=[0.5]", "dataset.shape=[1,9,9]"])
def test_what_only_the_run_can_say_is_refused(call: Any, tmp_path: Path, word: str) -> None:
    class_folders(tmp_path / "birds", images("cub"))
    assert call("train", "run_dir=run", *QUICK).code == 0
    done = call("evaluate", "run=run", *options("cub"), "dataset.reader.root=birds", word)
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "is as in the run's training; leave it out" in done.err


def test_a_run_on_cropped_normalised_and_changed_images_can_be_told_from_its_record(call: Any, tmp_path: Path) -> None:
    class_folders(tmp_path / "source", images("mini"))
    done = call(
        "train", "run_dir=run", *QUICK, *options("mini"), "dataset.reader.root=source", "dataset.reader.size=20",
        "dataset.reader.resize=crop", "dataset.crop=16", "dataset.augment.episodes=natural",
        "dataset.mean=[0.5,0.5,0.5]", "dataset.std=[0.2,0.2,0.2]",
    )  # fmt: skip
    assert done.code == 0, done.err
    view = json.loads(Path("run/record.json").read_text())["data"]["view"]
    assert (view["crop"], view["mean"], view["to"]) == (16, [0.5] * 3, [3, 16, 16])
    assert view["augment"] == "natural"  # in training


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dataset.augment=natural",), "dataset.augment=natural: has parts; set dataset.augment.episodes"),
        (("dataset.rotations=true",), "dataset.rotations=True: has parts"),
        (("dataset.mean=[120.0]",), "in units of 0..1; divide by 255"),
        (("dataset.mean=0.5",), "must be a list of numbers"),
        (("dataset.crop=40",), "crop=40: the images are 28x28"),
        (("dataset.mean=[0.5,0.5,0.5]",), "mean has 3 values, the images 1 channels"),
        (("dataset.augment.episodes=wild",), "choose one of none, natural"),
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
