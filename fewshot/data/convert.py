"""From a source's images to a Bank on disk: in a stream, in little memory, taken up again where it stopped.

While it is made a bank lies in `<folder>.part`; only when every image is in its place, every byte is hashed and
written does it get its name.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from fewshot.data.bank import FORMAT, fingerprint_of_file, install
from fewshot.data.files import DAMAGED, Files
from fewshot.data.images import Look, example
from fewshot.errors import FewshotError, one_line
from fewshot.progress import progress_bar

AT_ONCE = 256  # images decoded between two writes
BYTES_AT_ONCE = 1 << 25  # of them as they come, from where on it is fewer images
SAVE_EVERY = 16  # writes between two notes of how far it is


@dataclass(frozen=True)
class Part:
    """The images of one split as a source has them, before any is read.

    Attributes:
        names: of the classes, sorted.
        labels: [n] class of each image, in the order in which they come.
        rows: [n] the place of each in the bank, which is sorted by class.
        images: the images from the i-th on, each a file's bytes or an array [H, W, C] uint8.
        where: the i-th image's name for people.
        changed: when the files of the first n were put there, the last of them, in seconds since 1970.
    """

    names: Sequence[str]
    labels: np.ndarray
    rows: np.ndarray
    images: Callable[[int], Iterator[bytes | np.ndarray]]
    where: Callable[[int], str]
    changed: Callable[[int], float] = lambda n: 0.0


def part_of_files(files: Files, classes: Mapping[str, Sequence[str]], key: Callable[[str], str] | None = None) -> Part:
    """The split whose classes are these files of a source: classes sorted by name, their files by name or by a key.

    Raises:
        FewshotError: a file that belongs to two classes, stands twice in one, or is not in the source.
    """
    names = sorted(classes)
    place: dict[str, tuple[int, int]] = {}  # class and row of each file
    for label, name in enumerate(names):
        for file in sorted(classes[name], key=key):
            if file in place:
                raise FewshotError(f"{files.where(file)}: listed twice; an image belongs to one class, once")
            place[file] = label, len(place)
    order = [name for name in files.names if name in place]
    if len(order) < len(place):
        missing = min(set(place) - set(order))
        raise FewshotError(f"{files.where(missing)}: listed, but not there; fetch the data again")
    labels, rows = np.array([place[name] for name in order], dtype=np.int64).reshape(-1, 2).T
    return Part(
        names,
        labels,
        rows,
        images=lambda i: files.read(order[i:]),
        where=lambda i: files.where(order[i]),
        changed=lambda n: files.changed(order[:n]),
    )


def part_of_labels(
    names: Sequence[str],
    labels: np.ndarray,
    images: Callable[[int], Iterator[bytes | np.ndarray]],
    where: Callable[[int], str],
    changed: Callable[[int], float] = lambda n: 0.0,
) -> Part:
    """The split of images that come with a label each, an index into `names`; classes sorted by name.

    Raises:
        FewshotError: a label that is none.
    """
    for i in np.flatnonzero((labels < 0) | (labels >= len(names)))[:1].tolist():
        raise FewshotError(f"{where(i)}: label {labels[i]}, but there are {len(names)} classes; fetch the data again")
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    labels = rank[labels]
    rows = np.empty(len(labels), dtype=np.int64)
    rows[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    return Part([names[i] for i in order], labels, rows, images, where, changed)


def convert(
    folder: Path,
    parts: Mapping[str, Part],
    look: Look,
    about: Mapping[str, Any],
    *,
    leaks: str = "refuse",
    again: bool = False,
) -> None:
    """Write the banks of some splits below `folder`; nothing is there before all is there.

    Where an earlier call was killed, this one goes on; where another process is at it, this one waits for it.

    Args:
        folder: of the banks to be; `<folder>.part` holds them until then.
        parts: of each split.
        look: what an image is made into.
        about: the reader's own words; they say what is converted, so that other words begin anew.
        leaks: of images that two splits share: "refuse" them, or "count" them in about["shared_images"].
        again: replace banks that are there.

    Raises:
        FewshotError: a class without images, an unreadable image, one that two splits share, or no room on the disk.
    """
    check_parts(str(folder), parts)
    work, title = folder.with_name(folder.name + ".part"), f"converting {about.get('dataset', 'images')}"
    counts = {split: np.bincount(part.labels, minlength=len(part.names)) for split, part in parts.items()}
    key = _key(parts, look, about)
    try:
        with _lock(work):
            if (folder / "bank.json").exists() and not again:
                shutil.rmtree(work, ignore_errors=True)
                return
            done = _begun(work, key, parts, look)
            total = sum(len(part.labels) for part in parts.values())
            with progress_bar(title, total, sum(done.values())) as advance:
                for split, part in parts.items():
                    _write(work, key, done, split, part, look, advance)
            listing: dict[str, Any] = {}
            shared = Shared()
            with progress_bar("checking", total) as advance:
                for split, part in parts.items():
                    names, sizes = list(part.names), counts[split].tolist()

                    def each(rows: list[memoryview], split: str = split) -> None:
                        shared.add(split, rows)
                        advance(split, len(rows))

                    sha256 = fingerprint_of_file(work / f"{split}.npy", sizes, names, each)
                    listing[split] = {"sha256": sha256, "dtype": "uint8", "shape": [sum(sizes), *look.shape]}
                    listing[split] |= {"counts": sizes, "names": names}
            if shared.found and leaks == "refuse":
                one, other = (
                    f"{parts[split].where(int(np.flatnonzero(parts[split].rows == row)[0]))} ({split})"
                    for split, row in shared.found[0]
                )
                raise FewshotError(
                    f"{one} is the same image as {other}, {len(shared.found)} such images in all: a leak; remove one "
                    "of each, or set dataset.reader.leaks=count"
                )
            text = json.dumps(
                {"format": FORMAT, "about": dict(about) | {"shared_images": len(shared.found)}, "splits": listing},
                indent=1,
            )
            (work / "bank.json").write_text(text + "\n", encoding="utf-8")
            install(work, folder)
            # The lock goes last: who opened it before waits for it, and who comes now makes a folder anew.
            for left in ("progress.json", "lock"):
                (folder / left).unlink(missing_ok=True)
    except OSError as error:
        raise FewshotError(
            f"{work}: cannot be written ({error.strerror or error}); make room, then the same command goes on"
        ) from error


def check_parts(where: str, parts: Mapping[str, Part]) -> None:
    """Hold what a source says of its splits against what a Bank needs.

    Raises:
        FewshotError: a split without classes, a class without images, one named twice, or one in two splits.
    """
    seen: dict[str, str] = {}
    for split, part in parts.items():
        if not part.names:
            raise FewshotError(f"{where}: split {split} has no classes")
        counts = np.bincount(part.labels, minlength=len(part.names))
        if not counts.all():
            raise FewshotError(f"{where}: class {part.names[int(counts.argmin())]} of {split} has no images")
        if len(set(part.names)) < len(part.names):
            twice = next(name for name, after in pairwise(sorted(part.names)) if name == after)
            raise FewshotError(f"{where}: class {twice} of {split} is named twice; give every class a name of its own")
        for name in part.names:
            if seen.setdefault(name, split) != split:
                raise FewshotError(f"{where}: class {name} is in {seen[name]} and in {split}; splits share no class")


class Shared:
    """Images that occur in two splits: row hashes of one split after the other."""

    def __init__(self) -> None:
        self.first: dict[bytes, tuple[str, int]] = {}
        self.row: dict[str, int] = {}
        self.found: list[tuple[tuple[str, int], tuple[str, int]]] = []

    def add(self, split: str, rows: Sequence[memoryview]) -> None:
        """The next rows of a split."""
        for row in rows:
            place = split, self.row.setdefault(split, 0)
            self.row[split] += 1
            first = self.first.setdefault(hashlib.blake2b(row, digest_size=12).digest(), place)
            if first[0] != split:
                self.found.append((first, place))


def _lock(work: Path) -> IO[str]:
    """The file that keeps other processes out of `work` until it is closed, or the process ends, however it does."""
    while True:
        work.mkdir(parents=True, exist_ok=True)
        # Whoever had it until now has taken the folder away, lock and all, if it is done.
        with suppress(FileNotFoundError), ExitStack() as stack:
            lock = stack.enter_context((work / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(lock.fileno()), (work / "lock").stat()):
                stack.pop_all()
                return lock


def _begun(work: Path, key: str, parts: Mapping[str, Part], look: Look) -> dict[str, int]:
    """How many images of each split are in their places already; the files are made where it begins anew."""
    noted = work / "progress.json"
    shapes = {split: (len(part.labels), *look.shape) for split, part in parts.items()}
    try:
        state = json.loads(noted.read_text(encoding="utf-8"))
        done = {split: int(state["done"].get(split, 0)) for split in shapes}
        # Of what was put there since, the old pixels are of no use.
        fresh = all(part.changed(done[split]) <= noted.stat().st_mtime for split, part in parts.items() if done[split])
        if fresh and state["key"] == key and all((work / f"{split}.npy").is_file() for split in shapes):
            return done
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # not begun, or not to its first note
    for left in work.iterdir():
        if left.name != "lock":
            left.unlink()
    need, free = sum(int(np.prod(shape)) for shape in shapes.values()), shutil.disk_usage(work).free
    if need > free:
        raise FewshotError(f"{work}: {need / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB free; make room")
    for split, shape in shapes.items():
        np.lib.format.open_memmap(work / f"{split}.npy", mode="w+", dtype=np.uint8, shape=shape)
    return dict.fromkeys(shapes, 0)


def _write(
    work: Path,
    key: str,
    done: dict[str, int],
    split: str,
    part: Part,
    look: Look,
    advance: Callable[[str, int], None],
) -> None:
    """Put the images of a split that are not done yet in their places."""
    images = chain.from_iterable(map(part.images, [done[split]]))  # which opens the source at the first one
    size = int(np.prod(look.shape))
    with (work / f"{split}.npy").open("r+b") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        start = file.seek(0, os.SEEK_END) - len(part.labels) * size
        note = 0
        while done[split] < len(part.labels):
            first = done[split]
            batch: list[bytes | np.ndarray] = []
            held = 0
            try:
                for data in islice(images, min(AT_ONCE, len(part.labels) - first)):
                    batch.append(data)
                    held += data.nbytes if isinstance(data, np.ndarray) else len(data)
                    if held >= BYTES_AT_ONCE:
                        break
            except DAMAGED as error:
                where = part.where(first + len(batch))
                raise FewshotError(
                    f"{where}: cannot be read ({one_line(error)}); mend it, or fetch it again"
                ) from error
            if not batch:
                raise FewshotError(f"{part.where(first)}: the source ends before it; fetch it again")
            for offset, made in enumerate(pool.map(lambda data: _try(data, look), batch)):
                if isinstance(made, ValueError):
                    raise FewshotError(f"{part.where(first + offset)}: {made}; replace it, or remove it")
                file.seek(start + int(part.rows[first + offset]) * size)
                file.write(np.ascontiguousarray(made).data)
            done[split] += len(batch)
            note += 1
            if note % SAVE_EVERY == 0 or done[split] == len(part.labels):
                file.flush()
                os.fsync(file.fileno())
                state = work / "progress.json.new"
                state.write_text(json.dumps({"key": key, "done": done}), encoding="utf-8")
                os.replace(state, work / "progress.json")
            advance(split, len(batch))


def _try(data: bytes | np.ndarray, look: Look) -> np.ndarray | ValueError:
    try:
        return example(data, look)
    except ValueError as error:
        return error


def _key(parts: Mapping[str, Part], look: Look, about: Mapping[str, Any]) -> str:
    """What is being converted, in a hash."""
    digest = hashlib.sha256(json.dumps([str(look), dict(about)], sort_keys=True).encode())
    for split, part in parts.items():
        digest.update(json.dumps([split, list(part.names)]).encode())
        for i in range(len(part.labels)):
            digest.update(json.dumps(part.where(i)).encode())
        digest.update(part.labels.astype("<i8").tobytes() + part.rows.astype("<i8").tobytes())
    return digest.hexdigest()
