"""tieredImageNet: 608 classes of ImageNet, related ones in one split (Ren et al. 2018).

The split has 351, 97 and 160 classes. A class is named by its WordNet id, or by the name or number in the labels if
they have no ids. The layouts, of which two come from the authors' program (github.com/renmengye/few-shot-ssl-public,
fewshot/data/tiered_imagenet.py and compress_tiered_imagenet.py):

- `{train,val,test}_images_png.pkl`, lists of PNG files of 84x84 pixels, with `{train,val,test}_labels.pkl`, dicts of
  "label_specific" and "label_specific_str"; the names may begin with tiered-imagenet-. A download (12 GB) has these.
- `{train,val,test}_images.npz` with the same labels. The authors' program unpacks the PNG files to it in OpenCV's order
  of channels, blue first, which is reversed here. The labels may also be those of MetaOptNet's copy, dicts of "labels"
  without names.
- folders of images with the classes' WordNet ids, in folders of their split or not, such as ILSVRC-2012's training
  images, all of which tieredImageNet takes.
"""

from __future__ import annotations

import math
import os
import posixpath
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from fewshot.core.errors import FewshotError
from fewshot.data.bank import SPLITS
from fewshot.data.sources import pickles
from fewshot.data.sources.archives import Files, open_checked, open_files
from fewshot.data.sources.download import fetch
from fewshot.data.sources.faults import raise_faults
from fewshot.data.sources.images import is_image, is_web_page
from fewshot.data.sources.parts import SplitSource, part_of_labels
from fewshot.data.sources.published import (
    PARTLY,
    Found,
    PublishedDataset,
    Splits,
    check_classes,
    files_by_split,
    find_class_folders,
)

# As in learn2learn 0.2.0, vision/datasets/tiered_imagenet.py, whose class would run what a pickle asks for.
URL = "https://zenodo.org/record/7978538/files"
TOTALS = {"train": 448_695, "val": 124_261, "test": 206_209}  # images of each split
PNGS, ARRAYS, LABELS = "images_png.pkl", "images.npz", "labels.pkl"
PATTERNS = {kind: re.compile(rf"(?:tiered-imagenet-)?([a-z]+)_{re.escape(kind)}") for kind in (PNGS, ARRAYS, LABELS)}
LAYOUTS = {PNGS: "the authors' pickles of PNG files", ARRAYS: "the authors' images unpacked to .npz, blue first"}
WORDNET_ID = re.compile(r"n\d{8}", re.ASCII)
AGAIN = (
    f"fetch the authors' six files again, by hand: {URL}/tiered-imagenet-train_images_png.pkl and -train_labels.pkl, "
    "and those of val and test"
)


def _is_wanted(name: str) -> bool:
    return is_image(name) or any(pattern.fullmatch(posixpath.basename(name)) for pattern in PATTERNS.values())


def _find(files: Files, splits: Splits) -> Found | str:
    file_of = {kind: files_by_split(files, pattern) for kind, pattern in PATTERNS.items()}
    kind = max(LAYOUTS, key=lambda kind: len(file_of[kind]))
    missing = [f"{split}_{each}" for split in SPLITS for each in (kind, LABELS) if split not in file_of[each]]
    if missing:
        return find_class_folders(files, splits) or (f"{missing[0]} is missing" if file_of[kind] else "")
    names, labels = {}, {}
    for split in SPLITS:
        names[split], labels[split] = _load_labels(files, file_of[LABELS][split], split)
    metadata = {"layout": LAYOUTS[kind]}
    if not _are_ids(name for split in SPLITS for name in names[split]):
        names = _make_distinct(names)
        metadata["split_source"] = "the files' own"
    for split in SPLITS:
        stray = set(names[split]) - set(splits[split]) if "split_source" not in metadata else ()
        stray = [f"{files.root}: {name} is no class of {split} in the published split" for name in sorted(stray)]
        raise_faults("classes of another split", stray, "remove it")
    return {split: _part(files, file_of[kind][split], names[split], labels[split]) for split in SPLITS}, metadata


def _are_ids(names: Iterable[str]) -> bool:
    return all(map(WORDNET_ID.fullmatch, names))


def _check(where: str, parts: Mapping[str, SplitSource], splits: Splits) -> None:
    if _are_ids(name for part in parts.values() for name in part.names):
        check_classes(where, parts, splits)
    for split, part in parts.items():
        counts = f"{len(part.names)} classes and {len(part.labels)} images"
        wanted = f"{len(splits[split])} classes and {TOTALS[split]} images"
        if counts != wanted:
            raise FewshotError(f"{where}: {counts} of {split}, not {wanted}; {PARTLY}")


def _download(root: Path) -> None:
    """Fetch those of the authors' pickles that are missing."""

    def check(path: Path) -> None:
        with path.open("rb") as file:
            head = file.read(512)
            file.seek(max(0, path.stat().st_size - 1))
            last = file.read(1)
        if is_web_page(head):
            raise FewshotError(f"{path}: a web page, not the file")
        # Pickles from protocol 2 on, and lists and dicts of earlier ones. Every pickle ends with a full stop.
        if not head.startswith((b"\x80", b"(", b"]", b"}")) or last != b".":
            raise FewshotError(f"{path}: no whole pickle")

    for kind in (PNGS, LABELS):
        file_of = files_by_split(open_files(root), PATTERNS[kind]) if root.exists() else {}
        for split in SPLITS:
            if split not in file_of:
                name = f"tiered-imagenet-{split}_{kind}"
                fetch(f"{URL}/{name}", root / name, check=check)


