"""The Bank: the examples of one split, sorted by class and memory-mapped from disk.

On disk a bank folder holds `bank.json` (format, metadata, and for each split its class names, class sizes and SHA-256)
and one `<split>.npy` per split; `<split>.txt` has a line with the file of each image, where images came from files.
Nothing is pickled. Opening reads the JSON and maps the arrays.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch

from fewshot.core.errors import FewshotError, writing
from fewshot.core.paths import expand_path
from fewshot.data.tensors import Examples, Labels, as_examples, check_finite, number_labels

SPLITS = ("train", "val", "test")
FORMAT = 1
BLOCK = 1 << 24  # bytes that are hashed at once
# What reading damaged JSON or a damaged .npy header can raise. NumPy parses a header as Python source.
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError, SyntaxError, TokenError)
DAMAGED += (FileNotFoundError, NotADirectoryError)  # other OSErrors are of the machine or of permissions


@dataclass(frozen=True)
class Split:
    """The examples of one split, sorted by class, as a reader hands them to `write_banks`."""

    examples: np.ndarray  # [M, ...]: uint8 images [M, C, H, W] or float32 features [M, D]
    counts: list[int]  # number of examples of each class, in order; they sum to M
    names: list[str]  # class names, in the same order


@dataclass(frozen=True)
class Bank:
    """The examples of one split, sorted by class. Class c owns rows offsets[c] to offsets[c+1]."""

    examples: torch.Tensor  # [M, ...] uint8 images or float32 features
    offsets: torch.Tensor  # [classes + 1] int64
    names: tuple[str, ...]
    split: str
    fingerprint: str  # SHA-256 over dtype, shape, counts, names and bytes
    metadata: Mapping[str, Any]  # written by the reader: source, versions, choices
    folder: Path | None = None  # the bank folder
    tail: Bank | None = None  # a second bank whose rows follow these, see `concat_banks`
    images: Bank | None = None  # the images whose features these are, row by row

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        return f"Bank({self.split}, {len(self.names):,} classes, {len(self.examples):,} examples of {shape})"

    @classmethod
    def from_tensors(cls, x: Examples, y: Labels, *, split: str = "train", name: str = "tensors") -> Bank:
        """A bank in memory, of examples in any order.

        Args:
            x: [M, ...], one array or a list of M: images [M, C, H, W], uint8 or floats; features [M, D], which are
                drawn as unit vectors; or other floats.
            y: [M] labels of any kind that can be hashed, such as numbers or names.
            split: a name, of which the draws of a sampler depend: two banks with two names give other tasks.
            name: of the dataset, for messages and records.

        Raises:
            FewshotError: shapes, types or numbers of examples and labels are not these, or a value is not finite.
        """
        x = as_examples("x", x)
        check_finite("x", x)
        labels, numbers = number_labels("y", y, len(x))
        names = [str(label) for label in labels]
        if len(set(names)) < len(names):
            names = [repr(label) for label in labels]
        counts = torch.bincount(numbers, minlength=len(labels)).tolist()
        examples = x.detach()[numbers.argsort(stable=True).to(x.device)].contiguous()
        digest = fingerprint(Split(examples.cpu().numpy(), counts, names))
        offsets = torch.tensor([0, *counts], device=x.device).cumsum(0)
        return cls(examples, offsets, tuple(names), split, digest, {"dataset": name})

    @property
    def sizes(self) -> torch.Tensor:
        """[classes] number of examples of each class."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def image_fingerprint(self) -> str:
        """Fingerprint of the underlying images if this bank holds their features, else of the bank itself."""
        return self.metadata.get("extractor", {}).get("images", {}).get(self.split, self.fingerprint)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.examples.shape[1:])

    def image_names(self) -> list[str]:
        """[M] the file of each image, relative to the source; without files class and number there, from 0: `cat/3`."""
        if self.tail is not None:
            classes = len(self.names) - len(self.tail.names)
            head = replace(self, offsets=self.offsets[: classes + 1], names=self.names[:classes], tail=None)
            return head.image_names() + self.tail.image_names()
        if self.images is not None:
            return self.images.image_names()
        if self.folder is not None:
            with suppress(OSError, ValueError):
                names = (self.folder / f"{self.split}.txt").read_text(encoding="utf-8").split("\n")[:-1]
                if len(names) == len(self.examples):
                    return names
        counts = self.sizes.tolist()
        return [f"{name}/{i}" for name, count in zip(self.names, counts, strict=True) for i in range(count)]

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """The examples at the given rows: [R] int64 to [R, ...], on the index's device."""
        if self.tail is None:
            return self.examples.index_select(0, index.to(self.examples.device)).to(index.device)
        # Both banks gather R rows and `where` picks. Selecting the rows of each bank first would wait for the GPU.
        last = len(self.examples) - 1
        head_rows = replace(self, tail=None).rows(index.clamp(max=last))
        tail_rows = self.tail.rows((index - last - 1).clamp(min=0))
        return torch.where((index <= last).view(-1, *[1] * len(self.shape)), head_rows, tail_rows)

    def to(self, device: torch.device | str, *, examples: bool = True) -> Bank:
        """The same bank on `device`; with examples=False the examples stay where they are, such as in their file."""
        moved = self.examples.to(device) if examples else self.examples
        return replace(self, examples=moved, offsets=self.offsets.to(device))


