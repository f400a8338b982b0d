"""Images of one's own: any folder or archive of class folders."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewshot.core.errors import FewshotError
from fewshot.core.paths import expand_path
from fewshot.data.bank import Bank, open_banks
from fewshot.data.sources import split_csv as tables
from fewshot.data.sources.archives import ARCHIVES, Files, open_files
from fewshot.data.sources.convert import convert, remove_attempts
from fewshot.data.sources.faults import faults_listed, raise_faults
from fewshot.data.sources.images import ImageSpec
from fewshot.data.sources.layouts import SPLITS, WANTED, Classes, class_folders, describe_passed_over, find_images
from fewshot.data.sources.parts import part_of_files

LEAST = 2  # classes of a split made here
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
RANDOM = "dataset.reader.split=random to split the classes anew"


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
    on_overlap: str = "refuse",
    overwrite: bool = False,
) -> dict[str, Bank]:
    """The banks "train", "val" and "test" of images [M, channels, size, size] uint8.

    The images lie in class folders, which may all lie in some folders more, see `class_folders`. An image is what
    Pillow can open, by its suffix (`SUFFIXES`) or, where it has none, by its content; `about` says what was passed
    over. What they are converted to lies in a folder that is named by the files' names, sizes and times of change, too,
    so that a changed source gives other banks.

    Args:
        root: folder or archive.
        cache: folder in which the banks are kept, in a folder of their own.
        name: of the dataset, in tables and of the banks' folder.
        size, channels, resize, resample: see `ImageSpec`.
        split: "folders": train, val (or valid, validation) and test hold the class folders of each.
            "csv": split.csv in `root` says it, in columns class,split (of class folders) or filename,label,split (of
            images wherever they lie); or train.csv, val.csv and test.csv do, in columns filename,label. A filename is
            absolute, relative to `root`, or as much of its end as there is once. What is not listed is left out.
            "random": fractions of the classes. "auto": csv where there is one, folders where there are, else random.
        fractions: of the classes in train, val and test if random. The classes are sorted by name, then shuffled by
            numpy RandomState(seed), whose numbers stay the same in every version of NumPy.
        seed: of that.
        csv: a file to be taken for split.csv.
        on_overlap: "refuse" images that two splits share, or "count" them.
        overwrite: convert anew, whatever the cache holds.

    Raises:
        FewshotError: an argument out of range, another layout, a class or image in two places, or a damaged image. Of
            many mistakes the message names a few, and `<cache>/<name>-faults.txt` all, until a later call succeeds.
    """
    look, name = ImageSpec(size, channels, resize, resample), str(name)
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
    if on_overlap not in ("refuse", "count"):
        raise FewshotError(f"dataset.reader.on_overlap={on_overlap}: choose refuse or count")

    with faults_listed(expand_path(cache) / f"{name}-faults.txt"):
        files = open_files(expand_path(str(root)))
        source = f"{name} {look} {files.root.absolute()}"
        images = find_images(files)
        splits, about = _splits(files, images, split, shares, seed, csv)
        _check(files, splits)
        taken = sorted(file for classes in splits.values() for group in classes.values() for file in group)
        states = _states([files.root / file for file in taken] if files.root.is_dir() else [files.root])
        about |= {"dataset": name, "source": "images of one's own", "size": size, "channels": channels}
        about |= {"resize": resize, "resample": resample, "complete": True}
        about["images_left_out"] = len(set(images) - set(taken))
        words = json.dumps([about, on_overlap, splits, states], sort_keys=True)
        folder = expand_path(cache) / f"{name}-{hashlib.sha256(words.encode()).hexdigest()[:12]}"
        if overwrite or not (folder / "bank.json").exists():
            others = set(files.names) - set(images) - set(tables.LISTS) - {str(csv)}
            over = describe_passed_over(others)
            if notes := [*about.get("notes", []), *over.pop("notes", [])]:
                about["notes"] = notes
            parts = {each: part_of_files(files, splits[each]) for each in SPLITS}
            convert(folder, parts, look, about | over, on_overlap=on_overlap, overwrite=overwrite, source=source)
        remove_attempts(folder.parent, source)
    return open_banks(folder)


def _states(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Size and time of change of each file.

    Raises:
        FewshotError: some cannot be read, such as links that lead nowhere.
    """
    states, faults = [], []
    for path in paths:
        try:
            states.append(((stat := path.stat()).st_size, stat.st_mtime_ns))
        except OSError as error:
            faults.append(f"{error.filename}: cannot be read ({error.strerror})")
    raise_faults("files that cannot be read", faults, "mend it, or remove it")
    return states


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
    if not images:
        archive = next((file for file in files.names if file.lower().endswith(ARCHIVES)), None)
        remedy = f"; give the archive {files.where(archive)} instead" if archive else ""
        raise FewshotError(
            f"{files.root}: no images are there (.png, .jpg and what else Pillow can open)"
            f"{_but_has(files.names)}; {WANTED}{remedy}"
        )
    found, loose = class_folders(files, images)
    if split == "folders" and ("" in found or loose):
        lack = "no folders train, val and test are there; make them"
        if loose:
            lack = f"the images of {', '.join(loose)} lie in no class folder; put them into some"
        raise FewshotError(f"{files.root}: {lack}, or set {RANDOM}")
    if split != "random" and "" not in found and not (loose and len(found) == 1):
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
    about: dict[str, Any] = {"layout": layout, "split_source": source}
    if loose:
        left = sum(posixpath.dirname(image) in loose for image in images)
        left = f"left out {left:,} images of {', '.join(loose)}, which lie in no class folder"
        about["notes"] = [f"{left}; the {count} classes of {', '.join(sorted(found))} are split at random"]
    return splits, about


