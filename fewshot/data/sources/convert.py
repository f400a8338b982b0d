"""Convert the images of a source to banks on disk: in little memory, resumed after an interruption.

Until it is complete a bank is in `<folder>.part`. It gets its name when every image is in place and hashed.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fewshot.core.device import count_cores
from fewshot.core.errors import FewshotError, one_line, writing
from fewshot.core.files import lock_file
from fewshot.core.progress import progress_bar
from fewshot.data.bank import fingerprint_of_file, list_images, list_split, open_banks, replace_folder, write_listing
from fewshot.data.sources.archives import DAMAGED
from fewshot.data.sources.faults import raise_faults
from fewshot.data.sources.images import ImageSpec, decode_image
from fewshot.data.sources.parts import SplitSource

BATCH = 64  # images that are in memory at once
SAVE_EVERY = 64  # batches between two saves of the progress
Place = tuple[str, int]  # split and row


def convert(
    folder: Path,
    parts: Mapping[str, SplitSource],
    spec: ImageSpec,
    metadata: Mapping[str, Any],
    *,
    on_overlap: str = "refuse",
    overwrite: bool = False,
) -> None:
    """Write the banks of some splits below `folder`; nothing is there before all is complete.

    If an earlier call was interrupted, this one resumes it. If another process converts to the same folder, this one
    waits for it.

    Args:
        folder: of the banks; `<folder>.part` holds them until they are complete.
        parts: the source of each split; `check_parts` accepts them.
        spec: how an image becomes an example.
        metadata: what bank.json says about the banks. A call with other metadata does not resume an earlier one.
        on_overlap: "refuse" images that two splits share, or "count" them in metadata["shared_images"].
        overwrite: replace banks that are there.

    Raises:
        FewshotError: images cannot be read or are shared by two splits, or the folder cannot be written.
    """
    work, title = folder.with_name(folder.name + ".part"), f"converting {metadata.get('dataset', 'images')}"
    key = _hash_request(parts, spec, metadata)
    with writing(work, "another folder for the banks, as by data_dir"), lock_file(work / "lock"):
        if (folder / "bank.json").exists() and not overwrite:
            shutil.rmtree(work, ignore_errors=True)
            return
        done = _load_progress(work, key, parts, spec)
        total = sum(len(part.labels) for part in parts.values())
        damaged: list[str] = []
        with progress_bar(title, total, sum(done.values())) as advance:
            for split, part in parts.items():
                damaged += _write_images(work, key, done, split, part, spec, advance)
        raise_faults("damaged images", damaged, "replace it, or remove it")
        classes = {split: (list(part.counts.values()), part.names) for split, part in parts.items()}
        hashes, copies = _hash_banks(work, classes)
        pairs, twins = _in_two_splits(copies), _twice_in_one_split(copies)
        image_of = {split: np.argsort(part.rows) for split, part in parts.items()}

        def describe(place: Place) -> str:
            split, row = place
            return f"{parts[split].describe(int(image_of[split][row]))} ({split})"

        listing = {}
        for split, (counts, names) in classes.items():
            listing[split] = list_split(hashes[split], np.load(work / f"{split}.npy", mmap_mode="r"), counts, names)
        if pairs and on_overlap == "refuse":
            texts = [" is the same image as ".join(map(describe, pair)) for pair in pairs]
            raise_faults("images that two splits share", texts, "remove one, or set dataset.reader.on_overlap=count")
        metadata = dict(metadata) | {"shared_images": len(pairs)}
        if twins:
            count = "1 image is there" if len(twins) == 1 else f"{len(twins):,} images are there"
            ends = {split: np.cumsum(counts) for split, (counts, _) in classes.items()}
            labels = [[np.searchsorted(ends[split], row, "right") for split, row in pair] for pair in twins]
            contrary = [pair for pair, (one, other) in zip(twins, labels, strict=True) if one != other]
            pair = " and ".join(map(describe, (contrary or twins)[0]))
            note = f"{count} twice in one split, such as {pair}; a query may have its copy in the support set"
            note += ", under another label" if contrary else ""
            metadata["notes"] = [*metadata.get("notes", []), note]
        write_listing(work, listing, metadata)
        for split, part in parts.items():
            if part.files:
                list_images(work, split, [part.files[int(image)] for image in image_of[split]])
        replace_folder(work, folder)
        # The lock goes last: a process that opened it waits for it, and a later process makes a new folder.
        for name in ("progress.json", "lock"):
            (folder / name).unlink(missing_ok=True)
    for note in metadata.get("notes", []):
        print(f"note: {metadata.get('dataset', 'images')}: {note}", file=sys.stderr)


def remove_attempts(cache: Path, pattern: str) -> None:
    """Remove the `.part` folders that match the pattern and that no process is converting to."""
    for work in cache.glob(f"{pattern}.part"):
        with suppress(OSError), (work / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(work)


def check_banks(folder: Path) -> int:
    """Read every byte of the banks below `folder` and compare their fingerprints with bank.json.

    Returns:
        How many images two splits share.

    Raises:
        FewshotError: as `open_banks`, or the content of a bank has changed.
    """
    banks = open_banks(folder)
    hashes, copies = _hash_banks(folder, {split: (bank.sizes.tolist(), bank.names) for split, bank in banks.items()})
    for split, bank in banks.items():
        if hashes[split] != bank.fingerprint:
            raise FewshotError(
                f"{folder / split}.npy: its content has changed since it was prepared; prepare the data again with "
                f"force=true, or delete the folder {folder}"
            )
    return len(_in_two_splits(copies))


def _in_two_splits(copies: Sequence[tuple[Place, Place]]) -> list[tuple[Place, Place]]:
    """Those of the pairs of equal images whose images are in two splits."""
    return [pair for pair in copies if pair[0][0] != pair[1][0]]


def _twice_in_one_split(copies: Sequence[tuple[Place, Place]]) -> list[tuple[Place, Place]]:
    """Pairs of equal images that are in one split, if it is not of the training."""
    first_in_split: dict[tuple[Place, str], Place] = {}
    pairs = []
    for first, later in copies:
        first_in_split.setdefault((first, first[0]), first)
        before = first_in_split.setdefault((first, later[0]), later)
        if before != later and later[0] != "train":
            pairs.append((before, later))
    return pairs


def _hash_banks(
    folder: Path, classes: Mapping[str, tuple[Sequence[int], Sequence[str]]]
) -> tuple[dict[str, str], list[tuple[Place, Place]]]:
    """The fingerprint of each split, and pairs (first place, later place) of equal images, from one pass over all.

    Args:
        folder: of the `<split>.npy` files.
        classes: number of images and name of each class, for each split.
    """
    first_place: dict[bytes, Place] = {}
    pairs: list[tuple[Place, Place]] = []
    hashes: dict[str, str] = {}
    with progress_bar("checking", sum(sum(counts) for counts, _ in classes.values())) as advance:
        for split, (counts, names) in classes.items():
            numbers = itertools.count()

            def find_duplicates(rows: np.ndarray, split: str = split, numbers: Iterator[int] = numbers) -> None:
                for row, number in zip(rows, numbers, strict=False):
                    digest = hashlib.blake2b(row.data, digest_size=12).digest()
                    first = first_place.setdefault(digest, (split, number))
                    if first != (split, number):
                        pairs.append((first, (split, number)))
                advance(split, len(rows))

            hashes[split] = fingerprint_of_file(folder / f"{split}.npy", counts, names, find_duplicates)
    return hashes, pairs


def _hash_request(parts: Mapping[str, SplitSource], spec: ImageSpec, metadata: Mapping[str, Any]) -> str:
    """A hash of what is to be converted; progress is only resumed for the same hash."""
    digest = hashlib.sha256(json.dumps([str(spec), dict(metadata)], sort_keys=True).encode())
    for split, part in parts.items():
        digest.update(json.dumps([split, list(part.names)]).encode())
        for i in range(len(part.labels)):
            digest.update(json.dumps(part.describe(i)).encode())
        digest.update(part.labels.astype("<i8").tobytes() + part.rows.astype("<i8").tobytes())
    return digest.hexdigest()


def _load_progress(work: Path, key: str, parts: Mapping[str, SplitSource], spec: ImageSpec) -> dict[str, int]:
    """How many images of each split are in place. If none can be resumed, the files are made anew."""
    saved = work / "progress.json"
    shapes = {split: (len(part.labels), *spec.shape) for split, part in parts.items()}
    try:
        progress = json.loads(saved.read_text(encoding="utf-8"))
        done = {split: int(progress["done"].get(split, 0)) for split in shapes}
        saved_at = saved.stat().st_mtime  # images that changed later are converted again
        unchanged = all(part.newest_change(done[split]) <= saved_at for split, part in parts.items() if done[split])
        if unchanged and progress["key"] == key and all((work / f"{split}.npy").is_file() for split in shapes):
            return done
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # there is no progress, or it is damaged
    for path in work.iterdir():
        if path.name != "lock":
            path.unlink()
    need, free = sum(int(np.prod(shape)) for shape in shapes.values()), shutil.disk_usage(work).free
    if need > free:
        raise FewshotError(f"{work}: {need / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB free; make room")
    for split, shape in shapes.items():
        np.lib.format.open_memmap(work / f"{split}.npy", mode="w+", dtype=np.uint8, shape=shape)
    return dict.fromkeys(shapes, 0)


def _write_images(
    work: Path,
    key: str,
    done: dict[str, int],
    split: str,
    part: SplitSource,
    spec: ImageSpec,
    advance: Callable[[str, int], None],
) -> list[str]:
    """Decode the images of a split from number done[split] on, write each to its row, and update `done`.

    Returns:
        One text per damaged image. Images after the first damaged one do not count as done.
    """
    position, count = done[split], len(part.labels)
    images = _read_images(part, position)
    row_bytes = int(np.prod(spec.shape))
    faults: list[str] = []
    with (
        (work / f"{split}.npy").open("r+b") as file,
        ThreadPoolExecutor(count_cores()) as pool,
        warnings.catch_warnings(action="ignore"),  # Pillow warns of odd metadata, in every thread
    ):
        header_bytes = file.seek(0, os.SEEK_END) - count * row_bytes
        batches = 0
        while batch := list(itertools.islice(images, BATCH)):
            for number, result in enumerate(pool.map(lambda data: _try_decode(data, spec), batch), start=position):
                if isinstance(result, ValueError):
                    faults.append(f"{part.describe(number)}: {result}")
                    continue
                file.seek(header_bytes + int(part.rows[number]) * row_bytes)
                file.write(np.ascontiguousarray(result).data)
                if not faults:
                    done[split] = number + 1
            position, batches = position + len(batch), batches + 1
            advance(split, len(batch))
            if batches % SAVE_EVERY == 0 or position == count:
                file.flush()
                os.fsync(file.fileno())
                scratch = work / "progress.json.new"
                scratch.write_text(json.dumps({"key": key, "done": done}), encoding="utf-8")
                os.replace(scratch, work / "progress.json")
    return faults


def _read_images(part: SplitSource, number: int) -> Iterator[bytes | np.ndarray | ValueError]:
    """Yield the images of a split from a number on, or an error for an image that cannot be read.

    Raises:
        FewshotError: an image cannot be read, nor those after it.
    """
    while number < len(part.labels):
        try:
            for data in part.images(number):
                yield data
                number += 1
            if number < len(part.labels):
                raise FewshotError(f"{part.describe(number)}: the source ends before it; fetch it again")
        except DAMAGED as error:
            problem = f"cannot be read ({one_line(error)})"
            if not part.separate:
                raise FewshotError(f"{part.describe(number)}: {problem}; mend it, or fetch it again") from error
            yield ValueError(problem)
            number += 1


def _try_decode(data: bytes | np.ndarray | ValueError, spec: ImageSpec) -> np.ndarray | ValueError:
    try:
        return data if isinstance(data, ValueError) else decode_image(data, spec)
    except ValueError as error:
        return error
