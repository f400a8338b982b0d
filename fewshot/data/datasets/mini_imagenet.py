"""miniImageNet: 100 classes of ImageNet with 600 images each (Vinyals et al. 2016; Ravi and Larochelle 2017).

The split has 64, 16 and 20 classes by WordNet id. The first of these layouts that is there is taken:

- `mini-imagenet-cache-{train,validation,test}.pkl`, as in learn2learn: dicts of "image_data" [n, 84, 84, 3] uint8 and
  "class_dict", the rows of each class;
- `miniImageNet_category_split_{train_phase_train,val,test}.pickle` (github.com/gidariss/FewShotWithoutForgetting):
  dicts of "data", "labels" and "catname2label"; both kinds may also be named `{train,val,test}.pkl` or `.pickle`;
- images with Ravi's `train.csv`, `val.csv` and `test.csv` (columns filename,label), found by their names;
- ILSVRC-2012's training images, `n01532829_5.JPEG`, with the same lists, which may be beside the root:
  n0153282900000005.jpg is the fifth image of n01532829 in the order of the numbers in the file names, as in
  github.com/yaoyao-liu/mini-imagenet-tools. All images of these classes must be there, or the order is another: a class
  with more or fewer than ImageNet has is refused;
- folders of images with the classes' WordNet ids, in folders of their split or not.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fewshot.core.errors import FewshotError
from fewshot.data.bank import SPLITS
from fewshot.data.sources import pickles, split_csv
from fewshot.data.sources.archives import Files, open_checked, open_files
from fewshot.data.sources.download import fetch
from fewshot.data.sources.faults import raise_faults
from fewshot.data.sources.images import is_image
from fewshot.data.sources.parts import SplitSource, part_of_files, part_of_labels
from fewshot.data.sources.published import (
    PARTLY,
    Found,
    PublishedDataset,
    Splits,
    check_classes,
    files_by_split,
    find_class_folders,
    published_split,
)

# As in learn2learn 0.2.0, learn2learn/vision/datasets/mini_imagenet.py, whose class would run what a pickle asks for.
URL = "https://zenodo.org/record/7978538/files"
LISTS = "https://github.com/twitter-research/meta-learning-lstm, folder data/miniImagenet"
IMAGES = 600  # of each class
# Training images of each class in ILSVRC-2012: as many, but for some classes. From google-research/meta-dataset,
# dataset_conversion/dataset_specs/ilsvrc_2012_num_leaf_images.json, with the copies of Caltech's and CUB's images that
# it leaves out (dataset_conversion/ImageNet_*_duplicates.txt). No place in Ravi's lists is higher.
ORIGINALS = 1300
FEWER = {
    **{"n01704323": 1266, "n02089867": 1025, "n02606052": 969, "n03062245": 1154, "n03075370": 1216},
    **{"n03400231": 1222, "n04418357": 1264, "n04443257": 1250, "n04612504": 1206, "n07584110": 1207},
}
OTHER_NAMES = f"the {IMAGES} images of each class are there with other names"
WORD = r"(train|val|valid|validation|test)"
PICKLE = re.compile(
    rf"(?:mini[-_]?imagenet(?:[-_]cache|_category_split)?[-_])?(?:train_phase_(?=train\.))?{WORD}\.(?:pkl|pickle)",
    re.IGNORECASE,
)
LIST = re.compile(rf"{WORD}\.csv", re.IGNORECASE)
ORIGINAL = re.compile(r"(n\d{8})_(\d{1,9})\.jpe?g", re.ASCII | re.IGNORECASE)


def _find(files: Files, splits: Splits) -> Found | str:
    """The images of the first layout that is there, with its name as metadata; or a text on what is missing."""
    pickle_of, list_of = files_by_split(files, PICKLE), files_by_split(files, LIST)
    if len(pickle_of) == len(SPLITS):
        parts, keys = {}, ""
        for split in SPLITS:
            parts[split], keys = _part_of_pickle(files, pickle_of[split], split, splits)
        return parts, {"layout": f"pickles of {keys}"}
    if len(list_of) == len(SPLITS):
        return _find_listed(files, {list_of[split]: split for split in SPLITS}, splits)
    folders = find_class_folders(files, splits)
    parts = folders[0] if folders else {}
    large = next((name for part in parts.values() for name, count in part.counts.items() if count > IMAGES), None)
    if folders and not large:
        return folders
    beside: split_csv.CsvFiles = {files.root.absolute().parent / f"{split}.csv": split for split in SPLITS}
    if all(Path(path).is_file() for path in beside):
        return _find_listed(files, beside, splits)
    if large:
        raise FewshotError(
            f"{files.root}: class {large} has more than {IMAGES} images, as ImageNet's own training images have: put "
            f"the lists train.csv, val.csv and test.csv there, from {LISTS}"
        )
    if incomplete := max(pickle_of, list_of, key=len):
        missing = " and ".join(split for split in SPLITS if split not in incomplete)
        return f"{next(iter(incomplete.values()))} is there, but none of {missing}"
    return ""


def _check(where: str, parts: Mapping[str, SplitSource], splits: Splits) -> None:
    check_classes(where, parts, splits)
    counts = [item for part in parts.values() for item in part.counts.items()]
    unequal = [f"{where}: class {name} has {count} images, not {IMAGES}" for name, count in counts if count != IMAGES]
    raise_faults("classes with another number of images", unequal, PARTLY)


def _pickle_url(split: str) -> str:
    return f"{URL}/mini-imagenet-cache-{'validation' if split == 'val' else split}.pkl"


def _download(root: Path) -> None:
    """Fetch the pickles that learn2learn reads."""
    splits = published_split("mini")
    for split in SPLITS:
        name = posixpath.basename(url := _pickle_url(split))

        def check(path: Path, split: str = split) -> None:
            _load_pickle(open_files(path.parent), path.name, split, splits, "the download went wrong")

        fetch(url, root / name, check=check)


def _part_of_pickle(files: Files, name: str, split: str, splits: Splits) -> tuple[SplitSource, str]:
    """The images of a pickle, and the keys that give their classes."""
    where, remedy = files.describe(name), f"fetch {_pickle_url(split)} in its place"

    # A pickle is read twice, for its classes and later for its images, so that only one is in memory at a time.
    def images(first: int) -> Iterator[np.ndarray]:
        yield from _load_pickle(files, name, split, splits, remedy)[0][first:]

    _, labels, names, keys = _load_pickle(files, name, split, splits, remedy)
    return part_of_labels(names, labels, images, where, lambda: files.newest_change([name])), keys


def _load_pickle(
    files: Files, name: str, split: str, splits: Splits, remedy: str
) -> tuple[np.ndarray, np.ndarray, list[str], str]:
    """Load one pickle.

    Returns:
        The images [n, H, W, 3] uint8, their labels [n], the class names, and the keys that give the classes.
    """
    where = files.describe(name)
    wanted = "wanted: image_data, uint8 [images, height, width, 3], with class_dict, or data with labels, catname2label"
    with open_checked(files, name, f"{wanted}; {remedy}") as file:
        content = pickles.with_text_keys(pickles.load(file))
        if "class_dict" in content:
            keys, images = "class_dict", content["image_data"]
            rows_of = pickles.with_text_keys(content["class_dict"])
        else:
            keys, images, label_of_row = "labels and catname2label", content["data"], np.asarray(content["labels"])
            numbers = pickles.with_text_keys(content["catname2label"])
            rows_of = {name: np.flatnonzero(label_of_row == number) for name, number in numbers.items()}
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
            raise ValueError(f"images are {images.dtype} {images.shape}")
        rows_of = {name: np.asarray(rows) for name, rows in rows_of.items() if len(rows)}
        labels = np.full(len(images), -1)
        for label, rows in enumerate(rows_of.values()):
            labels[rows] = label
        if sum(map(len, rows_of.values())) != len(images) or (labels < 0).any():
            raise ValueError("not one class for each image")
    stray = [f"{where}: {_describe_stray(name, split, splits)}" for name in rows_of if name not in splits[split]]
    raise_faults("classes of another split", stray, remedy)
    return np.asarray(images), labels, list(rows_of), keys


def _describe_stray(name: Any, split: str, splits: Splits) -> str:
    owner = next((f"of {other}" for other in SPLITS if name in splits[other]), "in none")
    return f"class {name!r:.40} is {owner} of the published splits, not of {split}"


def _find_listed(files: Files, csv_files: split_csv.CsvFiles, splits: Splits) -> Found:
    """The images that the published lists name."""
    _, rows = split_csv.read_rows(files, csv_files)
    stray = [row for row in rows.values() if row.label not in splits[row.split]]
    stray = [f"{row.where}: {_describe_stray(row.label, row.split, splits)}" for row in stray]
    raise_faults("rows of other classes", stray, f"take the published list, from {LISTS}")
    layout = "images by their names in the published lists"
    file_of = split_csv.match_images(files, [name for name in files.names if is_image(name)], rows)
    if not file_of:
        layout = "ImageNet's training images, by their places in the published lists"
        file_of = _match_originals(files, rows)
    missing = [
        f"{row.where}: image {image!r:.80} is not in {files.root}"
        for image, row in rows.items()
        if image not in file_of
    ]
    remedy = "put it there, or all of ImageNet's training images of the listed classes"
    raise_faults("rows without an image", missing, f"{remedy}; or remove the lists, if {OTHER_NAMES}")
    # Sorted by the names in the lists, so that both layouts have the same order.
    image_of = {file: image for image, file in file_of.items()}
    parts = {}
    for split in SPLITS:
        classes: dict[str, list[str]] = {}
        for image, row in rows.items():
            if row.split == split:
                classes.setdefault(row.label, []).append(file_of[image])
        parts[split] = part_of_files(files, classes, key=image_of.__getitem__)
    return parts, {"layout": layout}


def _match_originals(files: Files, rows: Mapping[str, split_csv.Row]) -> dict[str, str]:
    """ImageNet's own file for each image that the lists name by its place in its class.

    Raises:
        FewshotError: a file is there twice, or a class has not all of its images, so that later ones have other places.
    """
    numbered: dict[str, dict[int, str]] = {row.label: {} for row in rows.values()}
    twice = []
    for file in files.names:
        if (match := ORIGINAL.fullmatch(posixpath.basename(file))) and match[1] in numbered:
            first = numbered[match[1]].setdefault(int(match[2]), file)
            if first != file:
                twice.append(f"{files.root}: {first} and {file} are both there")
    raise_faults("images that are there twice", twice, "leave one of them")
    other = [
        f"{files.root}: class {label} has {len(originals):,} images, and {wanted:,} in ImageNet's training set"
        for label, originals in numbered.items()
        if originals and len(originals) != (wanted := FEWER.get(label, ORIGINALS))
    ]
    remedy = f"the lists count them: put all there and no others, or remove the lists, if {OTHER_NAMES}"
    raise_faults("classes with another number of images", other, remedy)
    file_of: dict[str, str] = {}
    for label, originals in numbered.items():
        for place, number in enumerate(sorted(originals), start=1):
            image = f"{label}{place:08d}.jpg"
            if image in rows and rows[image].label == label:
                file_of[image] = originals[number]
    return file_of


def _is_wanted(name: str) -> bool:
    return is_image(name) or PICKLE.fullmatch(posixpath.basename(name)) is not None


read_mini_imagenet = PublishedDataset(
    name="mini",
    title="miniImageNet",
    source="miniImageNet (Vinyals et al. 2016), of ILSVRC-2012",
    split_source="Ravi and Larochelle 2017, by WordNet id",
    is_wanted=_is_wanted,
    find=_find,
    check=_check,
    download=_download,
    remedy="put mini-imagenet-cache-train.pkl, -validation.pkl and -test.pkl there, or images with train.csv, val.csv "
    "and test.csv, or class folders by WordNet id",
).read
