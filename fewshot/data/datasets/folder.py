"""One's own images: any folder or archive of class folders."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewshot.core.checks import check_bool, check_choice
from fewshot.core.errors import FewshotError, TaskSizeError
from fewshot.core.paths import expand_path
from fewshot.data.bank import SPLITS, Bank, open_banks
from fewshot.data.sources import split_csv
from fewshot.data.sources.archives import ARCHIVES, Files, file_states, open_files
from fewshot.data.sources.convert import convert, remove_attempts
from fewshot.data.sources.faults import list_faults, raise_faults
from fewshot.data.sources.images import ImageSpec, describe_others, describe_skipped
from fewshot.data.sources.layouts import WANTED, Classes, class_folders, find_images, leave_out_cache
from fewshot.data.sources.parts import check_parts, part_of_files
from fewshot.data.sources.random_split import check_shares, split_at_random, split_sizes

MIN_CLASSES = 2  # of each split of a random split
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
RANDOM = "dataset.reader.split=random to split the classes anew"
SHARED = "rename one, or set dataset.reader.classes=same to test on classes of the training"


def read_folder(
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
    classes: str | None = None,
    on_overlap: str = "refuse",
    upright: bool = True,
    overwrite: bool = False,
) -> dict[str, Bank]:
    """The banks "train", "val" and "test" of images [M, channels, size, size] uint8.

    The images are in class folders, which may be in further folders, see `class_folders`. An image is what Pillow can
    open, by its suffix (`SUFFIXES`) or, if it has none, by its first bytes; the metadata say what was passed over. The
    names, sizes and times of change of the files name the bank folder, so that a changed source gives other banks.

    Args:
        root: folder or archive.
        cache: folder that holds the bank folders.
        name: of the dataset, in tables and in the name of the bank folder.
        size, channels, resize, resample: see `ImageSpec`.
        split: "folders": train, val (or valid, validation) and test hold the class folders of each.
            "csv": split.csv in `root` gives it, with columns class,split (of class folders) or filename,label,split (of
            images anywhere); or train.csv, val.csv and test.csv do, with columns filename,label. A filename is
            absolute, relative to `root`, or a unique end of a path. Images that are not listed are left out.
            "random": fractions of the classes. "auto": csv if there is one, else folders if there are, else random.
        fractions: of the classes in train, val and test if random, see `split_at_random`.
        seed: of that shuffle.
        csv: path of a CSV file that is used instead of split.csv; or of a JSON file with a list of classes for each
            split, such as Meta-Dataset's aircraft_splits.json, vgg_flower_splits.json or cu_birds_splits.json. A slash
            in the name of a class is _ or - in that of its folder.
        classes: None: no two splits share a class. "same": all splits have the same classes and other images of them; a
            random split is then one of the images of each class. The metadata say that the classes are the same.
        on_overlap: "refuse" images that two splits share, or "count" them.
        upright: images are turned as their EXIF data say.
        overwrite: convert anew, whatever the cache holds.

    Raises:
        FewshotError: an argument is out of range, the layout is another, a class or image is in two places, or an image
            is damaged. If there are many faults, `<cache>/<name>-faults.txt` lists them until a later call succeeds.
    """
    spec, name = ImageSpec(size, channels, resize, resample, upright), str(name)
    check_bool("dataset.reader.upright", upright)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise FewshotError(f"dataset.reader.name={name}: write letters, digits and ._- only, because it names a folder")
    check_choice("dataset.reader.split", split, ("auto", "folders", "csv", "random"))
    check_choice("dataset.reader.on_overlap", on_overlap, ("refuse", "count"))
    if classes is not None:
        check_choice("dataset.reader.classes", classes, ("same",))
    if csv is not None and split not in ("auto", "csv"):
        raise FewshotError(f"dataset.reader.csv is given, and split={split}: leave one of them out")
    shares = check_shares(fractions, seed)
    cache, place = expand_path(cache), expand_path(str(root))
    with list_faults(cache / f"{name}-faults.txt"):
        files = open_files(place)
        listed = csv is not None or any(map(split_csv.is_list, files.names))
        files = leave_out_cache(files, cache, listed)
        images = find_images(files)
        cut = _split_at_random if classes is None else _split_images_at_random
        splits, metadata = _find_splits(files, images, split, csv, lambda pooled: cut(files, pooled, shares, seed))
        _check_names(files, splits)
        if classes is not None:
            _check_same_classes(files, splits)
            metadata["classes"] = classes
        taken = sorted(file for classes in splits.values() for group in classes.values() for file in group)
        states = file_states([files.root / file for file in taken] if files.root.is_dir() else [files.root])
        metadata |= {"dataset": name, "source": "one's own images", "size": size, "channels": channels}
        metadata |= {"resize": resize, "resample": resample, "images_left_out": len(set(images) - set(taken))}
        metadata |= {"upright": True} if upright else {}  # older banks have no such key
        request = json.dumps([metadata, on_overlap, splits, states], sort_keys=True)
        folder = cache / f"{name}-{hashlib.sha256(request.encode()).hexdigest()[:12]}"
        if overwrite or not (folder / "bank.json").exists():
            lists = {name for name in files.names if "/" not in name and split_csv.is_list(name)}
            skipped = describe_skipped(set(files.names) - set(images) - lists - {str(csv)})
            left_out, notes = metadata["images_left_out"], metadata.get("notes", [])
            if left_out and not notes:
                place = "class folder" if "folders" in metadata["layout"] else "list of the split"
                notes = [f"left out {left_out:,} image{'s' if left_out > 1 else ''} in no {place}"]
            if notes := [*notes, *skipped.pop("notes", [])]:
                metadata["notes"] = notes
            parts = {each: part_of_files(files, splits[each]) for each in SPLITS}
            check_parts(str(files.root), parts, SHARED if classes is None else None)
            try:
                convert(folder, parts, spec, metadata | skipped, on_overlap=on_overlap, overwrite=overwrite)
            except FewshotError as error:
                if not isinstance(error.__cause__, OSError):  # a full disk, after which the same command goes on
                    remove_attempts(cache, folder.name)  # a mended source is another bank
                raise
        remove_attempts(cache, f"{name}-{'?' * 12}")
    return open_banks(folder)


def _find_splits(
    files: Files,
    images: list[str],
    split: str,
    csv: str | Path | None,
    split_at_random: Callable[[Classes], tuple[dict[str, Classes], str]],
) -> tuple[dict[str, Classes], dict[str, Any]]:
    """The images of each class of each split, and metadata on where the split comes from."""
    if split in ("auto", "csv"):
        if csv_files := split_csv.find_csv_files(files, images, csv):
            return _read_csv_split(files, images, csv_files)
        if split == "csv":
            raise FewshotError(
                f"{files.root}: neither split.csv nor train.csv, val.csv and test.csv is there; put one there, or name "
                f"it by dataset.reader.csv=<path>, or set {RANDOM}"
            )
    if not images:
        archive = next((name for name in files.names if name.lower().endswith(ARCHIVES)), None)
        remedy = f"give the archive {files.describe(archive)} instead" if archive else WANTED
        notes = describe_skipped(files.names).get("notes", [])
        raise FewshotError("; ".join([f"{files.root}: no images are there", *notes, remedy]))
    classes_of, loose = class_folders(files, images)
    if split == "folders" and ("" in classes_of or loose):
        lack = "no folders train, val and test are there; make them"
        if loose:
            lack = f"the images of {', '.join(loose)} are in no class folder; put them into some"
        raise FewshotError(f"{files.root}: {lack}, or set {RANDOM}")
    if split != "random" and "" not in classes_of and not (loose and len(classes_of) == 1):
        return classes_of, {"layout": "class folders in folders of the splits", "split_source": "the folders' own"}
    pooled = _pool(classes_of)
    empty = [
        f"{files.root}: class {name} has no images{describe_others(files.names, name)}"
        for name, group in sorted(pooled.items())
        if not group
    ]
    raise_faults("classes without images", empty, "add some, or remove the folder")
    splits, source = split_at_random(pooled)
    sources = ", ".join(sorted(classes_of))
    metadata: dict[str, Any] = {"layout": f"class folders, pooled from {sources}" if sources else "class folders"}
    if loose:
        count = sum(posixpath.dirname(image) in loose for image in images)
        note = f"left out {count:,} images of {', '.join(loose)}, which are in no class folder"
        metadata["notes"] = [f"{note}; the classes of {sources} are split at random"]
    return splits, metadata | {"split_source": source}


def _split_at_random(
    files: Files, pooled: Classes, shares: Sequence[float], seed: int
) -> tuple[dict[str, Classes], str]:
    """The classes of each split, and a text on how they were chosen."""
    count, sizes = len(pooled), split_sizes(len(pooled), shares)
    numbers = "/".join(map(str, sizes))
    if min(sizes) < MIN_CLASSES:
        few = count < 3 * MIN_CLASSES
        remedy = "add classes" if few else "set 'dataset.reader.fractions=[0.34,0.33,0.33]', or add classes"
        raise TaskSizeError(
            f"{files.root}: {count} classes would be split {numbers}, and each split needs {MIN_CLASSES}: {remedy}, or "
            "set dataset.reader.classes=same to test on other images of the same classes",
            {name: len(images) for name, images in pooled.items()},
        )
    names = split_at_random(list(pooled), shares, seed)
    splits = {split: {name: pooled[name] for name in own} for split, own in names.items()}
    return splits, f"{numbers} of the sorted classes, shuffled by numpy RandomState({seed})"


def _split_images_at_random(
    files: Files, pooled: Classes, shares: Sequence[float], seed: int
) -> tuple[dict[str, Classes], str]:
    """Other images of the same classes in each split, and a text on how they were chosen."""
    splits: dict[str, Classes] = {split: {} for split in SPLITS}
    few = []
    for name, images in sorted(pooled.items()):
        parts = split_at_random(images, shares, seed)
        for split, own in parts.items():
            splits[split][name] = own
        if lacking := [split for split, own in parts.items() if not own]:
            count = "1 image leaves" if len(images) == 1 else f"{len(images)} images leave"
            few.append(f"{files.root}: class {name}: {count} none for {' and '.join(lacking)}")
    raise_faults("classes with too few images", few, "add images, or change dataset.reader.fractions")
    percent = "/".join(f"{share:.0%}".rstrip("%") for share in shares)
    return splits, f"{percent} % of the sorted images of each class, shuffled by numpy RandomState({seed})"


def _check_same_classes(files: Files, splits: Mapping[str, Classes]) -> None:
    """Raise a FewshotError if a split lacks a class of another."""
    names = sorted(set().union(*splits.values()))
    lacking = [
        f"{files.root}: class {name} is not in {split}"
        for name in names
        for split in SPLITS
        if name not in splits[split]
    ]
    raise_faults("classes that a split lacks", lacking, "add or remove it, or leave dataset.reader.classes out")


def _pool(splits: Mapping[str, Classes]) -> Classes:
    """The classes of all splits; a class of several splits gets the images of all."""
    pooled: Classes = {}
    for classes in splits.values():
        for name, images in classes.items():
            pooled[name] = pooled.get(name, []) + images
    return pooled


def _read_csv_split(
    files: Files, images: Sequence[str], csv_files: split_csv.CsvFiles
) -> tuple[dict[str, Classes], dict[str, Any]]:
    """The images of each class of each split as CSV files give them, and metadata."""
    kind, rows = split_csv.read_rows(files, csv_files)
    if kind == "classes":
        folders = _pool(class_folders(files, images)[0]) if images else {}
        folder_of = {split_csv.to_nfc(name): name for name in folders}
        spellings = {item: [split_csv.to_nfc(item.replace("/", sign)) for sign in "/_-"] for item in rows}
        folders_of = {
            item: [folder_of[name] for name in names if name in folder_of] for item, names in spellings.items()
        }
        matches = {item: names[0] for item, names in folders_of.items() if names}
    else:
        folders, matches = {}, split_csv.match_images(files, images, rows)
    noun = "class folder" if kind == "classes" else "image"
    missing = [
        f"{row.where}: a row whose {noun} is missing: {item!r:.80}" for item, row in rows.items() if item not in matches
    ]
    raise_faults(f"rows whose {noun} is missing", missing, f"put it below {files.root}, or remove the row")
    splits: dict[str, Classes] = {}
    for item, row in rows.items():
        name = matches[item]
        label = name if kind == "classes" else row.label
        splits.setdefault(row.split, {}).setdefault(label, []).extend(folders.get(name, [name]))
    source = "train.csv, val.csv and test.csv" if len(csv_files) > 1 else "a CSV"
    source = "a JSON file" if any(str(name).lower().endswith(".json") for name in csv_files) else source
    return splits, {"layout": f"{source} of {kind}", "split_source": source}


def _check_names(files: Files, splits: Mapping[str, Classes]) -> None:
    """Raise a FewshotError if a split has no classes, a name cannot be printed, or two classes have nearly one name."""
    first_of: dict[str, tuple[str, str]] = {}
    unprintable, alike = [], []
    for split in SPLITS:
        if not splits.get(split):
            raise FewshotError(f"{files.root}: no classes of {split}; add some, or set {RANDOM}")
        for name, images in sorted(splits[split].items()):
            unprintable += [
                f"{files.root}: {text!a}: a name that cannot be printed"
                for text in (name, *images)
                if UNPRINTABLE.search(text)
            ]
            first, its_split = first_of.setdefault(split_csv.to_nfc(name).casefold(), (name, split))
            if first != name:
                alike.append(
                    f"{files.root}: classes {first} ({its_split}) and {name} ({split}) differ only by case or by how "
                    "letters are composed"
                )
    raise_faults("names that cannot be printed", unprintable, "rename it")
    raise_faults("pairs of classes with one name", alike, "rename one, or join them")
