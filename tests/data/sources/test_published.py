"""Published datasets: what their readers share, each on a few classes in class folders."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshot.core.errors import FewshotError
from fewshot.data.bank import SPLITS
from fewshot.data.datasets import cifar, cub, mini_imagenet, tiered_imagenet
from fewshot.data.sources.archives import open_files
from fewshot.data.sources.faults import FaultsError
from fewshot.data.sources.parts import SplitSource, part_of_labels
from fewshot.data.sources.published import check_classes, find_class_folders, published_split

from ..made_sources import Server, as_folder, as_tar, as_zip, encoded, fingerprints, noise, refused_by

MODULES: dict[str, Any] = {
    "mini": mini_imagenet, "tiered": tiered_imagenet, "cub": cub, "cifar_fs": cifar, "fc100": cifar,
}  # fmt: skip
READERS = {
    "mini": mini_imagenet.read_mini_imagenet, "tiered": tiered_imagenet.read_tiered_imagenet, "cub": cub.read_cub,
    "cifar_fs": cifar.read_cifar_fs, "fc100": cifar.read_fc100,
}  # fmt: skip
CLASSES = {dataset: {split: names[:2] for split, names in published_split(dataset).items()} for dataset in MODULES}


@pytest.fixture(params=MODULES)
def dataset(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def read(dataset: str) -> Callable[..., Any]:
    return partial(READERS[dataset], size=5, allow_partial=True)


# Krizhevsky, 2009, "Learning multiple layers of features from tiny images".
SUPERCLASSES = (
    "beaver dolphin otter seal whale",
    "aquarium_fish flatfish ray shark trout",
    "orchid poppy rose sunflower tulip",
    "bottle bowl can cup plate",
    "apple mushroom orange pear sweet_pepper",
    "clock keyboard lamp telephone television",
    "bed chair couch table wardrobe",
    "bee beetle butterfly caterpillar cockroach",
    "bear leopard lion tiger wolf",
    "bridge castle house road skyscraper",
    "cloud forest mountain plain sea",
    "camel cattle chimpanzee elephant kangaroo",
    "fox porcupine possum raccoon skunk",
    "crab lobster snail spider worm",
    "baby boy girl man woman",
    "crocodile dinosaur lizard snake turtle",
    "hamster mouse rabbit shrew squirrel",
    "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "bicycle bus motorcycle pickup_truck train",
    "lawn_mower rocket streetcar tank tractor",
)


def files_of(dataset: str, below: str = "") -> dict[str, bytes]:
    """Two images of each class."""
    names = [(split, name) for split in SPLITS for name in CLASSES[dataset][split]]
    return {
        below.format(split=split) + f"{name}/{i}.png": encoded(noise([number, i], 5, 5))
        for number, (split, name) in enumerate(names)
        for i in range(2)
    }


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mini", [64, 16, 20]),
        ("tiered", [351, 97, 160]),
        ("cub", [100, 50, 50]),
        ("cifar_fs", [64, 16, 20]),
        ("fc100", [60, 20, 20]),
    ],
)
def test_the_published_splits_have_their_sizes_and_share_no_class(name: str, sizes: list[int]):
    splits = published_split(name)
    assert [len(splits[split]) for split in SPLITS] == sizes
    assert len({each for names in splits.values() for each in names}) == sum(sizes)
    assert all(names == sorted(names) for names in splits.values())


@pytest.mark.parametrize(
    ("dataset", "split", "name"),
    [("mini", "train", "n01532829"), ("mini", "val", "n01855672"), ("mini", "test", "n01930112"),
     ("cub", "train", "001.Black_footed_Albatross"), ("cifar_fs", "test", "whale"), ("fc100", "test", "whale"),
     ("cifar_fs", "val", "crab"), ("fc100", "val", "crab")],
)  # fmt: skip
def test_well_known_classes_are_where_they_belong(dataset: str, split: str, name: str):
    assert [each for each, names in published_split(dataset).items() if name in names] == [split]


def test_fc100_keeps_each_superclass_of_cifar_100_in_one_split():
    split_of = {name: split for split, names in published_split("fc100").items() for name in names}
    splits = [{split_of[name] for name in names.split()} for names in SUPERCLASSES]
    assert all(len(each) == 1 for each in splits)
    assert [sum(each == {split} for each in splits) for split in SPLITS] == [12, 4, 4]


def test_cifar_fs_is_the_list_that_was_compared_with_the_authors():
    listed = json.dumps(published_split("cifar_fs"), sort_keys=True).encode()
    assert hashlib.sha256(listed).hexdigest()[:16] == "acc916c754c1f3dd"


@pytest.mark.parametrize(
    ("dataset", "make", "below"),
    [
        *(("cub", make, below) for make in (as_folder, as_zip, as_tar) for below in ("", "{split}/", "a/b/{split}/")),
        ("mini", as_zip, "{split}/"),
        ("tiered", as_folder, "a/b/{split}/"),
        ("cifar_fs", as_tar, ""),
        ("fc100", as_folder, "{split}/"),
    ],
)
def test_class_folders_give_the_same_banks_in_every_place(
    dataset: str, read: Any, root: Path, cache: Path, make: Any, below: str
):
    banks = read(make(root, files_of(dataset, below)), cache)
    for number, (split, bank) in enumerate(banks.items()):
        assert list(bank.names) == CLASSES[dataset][split] and bank.sizes.tolist() == [2, 2]
        expected = np.stack([noise([2 * number + label, i], 5, 5) for label in range(2) for i in range(2)])
        assert np.array_equal(bank.examples.numpy(), expected.transpose(0, 3, 1, 2))
    metadata = banks["val"].metadata
    assert (metadata["dataset"], metadata["layout"], metadata["allow_partial"]) == (dataset, "class folders", True)
    assert metadata["shared_images"] == 0 and str(root.parent) not in str(metadata)


def test_an_archive_in_the_root_is_read(dataset: str, read: Any, root: Path, cache: Path):
    root.mkdir()
    as_tar(root / "CUB_200_2011", files_of(dataset))
    assert read(root, cache)["train"].names == tuple(CLASSES[dataset]["train"])


def test_the_cache_is_opened_without_the_source_and_overwrite_reads_anew(
    dataset: str, read: Any, root: Path, cache: Path
):
    as_folder(root, files_of(dataset))
    before = read(root, cache)
    name = CLASSES[dataset]["val"][1]
    as_folder(root, {f"{name}/0.png": encoded(noise(77, 5, 5))})
    assert fingerprints(read(root, cache)) == fingerprints(before)
    after = read(root, cache, overwrite=True)
    assert (after["val"].examples != before["val"].examples).flatten(1).any(1).nonzero().tolist() == [[2]]
    shutil.rmtree(root)
    assert fingerprints(read(root, cache)) == fingerprints(after)
    with pytest.raises(FewshotError, match=f"{root}: no .* is there"):
        read(root, cache, overwrite=True)


def test_each_choice_of_images_has_a_folder_of_its_own(dataset: str, read: Any, root: Path, cache: Path):
    as_folder(root, files_of(dataset))
    read(root, cache)
    bank = read(root, cache, size=4, resize="crop", resample="bilinear")["train"]
    assert bank.shape == (3, 4, 4) and bank.metadata["resize"] == "crop"
    names = {path.name for path in cache.iterdir()}
    assert names == {f"{dataset}-5-squash-lanczos-part", f"{dataset}-4-crop-bilinear-part"}


@pytest.mark.parametrize("dataset", ["cub"])
def test_a_choice_out_of_range_is_refused(read: Any, root: Path, cache: Path):
    for choice, value in (("size", 0), ("resize", "pad"), ("resample", "box")):
        refused_by(read, root, cache, f"dataset.reader.{choice}={value}: choose", **{choice: value})


def test_incomplete_data_are_refused_unless_they_are_allowed(dataset: str, read: Any, root: Path, cache: Path):
    as_folder(root, files_of(dataset))
    match = "of [0-9]+ classes of train are missing, such as .*; .*dataset.reader.allow_partial=true"
    text = refused_by(read, root, cache, match, allow_partial=False)
    listed = (cache / f"{dataset}-faults.txt").read_text().splitlines()
    assert str(len(listed)) in text and all("is missing" in line for line in listed)


def test_a_split_without_classes_is_refused(dataset: str, read: Any, root: Path, cache: Path):
    as_folder(root, {name: data for name, data in files_of(dataset, "{split}/").items() if not name.startswith("val")})
    refused_by(read, root, cache, f"^{root}: no classes of val; add some")


@pytest.mark.parametrize(
    ("there", "download"), [({}, False), ({"cats/1.png": encoded(noise(1, 5, 5))}, True), (None, False)]
)
def test_the_ways_to_get_missing_data_are_those_that_were_not_tried(
    dataset: str, read: Any, root: Path, cache: Path, there: dict[str, bytes] | None, download: bool, monkeypatch: Any
):
    monkeypatch.setattr(MODULES[dataset], "fetch", lambda *args, **choices: None)
    if there is not None:
        as_folder(root, there).mkdir(exist_ok=True)
    text = refused_by(read, root, cache, f"^{root}: no .* is there: put .* source=<path>", download=download)
    assert ("download=true" in text) is not download and ("dataset=folder" in text) is (there is not None)


def test_an_archive_of_something_else_is_named_and_nothing_is_fetched(dataset: str, read: Any, root: Path, cache: Path):
    archive = as_zip(root, {"cats/1.png": b""})
    refused_by(read, archive, cache, f"^{archive}: no .* is there: put", download=True)


def test_damaged_images_are_listed(dataset: str, read: Any, root: Path, cache: Path):
    as_folder(root, files_of(dataset))
    name = CLASSES[dataset]["val"][0]
    as_folder(root, {f"{name}/0.png": b"", f"{name}/1.png": b"<html>"})
    refused_by(read, root, cache, f"^2 damaged images: {root}/{name}/0.png: it is empty; .*1.png: it is a web page")
    assert len((cache / f"{dataset}-faults.txt").read_text().splitlines()) == 2
    as_folder(root, files_of(dataset))
    read(root, cache)
    assert len(list(cache.iterdir())) == 1


def test_images_that_two_splits_share_are_counted(dataset: str, read: Any, root: Path, cache: Path):
    files = files_of(dataset)
    first, *_, last = files
    as_folder(root, files | {last: files[first]})
    assert read(root, cache)["test"].metadata["shared_images"] == 1


@pytest.fixture
def server(dataset: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server for the dataset's download, which has no files."""
    url = server.url + ("/CUB_200_2011.tgz" if dataset == "cub" else "")
    monkeypatch.setattr(MODULES[dataset], "URL", url)
    return server


