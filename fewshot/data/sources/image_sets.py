"""Images as a person lays them out to have them classified: class folders, a folder, or files."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fewshot.core.errors import FewshotError, one_line
from fewshot.data.sources.archives import ARCHIVES, DAMAGED, MAX_BYTES, Files, open_files
from fewshot.data.sources.faults import raise_faults
from fewshot.data.sources.images import ImageSpec, describe_skipped, fit_image, open_image
from fewshot.data.sources.layouts import find_images

AT_ONCE = 32  # files that are in memory at once


@dataclass(frozen=True)
class ImageSet:
    """Images of one source, each with the folder that names its class.

    Attributes:
        files: the source.
        names: of the images, as `files` has them.
        labels: the outermost folder of each image; "" where it is in none, or where that folder is no class.
    """

    files: Files
    names: list[str]
    labels: list[str]

    @property
    def classes(self) -> list[str]:
        """The different labels, sorted."""
        return sorted(set(self.labels) - {""})


@dataclass(frozen=True)
class LoadedImage:
    """One image of a set, or what is wrong with it."""

    pixels: np.ndarray | None  # [C, size, size] uint8; None if it is damaged
    problem: str  # "" if it is not
    digest: bytes  # of the file's bytes
    shape: tuple[int, int, int]  # (C, H, W) of the image in the file; zeros if it is damaged


def read_support(root: Path) -> ImageSet:
    """The images of the class folders in a folder or an archive. Each may hold further folders.

    Raises:
        FewshotError: there are no such folders, one has no images, or an image is in none.
    """
    layout = "put a folder of images there for each class"
    if not root.exists():
        raise FewshotError(f"support={root}: no such folder; name one that holds a folder of images for each class")
    images = _image_set(open_files(root), "support", layout)
    loose = [name for name, label in zip(images.names, images.labels, strict=True) if not label]
    if loose:
        raise FewshotError(f"support={root}: {_count(loose)} in no class folder, such as {loose[0]}; {layout}")
    folders = {name.split("/")[0] for name in images.files.names if "/" in name}
    if root.is_dir():  # folders without any file
        folders |= {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    empty = [f"support={root}: class {folder} has no images" for folder in sorted(folders - set(images.classes))]
    raise_faults("classes without images", empty, "put some there, or remove the folder")
    if len(images.classes) < 2:
        raise FewshotError(f"support={root}: has one class, {images.classes[0]}, and two are needed; {layout}")
    return images


def read_query(query: str, classes: Iterable[str]) -> ImageSet:
    """The images to classify: those of a folder or an archive at any depth, one file, or a pattern such as `a/*.jpg`.

    An image has a label if its outermost folder has the name of one of the classes.

    Raises:
        FewshotError: there are none.
    """
    path = Path(query)
    if path.is_dir() or (path.is_file() and path.name.lower().endswith(ARCHIVES)):
        images, known = _image_set(open_files(path), "query", "name another folder"), set(classes)
        return replace(images, labels=[label if label in known else "" for label in images.labels])
    names = [query] if path.is_file() else sorted(filter(os.path.isfile, glob.glob(query, recursive=True)))
    if not names:
        raise FewshotError(
            f"query={query}: no such file or folder; name a folder of images, a file, or a pattern such as photos/*.jpg"
        )
    files = Files(Path(), names, lambda: nullcontext(lambda name: (Path() / name).open("rb")))
    return ImageSet(files, names, [""] * len(names))


def _image_set(files: Files, key: str, remedy: str) -> ImageSet:
    names = sorted(find_images(files)) if files.root.is_dir() else find_images(files)
    if not names:
        notes = describe_skipped(files.names).get("notes", [])
        raise FewshotError("; ".join([f"{key}={files.root}: no images are there", *notes, remedy]))
    return ImageSet(files, names, [name.split("/")[0] if "/" in name else "" for name in names])


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
        ThreadPoolExecutor(os.cpu_count()) as pool,
        warnings.catch_warnings(action="ignore"),  # Pillow warns of odd metadata, in every thread
    ):
        while batch := list(itertools.islice(contents, AT_ONCE)):
            yield from pool.map(lambda data: _load(data, spec), batch)


def _load(data: bytes | ValueError, spec: ImageSpec) -> LoadedImage:
    if isinstance(data, ValueError):
        return LoadedImage(None, str(data), b"", (0, 0, 0))
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        with open_image(data) as image:
            shape = len(image.getbands()), image.height, image.width
            return LoadedImage(fit_image(image, spec), "", digest, shape)
    except ValueError as error:
        return LoadedImage(None, str(error), digest, (0, 0, 0))
