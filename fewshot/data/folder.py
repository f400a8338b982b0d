"""Images of one's own: any folder or archive of class folders."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fewshot.data import tables
from fewshot.data.bank import Bank, open_banks
from fewshot.data.convert import convert
from fewshot.data.files import ARCHIVES, Files, open_files
from fewshot.data.images import SUFFIXES, Look
from fewshot.data.layouts import SPLIT_WORDS, SPLITS, is_image
from fewshot.data.parts import part_of_files
from fewshot.errors import FewshotError

Classes = dict[str, list[str]]  # the image files of each class

LEAST = 2  # classes of a split made here
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
RANDOM = "dataset.reader.split=random to split the classes anew"
WANTED = (
    "wanted: <class>/<image>, or train, val and test with <class>/<image> in each, or a split.csv of columns "
    "filename,label,split"
)


def read(
    root: str | Path,
    cache: str | Path,
    name: str = "folder",
    size: int = 84,
    channels: int = 3,
    resize: str = "squash",
    resample: str = "lanczos",
    split: str = "auto",
    fractions: Sequence[float] = (0.64, 0.16, 0.20),
    seed: int = 0,
    csv: str | Path | None = None,
    leaks: str = "refuse",
    again: bool = False,
) -> dict[str, Bank]:
    """The banks "train", "val" and "test" of images [M, channels, size, size] uint8.

    The images lie in class folders, which may all lie in one folder more. What they are converted to lies in a folder
    that is named by the files' names, sizes and times of change, too, so that a changed source gives other banks.

    Args:
        root: folder or archive.
        cache: folder in which the banks are kept, in a folder of their own.
        name: of the dataset, in tables and of the banks' folder.
        size, channels, resize, resample: see `Look`.
        split: "folders": train, val (or valid, validation) and test hold the class folders of each.
            "csv": split.csv in `root` says it, in columns class,split (of class folders) or filename,label,split (of
            images wherever they lie); or train.csv, val.csv and test.csv do, in columns filename,label. A filename is
            relative to `root`, or as much of its end as there is once. What is not listed is left out.
            "random": fractions of the classes. "auto": csv where there is one, folders where there are, else random.
        fractions: of the classes in train, val and test if random. The classes are sorted by name, then shuffled by
            numpy RandomState(seed), whose numbers stay the same in every version of NumPy.
        seed: of that.
        csv: a file to be taken for split.csv.
        leaks: "refuse" images that two splits share, or "count" them.
        again: convert anew, whatever the cache holds.

    Raises:
        FewshotError: an argument out of range, another layout, a class or image in two places, or a damaged image.
    """
    look, name = Look(size, channels, resize, resample), str(name)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise FewshotError(f"dataset.reader.name={name}: letters, digits and ._- are wanted, it names a folder")
    if split not in ("auto", "folders", "csv", "random"):
        raise FewshotError(f"dataset.reader.split={split}: choose auto, folders, csv or random")
    if csv is not None and split not in ("auto", "csv"):
        raise FewshotError(f"dataset.reader.csv is given, and split={split}: leave one of them out")
    shares = fractions if isinstance(fractions, Sequence) and len(fractions) == 3 else [0]
    if not all(isinstance(share, int | float) and share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise FewshotError(f"dataset.reader.fractions={fractions}: three numbers above 0 are wanted, in all 1")
    if type(seed) is not int or not 0 <= seed < 1 << 32:
        raise FewshotError(f"dataset.reader.seed={seed}: choose a whole number from 0 to 2^32 - 1")
    if leaks not in ("refuse", "count"):
        raise FewshotError(f"dataset.reader.leaks={leaks}: choose refuse or count")

    files = open_files(Path(str(root)))
    images = [file for file in files.names if is_image(file)]
    if not images:
        archive = next((file for file in files.names if file.lower().endswith(ARCHIVES)), None)
        remedy = f"; give the archive {files.where(archive)} instead" if archive else ""
        raise FewshotError(f"{files.root}: no images are there ({', '.join(SUFFIXES)}); {WANTED}{remedy}")
    splits, about = _splits(files, images, split, shares, seed, csv)
    _check(files, splits)
    taken = sorted(file for classes in splits.values() for group in classes.values() for file in group)
    paths = [files.root / file for file in taken] if files.root.is_dir() else [files.root]
    try:
        states = [((stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
    except OSError as error:
        raise FewshotError(f"{error.filename}: cannot be read ({error.strerror}); mend it, or remove it") from error
    about |= {"dataset": name, "source": "images of one's own", "size": size, "channels": channels}
    about |= {"resize": resize, "resample": resample, "complete": True, "images_left_out": len(images) - len(taken)}
    digest = hashlib.sha256(json.dumps([about, leaks, splits, states], sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(cache) / f"{name}-{digest}"
    if again or not (folder / "bank.json").exists():
        parts = {each: part_of_files(files, splits[each]) for each in SPLITS}
        convert(folder, parts, look, about, leaks=leaks, again=again)
    return open_banks(folder)


def _splits(
    files: Files, images: list[str], split: str, shares: Sequence[float], seed: int, csv: str | Path | None
) -> tuple[dict[str, Classes], dict[str, Any]]:
    """The classes of each split, and in words where they come from."""
    if split in ("auto", "csv"):
        if lists := tables.find_lists(files, images, csv):
            return _listed(files, images, lists)
        if split == "csv":
            raise FewshotError(
                f"{files.root}: neither split.csv nor train.csv, val.csv and test.csv is there; put one there, or name "
                f"it by dataset.reader.csv=<path>, or set {RANDOM}"
            )
    found = _class_folders(files, images)
    if split == "folders" and "" in found:
        raise FewshotError(f"{files.root}: no folders train, val and test are there; make them, or set {RANDOM}")
    if split != "random" and "" not in found:
        return found, {"layout": "class folders in folders of the splits", "split_source": "the folders' own"}
    pooled = _pooled(found)
    names, count = sorted(pooled), len(pooled)
    train, val = (int(count * share + 0.5) for share in shares[:2])
    sizes = dict(zip(SPLITS, (train, val, count - train - val), strict=True))
    numbers = "/".join(map(str, sizes.values()))
    if min(sizes.values()) < LEAST:
        remedy = "add classes" if count < 3 * LEAST else "set dataset.reader.fractions=[0.34,0.33,0.33], or add classes"
        raise FewshotError(
            f"{files.root}: {count} classes would be split {numbers}, and each split needs {LEAST}: {remedy}"
        )
    # RandomState, not Generator: NumPy promises that its numbers stay the same in every version.
    order = iter(np.random.RandomState(seed).permutation(count).tolist())
    splits = {each: {(name := names[next(order)]): pooled[name] for _ in range(n)} for each, n in sizes.items()}
    layout = "class folders" if "" in found else f"class folders, pooled from {', '.join(sorted(found))}"
    source = f"{numbers} of the sorted classes, shuffled by numpy RandomState({seed})"
    return splits, {"layout": layout, "split_source": source}


def _class_folders(files: Files, images: Sequence[str]) -> dict[str, Classes]:
    """The class folders in each folder of a split, or under "" where there are no such; a class may have no images.

    Raises:
        FewshotError: images that do not lie one folder below that.
    """
    every: Classes = {}  # folders of files, and their images
    for file in files.names:
        every.setdefault(posixpath.dirname(file), []).extend([file] if is_image(file) else [])
    folders = [folder for folder, there in every.items() if there]
    places = sorted({posixpath.dirname(folder) for folder in folders})
    of_split = [place for place in places if posixpath.basename(place).lower() in SPLIT_WORDS]
    above = {posixpath.dirname(place) for place in places} if of_split else set(places)
    depths = {file.count("/"): file for file in reversed(images)}  # an image of each
    if len(depths) == 1 and of_split and (others := sorted(set(places) - set(of_split))):
        raise FewshotError(
            f"{files.root}: {others[0]} lies beside {of_split[0]}, and is none of {', '.join(SPLIT_WORDS)}; rename it, "
            "or move it elsewhere"
        )
    names = {posixpath.basename(folder).lower() for folder in folders}
    if len(depths) > 1 or len(above) > 1 or (not of_split and names <= {"", *SPLIT_WORDS}):
        what = "class folders at different depths" if len(depths) > 1 else "folders too deep"
        found = [depths[depth] for depth in sorted(depths)]
        if PurePosixPath("/", found[0]).parent.name.lower() in ("", *SPLIT_WORDS):
            what = "images in no class folder"
        raise FewshotError(f"{files.root}: {what}: found {' and '.join(found)}; {WANTED}")

    splits: dict[str, Classes] = {}
    for place in places:
        there = [folder for folder in every if folder and posixpath.dirname(folder) == place]
        if files.root.is_dir():  # and those without any file
            inner = [path.name for path in (files.root / place).iterdir() if path.is_dir()]
            there += [posixpath.join(place, name) for name in inner if not name.startswith((".", "__MACOSX"))]
        split = SPLIT_WORDS[posixpath.basename(place).lower()] if of_split else ""
        if split in splits:
            raise FewshotError(f"{files.root}: two folders of {split}, {place} is one; join them")
        splits[split] = {posixpath.basename(folder): every.get(folder, []) for folder in there}
    return splits


def _pooled(found: Mapping[str, Classes]) -> Classes:
    pooled: Classes = {}
    for classes in found.values():
        for name, images in classes.items():
            pooled[name] = pooled.get(name, []) + images
    return pooled


def _listed(files: Files, images: Sequence[str], lists: tables.Lists) -> tuple[dict[str, Classes], dict[str, Any]]:
    """The classes of each split as CSVs say."""
    what, rows = tables.listed(files, lists)
    folders = _pooled(_class_folders(files, images)) if what == "classes" else {}
    names, find = {tables.composed(name): name for name in folders}, tables.finder(files)
    splits: dict[str, Classes] = {}
    for item, (here, split, label) in rows.items():
        found = names.get(tables.composed(item)) if what == "classes" else find(here, item)
        if found is None:
            kind = "class folder" if what == "classes" else "image"
            raise FewshotError(
                f"{here}: a row whose {kind} is missing: {item!r:.80}; put it below {files.root}, or remove the row"
            )
        label = found if what == "classes" else label
        splits.setdefault(split, {}).setdefault(label, []).extend(folders.get(found, [found]))
    source = "train.csv, val.csv and test.csv" if len(lists) > 1 else "a CSV"
    return splits, {"layout": f"{source} of {what}", "split_source": source}


def _check(files: Files, splits: Mapping[str, Classes]) -> None:
    """Hold what was found against what every dataset needs."""
    seen: dict[str, tuple[str, str]] = {}
    for split in SPLITS:
        if not splits.get(split):
            raise FewshotError(f"{files.root}: no classes of {split}; add some, or set {RANDOM}")
        for name, images in sorted(splits[split].items()):
            for text in (name, *images):
                if UNPRINTABLE.search(text):
                    raise FewshotError(f"{files.root}: {text!a}: a name that cannot be printed; rename it")
            other, its = seen.setdefault(tables.composed(name).casefold(), (name, split))
            if other != name:
                raise FewshotError(
                    f"{files.root}: classes {other} ({its}) and {name} ({split}) differ only by case or by how letters "
                    "are composed; rename one, or join them"
                )
            if its != split:
                raise FewshotError(
                    f"{files.root}: class {name} is in {its} and in {split}, and splits share no class; rename one, or "
                    f"set {RANDOM}"
                )
            if not images:
                raise FewshotError(f"{files.root}: class {name} has no images; put some there, or remove the folder")
            stems: dict[str, str] = {}
            for image in images:
                twin = stems.setdefault(tables.composed(posixpath.splitext(image)[0]).casefold(), image)
                if twin != image:
                    raise FewshotError(
                        f"{files.root}: {twin} and {image} differ only by suffix or case, and may be one image twice; "
                        "remove or rename one"
                    )
