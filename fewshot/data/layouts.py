"""What the names of a source's files say of classes and splits, before any file is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path, PurePosixPath

import numpy as np

from fewshot.data.bank import Bank, open_banks
from fewshot.data.convert import convert
from fewshot.data.files import ARCHIVES, Files, open_files
from fewshot.data.images import SUFFIXES, Look
from fewshot.data.parts import Part
from fewshot.errors import FewshotError

SPLITS = ("train", "val", "test")
PARTLY = "; to convert the part that is there, set dataset.reader.complete=false"
SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def official(dataset: str) -> dict[str, list[str]]:
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
    root: str | Path,
    cache: str | Path,
    look: Look,
    complete: bool,
    again: bool,
    find: Callable[[str], tuple[dict[str, Part], dict[str, str]]],
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
    folder = Path(cache) / f"{'-'.join(map(str, (dataset, *made_by.values())))}{'' if complete else '-part'}"
    if again or not (folder / "bank.json").exists():
        parts, words = find(_prepare_command(dataset, made_by | {"complete": str(complete).lower()}))
        splits = official(dataset)
        for split, part in parts.items():
            if not part.names:
                raise FewshotError(f"{root}: no class of {split} is there; add images of {splits[split][0]} or others")
        about = {"dataset": dataset, **words, **made_by, "complete": complete}
        convert(folder, parts, look, about, leaks="count", again=again)
    return open_banks(folder)


def _prepare_command(dataset: str, said: Mapping[str, object]) -> str:
    usual = {"size": 84, "resize": "squash", "resample": "lanczos", "complete": "true"}
    others = [f"dataset.reader.{name}={value}" for name, value in said.items() if value != usual[name]]
    return " ".join(["python tools/prepare.py", f"dataset={dataset}", *others])


def open_source(root: Path, wanted: Callable[[str], bool]) -> Files:
    """The files of a source, or those of the one archive in it where nothing else of it is wanted."""
    files = open_files(root)
    packed = [name for name in files.names if name.lower().endswith(ARCHIVES)]
    if root.is_dir() and len(packed) == 1 and not any(map(wanted, files.names)):
        return open_files(root / packed[0])
    return files


def is_image(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return name.lower().endswith(SUFFIXES)


def known_folders(files: Files, splits: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The images of each class of a published split, from folders of its name at any depth: already split, or not.

    Raises:
        FewshotError: folders that split the classes in another way, or a class in two places.
    """
    split_of = {name: split for split, names in splits.items() for name in names}
    found: dict[str, list[str]] = {}
    folder_of: dict[str, str] = {}
    claims: dict[str, str] = {}
    for name in files.names:
        path = PurePosixPath(name)
        known = path.parent.name
        if known not in split_of or not is_image(name):
            continue
        if folder_of.setdefault(known, str(path.parent)) != str(path.parent):
            raise FewshotError(
                f"{files.root}: class {known} lies in {folder_of[known]} and in {path.parent}; leave it in one place"
            )
        found.setdefault(known, []).append(name)
        word = SPLIT_WORDS.get(path.parent.parent.name.lower())
        if word:
            claims[known] = word
    # A folder of ImageNet's whole training set says nothing of few-shot splits.
    if len(set(claims.values())) > 1:
        for known, word in claims.items():
            if word != split_of[known]:
                raise FewshotError(
                    f"{files.root}: class {known} lies in {folder_of[known]}, but belongs to {split_of[known]} in the "
                    "published split; put it there, or read the folder as it is with dataset=folder"
                )
    return found


def check_official(
    where: str, parts: Mapping[str, Part], splits: Mapping[str, Sequence[str]], totals: Mapping[str, int] | int
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
            raise FewshotError(
                f"{where}: {len(missing)} of {len(splits[split])} classes of {split} are missing, such as {missing[0]}"
                f"{PARTLY}"
            )
        assert part is not None
        if extra := sorted(names - set(splits[split])):
            raise FewshotError(f"{where}: {extra[0]} is no class of {split} in the published split; remove it")
        counts = np.bincount(part.labels, minlength=len(part.names))
        if isinstance(totals, int):
            for name, count in zip(part.names, counts, strict=True):
                if count != totals:
                    raise FewshotError(f"{where}: class {name} has {count} images, not {totals}{PARTLY}")
        elif len(part.labels) != totals[split]:
            raise FewshotError(f"{where}: {len(part.labels)} images of {split}, not {totals[split]}{PARTLY}")
