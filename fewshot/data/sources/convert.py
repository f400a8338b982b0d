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
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from fewshot.core.errors import FewshotError, one_line, writing
from fewshot.core.progress import progress_bar
from fewshot.data.bank import FORMAT, fingerprint_of_file, open_banks, replace_folder, verify
from fewshot.data.sources.archives import DAMAGED
from fewshot.data.sources.faults import raise_faults
from fewshot.data.sources.images import ImageSpec, decode_image
from fewshot.data.sources.parts import SplitSource, check_parts

AT_ONCE = 256  # images decoded between two writes
BYTES_AT_ONCE = 1 << 25  # of them as they come, from where on it is fewer images
SAVE_EVERY = 16  # writes between two notes of how far it is


def convert(
    folder: Path,
    parts: Mapping[str, SplitSource],
    look: ImageSpec,
    about: Mapping[str, Any],
    *,
    on_overlap: str = "refuse",
    overwrite: bool = False,
    source: str = "",
) -> None:
    """Write the banks of some splits below `folder`; nothing is there before all is there.

    Where an earlier call was killed, this one goes on; where another process is at it, this one waits for it.

    Args:
        folder: of the banks to be; `<folder>.part` holds them until then.
        parts: of each split.
        look: what an image is made into.
        about: the reader's own words; they say what is converted, so that other words begin anew.
        on_overlap: of images that two splits share: "refuse" them, or "count" them in about["shared_images"].
        overwrite: replace banks that are there.
        source: what the images are of, where the name of the folder changes with them, for `remove_attempts`.

    Raises:
        FewshotError: a class without images, unreadable images, such as two splits share, or a folder that cannot be
            written.
    """
    check_parts(str(folder), parts)
    work, title = folder.with_name(folder.name + ".part"), f"converting {about.get('dataset', 'images')}"
    key = _key(parts, look, about)
    with writing(work, "another folder for the banks, as by data_dir"), _lock(work, source):
        if (folder / "bank.json").exists() and not overwrite:
            shutil.rmtree(work, ignore_errors=True)
            return
        done = _load_progress(work, key, parts, look)
        total = sum(len(part.labels) for part in parts.values())
        damaged: list[str] = []
        with progress_bar(title, total, sum(done.values())) as advance:
            for split, part in parts.items():
                damaged += _write(work, key, done, split, part, look, advance)
        raise_faults("damaged images", damaged, "replace it, or remove it")
        listing: dict[str, Any] = {}
        with progress_bar("checking", total) as advance:
            shared = DuplicateFinder(advance)
            for split, part in parts.items():
                sizes = np.bincount(part.labels).tolist()
                sha256 = fingerprint_of_file(work / f"{split}.npy", sizes, part.names, partial(shared.add, split))
                listing[split] = {"sha256": sha256, "dtype": "uint8", "shape": [sum(sizes), *look.shape]}
                listing[split] |= {"counts": sizes, "names": list(part.names)}
        if shared.found and on_overlap == "refuse":
            image = {split: np.argsort(part.rows) for split, part in parts.items()}  # of each row
            pairs = [[f"{parts[s].where(int(image[s][row]))} ({s})" for s, row in pair] for pair in shared.found]
            texts = [f"{one} is the same image as {other}: a leak" for one, other in pairs]
            raise_faults("images that two splits share", texts, "remove one, or set dataset.reader.on_overlap=count")
        text = json.dumps(
            {"format": FORMAT, "about": dict(about) | {"shared_images": len(shared.found)}, "splits": listing},
            indent=1,
        )
        (work / "bank.json").write_text(text + "\n", encoding="utf-8")
        replace_folder(work, folder)
        # The lock goes last: who opened it before waits for it, and who comes now makes a folder anew.
        for left in ("progress.json", "lock"):
            (folder / left).unlink(missing_ok=True)
    for note in about.get("notes", []):
        print(f"{about.get('dataset', 'images')}: {note}", file=sys.stderr)


