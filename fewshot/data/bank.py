"""The Bank: the examples of one split sorted by class, memory-mapped from disk.

On disk, a folder: `bank.json` (what it is, class names and counts, a SHA-256 per split) and one
`<split>.npy` per split. Nothing is pickled; opening reads the JSON and maps the arrays.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch

from fewshot.core.errors import FewshotError, writing
from fewshot.core.paths import expand_path

FORMAT = 1
BLOCK = 1 << 24  # bytes read at once
# What damaged JSON and headers of arrays come to; the last two where NumPy reads a header as a program.
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError, SyntaxError, TokenError)


@dataclass(frozen=True)
class Split:
    """What a reader hands over for one split: examples sorted by class."""

    examples: np.ndarray  # [M, ...]: uint8 images [M, C, H, W] or float32 features [M, D]
    counts: list[int]  # examples of each class, in order; they sum to M
    names: list[str]  # class names, in the same order


@dataclass(frozen=True)
class Bank:
    """The examples of one split, sorted by class. Class c owns rows offsets[c] to offsets[c+1]."""

    examples: torch.Tensor  # [M, ...] uint8 images or float32 features
    offsets: torch.Tensor  # [classes + 1] int64
    names: tuple[str, ...]
    split: str
    fingerprint: str  # SHA-256 over dtype, shape, counts, names and bytes
    about: Mapping[str, Any]  # the reader's own words: source, versions, choices
    folder: Path | None = None  # where it lies
    behind: Bank | None = None  # whose rows follow, see `joined`

    @property
    def sizes(self) -> torch.Tensor:
        """[classes] number of examples of each class."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def image_fingerprint(self) -> str:
        """Fingerprint of what its examples stand for: of features that of their images, else its own."""
        return self.about.get("extractor", {}).get("images", {}).get(self.split, self.fingerprint)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.examples.shape[1:])

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """The examples at some rows: [R] int64 to [R, ...], on the index's device."""
        if self.behind is None:
            return self.examples.index_select(0, index.to(self.examples.device)).to(index.device)
        # Each row of both, though one is not meant: to pick out the others' rows first is to wait for a GPU.
        last = len(self.examples) - 1
        first = replace(self, behind=None).rows(index.clamp(max=last))
        second = self.behind.rows((index - last - 1).clamp(min=0))
        return torch.where((index <= last).view(-1, *[1] * len(self.shape)), first, second)

    def to(self, device: torch.device | str, *, examples: bool = True) -> Bank:
        """The same bank with its tensors on `device`, or all but the examples, which stay in their file."""
        placed = self.examples.to(device) if examples else self.examples
        return replace(self, examples=placed, offsets=self.offsets.to(device))


def fingerprint(split: Split) -> str:
    """SHA-256 over everything of a split that an episode can depend on."""
    digest = hashlib.sha256(_head(str(split.examples.dtype), split.examples.shape, split.counts, split.names))
    digest.update(np.ascontiguousarray(split.examples).data)
    return digest.hexdigest()