def test_nothing_is_fetched_if_a_layout_is_there(dataset: str, read: Any, server: Server, root: Path, cache: Path):
    read(as_folder(root, files_of(dataset)), cache, download=True)
    assert not server.asked


def test_a_download_that_fails_says_so_in_one_line(read: Any, server: Server, root: Path, cache: Path):
    refused_by(
        read, root, cache, f"fetching .* failed .*404.* download {server.url}.* by hand to {root}", download=True
    )


def parts(counts: Mapping[str, Mapping[str, int]]) -> dict[str, SplitSource]:
    """Sources with this number of images of each class."""
    return {
        split: part_of_labels(list(of), np.repeat(np.arange(len(of)), list(of.values())), lambda i: iter(()), "x")
        for split, of in counts.items()
    }


def test_all_missing_classes_are_known():
    split = {"train": ["n01", "n02"], "val": ["n03"]}
    check_classes("here", parts({"train": {"n02": 2, "n01": 1}, "val": {"n03": 2}}), split)
    with pytest.raises(
        FaultsError, match="^here: 2 of 2 classes of train are missing, such as n01; to convert"
    ) as caught:
        check_classes("here", parts({"train": {"n03": 2}, "val": {}}), split)
    assert len(caught.value.faults) == 2


def test_what_class_folders_hold_besides_images_is_counted(root: Path):
    files = as_folder(root, {"n01/a.png": b"", "n01/x/boxes.txt": b"", "n01/b.txt": b"", "read.me": b""})
    found = find_class_folders(open_files(files), {"train": ["n01"]})
    assert found is not None and found[1]["passed_over"] == {".txt": 2}
    assert found[1]["notes"] == ["passed over 2 files that are no images: 2 .txt"]
