"""Lists of images or classes: CSV files that say of which class and split each is."""

from __future__ import annotations

import csv
import io
import os
import posixpath
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fewshot.core.errors import FewshotError, one_line
from fewshot.core.paths import expand_path
from fewshot.data.sources.archives import DAMAGED, Files
from fewshot.data.sources.faults import raise_faults
from fewshot.data.sources.images import HEAD_BYTES, holds_image, is_image, suffix_of, web_page
from fewshot.data.sources.layouts import SPLIT_WORDS, SPLITS

OF_IMAGES, OF_CLASSES, OF_A_SPLIT = ("filename", "label", "split"), ("class", "split"), ("filename", "label")
Lists = Mapping[str | Path, str | None]  # names in a source, or paths elsewhere, each with the split that it is of
LISTS = {"split.csv": None} | {f"{word}.csv": split for word, split in SPLIT_WORDS.items()}


class Row(NamedTuple):
    """What a list says of one image or class, and for people where it says so."""

    where: str
    split: str
    label: str


def listed(files: Files, lists: Lists) -> tuple[str, dict[str, Row]]:
    """What lists name, "images" or "classes", and what they say of each, by the name that they give it.

    A list has the columns filename,label,split or class,split, or filename,label if it is of one split only; the order
    of columns does not matter, nor do other columns, blank lines, the case of split and column names, or a row that
    comes again.

    Args:
        files: the source that the lists lie in.
        lists: with None for a split where the list has a column for that.

    Raises:
        FewshotError: no CSV in UTF-8, other columns, no rows, one that lacks a value or has too many, a word that is no
            split, or an image or class that belongs to two.
    """
    what, found, unknown, twice = "images", {}, [], []
    for name, own in lists.items():
        where = str(name) if isinstance(name, Path) else files.where(name)
        try:
            data = name.read_bytes() if isinstance(name, Path) else b"".join(files.read([name]))
        except DAMAGED as error:
            raise FewshotError(f"{where}: cannot be read ({one_line(error)}); mend it") from error
        columns, rows = _rows(where, data, [OF_A_SPLIT] if own else [OF_IMAGES, OF_CLASSES])
        what = "classes" if columns == OF_CLASSES else what
        for here, values in rows:
            item, split = values[columns[0]], own or SPLIT_WORDS.get(values["split"].lower())
            if split is None:
                unknown.append(f"{here}: split {values['split']!r:.80}")
                continue
            row = Row(here, split, item if columns == OF_CLASSES else values["label"])
            first = found.setdefault(item, row)
            if first[1:] != row[1:]:
                twice.append(f"{here}: {item!r:.80} is listed as {first.label!r:.80} of {first.split} already")
    raise_faults("rows of an unknown split", unknown, "write train, val or test")
    raise_faults("rows that contradict another", twice, "it belongs to one class of one split: remove a row")
    return what, found


def find_lists(files: Files, images: Sequence[str], given: str | Path | None) -> Lists:
    """The lists that say the split of a source, as `listed` takes them; none where there are none.

    Args:
        files: the source.
        images: in it; the lists lie in the root, or in a folder more that all images lie in.
        given: a list of another name or place, relative to the root or not, to be taken for split.csv.

    Raises:
        FewshotError: the given one is not there, or neither split.csv alone nor one list of each split is.
    """
    if given is not None:
        given = expand_path(given)
        path = next((path for path in (given, files.root / given) if path.is_file()), None)
        if path is None:
            raise FewshotError(f"dataset.reader.csv={given}: no such file, here or below {files.root}")
        return {path: None}
    common = PurePosixPath(posixpath.commonpath(map(posixpath.dirname, images)) if images else "")
    there = set(files.names)
    for place in (*reversed(common.parents), common):
        paths = {name: str(place / name) for name in LISTS if str(place / name) in there}
        if sorted(str(LISTS[name]) for name in paths) in (["None"], sorted(SPLITS)):
            return {path: LISTS[name] for name, path in paths.items()}
        if paths:
            raise FewshotError(
                f"{files.root}: of the lists there is {', '.join(paths)}; leave one of each of train.csv, val.csv and "
                "test.csv, or split.csv alone, or name it by dataset.reader.csv=<path>, or set "
                "dataset.reader.split=folders or random"
            )
    return {}


