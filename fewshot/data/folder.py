"""Images of one's own: any folder or archive of class folders."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import posixpath
import re
import unicodedata
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fewshot.data.bank import Bank, open_banks
from fewshot.data.convert import convert, part_of_files
from fewshot.data.files import ARCHIVES, DAMAGED, Files, open_files
from fewshot.data.images import SUFFIXES, Look
from fewshot.data.layouts import SPLIT_WORDS, SPLITS, is_image
from fewshot.errors import FewshotError

Classes = dict[str, list[str]]  # the image files of each class

LEAST = 2  # classes of a split made here
TABLES = {"split.csv": None} | {f"{word}.csv": split for word, split in SPLIT_WORDS.items()}
ROWS, CLASS_ROWS, SPLIT_ROWS = ("filename", "label", "split"), ("class", "split"), ("filename", "label")
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
RANDOM = "dataset.reader.split=random to split the classes anew"
WANTED = (
    "wanted: <class>/<image>, or train, val and test with <class>/<image> in each, or a split.csv of columns "
    "filename,label,split"
)


def read(
    root: str | Path,
    cache: str | Path,
    name: str = "folder",
    size: int = 84,
    channels: int = 3,
    resize: str = "squash",
    resample: str = "lanczos",
    split: str = "auto",
    fractions: Sequence[float] = (0.64, 0.16, 0.20),
    seed: int = 0,
    csv: str | Path | None = None,
    leaks: str = "refuse",
    again: bool = False,
) -> dict[str, Bank]:
    """The banks "train", "val" and "test" of images [M, channels, size, size] uint8.

    The images lie in class folders, which may all lie in one folder more. What they are converted to lies in a folder
    that is named by the names and sizes of the files, too, so that a changed source gives other banks.

    Args:
        root: folder or archive.
        cache: folder in which the banks are kept, in a folder of their own.
        name: of the dataset, in tables and of the banks' folder.
        size, channels, resize, resample: see `Look`.
        split: "folders": train, val (or valid, validation) and test hold the class folders of each.
            "csv": split.csv in `root` says it, in columns class,split (of class folders) or filename,label,split (of
            images wherever they lie); or train.csv, val.csv and test.csv do, in columns filename,label. A filename is
            relative to `root`, or as much of its end as there is once. What is not listed is left out.
            "random": fractions of the classes. "auto": csv where there is one, folders where there are, else random.
        fractions: of the classes in train, val and test if random. The classes are sorted by name, then shuffled by
            numpy RandomState(seed), whose numbers stay the same in every version of NumPy.
        seed: of that.
        csv: a file to be taken for split.csv.
        leaks: "refuse" images that two splits share, or "count" them.
        again: convert anew, whatever the cache holds.

    Raises:
        FewshotError: an argument out of range, another layout, a class or image in two places, or a damaged image.
    """
    look, name = Look(size, channels, resize, resample), str(name)
    try:
        shares = [float(share) for share in fractions]
    except (TypeError, ValueError):
        shares = []
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise FewshotError(f"dataset.reader.name={name}: letters, digits and ._- are wanted, it names a folder")
    if split not in ("auto", "folders", "csv", "random"):
        raise FewshotError(f"dataset.reader.split={split}: choose auto, folders, csv or random")
    if csv is not None and split not in ("auto", "csv"):
        raise FewshotError(f"dataset.reader.csv is given, and split={split}: leave one of them out")
    if len(shares) != 3 or not (min(shares) > 0 and abs(sum(shares) - 1) < 1e-6):
        raise FewshotError(f"dataset.reader.fractions={fractions}: three numbers above 0 are wanted, in all 1")
    if type(seed) is not int or not 0 <= seed < 1 << 32:
        raise FewshotError(f"dataset.reader.seed={seed}: choose a whole number from 0 to 2^32 - 1")
    if leaks not in ("refuse", "count"):
        raise FewshotError(f"dataset.reader.leaks={leaks}: choose refuse or count")

    files = open_files(Path(str(root)))
    images = _images(files)
    splits, about = _splits(files, images, split, shares, seed, csv)
    _check(files, splits)
    taken = sorted(file for classes in splits.values() for names in classes.values() for file in names)
    kind = "a folder" if files.root.is_dir() else "an archive"
    about |= {"dataset": name, "source": f"{kind} of one's own", "size": size, "channels": channels}
    about |= {"resize": resize, "resample": resample, "complete": True, "images_left_out": len(images) - len(taken)}
    content = [about, leaks, splits, _sizes(files.root, taken)]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(cache) / f"{name}-{digest}"
    if again or not (folder / "bank.json").exists():
        parts = {each: part_of_files(files, splits[each]) for each in SPLITS}
        convert(folder, parts, look, about, leaks=leaks, again=again)
    return open_banks(folder)


def _images(files: Files) -> list[str]:
    images = [name for name in files.names if is_image(name)]
    for name in images:
        if UNPRINTABLE.search(name):
            raise FewshotError(f"{files.root}: {name!a}: a name that cannot be printed; rename it")
    if not images:
        archive = next((name for name in files.names if name.lower().endswith(ARCHIVES)), None)
        remedy = f"; give the archive {files.where(archive)} instead" if archive else ""
        raise FewshotError(f"{files.root}: no images are there ({', '.join(SUFFIXES)}); {WANTED}{remedy}")
    return images


def _sizes(root: Path, names: Sequence[str]) -> object:
    """What changes with the files' content, at the least where their sizes do."""
    try:
        if root.is_dir():
            return [(root / name).stat().st_size for name in names]
        if root.suffix.lower() == ".zip":
            with zipfile.ZipFile(root) as archive:
                return [(member.filename, member.CRC) for member in archive.infolist()]
        with root.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except DAMAGED as error:
        raise FewshotError(
            f"{root}: cannot be listed ({' '.join(str(error).split())}); mend it, or remove it"
        ) from error


