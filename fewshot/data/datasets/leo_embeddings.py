"""Embeddings: the features that DeepMind released with LEO (Rusu et al. 2019), and one's own in the same layout.

The file is embeddings.zip (github.com/google-deepmind/leo) or what it unpacks to, a pickle for each split:
`embeddings/{miniImageNet,tieredImageNet}/{center,multiview}/{train,val,test}_embeddings.pkl`. A pickle is a dict of
"keys", n strings `<anything>-<class>-<class>_<image>`, "embeddings" [n, 640] float32 and perhaps "labels" [n].
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fewshot.core.errors import FewshotError, one_line, writing
from fewshot.core.paths import expand_path
from fewshot.data.bank import Bank, Split, open_banks, write_banks
from fewshot.data.sources import pickles
from fewshot.data.sources.download import fetch

URL = "https://storage.googleapis.com/leo-embeddings/embeddings.zip"
FOLDERS = {"mini": "miniImageNet", "tiered": "tieredImageNet"}
KINDS = ("center", "multiview")
SPLITS = ("train", "val", "test")
MAX_BYTES = 1 << 32  # of one pickle, unpacked; the largest original has about 1.2 GB
BLOCK, BLOCKS = 1 << 16, 64  # of a file, by which it is known again
DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
AGAIN = "remove it and fetch embeddings.zip again (features.reader.download=true does it), or write your own anew"


def read(
    root: str | Path,
    cache: str | Path,
    dataset: str = "mini",
    kind: str = "center",
    width: int | None = 640,
    download: bool = False,
) -> dict[str, Bank]:
    """The banks "train", "val" and "test" of features [M, width] float32, classes sorted by id, rows by image file.

    The files are converted once. They have to stay, for the cache is named after them: after size, time of change and
    a hash of 64 blocks from all over each file (of the zip with its table of checksums), as reading all takes long.

    Args:
        root: folder with embeddings.zip, or with the folder embeddings, or with what is in that. The zip comes first.
        cache: folder in which the banks are kept, in a folder of their own.
        dataset: "mini", "tiered", or another of which there are features of one's own.
        kind: "center", or for mini "multiview": which crops of an image a feature comes from.
        width: of the features; None admits any.
        download: fetch the zip (it holds all datasets and kinds) into `root` where nothing is there.

    Raises:
        FewshotError: an argument out of range, files that are missing, damaged or not as above, or a damaged cache.
    """
    inner = _inner(dataset, kind)
    source = _source(expand_path(root), inner, download)
    with _remedy(AGAIN):
        folder = expand_path(cache) / f"embeddings-{dataset}-{kind}-{_key(source)}"
        if not folder.exists():
            splits = {}
            for split in SPLITS:
                with _opened(source, inner, split) as file:
                    data = pickles.load(file)
                splits[split] = _split(f"{source}: {split}_embeddings.pkl", data)
                del data  # before the next is read
            _check_together(source, splits, width)
            about = {
                "dataset": f"{FOLDERS.get(dataset, dataset)} embeddings",
                "source": f"{source.name}, in the layout of {URL}",
            }
            own = (
                source / "about.json"
            )  # beside features of one's own: what they said of themselves, such as an extractor
            if source.is_dir() and own.is_file():
                # Apart from what this reader vouches for: the order of classes may be another than that of the images.
                about["said"] = _said(own)
            write_banks(folder, splits, about | {"kind": kind, "width": splits["train"].examples.shape[1]})
    banks = open_banks(folder)
    with _remedy(AGAIN):
        _check_together(source, banks, width)
    return banks


def _said(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FewshotError(f"{path}: cannot be read as JSON ({error})") from error


def write_originals(folder: str | Path, banks: Mapping[str, Bank], dataset: str, kind: str) -> None:
    """Write features in the originals' layout below `folder`, all or nothing.

    `read(folder, ...)` gives them back, classes sorted by name.

    Names of classes may hold what keys have no room for: "-", "_" and "%" are written as in URLs (%2D, %5F, %25). Keys
    are `0-<class>-<class>_<row>`, for a bank does not name images. Pickles are of protocol 2 (NumPy 1.26 or later).
    What the banks say of themselves, such as their extractor, stands beside them in `about.json`.

    Args:
        folder: to be given to `read` as its root.
        banks: "train", "val" and "test" of features [M, width] float32.
        dataset: "mini", "tiered", or another of which there are features of one's own.
        kind: "center", or for mini "multiview".

    Raises:
        FewshotError: other banks than these, or `folder` holds such features, or embeddings.zip, already.
    """
    folder, inner = expand_path(folder), _inner(dataset, kind)
    if there := [path for path in _places(folder, inner) if path.exists()]:
        raise FewshotError(f"{there[0]}: is there already: remove it, or write to another folder")
    if set(banks) != set(SPLITS):
        raise FewshotError(f"{folder}: banks {', '.join(banks)} given: give train, val and test")
    target = folder / inner
    with writing(target, "another folder"):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=target.parent))
        try:
            splits = {}
            for split, bank in banks.items():
                names = [_escaped(name) for name in bank.names]
                rows = [
                    (name, row) for name, size in zip(names, bank.sizes.tolist(), strict=True) for row in range(size)
                ]
                keys = np.array([f"0-{name}-{name}_{row:08d}" for name, row in rows], dtype=object)
                data = {"keys": keys, "embeddings": bank.examples.cpu().numpy()}
                with _remedy("give banks of float32 features, each class in one split"):
                    splits[split] = _split(f"{folder}: bank {split}", data)  # what `read` will make of it
                    _check_together(folder, splits, None)
                with (scratch / f"{split}_embeddings.pkl").open("wb") as file:
                    pickle.dump(data, file, protocol=2)
            about = json.dumps(dict(banks["train"].about), indent=1)
            (scratch / "about.json").write_text(about + "\n", encoding="utf-8")
            scratch.chmod(0o755)  # mkdtemp's folders are for their owner alone
            os.rename(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _inner(dataset: str, kind: str) -> str:
    """The folder of the three pickles within the zip."""
    if not dataset.isidentifier():
        raise FewshotError(f"embeddings: dataset={dataset!r}: give the name of a dataset, such as mini or tiered")
    kinds = KINDS[:1] if dataset == "tiered" else KINDS
    if kind not in kinds:
        raise FewshotError(f"embeddings: kind={kind!r}: {dataset} has {' and '.join(kinds)} only")
    return f"embeddings/{FOLDERS.get(dataset, dataset)}/{kind}"


def _places(root: Path, inner: str) -> list[Path]:
    return [root / "embeddings.zip", root / inner, root / inner.removeprefix("embeddings/")]


def _source(root: Path, inner: str, download: bool) -> Path:
    """The zip, or the folder of the three pickles. The zip comes first: it is what the authors published."""
    if found := [path for path in _places(root, inner) if path.exists()]:
        return found[0]
    if not download:
        raise FewshotError(
            f"{root}: neither embeddings.zip nor the folder {inner} is there: put {URL} there or unpack it there, "
            "or set features.reader.download=true to fetch it, or features=conv4 to train an extractor on the images "
            "that are there, or put features of your own there in that layout (tools/pretrain.py writes it with "
            "export_leo_format=<folder>)"
        )

    def check(path: Path) -> None:
        for split in SPLITS:
            with _opened(path, inner, split):
                pass

    fetch(URL, root / "embeddings.zip", check=check, what="embeddings.zip")
    return root / "embeddings.zip"


def _key(source: Path) -> str:
    """What tells the zip, or the three unpacked pickles, from any others."""
    digest = hashlib.sha256()
    try:
        files = [source / f"{split}_embeddings.pkl" for split in SPLITS] if source.is_dir() else [source]
        for path in [*files, *source.glob("about.json")]:
            with path.open("rb") as file:
                stat = os.fstat(file.fileno())
                digest.update(f"{stat.st_size} {stat.st_mtime_ns} ".encode())
                for block in range(BLOCKS):
                    file.seek(max(0, stat.st_size - BLOCK) * block // (BLOCKS - 1))
                    digest.update(file.read(BLOCK))
    except OSError as error:
        raise FewshotError(f"{source}: cannot be read ({error})") from error
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _remedy(remedy: str) -> Iterator[None]:
    """Says what to do about a mistake."""
    try:
        yield
    except FewshotError as error:
        raise FewshotError(f"{error}: {remedy}") from error


@contextlib.contextmanager
def _opened(source: Path, inner: str, split: str) -> Iterator[BinaryIO]:
    """One pickle, to be read; at the end, one in a zip is held against its checksum."""
    name = f"{split}_embeddings.pkl"
    try:
        if source.is_dir():
            with (source / name).open("rb") as file:
                yield file
        else:
            with zipfile.ZipFile(source) as archive, archive.open(f"{inner}/{name}") as member:
                if (size := archive.getinfo(f"{inner}/{name}").file_size) > MAX_BYTES:
                    raise ValueError(f"{size} bytes, of {MAX_BYTES} at most")
                file = io.BufferedReader(member)  # pyright: ignore
                yield file
                while file.read(1 << 20):
                    pass
    except FewshotError as error:
        raise FewshotError(f"{error}" if source.is_dir() else f"{source}: {error}") from error
    except DAMAGED as error:
        raise FewshotError(f"{source}: {name} cannot be read ({one_line(error)})") from error


def _split(where: str, data: Any) -> Split:
    """The content of a pickle, sorted by class and image whatever order it comes in.

    Raises:
        FewshotError: it is not what the head of this module says.
    """

    def require(good: object, what: str) -> None:
        if not good:
            raise FewshotError(f"{where}: {what}")

    require(isinstance(data, dict) and {"keys", "embeddings"} <= data.keys(), 'no dict of "keys" and "embeddings"')
    rows = data["embeddings"]
    found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
    require(
        re.fullmatch(r"[<>]?f(loat32|4) \(\d+, [1-9]\d*\)", found), f"embeddings are {found}, not float32 [n, width]"
    )
    keys = [key.decode("latin1") if isinstance(key, bytes) else key for key in _items(data["keys"])]
    require(keys and all(isinstance(key, str) for key in keys), "keys are no list of strings")
    require(len(keys) == len(rows), f"{len(keys)} keys for {len(rows)} embeddings")
    classes, images = [], []
    for key in keys:
        _, name, image, *more = [*key.split("-"), "", ""]
        good = len(more) == 2 and name and image.split("_")[0] == name
        require(good, f"key {key[:80]!r} is not <anything>-<class>-<class>_<image>")
        classes.append(re.sub("%(25|2D|5F)", lambda code: chr(int(code[1], 16)), name))
        images.append(image)
    image, times = Counter(images).most_common(1)[0]
    require(times == 1, f"image {image[:80]!r} is there {times} times")
    if "labels" in data:
        # Of whatever kind, or rows such as one-hot ones.
        labels = [label.tobytes() if isinstance(label, np.ndarray) else label for label in _items(data["labels"])]
        good = all(isinstance(label, str | bytes | int | float | np.generic) for label in labels)
        require(good and len(labels) == len(keys), f"labels are no list of {len(keys)}, one to a key")
        numbers = {len(set(classes)), len(set(labels)), len(set(zip(classes, labels, strict=True)))}
        require(len(numbers) == 1, "labels do not match keys: two labels for one class, or one for two")
    finite = np.isfinite(rows).all(axis=1)
    require(finite.all(), f"the features of {images[int(finite.argmin())][:80]!r} are not all finite")
    order = sorted(range(len(keys)), key=lambda row: (classes[row], images[row]))
    counts = Counter(classes[row] for row in order)
    return Split(np.asarray(rows)[order].astype(np.float32, copy=False), list(counts.values()), list(counts))


def _items(values: Any) -> list[Any]:
    """The items of a list, a tuple or an array; none of anything else."""
    return list(values) if isinstance(values, list | tuple) or (isinstance(values, np.ndarray) and values.ndim) else []


def _check_together(source: Path, parts: Mapping[str, Split] | Mapping[str, Bank], width: int | None) -> None:
    """Raise where a class is in two splits, or features are not of this width, or not all of one."""
    owners: dict[str, str] = {}
    wanted = width
    for split, part in parts.items():
        wanted = part.examples.shape[1] if wanted is None else wanted
        if part.examples.shape[1:] != (wanted,):
            found = " x ".join(map(str, part.examples.shape[1:]))
            raise FewshotError(f"{source}: {split}: features of width {found}, not {wanted} (null would admit any one)")
        for name in part.names:
            if owners.setdefault(name, split) != split:
                raise FewshotError(f"{source}: class {name[:80]!r} is in {owners[name]} and in {split}")


def _escaped(name: str) -> str:
    """A class's name as keys can hold it."""
    return re.sub("[%_-]", lambda sign: f"%{ord(sign[0]):02X}", name)
