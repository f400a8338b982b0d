"""Lists of images or classes: CSV files that say of which class and split each is."""

from __future__ import annotations

import csv
import io
import posixpath
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fewshot.data.files import DAMAGED, Files
from fewshot.data.images import web_page
from fewshot.data.layouts import SPLIT_WORDS, SPLITS, is_image
from fewshot.errors import FewshotError, one_line

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
    what, found = "images", {}
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
                raise FewshotError(f"{here}: split {values['split']!r:.80}; write train, val or test")
            row = Row(here, split, item if columns == OF_CLASSES else values["label"])
            first = found.setdefault(item, row)
            if first[1:] != row[1:]:
                raise FewshotError(
                    f"{here}: {item!r:.80} is listed as {first.label!r:.80} of {first.split} already; it belongs to "
                    "one class of one split: remove a row"
                )
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
        path = next((path for path in (Path(given), files.root / given) if path.is_file()), None)
        if path is None:
            raise FewshotError(f"dataset.reader.csv={given}: no such file, here or below {files.root}")
        return {path: None}
    common, there = PurePosixPath(posixpath.commonpath(map(posixpath.dirname, images))), set(files.names)
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


def finder(files: Files) -> Callable[[str, str], str | None]:
    """What finds the image that a row names: where the row stands and what it says -> a file of the source, or None.

    It may be named by its path, or by as much of the path's end as no other has.
    """
    by_name: dict[str, list[str]] = {}
    for file in filter(is_image, files.names):
        by_name.setdefault(composed(posixpath.basename(file)), []).append(file)

    def find(here: str, name: str) -> str | None:
        wanted = posixpath.normpath(composed(name.replace("\\", "/")))
        there = by_name.get(posixpath.basename(wanted), [])
        there = [file for file in there if f"/{composed(file)}".endswith(f"/{wanted}")]
        there = [file for file in there if composed(file) == wanted] or there
        if len(there) > 1:
            raise FewshotError(
                f"{here}: {name!r:.80} may be {there[0]} or {there[1]}; leave one of them below {files.root}, or write "
                "its path"
            )
        return there[0] if there else None

    return find


def composed(text: str) -> str:
    """The text with its letters composed, as they are on one system and not on another."""
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
    rows = []
    for line, fields in lines[1:]:
        values = dict(zip(header, fields, strict=False))
        if len(fields) != len(header) or not all(values[column] for column in columns):
            raise FewshotError(f"{where}: line {line}: not a value for each of {','.join(header)!r:.80}; mend it")
        rows.append((f"{where}: line {line}", values))
    return columns, rows
