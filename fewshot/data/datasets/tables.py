"""One's own regression data: a folder or archive of CSV files, one task each."""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewshot.core.checks import check_choice
from fewshot.core.errors import FewshotError, one_line
from fewshot.core.paths import expand_path
from fewshot.data.bank import SPLITS
from fewshot.data.sources.archives import DAMAGED, Files, open_files, read_whole
from fewshot.data.sources.faults import raise_faults
from fewshot.data.sources.layouts import SPLIT_WORDS
from fewshot.data.sources.random_split import check_shares, split_at_random
from fewshot.data.tables import Tables

COLUMN = {"inputs": re.compile(r"x([\d_. \[-].*)?", re.I), "outputs": re.compile(r"y([\d_. \[-].*)?", re.I)}
STANDARDIZE = ("both", "inputs", "none")
# A whole field, such as 1,5 or "1,5"; a text may have commas too.
DECIMAL_COMMA = re.compile(rb'(?:^|;)\s*"?[-+]?[\d.]*\d,\d+(?:e[-+]?\d+)?"?\s*(?:;|$)', re.MULTILINE | re.IGNORECASE)
OWN = "the folders' own"  # the source of a split
RANDOM = "dataset.reader.split=random to split the files anew"

Table = tuple[np.ndarray, np.ndarray]  # x [R, inputs] and y [R, outputs], float64


def read_tables(
    root: str | Path,
    name: str = "tables",
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    standardize: str = "both",
    split: str = "auto",
    fractions: Sequence[float] = (0.64, 0.16, 0.20),
    seed: int = 0,
) -> dict[str, Tables]:
    """The tables "train", "val" and "test" of CSV files. A file is a task, a row a point of it.

    Args:
        root: folder or archive. Files whose names end in .csv count, in folders at any depth.
        name: of the dataset, in tables.
        inputs, outputs: the columns of x and of y, the same in all files. None: those named x or y, or with a number or
            a word after it, such as x1, x_age and y. Other columns are left out.
        standardize: "both", "inputs" or "none": columns have mean 0 and standard deviation 1 over the rows of training.
        split: "folders": train, val (or valid, validation) and test hold the files of each. "random": fractions of the
            files. "auto": folders if there are some, else random.
        fractions: of the files in train, val and test if random, see `split_at_random`.
        seed: of that shuffle.

    Raises:
        FewshotError: an argument is out of range, there are too few files, a column is missing, a value is no number,
            or two splits share a file.
    """
    check_choice("dataset.reader.split", split, ("auto", "folders", "random"))
    check_choice("dataset.reader.standardize", standardize, STANDARDIZE)
    shares = check_shares(fractions, seed)
    files = open_files(expand_path(str(root)))
    csv_files = [file for file in files.names if file.lower().endswith(".csv")]
    if not csv_files:
        raise FewshotError(f"{files.root}: no CSV files are there; give a folder with one file for each task")
    splits, source = _find_splits(files, csv_files, split, shares, seed)
    columns, left_out = _find_columns(files, splits["train"][0], {"inputs": inputs, "outputs": outputs})
    tables, faults, owner, shared = {}, [], {}, []
    part_of = {file: part for part, names in splits.items() for file in names}
    with files.session() as open_name:  # one for all: a tar is unpacked from its beginning
        for file in (name for name in files.names if name in part_of):
            try:
                data = read_whole(open_name, file)
                tables[file] = _parse(data, columns)
            except DAMAGED as error:
                faults.append(f"{files.describe(file)}: {one_line(error)}")
                continue
            part = part_of[file]
            first = owner.setdefault(hashlib.sha256(data).digest(), (file, part))
            if first[1] != part:
                shared.append(f"{files.describe(file)} ({part}) is the same as {files.describe(first[0])} ({first[1]})")
    raise_faults("unfit tables", faults, "mend or remove it")
    raise_faults("tables that two splits share", shared, "remove one")
    scale = _scale([tables[file] for file in splits["train"]], standardize)
    metadata: dict[str, Any] = {"dataset": str(name), "source": "one's own tables", "split_source": source}
    metadata |= {"tables": {part: len(names) for part, names in splits.items()}, "columns": columns}
    metadata |= {"columns_left_out": left_out, "standardize": standardize, "scale": scale}
    return {
        part: _join({file: tables[file] for file in names}, columns, scale, part, metadata)
        for part, names in splits.items()
    }


