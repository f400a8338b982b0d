"""What the names of a source's files say of classes and splits, before any file is read."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from fewshot.core.errors import FewshotError
from fewshot.core.paths import expand_path
from fewshot.data.bank import Bank, open_banks
from fewshot.data.sources.archives import ARCHIVES, DAMAGED, Files, open_files
from fewshot.data.sources.convert import convert, remove_attempts
from fewshot.data.sources.faults import FaultsError, faults_listed, raise_faults
from fewshot.data.sources.images import ImageSpec, count_suffixes, describe_suffixes, holds_image, is_image, suffix_of
from fewshot.data.sources.parts import SplitSource

Classes = dict[str, list[str]]  # the image files of each class

SPLITS = ("train", "val", "test")
PARTLY = "; to convert the part that is there, set dataset.reader.complete=false"
SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# Names of folders that are no class: between a class's folder and its images, or with all images of a split.
BETWEEN = {
    *("data", "image", "images", "img", "imgs", "jpeg", "jpg", "photo", "photos", "picture", "pictures", "png"),
    *SPLIT_WORDS,
}
WANTED = (
    "wanted: <class>/<image>, or train, val and test with <class>/<image> in each, or a split.csv of columns "
    "filename,label,split"
)


def published_split(dataset: str) -> dict[str, list[str]]:
    """The published classes of each split: of "mini" and "tiered" WordNet ids, of "cub" the names of its folders."""
    text = resources.files("fewshot.data").joinpath(f"splits/{dataset}.json").read_text(encoding="utf-8")
    listing = json.loads(text)
    # tieredImageNet's classes are listed below their superclasses.
    lists = {
        split: listing[split].values() if isinstance(listing[split], dict) else [listing[split]] for split in SPLITS
    }
    return {split: sorted(name for names in lists[split] for name in names) for split in SPLITS}


def published_banks(
    dataset: str,
    root: Path,
    cache: str | Path,
    look: ImageSpec,
    complete: bool,
    overwrite: bool,
    find: Callable[[str], tuple[dict[str, SplitSource], dict[str, Any]]],
) -> dict[str, Bank]:
    """The banks of a published data set; converted where they are not there yet, or where it is to be done `again`.

    Args:
        complete: False where a part of the classes and images will do, which goes to a folder of another name.
        find: finds what a source has of each split, and the words on it for `about`; it is told the command that
            prepares these very images, for where it finds nothing.

    Raises:
        FewshotError: whatever `find` and `convert` say, no class of a split, or damaged banks.
    """
    made_by = {"size": look.size, "resize": look.resize, "resample": look.resample}
    cache = expand_path(cache)
    folder = cache / f"{'-'.join(map(str, (dataset, *made_by.values())))}{'' if complete else '-part'}"
    source = f"{dataset} {look} {root.absolute()}"
    with faults_listed(cache / f"{dataset}-faults.txt"):
        if overwrite or not (folder / "bank.json").exists():
            parts, words = find(_prepare_command(dataset, made_by | {"complete": str(complete).lower()}))
            splits = published_split(dataset)
            if lack := next((split for split, part in parts.items() if not part.names), None):
                raise FewshotError(f"{root}: no class of {lack} is there; add images of {splits[lack][0]} or others")
            about = {"dataset": dataset, **words, **made_by, "complete": complete}
            convert(folder, parts, look, about, on_overlap="count", overwrite=overwrite, source=source)
        remove_attempts(cache, source)
    return open_banks(folder)


def _prepare_command(dataset: str, said: Mapping[str, object]) -> str:
    usual = {"size": 84, "resize": "squash", "resample": "lanczos", "complete": "true"}
    others = [f"dataset.reader.{name}={value}" for name, value in said.items() if value != usual[name]]
    return " ".join(["python tools/prepare.py", f"dataset={dataset}", *others])


def other_ways(root: Path, command: str, download: bool) -> str:
    """What else than to put files there may help where `root` lacks a data set: nothing that was tried already.

    Args:
        command: prepares the images as they are wanted.
        download: whether to download them was asked for.
    """
    ways = []
    if root.exists():
        ways.append("name another place by source=<path> of tools/prepare.py")
        ways.append("read class folders of other names with dataset=folder")
    else:
        ways.append(f"{command} source=<path>")
    if not download:
        ways.append(f"{command} dataset.reader.download=true")
    return "".join(f"; or {way}" for way in ways)


def open_source(root: Path, wanted: Callable[[str], bool]) -> Files:
    """The files of a source, or those of the one archive in it where nothing else of it is wanted."""
    files = open_files(root)
    packed = [name for name in files.names if name.lower().endswith(ARCHIVES)]
    if root.is_dir() and len(packed) == 1 and not any(map(wanted, files.names)):
        return open_files(root / packed[0])
    return files


def known_folders(files: Files, splits: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The images of each class of a published split, from folders of its name at any depth: already split, or not.

    Where a class's folder has no images itself, one folder in between is looked through, as in `n01443537/images`.

    Raises:
        FewshotError: folders that split the classes in another way, or a class in two places.
    """
    split_of = {name: split for split, names in splits.items() for name in names}
    own: dict[str, dict[str, list[str]]] = {}  # of each class the folders of its images: its own
    below: dict[str, dict[str, list[str]]] = {}  # and those one below it
    for name in files.names:
        *above, parent, _ = ["", "", *name.split("/")]
        known, found = (parent, own) if parent in split_of else (above[-1], below)
        if known in split_of and is_image(name):
            found.setdefault(known, {}).setdefault(posixpath.dirname(name), []).append(name)
    places = below | own
    twice = [
        f"{files.root}: class {known} lies in {' and in '.join(of)}" for known, of in places.items() if len(of) > 1
    ]
    raise_faults("classes in two places", twice, "leave it in one place")
    folder_of = {known: next(iter(of)) for known, of in places.items()}
    claims: dict[str, str] = {}
    for known, folder in folder_of.items():
        above = folder.split("/")[: -1 if known in own else -2]
        if above and (word := SPLIT_WORDS.get(above[-1].lower())):
            claims[known] = word
    # A folder of ImageNet's whole training set says nothing of few-shot splits.
    if len(set(claims.values())) > 1:
        wrong = [
            f"{files.root}: class {known} lies in {folder_of[known]}, but belongs to {split_of[known]} in the "
            "published split"
            for known, word in claims.items()
            if word != split_of[known]
        ]
        raise_faults("classes in another split", wrong, "put it there, or read the folder as it is with dataset=folder")
    return {known: images for known, of in places.items() for images in of.values()}