def _pooled(found: Mapping[str, Classes]) -> Classes:
    pooled: Classes = {}
    for classes in found.values():
        for name, images in classes.items():
            pooled[name] = pooled.get(name, []) + images
    return pooled


def _listed(files: Files, images: Sequence[str], lists: tables.Lists) -> tuple[dict[str, Classes], dict[str, Any]]:
    """The classes of each split as CSVs say."""
    what, rows = tables.listed(files, lists)
    splits: dict[str, Classes] = {}
    if what == "classes":
        folders = _pooled(class_folders(files, images)[0]) if images else {}
        names = {tables.to_nfc(name): name for name in folders}
        found = {item: names[own] for item in rows if (own := tables.to_nfc(item)) in names}
    else:
        folders, found = {}, tables.found_images(files, images, rows)
    kind = "class folder" if what == "classes" else "image"
    missing = [
        f"{row.where}: a row whose {kind} is missing: {item!r:.80}" for item, row in rows.items() if item not in found
    ]
    raise_faults(f"rows whose {kind} is missing", missing, f"put it below {files.root}, or remove the row")
    for item, row in rows.items():
        label = found[item] if what == "classes" else row.label
        splits.setdefault(row.split, {}).setdefault(label, []).extend(folders.get(found[item], [found[item]]))
    source = "train.csv, val.csv and test.csv" if len(lists) > 1 else "a CSV"
    return splits, {"layout": f"{source} of {what}", "split_source": source}


def _check(files: Files, splits: Mapping[str, Classes]) -> None:
    """Hold what was found against what every dataset needs."""
    seen: dict[str, tuple[str, str]] = {}
    unprintable, alike, shared, empty, twins = [], [], [], [], []
    for split in SPLITS:
        if not splits.get(split):
            raise FewshotError(f"{files.root}: no classes of {split}; add some, or set {RANDOM}")
        for name, images in sorted(splits[split].items()):
            unprintable += [
                f"{files.root}: {text!a}: a name that cannot be printed"
                for text in (name, *images)
                if UNPRINTABLE.search(text)
            ]
            other, its = seen.setdefault(tables.to_nfc(name).casefold(), (name, split))
            if other != name:
                alike.append(
                    f"{files.root}: classes {other} ({its}) and {name} ({split}) differ only by case or "
                    "by how letters are composed"
                )
            elif its != split:
                shared.append(f"{files.root}: class {name} is in {its} and in {split}, and splits share no class")
            if not images:
                over = [file for file in files.names if name in file.split("/")[:-1]]
                empty.append(f"{files.root}: class {name} has no images{_but_has(over)}")
            stems: dict[str, str] = {}
            for image in images:
                twin = stems.setdefault(tables.to_nfc(posixpath.splitext(image)[0]).casefold(), image)
                if twin != image:
                    twins.append(f"{files.root}: {twin} and {image} differ only by suffix or case")
    raise_faults("names that cannot be printed", unprintable, "rename it")
    raise_faults("pairs of classes with one name", alike, "rename one, or join them")
    raise_faults("classes in two splits", shared, f"rename one, or set {RANDOM}")
    raise_faults("classes without images", empty, "put some there, or remove the folder")
    raise_faults("pairs of files that may be one image", twins, "they may be one image twice; remove or rename one")


def _but_has(names: Sequence[str]) -> str:
    """What there is in place of images."""
    over = describe_passed_over(names)
    return f", but {over['notes'][0].removeprefix('passed over ')}" if over else ""