def remove_attempts(cache: Path, source: str) -> None:
    """Remove what earlier conversions of a source, as in `convert`, left, unless another process is at it."""
    for work in cache.glob("*.part"):
        with suppress(OSError), (work / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.read() == source:
                shutil.rmtree(work)


class DuplicateFinder:
    """Images that occur in two splits, found while the rows of one split after the other pass by.

    Args:
        advance: is told the split and the number of rows that passed, see `progress_bar`.
    """

    def __init__(self, advance: Callable[[str, int], None]) -> None:
        self.advance = advance
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
        self.advance(split, len(rows))


def check(folder: Path) -> int:
    """Read every byte of the banks below `folder` again; how many images two splits share.

    Raises:
        FewshotError: a byte is not what it was, see `verify`.
    """
    with progress_bar("checking", sum(len(bank.examples) for bank in open_banks(folder).values())) as advance:
        shared = DuplicateFinder(advance)
        verify(folder, shared.add)
    return len(shared.found)


def _lock(work: Path, source: str) -> IO[str]:
    """The file that keeps other processes out of `work` until it is closed, or the process ends, however it does.

    It says the source.
    """
    while True:
        work.mkdir(parents=True, exist_ok=True)
        # Whoever had it until now has taken the folder away, lock and all, if it is done.
        with suppress(FileNotFoundError), ExitStack() as stack:
            lock = stack.enter_context((work / "lock").open("a"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(lock.fileno()), (work / "lock").stat()):
                lock.truncate(0)
                lock.write(source)
                lock.flush()
                stack.pop_all()
                return lock


def _load_progress(work: Path, key: str, parts: Mapping[str, SplitSource], look: ImageSpec) -> dict[str, int]:
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
    part: SplitSource,
    look: ImageSpec,
    advance: Callable[[str, int], None],
) -> list[str]:
    """Put the images of a split that are not done yet in their places.

    Returns:
        Where an image is damaged, and what is wrong with it; only what comes before the first one counts as done.
    """
    at, count = done[split], len(part.labels)
    images = chain.from_iterable(map(part.images, [at]))  # which opens the source at the first one
    size = int(np.prod(look.shape))
    faults: list[str] = []
    with (work / f"{split}.npy").open("r+b") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        start = file.seek(0, os.SEEK_END) - count * size
        note = 0
        while at < count:
            first, held = at, 0
            lost: list[str] = []
            batch: list[bytes | np.ndarray] = []
            try:
                for data in islice(images, min(AT_ONCE, count - first)):
                    batch.append(data)
                    held += data.nbytes if isinstance(data, np.ndarray) else len(data)
                    if held >= BYTES_AT_ONCE:
                        break
            except DAMAGED as error:
                lost = [f"{part.where(first + len(batch))}: cannot be read ({one_line(error)})"]
                if not part.apart:
                    raise FewshotError(f"{lost[0]}; mend it, or fetch it again") from error
                images = chain.from_iterable(map(part.images, [first + len(batch) + 1]))
            if not batch and not lost:
                raise FewshotError(f"{part.where(first)}: the source ends before it; fetch it again")
            for place, made in enumerate(pool.map(lambda data: _try(data, look), batch), start=first):
                if isinstance(made, ValueError):
                    faults.append(f"{part.where(place)}: {made}")
                    continue
                file.seek(start + int(part.rows[place]) * size)
                file.write(np.ascontiguousarray(made).data)
                if not faults:
                    done[split] = place + 1
            faults += lost
            at += len(batch) + len(lost)
            note += 1
            if note % SAVE_EVERY == 0 or at == count:
                file.flush()
                os.fsync(file.fileno())
                state = work / "progress.json.new"
                state.write_text(json.dumps({"key": key, "done": done}), encoding="utf-8")
                os.replace(state, work / "progress.json")
            advance(split, len(batch) + len(lost))
    return faults


def _try(data: bytes | np.ndarray, look: ImageSpec) -> np.ndarray | ValueError:
    try:
        return decode_image(data, look)
    except ValueError as error:
        return error


def _key(parts: Mapping[str, SplitSource], look: ImageSpec, about: Mapping[str, Any]) -> str:
    """What is being converted, in a hash."""
    digest = hashlib.sha256(json.dumps([str(look), dict(about)], sort_keys=True).encode())
    for split, part in parts.items():
        digest.update(json.dumps([split, list(part.names)]).encode())
        for i in range(len(part.labels)):
            digest.update(json.dumps(part.where(i)).encode())
        digest.update(part.labels.astype("<i8").tobytes() + part.rows.astype("<i8").tobytes())
    return digest.hexdigest()
