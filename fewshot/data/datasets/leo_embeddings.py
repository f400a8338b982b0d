"""Embeddings: the features that DeepMind released with LEO (Rusu et al. 2019), and one's own in the same layout.

The file is embeddings.zip (github.com/google-deepmind/leo) or the folder that it unpacks to, with a pickle per split:
`embeddings/{miniImageNet,tieredImageNet}/{center,multiview}/{train,val,test}_embeddings.pkl`. A pickle is a dict of
"keys", n strings `<anything>-<class>-<class>_<image>`, and "embeddings" [n, 640] float32; other keys are ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fewshot.core.errors import FewshotError, writing
from fewshot.core.paths import expand_path
from fewshot.data.bank import SPLITS, Bank, Split, open_banks, write_banks
from fewshot.data.sources import pickles
from fewshot.data.sources.archives import Files, check_archive, file_states, open_checked, open_files
from fewshot.data.sources.download import fetch

URL = "https://storage.googleapis.com/leo-embeddings/embeddings.zip"
FOLDERS = {"mini": "miniImageNet", "tiered": "tieredImageNet"}
KINDS = ("center", "multiview")
AGAIN = "remove it and fetch embeddings.zip again (features.reader.download=true does it), or write your own anew"


def read_leo_embeddings(
    root: str | Path,
    cache: str | Path,
    dataset: str = "mini",
    kind: str = "center",
    width: int | None = 640,
    download: bool = False,
) -> dict[str, Bank]:
    """The banks "train", "val" and "test" of features [M, width] float32, classes sorted by id, rows by image file.

    The files are converted once. They must stay, because their sizes and times of change name the bank folder.

    Args:
        root: folder with embeddings.zip, or with the folder embeddings, or with what is in that. The zip comes first.
        cache: folder that holds the bank folders.
        dataset: "mini", "tiered", or another one with features of one's own.
        kind: which crops of an image a feature comes from: "center" or "multiview" (mini only).
        width: of the features; None admits any.
        download: fetch the zip (it holds all datasets and kinds) into `root` if nothing is there.

    Raises:
        FewshotError: an argument is out of range, files are missing, damaged or not as above, or the cache is damaged.
    """
    inner = _inner_folder(dataset, kind)
    files, names = _find_pickles(expand_path(root), inner, download)
    where = files.describe(inner)
    about_name = names["train"].replace("train_embeddings.pkl", "about.json")
    has_about = files.root.is_dir() and about_name in files.names
    paths = [files.root / name for name in [*names.values(), *[about_name] * has_about]]
    states = file_states(paths if files.root.is_dir() else [files.root])
    key = hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16]
    folder = expand_path(cache) / f"embeddings-{dataset}-{kind}-{key}"
    if not folder.exists():
        splits = {}
        for split, name in names.items():
            with open_checked(files, name, AGAIN) as file:
                splits[split] = _sort_features(pickles.load(file))
        _check_splits(where, splits, width)
        metadata = {
            "dataset": f"{FOLDERS.get(dataset, dataset)} embeddings",
            "source": f"{files.root.name}, in the layout of {URL}",
        }
        if has_about:
            # Kept apart from what this reader knows: the order of classes may differ from that of the images.
            with open_checked(files, about_name, "mend it, or remove it") as file:
                metadata["said"] = json.load(file)
        write_banks(folder, splits, metadata | {"kind": kind, "width": splits["train"].examples.shape[1]})
    banks = open_banks(folder)
    _check_splits(where, banks, width)
    return banks


def write_originals(folder: str | Path, banks: Mapping[str, Bank], dataset: str, kind: str) -> None:
    """Write features in the layout of the original release below `folder`, all of them or none.

    `read_leo_embeddings(folder, ...)` gives them back with classes sorted by name. "-", "_" and "%" in class names,
    which keys cannot hold, are written as in URLs (%2D, %5F, %25). Keys are `0-<class>-<class>_<row>`, because a bank
    does not name its images. Pickles are of protocol 2 (NumPy 1.26 or later). `about.json` holds the banks' metadata.

    Args:
        folder: to be given to `read_leo_embeddings` as its root.
        banks: "train", "val" and "test" of features [M, width] float32.
        dataset: "mini", "tiered", or another one with features of one's own.
        kind: "center" or "multiview" (mini only).

    Raises:
        FewshotError: the banks are others, or `folder` already holds such features, or embeddings.zip.
    """
    target = find_free_target(folder, dataset, kind)
    if set(banks) != set(SPLITS):
        raise FewshotError(f"{folder}: banks {', '.join(banks)} given: give train, val and test")
    with writing(target, "another folder"):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=target.parent))
        try:
            splits = {}
            for split, bank in banks.items():
                names = [re.sub("[%_-]", lambda sign: f"%{ord(sign[0]):02X}", name) for name in bank.names]
                sizes = zip(names, bank.sizes.tolist(), strict=True)
                keys = [f"0-{name}-{name}_{row:08d}" for name, size in sizes for row in range(size)]
                content = {"keys": np.array(keys, dtype=object), "embeddings": bank.examples.cpu().numpy()}
                try:
                    splits[split] = _sort_features(content)  # as the reader will
                except ValueError as error:
                    raise FewshotError(f"{folder}: bank {split}: {error}; give banks of float32 features") from error
                with (scratch / f"{split}_embeddings.pkl").open("wb") as file:
                    pickle.dump(content, file, protocol=2)
            _check_splits(str(folder), splits, None, "give banks of one width, each class in one split")
            metadata = json.dumps(dict(banks["train"].metadata), indent=1)
            (scratch / "about.json").write_text(metadata + "\n", encoding="utf-8")
            scratch.chmod(0o755)  # mkdtemp lets only the owner in
            os.rename(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def find_free_target(folder: str | Path, dataset: str, kind: str) -> Path:
    """The folder of `write_originals`. Raises FewshotError if it is there already, or has no such dataset or kind."""
    folder, inner = expand_path(folder), _inner_folder(dataset, kind)
    for path in (folder / "embeddings.zip", folder / inner, folder / inner.removeprefix("embeddings/")):
        if path.exists():
            raise FewshotError(f"{path}: is there already: remove it, or write to another folder")
    return folder / inner


def _inner_folder(dataset: str, kind: str) -> str:
    """The folder of the three pickles in the zip."""
    if not re.fullmatch(r"\w[\w.-]*", dataset):
        raise FewshotError(f"embeddings: dataset={dataset!r}: give the name of a dataset, such as mini or tiered")
    kinds = KINDS[:1] if dataset == "tiered" else KINDS
    if kind not in kinds:
        raise FewshotError(f"embeddings: kind={kind!r}: {dataset} has {' and '.join(kinds)} only")
    return f"embeddings/{FOLDERS.get(dataset, dataset)}/{kind}"


def _find_pickles(root: Path, inner: str, download: bool) -> tuple[Files, dict[str, str]]:
    """The zip or folder, and the name of each split's pickle in it."""
    archive, short = root / "embeddings.zip", inner.removeprefix("embeddings/")
    published = inner.split("/")[1] in FOLDERS.values()
    zipped = archive.exists() and (published or any(name.startswith(inner) for name in open_files(archive).names))
    folders = [path for path in (root / inner, root / short) if path.exists()]
    existing = archive if zipped else next(iter(folders), None)
    if existing is None and download and published:
        fetch(URL, archive, check=check_archive)
    elif existing is None and not published:
        raise FewshotError(
            f"{root}: no folder {inner}; published features are of miniImageNet and tieredImageNet alone: set "
            "features=conv4 to train an extractor, or put features of your own there in that layout (tools/pretrain.py "
            "writes it with export_leo_format=<folder>)"
        )
    elif existing is None:
        raise FewshotError(
            f"{root}: neither embeddings.zip nor the folder {inner} is there: put {URL} there or unpack it there, or "
            "set features.reader.download=true to fetch it, or features=conv4 to train an extractor on the images that "
            "are there, or put features of your own there in that layout (tools/pretrain.py writes it with "
            "export_leo_format=<folder>)"
        )
    files = open_files(archive if existing in (None, archive) else root)
    folder = short if existing == root / short else inner
    names = {split: f"{folder}/{split}_embeddings.pkl" for split in SPLITS}
    if missing := [name for name in names.values() if name not in files.names]:
        raise FewshotError(f"{files.describe(missing[0])} is missing: {AGAIN}")
    return files, names


