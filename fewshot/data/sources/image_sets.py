"""Images as a person lays them out to have them classified: class folders, a folder, or files."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewshot.core.device import count_cores
from fewshot.core.errors import FewshotError, one_line
from fewshot.data.sources.archives import ARCHIVES, DAMAGED, MAX_BYTES, Files, is_hidden, open_files
from fewshot.data.sources.faults import raise_faults
from fewshot.data.sources.images import ImageSpec, describe_others, describe_skipped, fit_image, open_image
from fewshot.data.sources.layouts import SPLIT_WORDS, find_images
from fewshot.data.sources.split_csv import to_nfc

AT_ONCE = 32  # files that are in memory at once


@dataclass(frozen=True)
class ImageSet:
    """Images of one source, each with the folder that names its class.

    Attributes:
        files: the source.
        names: of the images, as `files` has them.
        labels: the outermost folder of each image, below folders that have no other beside them; "" without one.
        above: the number of those folders.
        notes: lines for the user, such as on files that are no images.
    """

    files: Files
    names: list[str]
    labels: list[str]
    above: int = 0
    notes: Sequence[str] = ()

    @property
    def classes(self) -> list[str]:
        """The different labels, sorted."""
        return sorted(set(self.labels) - {""})


@dataclass(frozen=True)
class LoadedImage:
    """One image of a set, or what is wrong with it."""

    pixels: np.ndarray | None  # [C, size, size] uint8; None if it is damaged
    problem: str  # "" if it is not
    digest: bytes  # of the pixels in the file
    shape: tuple[int, int, int]  # (C, H, W) of the image in the file; zeros if it is damaged


def read_support(root: Path) -> ImageSet:
    """The images of the class folders in a folder or an archive. Each may hold further folders.

    All class folders may be in one folder, as in an archive of a folder.

    Raises:
        FewshotError: there are no such folders, one has no images, or an image is in none.
    """
    layout = "put a folder of images there for each class"
    if not root.exists():
        raise FewshotError(f"support={root}: no such folder; name one that holds a folder of images for each class")
    images = _image_set(open_files(root), "support", layout, below=1)
    loose = [name for name, label in zip(images.names, images.labels, strict=True) if not label]
    if loose:
        raise FewshotError(f"support={root}: {_count(loose)} in no class folder, such as {loose[0]}; {layout}")
    above = images.names[0].split("/")[: images.above]
    depth = min(name.count("/") for name in images.names) - images.above
    if depth > 1 and SPLIT_WORDS.keys() >= {name.lower() for name in images.classes}:
        inner = root.joinpath(*above, images.classes[0])
        remedy = f"name one, such as support={inner}" if root.is_dir() else "unpack it, and name one"
        raise FewshotError(f"support={root}: its folders are splits, not classes; {remedy}")
    folders = _folders(images.files, above)
    empty = [
        f"support={root}: class {folder} has no images{describe_others(images.files.names, folder)}"
        for folder in sorted(folders - set(images.classes))
    ]
    raise_faults("classes without images", empty, "put some there, or remove the folder")
    if len(images.classes) < 2:
        raise FewshotError(f"support={root}: has one class, {images.classes[0]}, and two are needed; {layout}")
    return images


def read_query(query: str, classes: Iterable[str]) -> ImageSet:
    """The images to classify: those of a folder or an archive at any depth, one file, or a pattern such as `a/*.jpg`.

    Args:
        classes: of the support set. A folder with one of these names labels its images, though all be in it.

    Raises:
        FewshotError: there are none.
    """
    path = Path(query)
    if path.is_dir() or (path.is_file() and path.name.lower().endswith(ARCHIVES)):
        return _image_set(open_files(path), "query", "name another folder", kept=set(classes))
    names = [query] if path.is_file() else sorted(filter(os.path.isfile, glob.glob(query, recursive=True)))
    if not names:
        raise FewshotError(
            f"query={query}: no such file or folder; name a folder of images, a file, or a pattern such as photos/*.jpg"
        )
    files = Files(Path(), names, lambda: nullcontext(lambda name: (Path() / name).open("rb")))
    return ImageSet(files, names, [""] * len(names))


def _image_set(files: Files, key: str, remedy: str, *, below: int = 0, kept: Set[str] = frozenset()) -> ImageSet:
    """The images of a source, labelled by their folders.

    Args:
        key, remedy: for the message where there are none.
        below: the number of folders that each image has below those that do not count, since none is beside them.
        kept: names of folders that count nevertheless.
    """
    names = sorted(find_images(files)) if files.root.is_dir() else find_images(files)
    if not names:
        notes = describe_skipped(files.names).get("notes", [])
        raise FewshotError("; ".join([f"{key}={files.root}: no images are there", *notes, remedy]))
    folders, above = [name.split("/")[:-1] for name in names], 0
    while min(map(len, folders)) > above + below:
        beside = _folders(files, folders[0][:above])
        if len(beside) > 1 or beside & kept:
            break
        above += 1
    labels = [to_nfc(path[above]) if len(path) > above else "" for path in folders]
    notes = describe_skipped(set(files.names) - set(names)).get("notes", [])
    return ImageSet(files, names, labels, above, [f"{key}: {note}" for note in notes])


def _folders(files: Files, above: list[str]) -> set[str]:
    """The folders in a folder of a source, with those that hold no file, if the source is no archive."""
    depth = len(above)
    paths = [name.split("/")[:-1] for name in files.names]
    folders = {to_nfc(path[depth]) for path in paths if path[:depth] == above and len(path) > depth}
    if files.root.is_dir():
        inside = files.root.joinpath(*above)
        folders |= {to_nfc(path.name) for path in inside.iterdir() if path.is_dir() and not is_hidden(path.name)}
    return folders


def _count(names: list[str]) -> str:
    return "1 image is" if len(names) == 1 else f"{len(names):,} images are"


def read_bytes(images: ImageSet, numbers: Iterable[int]) -> Iterator[bytes | ValueError]:
    """The contents of some of the images, in this order, or an error for one that cannot be read."""
    with images.files.session() as open_name:
        for number in numbers:
            try:
                with open_name(images.names[number]) as file:
                    data = file.read(MAX_BYTES + 1)
                yield data if len(data) <= MAX_BYTES else ValueError(f"more than {MAX_BYTES:,} bytes")
            except DAMAGED as error:
                yield ValueError(f"cannot be read ({one_line(error)})")


def load_images(images: ImageSet, spec: ImageSpec) -> Iterator[LoadedImage]:
    """Read and decode all images in order, AT_ONCE ahead at most."""
    contents = read_bytes(images, range(len(images.names)))
    with (
        ThreadPoolExecutor(count_cores()) as pool,
        warnings.catch_warnings(action="ignore"),  # Pillow warns of odd metadata, in every thread
    ):
        while batch := list(itertools.islice(contents, AT_ONCE)):
            yield from pool.map(lambda data: _load(data, spec), batch)


def _load(data: bytes | ValueError, spec: ImageSpec) -> LoadedImage:
    if isinstance(data, ValueError):
        return LoadedImage(None, str(data), b"", (0, 0, 0))
    try:
        with open_image(data, upright=spec.upright) as image:
            shape, pixels = (len(image.getbands()), image.height, image.width), fit_image(image, spec)
            digest = hashlib.blake2b(repr(shape).encode() + image.tobytes(), digest_size=16).digest()
    except ValueError as error:
        return LoadedImage(None, str(error), b"", (0, 0, 0))
    return LoadedImage(pixels, "", digest, shape)