def _splits(
    files: Files, images: list[str], split: str, shares: list[float], seed: int, table: str | Path | None
) -> tuple[dict[str, Classes], dict[str, Any]]:
    """The classes of each split, and in words where they come from."""
    if split in ("auto", "csv"):
        if tables := _tables(files, images, table):
            return _by_tables(files, images, tables)
        if split == "csv":
            raise FewshotError(
                f"{files.root}: neither split.csv nor train.csv, val.csv and test.csv is there; put one there, or name "
                f"it by dataset.reader.csv=<path>, or set {RANDOM}"
            )
    found = _class_folders(files, images)
    if split == "folders" and "" in found:
        raise FewshotError(f"{files.root}: no folders train, val and test are there; make them, or set {RANDOM}")
    if split != "random" and "" not in found:
        splits: dict[str, Classes] = {}
        for top, classes in found.items():
            if splits.setdefault(SPLIT_WORDS[top.lower()], classes) is not classes:
                raise FewshotError(f"{files.root}: two folders of {SPLIT_WORDS[top.lower()]}, {top} is one; join them")
        return splits, {"layout": "class folders in folders of the splits", "split_source": "the folders' own"}
    pooled = _pooled(found)
    names, count = sorted(pooled), len(pooled)
    train, val = (int(count * share + 0.5) for share in shares[:2])
    sizes = dict(zip(SPLITS, (train, val, count - train - val), strict=True))
    numbers = "/".join(map(str, sizes.values()))
    if min(sizes.values()) < LEAST:
        remedy = "add classes" if count < 3 * LEAST else "set dataset.reader.fractions=[0.34,0.33,0.33], or add classes"
        raise FewshotError(
            f"{files.root}: {count} classes would be split {numbers}, and each split needs {LEAST}: {remedy}"
        )
    # RandomState, not Generator: NumPy promises that its numbers stay the same in every version.
    order = iter(np.random.RandomState(seed).permutation(count).tolist())
    splits = {each: {(name := names[next(order)]): pooled[name] for _ in range(n)} for each, n in sizes.items()}
    layout = "class folders" if "" in found else f"class folders, pooled from {', '.join(sorted(found))}"
    source = f"{numbers} of the sorted classes, shuffled by numpy RandomState({seed})"
    return splits, {"layout": layout, "split_source": source}


