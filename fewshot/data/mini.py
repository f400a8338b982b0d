"""miniImageNet: 100 classes of ImageNet with 600 images each (Vinyals et al. 2016; Ravi and Larochelle 2017).

Five layouts are recognised, at any depth of a folder or an archive; see `read`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from fewshot.data import pickles
from fewshot.data.bank import Bank, open_banks
from fewshot.data.convert import Part, convert, part_of_files, part_of_labels
from fewshot.data.download import fetch
from fewshot.data.files import ARCHIVES, DAMAGED, Files, open_files
from fewshot.data.images import Look, web_page
from fewshot.data.layouts import SPLIT_WORDS, SPLITS, check_official, is_image, known_folders, official
from fewshot.errors import FewshotError

# As in learn2learn 0.2.0, learn2learn/vision/datasets/mini_imagenet.py. Its class is of no use here: it unpickles them.
URL = "https://zenodo.org/record/7978538/files"
LISTS = "https://github.com/twitter-research/meta-learning-lstm, folder data/miniImagenet"
IMAGES = 600  # of each class
WORD = r"(train|val|valid|validation|test)"
PICKLE = re.compile(
    rf"(?:mini[-_]?imagenet(?:[-_]cache|_category_split)?[-_])?(?:train_phase_(?=train\.))?{WORD}\.(?:pkl|pickle)",
    re.IGNORECASE,
)
LIST = re.compile(rf"{WORD}\.csv", re.IGNORECASE)
KEYS = (("image_data", "class_dict"), ("data", "labels", "catname2label"))  # of a pickle's dict
LISTED = re.compile(r"(n\d{8})(\d{8})\.jpg", re.ASCII)
ORIGINAL = re.compile(r"(n\d{8})_(\d{1,9})\.jpe?g", re.ASCII | re.IGNORECASE)

Open = Callable[[], AbstractContextManager[IO[bytes]]]
Splits = Mapping[str, Sequence[str]]


def read(
    root: str | Path,
    cache: str | Path,
    size: int = 84,
    resize: str = "squash",
    resample: str = "lanczos",
    complete: bool = True,
    download: bool = False,
    again: bool = False,
) -> dict[str, Bank]:
    """The banks "train", "val" and "test" of images [M, 3, size, size] uint8: 64, 16 and 20 classes by WordNet id.

    What lies in `root` is converted once, in a stream (a pickle takes the memory of its images); then the cache is
    opened without it. Of the layouts the first one that is there is taken:

    - `mini-imagenet-cache-{train,validation,test}.pkl`, as learn2learn has them: dicts of "image_data" [n, 84, 84, 3]
      uint8 and "class_dict", the rows of each class;
    - `miniImageNet_category_split_{train_phase_train,val,test}.pickle` (github.com/gidariss/FewShotWithoutForgetting):
      dicts of "data", "labels" and "catname2label". `train_phase_val` and `_test` are more images of the training
      classes, and are passed over. Either kind of pickle may also be called `{train,val,test}.pkl` or `.pickle`;
    - images with Ravi's `train.csv`, `val.csv` and `test.csv` (columns filename,label), found by their names;
    - ILSVRC-2012's training images, `n01532829_5.JPEG`, with the same lists, which may lie beside `root`:
      n0153282900000005.jpg is the fifth image of n01532829 by the number in its name, from 1, as in
      github.com/yaoyao-liu/mini-imagenet-tools. No image of these classes may be missing, for then it is another one;
    - folders of images named by WordNet id, in folders of their split or not.

    Args:
        root: folder or archive; or a folder with one archive in it, and neither images nor pickles.
        cache: folder in which the banks are kept, in a folder of their own.
        size, resize, resample: see `Look`.
        complete: demand the published classes with 600 images each; otherwise what is there is taken, at least a class
            of each split, in a folder of another name.
        download: fetch the first layout into `root` where there is none.
        again: convert anew, whatever the cache holds.

    Raises:
        FewshotError: an argument out of range, files that are missing, damaged or not as above, or a damaged cache.
    """
    look = Look(size, 3, resize, resample)
    folder = Path(cache) / f"mini-{size}-{resize}-{resample}{'' if complete else '-part'}"
    if again or not (folder / "bank.json").exists():
        splits = official("mini")
        layout, parts = _source(Path(root), splits, download)
        for split, part in parts.items():
            if not part.names:
                raise FewshotError(f"{root}: no class of {split} is there; add images of {splits[split][0]} or others")
        if complete:
            check_official(str(root), parts, splits, IMAGES)
        about = {"dataset": "mini", "source": "miniImageNet (Vinyals et al. 2016), of ILSVRC-2012", "layout": layout}
        about |= {"split_source": "Ravi and Larochelle 2017, by WordNet id"}
        about |= {"size": size, "resize": resize, "resample": resample, "complete": complete}
        convert(folder, parts, look, about, leaks="count", again=again)
    return open_banks(folder)


def _source(root: Path, splits: Splits, download: bool) -> tuple[str, dict[str, Part]]:
    """The layout in words, and what is there of each split."""
    lacks = "no miniImageNet is there"
    if root.exists():
        files = open_files(root)
        packed = [name for name in files.names if name.lower().endswith(ARCHIVES)]
        if len(packed) == 1 and not any(is_image(name) or PICKLE.fullmatch(_last(name)) for name in files.names):
            files = open_files(root / packed[0])
        pickled, listed = _by_split(files, PICKLE), _by_split(files, LIST)
        if len(pickled) == len(SPLITS):
            kinds, parts = set(), {}
            for split in SPLITS:
                kind, parts[split] = _pickled(files, pickled[split], split, splits)
                kinds.add(kind)
            return f"pickles of {' or '.join(sorted(kinds))}", parts
        if len(listed) == len(SPLITS):
            return _listed(files, {s: (files.where(n), partial(files.opened, n)) for s, n in listed.items()}, splits)
        folders = known_folders(files, splits)
        large = next((name for name, images in folders.items() if len(images) > IMAGES), None)
        if folders and not large:
            return "class folders by WordNet id", {
                split: part_of_files(files, {name: folders[name] for name in splits[split] if name in folders})
                for split in SPLITS
            }
        beside = {split: files.root.absolute().parent / f"{split}.csv" for split in SPLITS}
        if all(path.is_file() for path in beside.values()):
            return _listed(files, {s: (str(path), partial(path.open, "rb")) for s, path in beside.items()}, splits)
        if large:
            raise FewshotError(
                f"{root}: class {large} has {len(folders[large])} images, more than {IMAGES}, as in ImageNet's own "
                f"training images: put the lists train.csv, val.csv and test.csv there, from {LISTS}"
            )
        if some := max(pickled, listed, key=len):
            lacks = (
                f"{next(iter(some.values()))} is there, but none of {' and '.join(s for s in SPLITS if s not in some)}"
            )
    if not download or root.is_file():
        raise FewshotError(
            f"{root}: {lacks}: put mini-imagenet-cache-train.pkl, -validation.pkl and -test.pkl there, or images with "
            "train.csv, val.csv and test.csv, or class folders by WordNet id; or python tools/prepare.py dataset=mini "
            "source=<path>; or python tools/prepare.py dataset=mini dataset.reader.download=true"
        )
    for split in SPLITS:

        def check(path: Path, split: str = split) -> None:
            _content(partial(path.open, "rb"), str(path), split, splits)

        name = _last(url := _address(split))
        fetch(url, root / name, check=check, what=name)
    return _source(root, splits, False)


def _address(split: str) -> str:
    return f"{URL}/mini-imagenet-cache-{'validation' if split == 'val' else split}.pkl"


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _by_split(files: Files, pattern: re.Pattern[str]) -> dict[str, str]:
    """The one file of each split whose name says so."""
    found: dict[str, str] = {}
    for name in files.names:
        if match := pattern.fullmatch(_last(name)):
            split = SPLIT_WORDS[match[1].lower()]
            if found.setdefault(split, name) != name:
                raise FewshotError(f"{files.root}: {found[split]} and {name} are both there: leave one of them")
    return found


@contextmanager
def _opened(opened: Open, where: str) -> Iterator[IO[bytes]]:
    """One file, to be read."""
    try:
        with opened() as file:
            if web_page(file.peek(512)):  # pyright: ignore
                raise FewshotError(f"{where}: a web page, not the file: the download went wrong")
            yield file
            while file.read(1 << 20):
                pass  # at the end an archive compares its checksum
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FewshotError(f"{where}: cannot be read ({reason})") from error


def _pickled(files: Files, name: str, split: str, splits: Splits) -> tuple[str, Part]:
    """The kind of a pickle in words, and its images."""
    where = files.where(name)

    def content() -> tuple[str, list[str], np.ndarray, np.ndarray]:
        try:
            return _content(partial(files.opened, name), where, split, splits)
        except FewshotError as error:
            raise FewshotError(f"{error}; fetch {_address(split)} in its place") from error

    # A pickle is read twice, for its classes and, when its turn comes, for its images: so one at a time is in memory.
    def images(first: int) -> Iterator[np.ndarray]:
        yield from content()[3][first:]

    kind, names, labels, _ = content()
    return kind, part_of_labels(names, labels, images, lambda i: f"{where}: image {i + 1}")


def _content(opened: Open, where: str, split: str, splits: Splits) -> tuple[str, list[str], np.ndarray, np.ndarray]:
    """The kind of a pickle in words, its classes, the label of each image, and the images.

    Raises:
        FewshotError: it is not what `read` says, or holds classes that are not of this split.
    """
    with _opened(opened, where) as file:
        content = pickles.load(file, where)

    def require(good: object, what: str) -> None:
        if not good:
            raise FewshotError(f"{where}: {what}")

    def numbers(values: Any, what: str) -> np.ndarray:
        try:
            found = np.asarray(values)
        except ValueError:  # lists of several lengths
            found = np.empty(1)
        require(found.ndim == 1 and (found.dtype.kind in "iu" or not found.size), f"{what} is no list of whole numbers")
        return found.astype(np.int64)

    require(isinstance(content, dict), "it holds no dict")
    content = _by_text(content)
    keys = next((keys for keys in KEYS if set(keys) <= content.keys()), KEYS[0])
    known = " nor ".join(", ".join(keys) for keys in KEYS)
    require(set(keys) <= content.keys(), f"its keys are {', '.join(map(repr, content))[:80]}, and neither {known}")
    images, given = content[keys[0]], content[keys[-1]]
    found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
    good = re.fullmatch(r"uint8 \([1-9]\d*, [1-9]\d*, [1-9]\d*, 3\)", found)
    require(good, f"{keys[0]} is {found}, not uint8 [images, height, width, 3]")
    require(isinstance(given, dict), f"{keys[-1]} is no dict")
    given = _by_text(given)
    if "labels" in keys:
        labels = numbers(content["labels"], "labels")
        of = numbers(list(given.values()), "catname2label")
        rows = {name: np.flatnonzero(labels == label) for name, label in zip(given, of, strict=True)}
    else:
        rows = {name: numbers(of, f"class_dict of {name!r:.40}") for name, of in given.items()}
    rows = {name: of for name, of in rows.items() if len(of)}
    every = np.concatenate([np.empty(0, np.int64), *rows.values()])
    total, words = len(images), " and ".join(keys[1:])
    require(np.array_equal(np.sort(every), np.arange(total)), f"{words} do not give each of {total} images one class")
    for name in rows:
        _own_class(where, name, split, splits)
    labels = np.empty(total, np.int64)
    labels[every] = np.repeat(np.arange(len(rows)), [len(of) for of in rows.values()])
    return words, list(rows), labels, np.asarray(images)


def _by_text(content: dict[Any, Any]) -> dict[Any, Any]:
    """With keys of text in place of bytes."""
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}


def _own_class(where: str, name: Any, split: str, splits: Splits) -> None:
    if name not in splits[split]:
        other = next((f"of {other}" for other in SPLITS if name in splits[other]), "in none")
        raise FewshotError(f"{where}: class {name!r:.40} is {other} of the published splits, not of {split}")


def _listed(files: Files, lists: Mapping[str, tuple[str, Open]], splits: Splits) -> tuple[str, dict[str, Part]]:
    """The layout in words and the images that the lists name.

    Raises:
        FewshotError: a list is not what `read` says, or an image of it is missing.
    """
    lines: dict[str, tuple[str, str, str]] = {}  # of each image: where it is listed, its split and class
    for split in SPLITS:
        try:
            for where, image, name in _rows(*lists[split]):
                _own_class(where, name, split, splits)
                if image in lines:
                    raise FewshotError(f"{where}: image {image!r:.80} is listed already, {lines[image][0]}")
                lines[image] = where, split, name
        except FewshotError as error:
            raise FewshotError(f"{error}; take the published list, from {LISTS}") from error
    layout, file_of = "images by their names in the published lists", {}
    for file in files.names:
        if (image := _last(file)) in lines and file_of.setdefault(image, file) != file:
            raise FewshotError(f"{files.root}: {file_of[image]} and {file} are both there: leave one of them")
    if not file_of:
        layout, file_of = "ImageNet's training images, by their places in the published lists", _originals(files, lines)
    for image, (where, _, _) in lines.items():
        if image not in file_of:
            raise FewshotError(
                f"{where}: image {image!r:.80} is not in {files.root}: put it there, or, in place of all that are "
                "listed, ImageNet's training images of their classes"
            )
    parts = {}
    for split in SPLITS:
        image_of = {file_of[image]: image for image, line in lines.items() if line[1] == split}
        order = [file for file in files.names if file in image_of]
        classes: dict[str, list[str]] = {}
        for file in order:
            classes.setdefault(lines[image_of[file]][2], []).append(image_of[file])
        # By the names in the lists, so that both layouts have the same order.
        named = replace(
            files,
            names=[image_of[file] for file in order],
            read=lambda images: files.read([file_of[image] for image in images]),
        )
        parts[split] = replace(part_of_files(named, classes), where=lambda i, order=order: files.where(order[i]))
    return layout, parts


def _rows(where: str, opened: Open) -> Iterator[tuple[str, str, str]]:
    """Where it stands, image and class of each row of a list."""
    with _opened(opened, where) as file:
        data = file.read()
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise FewshotError(f"{where}: no list of images ({error})") from error
    for number, row in enumerate(rows, start=1):
        cells = [cell.strip() for cell in row]
        if (cells != ["filename", "label"]) if number == 1 else len(cells) not in (0, 2):
            raise FewshotError(f"{where}, line {number}: columns {','.join(cells)!r:.80}, not filename,label")
        if number > 1 and cells:
            yield f"{where}, line {number}", cells[0], cells[1]


def _originals(files: Files, lines: Mapping[str, tuple[str, str, str]]) -> dict[str, str]:
    """ImageNet's own files for the images that the lists give places to."""
    numbered: dict[str, dict[int, str]] = {name: {} for _, _, name in lines.values()}
    for file in files.names:
        if (match := ORIGINAL.fullmatch(_last(file))) and match[1] in numbered:
            first = numbered[match[1]].setdefault(int(match[2]), file)
            if first != file:
                raise FewshotError(f"{files.root}: {first} and {file} are both there: leave one of them")
    sorted_of = {name: [file for _, file in sorted(found.items())] for name, found in numbered.items()}
    file_of = {}
    for image, (where, _, name) in lines.items():
        match = LISTED.fullmatch(image)
        if not match or match[1] != name or not sorted_of[name]:
            continue
        place, total = int(match[2]), len(sorted_of[name])
        if not 1 <= place <= total:
            raise FewshotError(
                f"{where}: {image} is number {place} of its class, but {files.root} has {total}: fetch ImageNet's "
                "training images of this class again; or, if these are the 600 images already, remove the lists"
            )
        file_of[image] = sorted_of[name][place - 1]
    return file_of
