"""Read files that give the class and split of each image, or the split of each class: CSV, or JSON for classes."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fewshot.core.errors import FewshotError, one_line
from fewshot.core.paths import expand_path
from fewshot.data.bank import SPLITS
from fewshot.data.sources.archives import DAMAGED, Files
from fewshot.data.sources.faults import raise_faults
from fewshot.data.sources.images import HEAD_BYTES, has_image_magic, is_image, is_web_page, suffix_of
from fewshot.data.sources.layouts import SPLIT_WORDS

IMAGE_COLUMNS, CLASS_COLUMNS, ONE_SPLIT_COLUMNS = (
    ("filename", "label", "split"),
    ("class", "split"),
    ("filename", "label"),
)
# CSV files, by a name in the source or a path elsewhere. The value is the split that a file is of, or None if the file
# has a column for it.
CsvFiles = Mapping[str | Path, str | None]
CSV_NAMES = {"split.csv": None} | {f"{word}.csv": split for word, split in SPLIT_WORDS.items()}


class Row(NamedTuple):
    """What a row says of one image or class."""

    where: str  # file and line, for messages
    split: str
    label: str


def read_rows(files: Files, csv_files: CsvFiles) -> tuple[str, dict[str, Row]]:
    """Read CSV files with columns filename,label,split or class,split, or filename,label in a file of one split.

    Their order does not matter, nor do other columns, blank lines, repeated rows, and the case of splits and columns.
    A name that ends in .json is an object with a list of classes for each split, as Meta-Dataset publishes them.

    Returns:
        "images" or "classes", and the row of each by the name that the file gives it.

    Raises:
        FewshotError: a file is no CSV in UTF-8 with these columns and some rows, a row lacks a value or has too many,
            a split is unknown, or an image or class belongs to two.
    """
    kind, rows, unknown, contradicting = "images", {}, [], []
    for name, file_split in csv_files.items():
        where = str(name) if isinstance(name, Path) else files.describe(name)
        try:
            data = name.read_bytes() if isinstance(name, Path) else next(files.read([name]))
        except DAMAGED as error:
            raise FewshotError(f"{where}: cannot be read ({one_line(error)}); mend it") from error
        if str(name).lower().endswith(".json"):
            columns, lines = CLASS_COLUMNS, _parse_json(where, data)
        else:
            columns, lines = _parse(where, data, [ONE_SPLIT_COLUMNS] if file_split else [IMAGE_COLUMNS, CLASS_COLUMNS])
        kind = "classes" if columns == CLASS_COLUMNS else kind
        for line, values in lines:
            item, split = values[columns[0]], file_split or SPLIT_WORDS.get(values["split"].lower())
            if split is None:
                unknown.append(f"{line}: split {values['split']!r:.80}")
                continue
            row = Row(line, split, item if columns == CLASS_COLUMNS else values["label"])
            first = rows.setdefault(item, row)
            if first[1:] != row[1:]:
                contradicting.append(f"{line}: {item!r:.80} is listed as {first.label!r:.80} of {first.split} already")
    raise_faults("rows of an unknown split", unknown, "write train, val or test")
    raise_faults("rows that contradict another", contradicting, "remove one: it belongs to one class of one split")
    return kind, rows


def _parse(
    where: str, data: bytes, choices: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], list[tuple[str, dict[str, str]]]]:
    """Which of the choices the columns of a CSV are, and its rows: where each is, and its values by column."""
    if is_web_page(data):
        raise FewshotError(f"{where}: a web page, not the file; fetch it again")
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        lines = [(reader.line_num, [field.strip() for field in fields]) for fields in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FewshotError(f"{where}: no CSV in UTF-8 ({one_line(error)}); save it as one") from error
    lines = [(line, fields) for line, fields in lines if any(fields)]
    header = [name.lower() for name in lines[0][1]] if lines else []
    columns = next((columns for columns in choices if set(columns) <= set(header)), None)
    if columns is None or len(set(header)) < len(header):
        wanted = " or ".join(",".join(columns) for columns in choices)
        raise FewshotError(f"{where}: columns {','.join(header)!r:.80}; write {wanted}, with commas, in the first line")
    if len(lines) == 1:
        raise FewshotError(f"{where}: no rows below the first line; write one for each image or class")
    rows, faults = [], []
    for line, fields in lines[1:]:
        values = dict(zip(header, fields, strict=False))
        if len(fields) != len(header) or not all(values[column] for column in columns):
            faults.append(f"{where}: line {line}: not a value for each of {','.join(header)!r:.80}")
        rows.append((f"{where}: line {line}", values))
    raise_faults("rows without all values", faults, "mend it")
    return columns, rows


def _parse_json(where: str, data: bytes) -> list[tuple[str, dict[str, str]]]:
    """The rows of an object of lists, {split: [class, ...]}; what is no list, such as a text on the source, is none."""
    if is_web_page(data):
        raise FewshotError(f"{where}: a web page, not the file; fetch it again")
    try:
        lists = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FewshotError(f"{where}: no JSON ({one_line(error)}); save it as one") from error
    groups = {split: group for split, group in lists.items() if isinstance(group, list)} if type(lists) is dict else {}
    if not groups or any(type(name) not in (str, int) for group in groups.values() for name in group):
        raise FewshotError(f'{where}: no lists of classes; write {{"train": [...], "val": [...], "test": [...]}}')
    rows = [(split, str(name).strip()) for split, group in groups.items() for name in group]
    return [(f"{where}: {split}", {"class": name, "split": split}) for split, name in rows]


def find_csv_files(files: Files, images: Sequence[str], given: str | Path | None) -> CsvFiles:
    """The CSV files that split a source: in the root, or in a folder that all images are in; empty if there are none.

    Args:
        files: the source.
        images: the images in it.
        given: the path of a CSV file of another name or place, absolute or relative to the root, instead of split.csv.

    Raises:
        FewshotError: the given file is not there, or there is neither split.csv alone nor one file of each split.
    """
    if given is not None:
        given = expand_path(given)
        if not files.root.is_dir() and given.as_posix() in files.names:
            return {given.as_posix(): None}  # in the archive
        for path in (given, files.root / given):
            if path.is_file():
                return {path: None}
        raise FewshotError(f"dataset.reader.csv={given}: no such file, here or below {files.root}")
    common = PurePosixPath(posixpath.commonpath(map(posixpath.dirname, images)) if images else "")
    lists = [PurePosixPath(file) for file in files.names if is_list(file)]
    for folder in (*reversed(common.parents), common):
        own = {path.name: str(path) for path in lists if path.parent == folder}
        paths: dict[str | Path, str | None] = {own[name]: split for name, split in CSV_NAMES.items() if name in own}
        paths = paths or dict.fromkeys(own.values())
        if sorted(map(str, paths.values())) in (["None"], sorted(SPLITS)):
            return paths
        if paths:
            there = ", ".join(map(str, paths))
            raise FewshotError(
                f"{files.root}: of the lists there is {there}; leave split.csv alone, or train.csv, val.csv and "
                "test.csv, or name one by dataset.reader.csv=<path>, or set dataset.reader.split=folders"
            )
    return {}


def is_list(file: str) -> bool:
    """Whether a file has the name of a list: one of CSV_NAMES, or split.csv in other letters, such as Split.csv."""
    name = posixpath.basename(file)
    return name in CSV_NAMES or name.lower() == "split.csv"


def match_images(files: Files, images: Sequence[str], rows: Mapping[str, Row]) -> dict[str, str]:
    """The image file of each name that rows give; images that are not there are left out.

    A name is a path below the source, the end of such a path that no other image has, or an absolute path. If the
    source is a folder, an absolute path may lead outside it.

    Raises:
        FewshotError: a name may mean several images.
    """
    by_path: dict[str, list[str]] = {}
    by_basename: dict[str, list[str]] = {}
    for file in images:
        by_path.setdefault(to_nfc(file), []).append(file)
        by_basename.setdefault(to_nfc(posixpath.basename(file)), []).append(file)
    file_of: dict[str, str] = {}
    ambiguous = []
    for name, row in rows.items():
        wanted = posixpath.normpath(to_nfc(_relative_to(files.root, name.replace("\\", "/"))))
        matches = by_path.get(wanted, [])
        if not matches:  # it may be the end of a path
            alike = by_basename.get(posixpath.basename(wanted), [])
            matches = [file for file in alike if f"/{to_nfc(file)}".endswith(f"/{wanted}")]
        if len(matches) > 1:
            ambiguous.append(f"{row.where}: {name!r:.80} may be {matches[0]} or {matches[1]}")
        elif matches:
            file_of[name] = matches[0]
        elif files.root.is_dir() and _is_image_outside(wanted):
            file_of[name] = wanted
    raise_faults(
        "rows that may mean several images", ambiguous, f"leave one of them below {files.root}, or write its path"
    )
    return file_of


def _relative_to(root: Path, name: str) -> str:
    """An absolute path below the root relative to it; any other path unchanged, but for "~"."""
    name = os.path.expanduser(name)
    if name.startswith("/"):
        for path, folder in ((Path(posixpath.normpath(name)), root.absolute()), (Path(name).resolve(), root.resolve())):
            if path.is_relative_to(folder):
                return path.relative_to(folder).as_posix()
    return name


def _is_image_outside(path: str) -> bool:
    """Whether an absolute path is an image, by its suffix or, without one, by its first bytes."""
    with suppress(OSError):  # such as a folder that may not be entered
        if not path.startswith("/") or not Path(path).is_file():
            return False
        if suffix_of(path):
            return is_image(path)
        with Path(path).open("rb") as file:
            return has_image_magic(file.read(HEAD_BYTES))
    return False


def to_nfc(text: str) -> str:
    """The text with its letters composed (Unicode NFC); file systems differ in that."""
    return unicodedata.normalize("NFC", text)