def _class_folders(files: Files, images: list[str]) -> dict[str, Classes]:
    """The class folders in each folder of a split, or under "" where there are no such; a class may have no images.

    Raises:
        FewshotError: images that do not lie one folder below that.
    """
    paths = {name: name.split("/") for name in images}
    base: list[str] = []  # folders that hold nothing but the next
    while len(tops := {path[len(base)] for path in paths.values()}) == 1:
        (top,) = tops
        if top.lower() in SPLIT_WORDS or min(map(len, paths.values())) < len(base) + 3:
            break
        base.append(top)
    level = len(base)
    folders = {path[level] for path in paths.values() if len(path) > level + 1}
    deep = {path[level] for path in paths.values() if len(path) > level + 2}
    words = {top for top in folders if top.lower() in SPLIT_WORDS}
    if words & deep or (words and words == folders):
        if others := sorted(folders - words):
            raise FewshotError(
                f"{files.root}: {others[0]} lies beside {min(words)}, and is none of {', '.join(SPLIT_WORDS)}; rename "
                "it, or move it elsewhere"
            )
        level += 1
    else:
        words = {""}
    depths: dict[int, str] = {}  # an example of each
    for name, path in paths.items():
        depths.setdefault(max(0, len(path) - level - 1), name)
    if set(depths) != {1}:
        found = " and ".join(depths[depth] for depth in sorted(depths))
        what = "folders too deep" if len(depths) == 1 else "class folders at different depths"
        what = "images in no class folder" if 0 in depths else what
        raise FewshotError(f"{files.root}: {what}: found {found}; {WANTED}")

    classes: dict[str, Classes] = {word: {} for word in sorted(words)}
    for name, path in paths.items():
        classes[path[level - 1] if words != {""} else ""].setdefault(path[level], []).append(name)
    for word, there in classes.items():  # the folders without images
        place = [*base, word] if word else base
        for path in (name.split("/") for name in files.names):
            if path[:level] == place and len(path) > level + 1:
                there.setdefault(path[level], [])
        if files.root.is_dir():
            for path in files.root.joinpath(*place).iterdir():
                if path.is_dir() and not path.name.startswith((".", "__MACOSX")):
                    there.setdefault(path.name, [])
    return classes


def _pooled(found: Mapping[str, Classes]) -> Classes:
    pooled: Classes = {}
    for classes in found.values():
        for name, images in classes.items():
            pooled[name] = pooled.get(name, []) + images
    return pooled


def _tables(files: Files, images: list[str], given: str | Path | None) -> dict[str, tuple[str | None, bytes]]:
    """The CSVs that say the split: the name for people of each, whose split it is if it is one's, and its content."""
    try:
        if given is not None:
            path = next((path for path in (Path(given), files.root / given) if path.is_file()), None)
            if path is None:
                raise FewshotError(f"dataset.reader.csv={given}: no such file, here or below {files.root}")
            return {str(path): (None, path.read_bytes())}
        # They lie in the root, or in a folder more that all images lie in.
        common = PurePosixPath(posixpath.commonpath([posixpath.dirname(name) for name in images]))
        there = set(files.names)
        for place in (*reversed(common.parents), common):
            found = {name: str(place / name) for name in TABLES if str(place / name) in there}
            if not found:
                continue
            if "split.csv" not in found and sorted(str(TABLES[name]) for name in found) != sorted(SPLITS):
                raise FewshotError(
                    f"{files.root}: of train.csv, val.csv and test.csv there is {', '.join(found)}; leave one of each, "
                    f"or set dataset.reader.split=folders, or {RANDOM}"
                )
            if "split.csv" in found and len(found) > 1:
                raise FewshotError(
                    f"{files.root}: {' and '.join(found)} are there; name one by dataset.reader.csv=<path>"
                )
            return {files.where(file): (TABLES[name], b"".join(files.read([file]))) for name, file in found.items()}
    except DAMAGED as error:
        raise FewshotError(f"{files.root}: its CSV cannot be read ({' '.join(str(error).split())}); mend it") from error
    return {}


def _by_tables(
    files: Files, images: list[str], tables: Mapping[str, tuple[str | None, bytes]]
) -> tuple[dict[str, Classes], dict[str, Any]]:
    """The classes of each split as CSVs say."""
    splits: dict[str, Classes] = {}
    of_classes = False
    taken: dict[str, tuple[str, str]] = {}  # image file or class folder to class and split
    by_name: dict[str, list[str]] = {}
    for image in images:
        by_name.setdefault(_form(posixpath.basename(image)), []).append(image)
    for where, (own, data) in tables.items():
        columns, rows = _rows(where, data, [ROWS, CLASS_ROWS] if own is None else [SPLIT_ROWS])
        of_classes = columns == CLASS_ROWS
        folders = _pooled(_class_folders(files, images)) if of_classes else {}
        forms = {_form(name): name for name in folders}
        for line, values in rows:
            here = f"{where}: line {line}"
            split = SPLIT_WORDS.get(values["split"].lower()) if own is None else own
            if split is None:
                raise FewshotError(f"{here}: split {values['split']!r}; write train, val or test")
            if of_classes:
                item = label = forms.get(_form(values["class"]), "")
                if not label:
                    raise FewshotError(
                        f"{here}: no class folder {values['class']!r} is there; make it, or remove the row"
                    )
                group = folders[label]
            else:
                item, label = _image(files, here, by_name, values["filename"]), values["label"]
                group = [item]
            if item not in taken:
                splits.setdefault(split, {}).setdefault(label, []).extend(group)
            elif taken[item] != (label, split):
                raise FewshotError(
                    f"{here}: {item!r} is listed as {taken[item][0]!r} of {taken[item][1]} already; it belongs to one "
                    "class of one split: remove a row"
                )
            taken[item] = label, split
    names = "train.csv, val.csv and test.csv" if len(tables) > 1 else "a CSV"
    return splits, {"layout": f"{names} of {'classes' if of_classes else 'images'}", "split_source": names}


