"""CUB-200-2011: 11,788 images of 200 species of birds (Wah et al. 2011, The Caltech-UCSD Birds-200-2011 Dataset)."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from fewshot.core.errors import FewshotError, one_line
from fewshot.core.paths import expand_path
from fewshot.data.bank import Bank
from fewshot.data.sources.archives import ARCHIVES, DAMAGED, Files, open_files
from fewshot.data.sources.download import fetch
from fewshot.data.sources.faults import raise_faults
from fewshot.data.sources.images import ImageSpec, web_page
from fewshot.data.sources.layouts import (
    PARTLY,
    SPLIT_WORDS,
    SPLITS,
    check_official,
    known_folders,
    other_ways,
    passed_over,
    published_banks,
    published_split,
)
from fewshot.data.sources.parts import SplitSource, part_of_files

NAME = "CUB_200_2011"
# As in learn2learn 0.2.0, learn2learn/vision/datasets/cu_birds200.py.
URL = "https://zenodo.org/record/8000562/files/CUB_200_2011.tgz"
PAGE = "https://data.caltech.edu/records/65de6-vp158"  # where the authors publish it
IMAGES = 11_788


def read(
    root: str | Path,
    cache: str | Path,
    size: int = 84,
    resize: str = "squash",
    resample: str = "lanczos",
    complete: bool = True,
    download: bool = False,
    overwrite: bool = False,
) -> dict[str, Bank]:
    """The banks "train", "val" and "test" of images [M, 3, size, size] uint8: 100, 50 and 50 species.

    The split is that of Chen et al. 2019 (A Closer Look at Few-shot Classification), by the class's index modulo 2 and
    4. Others are in use: learn2learn's has 140/30/30. Class names are "001.Black_footed_Albatross" and so on. Images
    are taken whole, without the bounding boxes. What is there is converted once, in a stream; then the cache is opened
    without it.

    Args:
        root: folder with CUB_200_2011.tgz (or what else a browser made of it: .tar, .zip), or with the folder that it
            unpacks to, or with folders of images at any depth that are named like the classes; or an archive of them.
        cache: folder in which the banks are kept, in a folder of their own.
        size, resize, resample: see `ImageSpec`.
        complete: demand all 200 classes, 11,788 images in all and, where images.txt lies there, those that it lists;
            otherwise what is there is taken, in a folder of another name.
        download: fetch the archive into `root` where there is nothing.
        overwrite: convert anew, whatever the cache holds.

    Raises:
        FewshotError: an argument out of range, images that are missing, too many or damaged, or a damaged cache.
    """

    root = expand_path(root)

    def find(command: str) -> tuple[dict[str, SplitSource], dict[str, Any]]:
        splits = published_split("cub")
        files, found = _source(root, splits, download, command)
        parts = {
            split: part_of_files(files, {name: found[name] for name in splits[split] if name in found})
            for split in SPLITS
        }
        if complete:
            totals = {split: len(part.labels) for split, part in parts.items()}
            check_official(str(files.root), parts, splits, totals)  # the classes alone: only the sum is published
            _check_listing(files, [name for names in found.values() for name in names])
            if sum(totals.values()) != IMAGES:
                raise FewshotError(f"{files.root}: {sum(totals.values())} images, not {IMAGES}{PARTLY}")
        is_split = all(
            any(name.lower() in SPLIT_WORDS for name in names[0].split("/")[:-2]) for names in found.values()
        )
        layout = "class folders of each split" if is_split else "class folders"
        layout += " in a folder" if files.root.is_dir() else " in an archive"
        about = {"source": "CUB-200-2011 (Wah et al. 2011), whole images", "layout": layout}
        about["split_source"] = "Chen et al. 2019: classes by index modulo 2 and 4, 100/50/50"
        return parts, about | passed_over(files, splits)

    return published_banks("cub", root, cache, ImageSpec(size, 3, resize, resample), complete, overwrite, find)


def _source(
    root: Path, splits: dict[str, list[str]], download: bool, command: str, tried: bool = False
) -> tuple[Files, dict[str, list[str]]]:
    """What is read, and the images of each class in it. The archive comes first: it is what the authors publish."""
    archives = [path for suffix in (".tgz", *ARCHIVES) if (path := root / f"{NAME}{suffix}").is_file()]
    if root.exists():
        files = open_files(archives[0] if archives else root, PAGE)
        # Masks of the same names, which are published apart, may have been unpacked beside the images.
        images = replace(files, names=[name for name in files.names if "segmentations" not in name.split("/")])
        if found := known_folders(images, splits):
            return files, found
    if download and not archives and not root.is_file():
        fetch(URL, root / f"{NAME}.tgz", check=_check_download, what=f"{NAME}.tgz")
        return _source(root, splits, False, command, tried=True)
    if archives or root.is_file():
        raise FewshotError(
            f"{archives[0] if archives else root}: without class folders of CUB-200-2011, such as {splits['train'][0]}"
            f": replace it by {NAME}.tgz from {PAGE}, or name another place by source=<path>"
        )
    raise FewshotError(
        f"{root}: no CUB-200-2011 is there: put {NAME}.tgz from {PAGE} there, or the folder {NAME} that it unpacks to"
        f"{other_ways(root, command, download or tried)}"
    )


def _check_download(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(512)
    if web_page(head):
        raise FewshotError(f"{path}: a web page, not the archive")
    if not head.startswith(b"\x1f\x8b"):
        raise FewshotError(f"{path}: no gzip file")
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):  # to its end, where the checksum stands
                pass
    except DAMAGED as error:
        raise FewshotError(f"{path}: not a whole archive ({one_line(error)})") from error


def _check_listing(files: Files, images: Iterable[str]) -> None:
    """Hold the images against images.txt, where there is one: lines "<number> <class folder>/<file>".

    Raises:
        FewshotError: a line that is none, or an image that is missing or not listed.
    """
    name = next((name for name in files.names if PurePosixPath(name).name == "images.txt"), None)
    if name is None:
        return
    where = files.where(name)
    try:
        lines = b"".join(files.read([name])).decode().splitlines()
    except DAMAGED as error:
        raise FewshotError(f"{where}: cannot be read ({one_line(error)}); fetch it again") from error
    there = {"/".join(PurePosixPath(image).parts[-2:]): image for image in images}
    faults = []
    for number, line in enumerate(lines, start=1):
        index, _, image = line.strip().partition(" ")
        if not index.isdecimal() or image.count("/") != 1:
            raise FewshotError(f"{where}: line {number} is not '<number> <class>/<image>'; fetch it again")
        if there.pop(image, None) is None:
            faults.append(f"{where}: line {number}: a row whose image is missing: {image}")
    raise_faults("rows without an image", faults, f"fetch it again{PARTLY}")
    stray = [f"{files.where(image)}: not listed in images.txt" for image in sorted(there.values())]
    raise_faults("images that are not listed", stray, f"remove it{PARTLY}")