def _find_splits(
    files: Files, names: list[str], split: str, shares: Sequence[float], seed: int
) -> tuple[dict[str, list[str]], str]:
    """The files of each split, and a text on how they were chosen."""
    folders = {file: posixpath.dirname(file).split("/") for file in names}
    top = 0  # the number of folders that all files are in
    while all(len(own) > top + 1 for own in folders.values()) and len({own[top] for own in folders.values()}) == 1:
        if next(iter(folders.values()))[top].lower() in SPLIT_WORDS:
            break
        top += 1
    split_of = {file: SPLIT_WORDS.get(own[top].lower() if len(own) > top else "") for file, own in folders.items()}
    if split != "random" and any(split_of.values()):
        if lost := [file for file, own in split_of.items() if own is None]:
            raise FewshotError(
                f"{files.root}: {lost[0]} is beside the folders of splits and in none of them; move it, or set {RANDOM}"
            )
        splits = {part: sorted(file for file in names if split_of[file] == part) for part in SPLITS}
        source = OWN
    elif split == "folders":
        raise FewshotError(f"{files.root}: no folders train, val and test are there; make them, or set {RANDOM}")
    else:
        splits = split_at_random(names, shares, seed)
        sizes = "/".join(str(len(own)) for own in splits.values())
        source = f"{sizes} of the sorted files, shuffled by numpy RandomState({seed})"
    if empty := [part for part, own in splits.items() if not own]:
        remedy = f"add some, or set {RANDOM}" if source == OWN else "add files"
        raise FewshotError(f"{files.root}: {len(names)} files leave none for {empty[0]}; {remedy}")
    return splits, source


def _find_columns(
    files: Files, file: str, wanted: Mapping[str, Sequence[str] | None]
) -> tuple[dict[str, list[str]], list[str]]:
    """The columns of x and of y by "inputs" and "outputs", and those of the file that are left out."""
    try:
        header = list(_read_csv(next(files.read([file])), rows=0).columns)
    except DAMAGED as error:
        raise FewshotError(f"{files.describe(file)}: {one_line(error)}; mend or remove it") from error
    columns: dict[str, list[str]] = {}
    for kind, names in wanted.items():
        if names is not None and (not isinstance(names, Sequence) or isinstance(names, str) or not names):
            raise FewshotError(f"dataset.reader.{kind}={names}: write a list of columns, such as [{kind[0]}1]")
        by_name = [each for each in header if COLUMN[kind].fullmatch(each)]
        columns[kind] = by_name if names is None else [str(each) for each in names]
        if not columns[kind]:
            raise FewshotError(
                f"{files.describe(file)}: no column is named {'x' if kind == 'inputs' else 'y'}; its columns are "
                f"{', '.join(header)}; name some by dataset.reader.{kind}=[...]"
            )
    if both := sorted(set(columns["inputs"]) & set(columns["outputs"])):
        raise FewshotError(f"dataset.reader.outputs: {both[0]} is an input too; leave it out of one of them")
    return columns, [each for each in header if each not in columns["inputs"] + columns["outputs"]]


def _find_format(data: bytes) -> tuple[str, str]:
    """The separator and the decimal sign: semicolons, and with them commas, as spreadsheets of some countries write."""
    header = data.partition(b"\n")[0]
    if b";" not in header or b"," in header:
        return ",", "."
    return ";", "," if b"," in data and DECIMAL_COMMA.search(data) else "."


