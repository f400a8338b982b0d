"""Find classes and splits in the paths of a source's files, before any file is read."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from fewshot.core.errors import FewshotError
from fewshot.data.sources.archives import DAMAGED, Files, is_hidden
from fewshot.data.sources.faults import raise_faults
from fewshot.data.sources.images import HEAD_BYTES, has_image_magic, is_image, suffix_of

Classes = dict[str, list[str]]  # the image files of each class
Steps = tuple[str, ...]  # the folders that lead to an image

SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# Folders of these names are no classes if they are between a class and its images, or hold all images of a split.
BETWEEN = {
    *("data", "image", "images", "img", "imgs", "jpeg", "jpg", "photo", "photos", "picture", "pictures", "png"),
    *SPLIT_WORDS,
}
WANTED = (
    "wanted: <class>/<image>, or train, val and test with <class>/<image> in each, or a split.csv of columns "
    "filename,label,split"
)


def find_images(files: Files) -> list[str]:
    """The images of a source: by suffix, and files without a suffix by their first bytes."""
    bare = [name for name in files.names if not suffix_of(name)]
    images = set(filter(is_image, files.names))
    with files.session() as open_name:
        for name in bare:
            with suppress(*DAMAGED), open_name(name) as file:  # one that cannot be read does not hide the others
                if has_image_magic(file.read(HEAD_BYTES)):
                    images.add(name)
    return [name for name in files.names if name in images]


def leave_out_cache(files: Files, cache: Path, listed: bool) -> Files:
    """The files of a source without prepared data and run folders, which may lie beside the images.

    Args:
        listed: whether a file lists the images or classes, so that other folders do not matter.

    Raises:
        FewshotError: the folder of prepared data would be one of the class folders.
    """
    root, place = files.root.resolve(), cache.resolve()
    if not files.root.is_dir() or not place.is_relative_to(root):
        return files
    runs = [posixpath.dirname(name) for name in files.names if posixpath.basename(name) == "config.yaml"]
    runs = [run for run in runs if f"{run}/data.json" in files.names]  # which have pictures too
    below = tuple(f"{folder}/" for folder in (place.relative_to(root).as_posix(), *runs))
    names = [name for name in files.names if not name.startswith(below)]
    tops = {name.split("/")[0] for name in names if is_image(name)}
    if not listed and (place == root or len(tops) > 1):
        raise FewshotError(
            f"{files.root}: holds the folder of prepared data, {place}; put the images into a folder of their own, or "
            "set data_dir=<another folder>"
        )
    return replace(files, names=names)


def known_folders(files: Files, splits: Mapping[str, Sequence[str]]) -> Classes:
    """The images of each class of a published split, from folders with its name at any depth.

    The folders may be in folders of their splits or not. If a class's folder has no images itself, one folder below it
    is searched, as in `n01443537/images`.

    Raises:
        FewshotError: the folders split the classes in another way, or a class is in two places.
    """
    split_of = {name: split for split, names in splits.items() for name in names}
    direct: dict[str, dict[str, list[str]]] = {}  # class to the folders that hold its images
    deeper: dict[str, dict[str, list[str]]] = {}  # the same with one folder in between
    for name in filter(is_image, files.names):
        *_, grandparent, parent, _ = ["", "", *name.split("/")]
        known, group = (parent, direct) if parent in split_of else (grandparent, deeper)
        if known in split_of:
            group.setdefault(known, {}).setdefault(posixpath.dirname(name), []).append(name)
    folders_of = deeper | direct
    twice = [
        f"{files.root}: class {known} is in {' and in '.join(folders)}"
        for known, folders in folders_of.items()
        if len(folders) > 1
    ]
    raise_faults("classes in two places", twice, "leave it in one place")
    claimed = {}  # the split that each class's folder is in
    for known, folders in folders_of.items():
        (folder,) = folders
        above = folder.split("/")[: -1 if known in direct else -2]
        if above and above[-1].lower() in SPLIT_WORDS:
            claimed[known] = SPLIT_WORDS[above[-1].lower()]
    if len(set(claimed.values())) > 1:  # a single one is ImageNet's whole training set
        wrong = [
            f"{files.root}: class {known} is in {next(iter(folders_of[known]))}, but belongs to {split_of[known]} in "
            "the published split"
            for known, split in claimed.items()
            if split != split_of[known]
        ]
        raise_faults("classes in another split", wrong, "move it, or read the folder as it is with dataset=folder")
    return {known: images for known, folders in folders_of.items() for images in folders.values()}


def class_folders(files: Files, images: Sequence[str]) -> tuple[dict[str, Classes], list[str]]:
    """The class folders in each split's folder, or under "" if there are no folders of splits.

    All class folders may be in further folders, and so may their images, if these folders have the same name in every
    class: `data/train/images/cat/1.png` and `train/cat/images/1.png` are both image 1.png of class cat. If the splits
    have different names or depths, such folders are known by their names (`BETWEEN`). A class may have no images.

    Returns:
        The images of each class of each split, and the folders of splits that have images but no class folders, if
        other splits have some.

    Raises:
        FewshotError: the images are arranged in another way.
    """
    steps_of = {parent: tuple(filter(None, parent.split("/"))) for parent in map(posixpath.dirname, images)}
    paths, top = list(steps_of.values()), 0  # top: the number of folders that all images are in
    while min(map(len, paths)) > top + 1 and len({steps[top] for steps in paths}) == 1:
        if paths[0][top].lower() in SPLIT_WORDS:
            break
        top += 1
    above = paths[0][:top]
    example_of = {image.count("/"): image for image in reversed(images)}  # by depth

    def misplaced(problem: str) -> FewshotError:
        examples = " and ".join(example_of[depth] for depth in sorted(example_of))
        return FewshotError(f"{files.root}: {problem}: found {examples}; {WANTED}")

    if min(map(len, paths)) <= top:
        raise misplaced("images in no class folder")
    names = {steps[top] for steps in paths}
    split_folders = sorted(name for name in names if name.lower() in SPLIT_WORDS)
    if split_folders and len(split_folders) < len(names):
        if any(len({steps for steps in paths if steps[top] == split_folder}) > 1 for split_folder in split_folders):
            other = posixpath.join(*above, min(names - set(split_folders)))
            raise FewshotError(
                f"{files.root}: {other} is beside {posixpath.join(*above, split_folders[0])}, and is none of "
                f"{', '.join(SPLIT_WORDS)}; rename it, or move it elsewhere"
            )
        split_folders = []  # a class has the name of a split
    start = top + bool(split_folders)
    loose: list[str] = []
    inner: dict[str, list[Steps]] = {}  # of each split the folders below its own
    for split_folder in split_folders or [""]:
        parents = {
            parent: steps[start:]
            for parent, steps in steps_of.items()
            if not split_folders or steps[top] == split_folder
        }
        if len(parents) == 1 and _all_between(next(iter(parents.values()))):
            loose += parents
        else:
            inner[split_folder] = list(parents.values())
    if not inner or any(() in paths for paths in inner.values()):
        raise misplaced("images in no class folder")
    if any(len(set(map(len, paths))) > 1 for paths in inner.values()):
        raise misplaced("class folders at different depths")
    levels = _class_levels(list(inner.values()))
    classes_of: dict[str, Classes] = {}
    for split_folder, paths in inner.items():
        if (level := levels[len(paths[0])]) is None:
            raise misplaced("folders too deep")
        split = SPLIT_WORDS.get(split_folder.lower(), "")
        if split in classes_of:
            raise FewshotError(
                f"{files.root}: two folders of {split}, {posixpath.join(*above, split_folder)} is one; join them"
            )
        classes_of[split] = _classes_in(
            files, images, "/".join([*above, *filter(None, [split_folder]), *paths[0][:level]])
        )
    return classes_of, loose


def _class_levels(splits: Sequence[Sequence[Steps]]) -> dict[int, int | None]:
    """Which of the folders that lead to images is the class. Splits of one depth share the level.

    Every other level is a folder in between: no split has two names there, and its names are in `BETWEEN`, or all
    splits have the same name there while they differ at the class.

    Args:
        splits: the folders that lead to the images of each split, all of one depth in a split.

    Returns:
        The level by depth, or None if several levels or none may be the class.
    """
    depths = {len(paths[0]) for paths in splits}
    levels: dict[int, int | None] = {}
    for depth in depths:
        same_depth = [paths for paths in splits if len(paths[0]) == depth]
        names = [[{steps[level] for steps in paths} for paths in same_depth] for level in range(depth)]
        possible = [
            level for level in range(depth) if any(len(each) > 1 or not _all_between(each) for each in names[level])
        ]
        varying = [level for level in possible if len(set().union(*names[level])) > 1]
        chosen = varying if varying and len(depths) == 1 else possible
        levels[depth] = chosen[0] if len(chosen) == 1 else None
    return levels


def _all_between(names: Iterable[str]) -> bool:
    return all(name.lower() in BETWEEN for name in names)


def _classes_in(files: Files, images: Sequence[str], place: str) -> Classes:
    """The folders in a folder, with or without images, and the images below each."""
    prefix = f"{place}/" if place else ""
    level = prefix.count("/")
    names = {name.split("/")[level] for name in files.names if name.startswith(prefix) and name.count("/") > level}
    if files.root.is_dir():  # folders without any file
        names |= {path.name for path in (files.root / place).iterdir() if path.is_dir() and not is_hidden(path.name)}
    classes: Classes = {name: [] for name in names}
    for image in images:
        if image.startswith(prefix):
            classes[image.split("/")[level]].append(image)
    return classes
