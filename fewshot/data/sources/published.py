"""What the readers of published datasets share: their splits, their checks, and the road from a source to banks."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fewshot.core.errors import FewshotError
from fewshot.core.paths import expand_path
from fewshot.data.bank import SPLITS, Bank, open_banks
from fewshot.data.sources.archives import ARCHIVES, Files, open_source
from fewshot.data.sources.convert import convert
from fewshot.data.sources.faults import FaultsError, list_faults
from fewshot.data.sources.images import ImageSpec, describe_skipped, is_image
from fewshot.data.sources.layouts import SPLIT_WORDS, known_folders
from fewshot.data.sources.parts import SplitSource, check_parts, part_of_files

Splits = Mapping[str, Sequence[str]]  # class names of each split
Found = tuple[dict[str, SplitSource], dict[str, Any]]  # the source of each split, and metadata
PARTLY = "to convert the part that is there, set dataset.reader.allow_partial=true"


def published_split(dataset: str) -> dict[str, list[str]]:
    """The published classes of each split: WordNet ids for "mini" and "tiered", elsewhere names of class folders."""
    text = resources.files("fewshot.data").joinpath(f"splits/{dataset}.json").read_text(encoding="utf-8")
    listing = json.loads(text)
    splits = {}
    for split in SPLITS:
        # tieredImageNet's classes are listed below their superclasses.
        groups = listing[split].values() if isinstance(listing[split], dict) else [listing[split]]
        splits[split] = sorted(name for names in groups for name in names)
    return splits


@dataclass(frozen=True)
class PublishedDataset:
    """A dataset with a published split. Its `read` is the reader that configurations name.

    Attributes:
        name: as of its configuration, such as "mini".
        title: its name in messages.
        source: the paper, for the metadata.
        split_source: the paper of the split, for the metadata.
        is_wanted: is_wanted(name) tells whether a file may be read; see `open_source`.
        find: find(files, splits) finds the images of each split, or gives a text on what is missing, which is empty if
            nothing is there.
        check: check(where, parts, splits) compares complete data with the published numbers.
        download: download(root) fetches the dataset below the root.
        remedy: says which files to put below the root.
        archive: name of the authors' archive without its suffix; it is read if it is in the root.
        size: of its images where `read` is not told another, in pixels.
    """

    name: str
    title: str
    source: str
    split_source: str
    is_wanted: Callable[[str], bool]
    find: Callable[[Files, Splits], Found | str]
    check: Callable[[str, Mapping[str, SplitSource], Splits], None]
    download: Callable[[Path], None]
    remedy: str
    archive: str | None = None
    size: int = 84

    def read(
        self,
        root: str | Path,
        cache: str | Path,
        size: int | None = None,
        resize: str = "squash",
        resample: str = "lanczos",
        allow_partial: bool = False,
        download: bool = False,
        overwrite: bool = False,
    ) -> dict[str, Bank]:
        """The banks "train", "val" and "test" of images [M, 3, size, size] uint8, classes sorted by name.

        The source is converted once, in little memory; then the cache is opened without it.

        Args:
            root: folder or archive in one of the dataset's layouts, at any depth; or a folder with one archive in it.
            cache: folder that holds the bank folders.
            size: of the images, in pixels; None: as usual for the dataset.
            resize, resample: see `ImageSpec`.
            allow_partial: take the classes and images that are there, at least one class of each split, instead of
                demanding the published numbers. These banks go to a folder of their own.
            download: fetch the dataset into `root` if it is not there.
            overwrite: convert anew, whatever the cache holds.

        Raises:
            FewshotError: an argument is out of range, files are missing, damaged or in another layout, or the cache is
                damaged. If there are many faults, `<cache>/<name>-faults.txt` lists them.
        """
        root, cache = expand_path(root), expand_path(cache)
        size = self.size if size is None else size
        spec = ImageSpec(size, 3, resize, resample)
        folder = cache / f"{self.name}-{size}-{resize}-{resample}{'-part' if allow_partial else ''}"
        with list_faults(cache / f"{self.name}-faults.txt"):
            if overwrite or not (folder / "bank.json").exists():
                if not root.exists() and not download and not overwrite:
                    self._check_other_sizes(folder, size)
                splits = published_split(self.name)
                parts, metadata = self._find(root, splits, download)
                check_parts(str(root), parts)
                if not allow_partial:
                    self.check(str(root), parts, splits)
                metadata = {"dataset": self.name, "source": self.source, "split_source": self.split_source} | metadata
                metadata |= {"size": size, "resize": resize, "resample": resample, "allow_partial": allow_partial}
                convert(folder, parts, spec, metadata, on_overlap="count", overwrite=overwrite)
        return open_banks(folder)

    def _check_other_sizes(self, folder: Path, size: int) -> None:
        """Raises FewshotError where images of other sizes alone are prepared, from a source that is elsewhere."""
        pattern = folder.name.replace(f"-{size}-", "-*-", 1)
        others = [path.parent.name.split("-")[1] for path in folder.parent.glob(f"{pattern}/bank.json")]
        if others:
            raise FewshotError(
                f"{folder}: images of {size} pixels are not prepared, those of {' and '.join(sorted(others))} are: "
                f"prepare them too with `python tools/prepare.py dataset={self.name} source=<folder or archive> "
                f"dataset.reader.size={size}`, or name the source by dataset.reader.root"
            )

    def _find(self, root: Path, splits: Splits, download: bool) -> Found:
        result: Found | str = ""
        for is_last in (not download or root.is_file(), True):
            if root.exists():
                archives = root.glob(f"{self.archive}.*") if self.archive else ()
                archives = [path for path in sorted(archives) if path.name.lower().endswith(ARCHIVES)]
                files = open_source(archives[0] if archives else root, self.is_wanted)
                result = self.find(files, splits)
            if not isinstance(result, str):
                return result
            if is_last:
                break
            self.download(root)
        folders = ", or read class folders of other names with dataset=folder" if root.exists() else ""
        fetch = "" if download else ", or fetch it with dataset.reader.download=true"
        raise FewshotError(
            f"{root}: {result or f'no {self.title} is there'}: {self.remedy}, or name another place by source=<path> "
            f"of tools/prepare.py{folders}{fetch}"
        )


def find_class_folders(files: Files, splits: Splits) -> Found | None:
    """The images in folders with the names of published classes, and metadata; None if there are none.

    Raises:
        FewshotError: see `known_folders`.
    """
    folders = known_folders(files, splits)
    if not folders:
        return None
    parts = {
        split: part_of_files(files, {name: folders[name] for name in names if name in folders})
        for split, names in splits.items()
    }
    # Files in a class folder, or one folder below it.
    others = [
        name for name in files.names if not is_image(name) and not folders.keys().isdisjoint(name.split("/")[-3:-1])
    ]
    return parts, {"layout": "class folders", **describe_skipped(others)}


def files_by_split(files: Files, pattern: re.Pattern[str]) -> dict[str, str]:
    """The one file of each split whose name matches; the first group of the pattern is the split.

    Raises:
        FewshotError: a split has two such files.
    """
    file_of: dict[str, str] = {}
    for name in files.names:
        match = pattern.fullmatch(posixpath.basename(name))
        if match and (split := SPLIT_WORDS.get(match[1].lower())):
            if split in file_of:
                raise FewshotError(f"{files.root}: {file_of[split]} and {name} are both there: leave one of them")
            file_of[split] = name
    return file_of


def check_classes(where: str, parts: Mapping[str, SplitSource], splits: Splits) -> None:
    """Raise a FewshotError if a published class of a split is missing."""
    for split, part in parts.items():
        if missing := sorted(set(splits[split]) - set(part.names)):
            count = f"{len(missing)} of {len(splits[split])} classes of {split} are missing"
            raise FaultsError(
                f"{where}: {count}, such as {missing[0]}; {PARTLY}",
                [f"{where}: class {name} of {split} is missing" for name in missing],
            )