def found_images(files: Files, images: Sequence[str], rows: Mapping[str, Row]) -> dict[str, str]:
    """The file of each image that rows name; an image that is not there is left out.

    It may be named by its path below the source, by as much of the path's end as no other has, or by an absolute path,
    which may lead elsewhere if the source is a folder.

    Raises:
        FewshotError: several images end with what a row names.
    """
    by_name: dict[str, list[str]] = {}
    for file in images:
        by_name.setdefault(to_nfc(posixpath.basename(file)), []).append(file)
    found: dict[str, str] = {}
    faults = []
    for name, row in rows.items():
        wanted = posixpath.normpath(to_nfc(_below(files.root, name.replace("\\", "/"))))
        there = by_name.get(posixpath.basename(wanted), [])
        there = [file for file in there if f"/{to_nfc(file)}".endswith(f"/{wanted}")]
        there = [file for file in there if to_nfc(file) == wanted] or there
        if len(there) > 1:
            faults.append(f"{row.where}: {name!r:.80} may be {there[0]} or {there[1]}")
        elif there:
            found[name] = there[0]
        elif files.root.is_dir() and _is_image_elsewhere(wanted):
            found[name] = wanted
    remedy = f"leave one of them below {files.root}, or write its path"
    raise_faults("rows that may mean several images", faults, remedy)
    return found


def _below(root: Path, name: str) -> str:
    """An absolute path in the source relative to it; any other name as it is."""
    if name.startswith("~"):
        name = os.path.expanduser(name)
    if not name.startswith("/"):
        return name
    for path, folder in ((Path(posixpath.normpath(name)), root.absolute()), (Path(name).resolve(), root.resolve())):
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return name


def _is_image_elsewhere(path: str) -> bool:
    if not path.startswith("/") or not Path(path).is_file():
        return False
    if suffix_of(path):
        return is_image(path)
    with suppress(OSError), Path(path).open("rb") as file:
        return holds_image(file.read(HEAD_BYTES))
    return False


def to_nfc(text: str) -> str:
    """The text with its letters to_nfc, as they are on one system and not on another."""
    return unicodedata.normalize("NFC", text)


def _rows(
    where: str, data: bytes, wanted: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], list[tuple[str, dict[str, str]]]]:
    """Which of the wanted columns a CSV has, and of each row where it stands and its values."""
    if web_page(data):
        raise FewshotError(f"{where}: a web page, not the file; fetch it again")
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        lines = [(reader.line_num, [field.strip() for field in fields]) for fields in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FewshotError(f"{where}: no CSV in UTF-8 ({one_line(error)}); save it as one") from error
    lines = [(line, fields) for line, fields in lines if any(fields)]
    header = [name.lower() for name in lines[0][1]] if lines else []
    columns = next((columns for columns in wanted if set(columns) <= set(header)), None)
    if columns is None or len(set(header)) < len(header):
        choice = " or ".join(",".join(columns) for columns in wanted)
        raise FewshotError(f"{where}: columns {','.join(header)!r:.80}; write {choice}, with commas, in the first line")
    if len(lines) == 1:
        raise FewshotError(f"{where}: no rows below the first line; write one for each image or class")
    rows, faults = [], []
    for line, fields in lines[1:]:
        values = dict(zip(header, fields, strict=False))
        if len(fields) != len(header) or not all(values[column] for column in columns):
            faults.append(f"{where}: line {line}: not a value for each of {','.join(header)!r:.80}")
        rows.append((f"{where}: line {line}", values))
    raise_faults("rows that are not whole", faults, "mend it")
    return columns, rows