def fingerprint_of_file(
    path: Path, counts: Sequence[int], names: Sequence[str], each: Callable[[list[memoryview]], object]
) -> str:
    """The same of a split's file on disk, read once from end to end in little memory.

    Args:
        path: of the `<split>.npy`.
        counts, names: of its classes.
        each: is given the bytes of some rows, until all were given.

    Raises:
        ValueError: the file is shorter than it says.
    """
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    digest = hashlib.sha256(_head(str(array.dtype), array.shape, counts, names))
    size = array.dtype.itemsize * int(np.prod(array.shape[1:]))
    at_once = max(1, BLOCK // size)
    with path.open("rb") as file:
        file.seek(-size * len(array), os.SEEK_END)
        for first in range(0, len(array), at_once):
            block = memoryview(file.read(size * min(at_once, len(array) - first)))
            if len(block) < size * min(at_once, len(array) - first):
                raise ValueError(f"{path.name} is too short")
            digest.update(block)
            each([block[i : i + size] for i in range(0, len(block), size)])
    return digest.hexdigest()


def _head(dtype: str, shape: Sequence[int], counts: Sequence[int], names: Sequence[str]) -> bytes:
    return json.dumps([dtype, list(shape), list(counts), list(names)]).encode()


def write_banks(folder: str | Path, splits: Mapping[str, Split], about: Mapping[str, Any]) -> None:
    """Write one bank per split below `folder`, all or nothing.

    Raises:
        FewshotError: a class without examples, counts and names that do not fit the array, or a folder that cannot be
            written.
    """
    folder = expand_path(folder)
    listing: dict[str, Any] = {}
    for name, split in splits.items():
        if len(split.counts) != len(split.names) or sum(split.counts) != len(split.examples):
            raise FewshotError(f"{folder}: split {name}: counts, names and examples do not belong together")
        if min(split.counts, default=0) < 1:
            raise FewshotError(f"{folder}: split {name}: a class without examples")
        listing[name] = {
            "sha256": fingerprint(split),
            "dtype": str(split.examples.dtype),
            "shape": list(split.examples.shape),
            "counts": split.counts,
            "names": split.names,
        }
    with writing(folder, "another folder for the banks, as by data_dir"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, split in splits.items():
                np.save(scratch / f"{name}.npy", split.examples, allow_pickle=False)
            text = json.dumps({"format": FORMAT, "about": dict(about), "splits": listing}, indent=1)
            (scratch / "bank.json").write_text(text + "\n", encoding="utf-8")
            listed = folder / "bank.json"
            if listed.exists() and listed.read_bytes() == (scratch / "bank.json").read_bytes():
                return  # another process was first with the same bank
            scratch.chmod(0o755)  # mkdtemp's folders are for their owner alone
            replace_folder(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def replace_folder(scratch: Path, folder: Path) -> None:
    """Give whole banks their place; what lies there before goes when they have it, and comes back if they cannot."""
    aside = None
    if folder.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        os.replace(folder, aside)
    try:
        os.replace(scratch, folder)
    except OSError:
        if not (folder / "bank.json").exists():  # otherwise another process was first with the same bank
            if aside is not None:
                os.replace(aside, folder)
            raise
    for left in folder.parent.glob(f".{folder.name}-old-*"):
        shutil.rmtree(left, ignore_errors=True)


def verify(folder: Path, each: Callable[[str, list[memoryview]], object]) -> None:
    """Read every byte of the banks below `folder` and hold it against the fingerprints of bank.json.

    Args:
        each: is given the bytes of some rows of a split, until all were given.

    Raises:
        FewshotError: as `open_banks`, or bytes are not what they were.
    """
    for split, bank in open_banks(folder).items():
        path, counts = folder / f"{split}.npy", bank.sizes.tolist()
        found = fingerprint_of_file(path, counts, bank.names, lambda rows, split=split: each(split, rows))
        if found != bank.fingerprint:
            raise FewshotError(
                f"{path}: its content is not what it was when it was prepared; prepare the data again with force=true, "
                f"or delete the folder {folder}"
            )


def open_banks(folder: str | Path) -> dict[str, Bank]:
    """Open every split below `folder`, without reading the examples.

    Raises:
        FewshotError: `bank.json` is missing or unreadable, or an array is not what it says.
    """
    folder = expand_path(folder)
    remedy = f"delete the folder {folder} and prepare the data again"
    try:
        listing = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
        if listing["format"] != FORMAT:
            raise FewshotError(f"{folder}: bank format {listing['format']}, this code reads {FORMAT}: {remedy}")
        if not listing["splits"] or not all(name.isidentifier() for name in listing["splits"]):
            raise ValueError("bank.json names no splits, or not by plain words")
        return {name: _open(folder, name, entry, listing["about"]) for name, entry in listing["splits"].items()}
    except DAMAGED as error:
        raise FewshotError(f"{folder}: not a readable bank ({error}): {remedy}") from error


def concat_banks(first: Bank, second: Bank) -> Bank:
    """One bank of the classes of two, under the first one's split: for training on train and val together.

    The examples of both stay where they lie, on a GPU or in their files.
    """
    digest = hashlib.sha256((first.fingerprint + second.fingerprint).encode()).hexdigest()
    offsets = torch.cat([first.offsets, second.offsets[1:] + len(first.examples)])
    names = first.names + second.names
    return replace(first, offsets=offsets, names=names, fingerprint=digest, folder=None, behind=second)


def _open(folder: Path, split: str, entry: Mapping[str, Any], about: Mapping[str, Any]) -> Bank:
    # Copy-on-write keeps the file as it is while torch gets an array it may regard as writable.
    array = np.load(folder / f"{split}.npy", mmap_mode="c", allow_pickle=False)
    counts, names = [int(c) for c in entry["counts"]], [str(n) for n in entry["names"]]
    if str(array.dtype) != entry["dtype"] or list(array.shape) != entry["shape"] or not array.flags.c_contiguous:
        raise ValueError(f"{split}.npy holds {array.dtype} {array.shape}, bank.json says otherwise")
    if len(counts) != len(names) or sum(counts) != len(array) or min(counts, default=0) < 1:
        raise ValueError(f"bank.json: counts and names of {split} do not fit the array")
    offsets = torch.tensor([0, *counts], dtype=torch.int64).cumsum(0)
    return Bank(torch.from_numpy(array), offsets, tuple(names), split, str(entry["sha256"]), dict(about), folder)