def fingerprint(split: Split) -> str:
    """SHA-256 over everything of a split that an episode can depend on."""
    digest = _start_digest(split.examples, split.counts, split.names)
    digest.update(np.ascontiguousarray(split.examples).data)
    return digest.hexdigest()


def fingerprint_of_file(
    path: Path, counts: Sequence[int], names: Sequence[str], on_block: Callable[[np.ndarray], object]
) -> str:
    """The fingerprint of a split on disk, computed block by block in little memory.

    Args:
        path: the `<split>.npy` file.
        counts, names: of its classes.
        on_block: called with consecutive blocks of rows [R, ...], until all rows were given.

    Raises:
        ValueError: the file is shorter than its header says.
    """
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    digest = _start_digest(array, counts, names)
    rows_at_once = max(1, BLOCK // (array.itemsize * int(np.prod(array.shape[1:]))))
    for start in range(0, len(array), rows_at_once):
        block = np.ascontiguousarray(array[start : start + rows_at_once])
        digest.update(block.data)
        on_block(block)
    return digest.hexdigest()


def _start_digest(examples: np.ndarray, counts: Sequence[int], names: Sequence[str]) -> Any:
    header = [str(examples.dtype), list(examples.shape), [int(count) for count in counts], list(names)]
    return hashlib.sha256(json.dumps(header).encode())


def write_banks(folder: str | Path, splits: Mapping[str, Split], metadata: Mapping[str, Any]) -> None:
    """Write one bank per split below `folder`, all of them or none.

    Raises:
        FewshotError: a split's name is no plain word, the splits are not as `Split` says, or hold an empty class, two
            of one name or values that are not finite, the metadata have a name of ours, or the folder refuses.
    """
    folder = expand_path(folder)
    for name in ("images", "extractor"):
        if not isinstance(metadata.get(name, {}), Mapping):
            raise FewshotError(f"{folder}: metadata: {name} must say what features were made of; choose another name")
    listing: dict[str, Any] = {}
    for name, split in splits.items():
        if not name.isidentifier():
            raise FewshotError(f"{folder}: split {name!r}: choose a plain word, such as train, which can name a file")
        if len(split.counts) != len(split.names) or sum(split.counts) != len(split.examples):
            raise FewshotError(f"{folder}: split {name}: counts, names and examples do not fit together")
        if min(split.counts, default=0) < 1:
            raise FewshotError(f"{folder}: split {name}: a class has no examples")
        if len(set(split.names)) < len(split.names):
            raise FewshotError(f"{folder}: split {name}: two classes have one name; give each its own")
        _check_examples(f"{folder}: split {name}", split.examples)
        listing[name] = list_split(fingerprint(split), split.examples, split.counts, split.names)
    with writing(folder, "another folder for the banks, as by data_dir"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, split in splits.items():
                np.save(scratch / f"{name}.npy", np.ascontiguousarray(split.examples), allow_pickle=False)
            write_listing(scratch, listing, metadata)
            if _is_equal(scratch, folder):
                return  # another process has just written the same bank
            scratch.chmod(0o755)  # mkdtemp lets only the owner in
            replace_folder(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _is_equal(scratch: Path, folder: Path) -> bool:
    """Whether the folder has all files of `scratch`, with equal bytes."""
    pairs = [(path, folder / path.name) for path in scratch.iterdir()]
    return all(there.is_file() and filecmp.cmp(path, there, shallow=False) for path, there in pairs)


def _check_examples(where: str, examples: np.ndarray) -> None:
    """Raises FewshotError where examples are not as `Split` says; looks at the values block by block."""
    if examples.dtype not in (np.uint8, np.float32):
        raise FewshotError(f"{where}: examples of {examples.dtype}; give uint8 images or float32 features")
    as_examples(where, np.array(examples[:1]))  # a copy, since torch warns of an array that it may not write to
    rows = max(1, BLOCK // max(1, examples[:1].nbytes))
    for first in range(0, len(examples) if examples.dtype == np.float32 else 0, rows):
        if not np.isfinite(examples[first : first + rows]).all():
            raise FewshotError(f"{where}: holds values that are not finite; look for NaN in it")


def list_split(sha256: str, examples: np.ndarray, counts: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """The entry of one split in bank.json."""
    entry = {"sha256": sha256, "dtype": str(examples.dtype), "shape": list(examples.shape)}
    return entry | {"counts": [int(count) for count in counts], "names": list(names)}


def write_listing(folder: Path, listing: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Write bank.json, with an entry per split as `list_split` makes them."""
    text = json.dumps({"format": FORMAT, "about": dict(metadata), "splits": listing}, indent=1)
    (folder / "bank.json").write_text(text + "\n", encoding="utf-8")


def list_images(folder: Path, split: str, names: Sequence[str]) -> None:
    """Write the name of the image in each row of a split, which `Bank.image_names` reads."""
    (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), "utf-8", "backslashreplace")


def replace_folder(scratch: Path, folder: Path) -> None:
    """Replace `folder` with `scratch`; restore the old one on failure. For a moment there is neither."""
    aside = None
    if folder.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        os.replace(folder, aside)
    try:
        os.replace(scratch, folder)
    except OSError:
        if not (folder / "bank.json").exists():  # otherwise another process has just written the same bank
            if aside is not None:
                os.replace(aside, folder)
            raise
    for old in folder.parent.glob(f".{folder.name}-old-*"):
        shutil.rmtree(old, ignore_errors=True)


def open_banks(folder: str | Path) -> dict[str, Bank]:
    """Open every split below `folder` without reading the examples.

    Raises:
        FewshotError: `bank.json` or an array is missing, damaged, or does not fit the other.
    """
    folder = expand_path(folder)
    remedy = f"delete the folder {folder} and prepare the data again"
    try:
        listing = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
        if listing["format"] != FORMAT:
            raise FewshotError(f"{folder}: bank format {listing['format']}, this code reads {FORMAT}: {remedy}")
        if not listing["splits"] or not all(name.isidentifier() for name in listing["splits"]):
            raise ValueError("bank.json lists no splits, or a split whose name is no plain word")
        return {name: _open_split(folder, name, entry, listing["about"]) for name, entry in listing["splits"].items()}
    except DAMAGED as error:
        raise FewshotError(f"{folder}: not a readable bank ({error}): {remedy}") from error


def _open_split(folder: Path, split: str, entry: Mapping[str, Any], metadata: Mapping[str, Any]) -> Bank:
    # Copy-on-write: torch gets an array that it may write to, and the file stays as it is.
    array = np.load(folder / f"{split}.npy", mmap_mode="c", allow_pickle=False)
    counts, names = [int(count) for count in entry["counts"]], [str(name) for name in entry["names"]]
    if str(array.dtype) != entry["dtype"] or list(array.shape) != entry["shape"] or not array.flags.c_contiguous:
        raise ValueError(f"{split}.npy holds {array.dtype} {array.shape}, which is not what bank.json says")
    if len(counts) != len(names) or sum(counts) != len(array) or min(counts, default=0) < 1:
        raise ValueError(f"bank.json: counts and names of {split} do not fit the array")
    offsets = torch.tensor([0, *counts], dtype=torch.int64).cumsum(0)
    return Bank(torch.from_numpy(array), offsets, tuple(names), split, str(entry["sha256"]), dict(metadata), folder)


def concat_banks(first: Bank, second: Bank) -> Bank:
    """One bank of the classes of both, under the first one's split: for training on train and val together.

    No example is copied: those of both stay on their device or in their files.
    """
    digest = hashlib.sha256((first.fingerprint + second.fingerprint).encode()).hexdigest()
    offsets = torch.cat([first.offsets, second.offsets[1:] + len(first.examples)])
    return replace(first, offsets=offsets, names=first.names + second.names, fingerprint=digest, tail=second)