def find_images(files: Files) -> list[str]:
    """The images of a source, by their suffix, and files without a suffix by how they begin."""
    bare = [name for name in files.names if not suffix_of(name)]
    found = set(filter(is_image, files.names))
    for group in [[name] for name in bare] if files.root.is_dir() else [bare]:
        with suppress(*DAMAGED):  # what cannot be read is passed over
            for name, head in zip(group, files.heads(group), strict=True):
                if holds_image(head):
                    found.add(name)
    return [name for name in files.names if name in found]


def passed_over(files: Files, splits: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What of the files in the folders of published classes, or one folder below, is no image, for `about`."""
    known = {name for names in splits.values() for name in names}
    return describe_passed_over(
        name for name in files.names if not is_image(name) and known.intersection(name.split("/")[-3:-1])
    )


def describe_passed_over(names: Iterable[str]) -> dict[str, Any]:
    """How many of these files there are of each suffix, and in words, for `about`; nothing where there are none."""
    counts = count_suffixes(names)
    return {"passed_over": counts, "notes": [f"passed over {describe_suffixes(counts)}"]} if counts else {}


def class_folders(files: Files, images: Sequence[str]) -> tuple[dict[str, Classes], list[str]]:
    """The class folders in each folder of a split, or under "" where there are no such; a class may have no images.

    All class folders may lie in some folders more, and so may their images, if these folders have the same name in
    every class: `data/train/images/cat/1.png` and `train/cat/images/1.png` are image 1.png of class cat. Where splits
    have other names or depths than others, these folders are known by their names (`BETWEEN`).

    Returns:
        The images of each class of each split, and the folders of splits that have images but no class folders, where
        others have some.

    Raises:
        FewshotError: images that do not lie so.
    """
    steps = {parent: tuple(filter(None, parent.split("/"))) for parent in map(posixpath.dirname, images)}
    every, top = list(steps.values()), 0  # how many folders all of them lie in
    while min(map(len, every)) > top + 1 and len({own[top] for own in every}) == 1:
        if every[0][top].lower() in SPLIT_WORDS:
            break
        top += 1
    above = "/".join(every[0][:top])
    depths = {image.count("/"): image for image in reversed(images)}  # an image of each

    def misplaced(what: str) -> FewshotError:
        found = " and ".join(depths[depth] for depth in sorted(depths))
        return FewshotError(f"{files.root}: {what}: found {found}; {WANTED}")

    if min(map(len, every)) <= top:
        raise misplaced("images in no class folder")
    words = sorted({own[top] for own in every if own[top].lower() in SPLIT_WORDS})
    others = sorted({own[top] for own in every} - set(words))
    if words and others:
        if all(len({own for own in every if own[top] == word}) == 1 for word in words):
            words = []  # the name of a class
        else:
            other, word = (posixpath.join(above, name) for name in (others[0], words[0]))
            raise FewshotError(
                f"{files.root}: {other} lies beside {word}, and is none of {', '.join(SPLIT_WORDS)}; rename it, or "
                "move it elsewhere"
            )
    found: dict[str, Classes] = {}
    loose: list[str] = []
    start = top + bool(words)
    folders: dict[str, list[tuple[str, ...]]] = {}  # of each split, from its own folder on
    for word in words or [""]:
        inner = {parent: own[start:] for parent, own in steps.items() if not words or own[top] == word}
        if len(inner) == 1 and _all_between(next(iter(inner.values()))):
            loose += inner
        else:
            folders[word] = list(inner.values())
    numbers = [set(map(len, inner)) for inner in folders.values()]
    if any(len(own) > 1 or 0 in own for own in numbers):
        no_folder = any(0 in own for own in numbers)
        raise misplaced("images in no class folder" if no_folder else "class folders at different depths")
    levels = _class_levels(folders)
    for word, inner in folders.items():
        if (level := levels[len(inner[0])]) is None:
            raise misplaced("folders too deep")
        split = SPLIT_WORDS[word.lower()] if word else ""
        if split in found:
            raise FewshotError(f"{files.root}: two folders of {split}, {posixpath.join(above, word)} is one; join them")
        place = (*every[0][:top], *([word] if words else []), *inner[0][:level])
        found[split] = _classes_of(files, images, "/".join(place), start + level)
    if not found:
        raise misplaced("images in no class folder")
    return found, loose


def _class_levels(folders: Mapping[str, Sequence[tuple[str, ...]]]) -> dict[int, int | None]:
    """Which of the folders that lead to images is the class, one level for all splits of one depth.

    Every other level is a folder in between: no split has two names there, and they are known ones (`BETWEEN`), or all
    splits have the same name while they differ at the level of the class.

    Args:
        folders: of each split, all of one depth.

    Returns:
        By depth the level, or None where several or none may be the class.
    """
    depths = {len(inner[0]) for inner in folders.values()}
    found: dict[int, int | None] = {}
    for depth in depths:
        alike = [inner for inner in folders.values() if len(inner[0]) == depth]
        names = [[{own[level] for own in inner} for inner in alike] for level in range(depth)]
        fit = [level for level, own in enumerate(names) if any(len(of) > 1 or not _all_between(of) for of in own)]
        varying = [level for level in fit if len(set().union(*names[level])) > 1]
        levels = varying if varying and len(depths) == 1 else fit
        found[depth] = levels[0] if len(levels) == 1 else None
    return found


def _all_between(names: Iterable[str]) -> bool:
    return all(name.lower() in BETWEEN for name in names)


def _classes_of(files: Files, images: Sequence[str], place: str, level: int) -> Classes:
    """The folders in a folder, whether they have images or not, and the images below each."""
    start = f"{place}/" if place else ""
    found: Classes = {}
    for name in files.names:
        if name.startswith(start) and name.count("/") > level:
            found.setdefault(name.split("/")[level], [])
    if files.root.is_dir():  # and those without any file
        inner = [path.name for path in (files.root / place).iterdir() if path.is_dir()]
        found |= {name: [] for name in inner if not name.startswith((".", "__MACOSX")) and name not in found}
    for image in images:
        if image.startswith(start):
            found[image.split("/")[level]].append(image)
    return found


def check_official(
    where: str, parts: Mapping[str, SplitSource], splits: Mapping[str, Sequence[str]], totals: Mapping[str, int] | int
) -> None:
    """Hold the classes of each split against the published ones, and how many images there are.

    Args:
        where: the source, for people.
        totals: images of each split, or, if a number, of every class.

    Raises:
        FewshotError: a class too many or missing, or another number of images.
    """
    for split in SPLITS:
        part = parts.get(split)
        names = set(part.names) if part else set()
        if missing := sorted(set(splits[split]) - names):
            raise FaultsError(
                f"{where}: {len(missing)} of {len(splits[split])} classes of {split} are missing, such as {missing[0]}"
                f"{PARTLY}",
                [f"{where}: class {name} of {split} is missing" for name in missing],
            )
        assert part is not None
        extra = sorted(names - set(splits[split]))
        stray = [f"{where}: {name} is no class of {split} in the published split" for name in extra]
        raise_faults("classes too many", stray, "remove it")
        counts = np.bincount(part.labels, minlength=len(part.names))
        if isinstance(totals, int):
            other = [
                f"{where}: class {name} has {count} images, not {totals}"
                for name, count in zip(part.names, counts, strict=True)
                if count != totals
            ]
            raise_faults("classes with another number of images", other, PARTLY.removeprefix("; "))
        elif len(part.labels) != totals[split]:
            raise FewshotError(f"{where}: {len(part.labels)} images of {split}, not {totals[split]}{PARTLY}")