def _read_csv(data: bytes, rows: int | None = None) -> Any:
    """The CSV as a data frame with stripped column names.

    Raises:
        ValueError: it is none.
    """
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of rows that are longer than the header
        try:
            separator, decimal = _find_format(data)
            frame = pd.read_csv(
                io.BytesIO(data), sep=separator, decimal=decimal, nrows=rows, index_col=False, encoding="utf-8-sig",
                low_memory=False,  # which would warn of a column whose kind changes on the way
            )  # fmt: skip
            header = pd.read_csv(
                io.BytesIO(data), sep=separator, header=None, nrows=1, dtype=str, keep_default_na=False,
                encoding="utf-8-sig",
            )  # fmt: skip
        except (ValueError, Warning) as error:
            raise ValueError(f"not a CSV file ({one_line(error)})") from error
    names = [str(each).strip() for each in header.iloc[0]]  # pandas gives two equal ones other names
    if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
        raise ValueError(f"two columns have the name {twice[0]}")
    frame.columns = [str(each).strip() for each in frame.columns]
    return frame


def _to_numbers(column: Any, commas: bool) -> np.ndarray:
    """The column [rows] as float64, NaN where a value is no number; `commas`: where commas are decimal."""
    import pandas as pd

    if commas and not pd.api.types.is_numeric_dtype(column):
        texts = column.astype(str)
        texts = texts.mask(texts.str.contains(".", regex=False))  # 1.234 may mean 1234
        column = texts.str.replace(",", ".", regex=False)
    return np.asarray(pd.to_numeric(column, errors="coerce"), np.float64)


def _parse(data: bytes, columns: Mapping[str, Sequence[str]]) -> Table:
    """The values of a file.

    Raises:
        ValueError: a column is missing, or a value is no finite number.
    """
    frame, commas = _read_csv(data), _find_format(data)[1] == ","
    arrays = []
    for names in columns.values():
        for column in names:
            if column not in frame.columns:
                raise ValueError(f"has no column {column}; its columns are {', '.join(frame.columns)}")
        values = np.stack([_to_numbers(frame[each], commas) for each in names], axis=1)
        for row, place in np.argwhere(~(np.abs(values) <= np.finfo(np.float32).max)):
            why = " in a file with decimal commas" if commas else ""
            raise ValueError(f"row {row + 1}, column {names[place]}: {frame[names[place]].iloc[row]} is no number{why}")
        arrays.append(values)
    if not len(frame):
        raise ValueError("has no rows")
    return arrays[0], arrays[1]


def _scale(training: Sequence[Table], standardize: str) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Mean and standard deviation by which the columns of x and of y are changed; 0 and 1 where they are not."""
    scale = {}
    for kind, parts, changed in zip(
        "xy", zip(*training, strict=True), (standardize != "none", standardize == "both"), strict=True
    ):
        values = np.concatenate(parts)
        mean, std = values.mean(0), values.std(0)
        constant = (values == values[0]).all(0)  # its computed deviation is often not quite 0
        mean[constant], std[constant | (std == 0)] = values[0, constant], 1
        if not changed:
            mean, std = np.zeros_like(mean), np.ones_like(std)
        scale[kind] = tuple(mean.tolist()), tuple(std.tolist())
    return scale


def _join(
    tables: Mapping[str, Table],
    columns: Mapping[str, Sequence[str]],
    scale: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]],
    split: str,
    metadata: Mapping[str, Any],
) -> Tables:
    """The tables of one split."""
    names = tuple(file[: -len(".csv")] for file in tables)
    counts = [len(x) for x, _ in tables.values()]
    digest = hashlib.sha256(json.dumps([names, counts, columns, scale]).encode())
    joined = {}
    for kind, parts in zip("xy", zip(*tables.values(), strict=True), strict=True):
        values = np.concatenate(parts)
        digest.update(values.astype("<f8").tobytes())
        mean, std = map(np.array, scale[kind])
        joined[kind] = torch.from_numpy(((values - mean) / std).astype(np.float32))
    return Tables(
        joined["x"],
        joined["y"],
        offsets=torch.tensor([0, *counts]).cumsum(0),
        names=names,
        inputs=tuple(columns["inputs"]),
        outputs=tuple(columns["outputs"]),
        scale=scale,
        split=split,
        fingerprint=digest.hexdigest(),
        metadata=metadata,
    )