def _load_labels(files: Files, name: str, split: str) -> tuple[list[str], np.ndarray]:
    """The class names, made of split and number if the file has none, and the label of each image [n]."""
    wanted = "wanted: label_specific (whole numbers) with label_specific_str (names), or labels"
    with open_checked(files, name, f"{wanted}; {AGAIN}") as file:
        content = pickles.with_text_keys(pickles.load(file))
        numbers = np.asarray(content["label_specific" if "label_specific" in content else "labels"])
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not len(numbers):
            raise ValueError(f"labels are {numbers.dtype} {numbers.shape}")
        if "label_specific" not in content or "label_specific_str" not in content:
            classes, labels = np.unique(numbers, return_inverse=True)
            return [f"{split} {number:04d}" for number in classes.tolist()], labels
        names = [name.decode("latin1") if isinstance(name, bytes) else name for name in content["label_specific_str"]]
        if numbers.min() < 0 or numbers.max() >= len(names):
            raise ValueError(f"labels go from {numbers.min()} to {numbers.max()}, names from 0 to {len(names) - 1}")
        return [" ".join(name.split()) for name in names], numbers.astype(np.int64)


def _make_distinct(given: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Class names of each split, no two of them equal.

    English names of ImageNet are not unique: one that occurs twice in a split gets its number, one in two splits gets
    the split.
    """
    numbered = {
        split: [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names)]
        for split, names in given.items()
    }
    times = Counter(name for names in numbered.values() for name in names)
    return {
        split: [f"{name} ({split})" if times[name] > 1 else name for name in names] for split, names in numbered.items()
    }


def _part(files: Files, name: str, names: list[str], labels: np.ndarray) -> SplitSource:
    """The images of one file, with their labels."""
    read_images = _read_pngs if name.endswith(".pkl") else _read_arrays

    def images(first: int) -> Iterator[bytes | np.ndarray]:
        return read_images(files, name, first, len(labels))

    next(images(0))  # finds a wrong file before the other splits are converted
    return part_of_labels(names, labels, images, files.describe(name), lambda: files.newest_change([name]))


def _read_pngs(files: Files, name: str, first: int, total: int) -> Iterator[bytes]:
    """The PNG files of a pickle from number `first` on. The last one comes after the file was read to its end."""
    count, png = 0, b""
    with open_checked(files, name, AGAIN) as file:
        for count, item in enumerate(pickles.stream_items(file), start=1):
            if count > total:
                break
            if count > first + 1:
                yield png
            if isinstance(item, np.ndarray) and (item.dtype != np.uint8 or item.shape[1:] not in ((), (1,))):
                raise ValueError(f"image {count} is an array {item.shape} of {item.dtype}, not the bytes of a PNG")
            # Text is how bytes of Python 2 are decoded.
            png = item.encode("latin1", "replace") if isinstance(item, str) else bytes(item)
        if count != total:
            raise ValueError(f"{'more' if count > total else count} images for the {total} labels beside it")
    yield png


def _read_arrays(files: Files, name: str, first: int, total: int) -> Iterator[np.ndarray]:
    """The images [H, W, 3] of a .npz from number `first` on, red first."""
    with (
        open_checked(files, name, AGAIN) as file,
        zipfile.ZipFile(file) as archive,
        archive.open("images.npy") as member,
    ):
        is_version_1 = np.lib.format.read_magic(member) == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if is_version_1 else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(member)
        if dtype != np.uint8 or fortran_order or shape[3:] != (3,) or not all(1 <= n <= 1024 for n in shape[1:]):
            raise ValueError(f"{dtype} {shape}, not uint8 [images, height, width, 3]")
        if shape[0] != total:
            raise ValueError(f"{shape[0]} images for the {total} labels beside it")
        size = math.prod(shape[1:])
        member.seek(first * size, os.SEEK_CUR)
        for number in range(first, total):
            data = member.read(size)
            # Reading beyond the last image makes zipfile compare the checksum.
            if len(data) < size or (number == total - 1 and member.read(1)):
                raise ValueError("its size is not what its header says")
            yield np.frombuffer(data, np.uint8).reshape(shape[1:])[:, :, ::-1]


read_tiered_imagenet = PublishedDataset(
    name="tiered",
    title="tieredImageNet",
    source="tieredImageNet (Ren et al. 2018), of ILSVRC-2012",
    split_source="Ren et al. 2018, by WordNet id",
    is_wanted=_is_wanted,
    find=_find,
    check=_check,
    download=_download,
    remedy="put train_images_png.pkl and train_labels.pkl and those of val and test there, or the same with "
    "_images.npz, or folders of images named by WordNet id, such as ImageNet's for training",
).read