def _image(files: Files, here: str, by_name: Mapping[str, list[str]], filename: str) -> str:
    """The image that a row names, by its path or as much of the path's end as no other has."""
    wanted = posixpath.normpath(_form(filename.replace("\\", "/")))
    found = [name for name in by_name.get(posixpath.basename(wanted), ()) if f"/{_form(name)}".endswith(f"/{wanted}")]
    found = [name for name in found if _form(name) == wanted] or found
    if not found:
        raise FewshotError(
            f"{here}: a row whose image is missing: {filename!r}; put it below {files.root}, or remove the row"
        )
    if len(found) > 1:
        raise FewshotError(f"{here}: {filename!r} may be {found[0]} or {found[1]}; write its path below {files.root}")
    return found[0]


def _rows(
    where: str, data: bytes, wanted: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], list[tuple[int, dict[str, str]]]]:
    """Which of the wanted columns a CSV has, and its rows by line number.

    Raises:
        FewshotError: other columns, no rows, one with too few or too many fields or an empty one, or no CSV in UTF-8.
    """
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        lines = [(reader.line_num, [field.strip() for field in fields]) for fields in reader if any(fields)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FewshotError(f"{where}: no CSV in UTF-8 ({' '.join(str(error).split())}); save it as one") from error
    if not lines:
        raise FewshotError(f"{where}: empty; write a first line {','.join(wanted[0])} and a row for each image")
    header = [name.lower() for name in lines[0][1]]
    if len(header) == 1 and re.search("[;\t|]", header[0]):
        raise FewshotError(f"{where}: its columns are not separated by commas; save it with commas")
    columns = next((columns for columns in wanted if set(columns) <= set(header)), None)
    if columns is None or len(set(header)) < len(header):
        choice = " or ".join(",".join(columns) for columns in wanted)
        raise FewshotError(f"{where}: columns {','.join(header)[:80]!r}; write {choice} in the first line")
    if len(lines) == 1:
        raise FewshotError(f"{where}: no rows below the first line; write one for each image")
    rows = []
    for line, fields in lines[1:]:
        values = dict(zip(header, fields, strict=False))
        if len(fields) != len(header) or not all(values[column] for column in columns):
            raise FewshotError(f"{where}: line {line}: not a value for each of {','.join(header)[:80]!r}; mend it")
        rows.append((line, values))
    return columns, rows


def _check(files: Files, splits: Mapping[str, Classes]) -> None:
    """Hold what was found against what every dataset needs."""
    for split in SPLITS:
        if not splits.get(split):
            raise FewshotError(f"{files.root}: no classes of {split}; add some, or set {RANDOM}")
    seen: dict[str, tuple[str, str]] = {}
    for split in SPLITS:
        for name, images in sorted(splits[split].items()):
            if UNPRINTABLE.search(name):
                raise FewshotError(f"{files.root}: class {name!a}: a name that cannot be printed; rename it")
            other, its = seen.setdefault(_form(name).casefold(), (name, split))
            if other != name:
                raise FewshotError(
                    f"{files.root}: classes {other} ({its}) and {name} ({split}) differ only by case or by how letters "
                    "are composed; rename one, or join them"
                )
            if its != split:
                raise FewshotError(
                    f"{files.root}: class {name} is in {its} and in {split}, and splits share no class; rename one, or "
                    f"set {RANDOM}"
                )
            if not images:
                raise FewshotError(f"{files.root}: class {name} has no images; put some there, or remove the folder")
            stems: dict[str, str] = {}
            for image in images:
                twin = stems.setdefault(_form(posixpath.splitext(image)[0]).casefold(), image)
                if twin != image:
                    raise FewshotError(
                        f"{files.root}: {twin} and {image} differ only by suffix or case, and may be one image twice; "
                        "remove or rename one"
                    )


def _form(text: str) -> str:
    """The text with its letters composed, as they are on one system and not on another."""
    return unicodedata.normalize("NFC", text)