def _sort_features(content: Any) -> Split:
    """The content of a pickle, sorted by class and image.

    Raises:
        One of `UNFIT`: it is not what the head of this module says.
    """
    rows = content["embeddings"]
    keys = [key.decode("latin1") if isinstance(key, bytes) else key for key in list(content["keys"])]
    if rows.ndim != 2 or rows.dtype.kind != "f" or rows.itemsize != 4:
        raise ValueError(f"embeddings are {rows.dtype} {rows.shape}, not float32 [n, width]")
    if not keys or not rows.shape[1] or len(keys) != len(rows):
        raise ValueError(f"{len(keys)} keys for embeddings {rows.shape}")
    classes, images = [], []
    for key in keys:
        _, name, image = key.split("-")
        if not name or image.split("_")[0] != name:
            raise ValueError(f"key {key[:80]!r} is not <anything>-<class>-<class>_<image>")
        classes.append(re.sub("%(25|2D|5F)", lambda code: chr(int(code[1], 16)), name))
        images.append(image)
    image, times = Counter(images).most_common(1)[0]
    if times > 1:
        raise ValueError(f"image {image[:80]!r} is there {times} times")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ValueError(f"the features of {images[int(finite.argmin())][:80]!r} are not all finite")
    order = sorted(range(len(keys)), key=lambda row: (classes[row], images[row]))
    counts = Counter(classes[row] for row in order)
    return Split(np.asarray(rows)[order].astype(np.float32, copy=False), list(counts.values()), list(counts))


def _check_splits(
    where: str, splits: Mapping[str, Split] | Mapping[str, Bank], width: int | None, remedy: str = AGAIN
) -> None:
    """Raise a FewshotError if a class is in two splits, or the features are not of this width, or not all of one."""
    owners: dict[str, str] = {}
    width = splits["train"].examples.shape[1] if width is None else width
    for split, part in splits.items():
        if part.examples.shape[1:] != (width,):
            actual = part.examples.shape[1]
            raise FewshotError(f"{where}: {split}: features of width {actual}, not {width} (null admits any): {remedy}")
        for name in part.names:
            if owners.setdefault(name, split) != split:
                raise FewshotError(f"{where}: class {name[:80]!r} is in {owners[name]} and in {split}: {remedy}")
