"""One's own tables: which files and columns are read, how they are split and standardised, and what is refused."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.data.datasets.tables import _read_csv, read_tables

from ..made_sources import as_archive

Make = Callable[..., Path]


@pytest.fixture
def make_tables(tmp_path: Path) -> Make:
    """A function that writes CSV files of random rows: names to numbers of rows."""

    def make(rows: Mapping[str, int], header: str = "x1,x2,y", scale: float = 1.0) -> Path:
        random = np.random.RandomState(0)
        for name, count in rows.items():
            path = tmp_path / "tables" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            values = scale * random.randn(count, header.count(",") + 1) + 7
            lines = [header, *(",".join(f"{value:.9g}" for value in row) for row in values)]
            path.write_text("\n".join(lines) + "\n")
        return tmp_path / "tables"

    return make


TEN = {f"t{i}.csv": 5 + i for i in range(10)}


def test_rows_are_those_of_the_files(make_tables: Make):
    root = make_tables(TEN, "y,id,X_a,x2")
    tables = read_tables(root, standardize="none", fractions=[0.4, 0.3, 0.3])
    assert [len(each.names) for each in tables.values()] == [4, 3, 3]
    assert sorted(name for each in tables.values() for name in each.names) == sorted(name[:-4] for name in TEN)
    train = tables["train"]
    assert (train.inputs, train.outputs, train.shape) == (("X_a", "x2"), ("y",), (2,))
    assert train.metadata["columns_left_out"] == ["id"]
    assert train.description == "X_a, x2 to y"
    for each in tables.values():
        for index, name in enumerate(each.names):
            values = np.loadtxt(root / f"{name}.csv", delimiter=",", skiprows=1)
            x, y = each.table(index)
            np.testing.assert_allclose(x, values[:, 2:], rtol=1e-6)
            np.testing.assert_allclose(y, values[:, :1], rtol=1e-6)


@pytest.mark.parametrize("decimal", [".", ","])
def test_semicolons_and_decimal_commas_are_those_of_spreadsheets(make_tables: Make, decimal: str):
    root = make_tables(TEN)
    plain = read_tables(root)
    for path in root.iterdir():
        path.write_bytes(path.read_text().replace(",", ";").replace(".", decimal).replace("\n", "\r\n").encode())
    for split, tables in read_tables(root).items():
        assert tables.fingerprint == plain[split].fingerprint


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("decimal", [".", ","])
def test_a_comma_in_a_text_is_no_decimal_comma(make_tables: Make, decimal: str, quote: str):
    root = make_tables(TEN)
    plain = read_tables(root)
    for path in root.iterdir():
        text = path.read_text().replace(",", f"{quote};{quote}").replace(".", decimal)
        header, *rows = (f"{quote}{line}{quote}" for line in text.splitlines())
        path.write_text("\n".join([f"{header};weather", *(f"{row};rain, wind" for row in rows)]))
    for split, tables in read_tables(root).items():
        assert tables.fingerprint == plain[split].fingerprint


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_is_read_once_and_not_once_for_each_table(
    make_tables: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    root = make_tables(TEN)
    archive = as_archive(tmp_path / f"tables.{kind}", {path.name: path.read_bytes() for path in root.iterdir()})
    opened, (module, name) = [], (zipfile, "ZipFile") if kind == "zip" else (tarfile, "open")
    whole = getattr(module, name)
    monkeypatch.setattr(module, name, lambda path: opened.append(path) or whole(path))
    found, plain = read_tables(archive), read_tables(root)
    assert {split: each.fingerprint for split, each in found.items()} == {
        split: each.fingerprint for split, each in plain.items()
    }
    assert len(opened) == 3  # to list the files, to see the columns, and to read them all


def test_columns_have_mean_0_and_deviation_1_over_the_training_rows(make_tables: Make):
    root = make_tables(TEN, scale=300)
    raw, inputs, both = (read_tables(root, standardize=kind) for kind in ("none", "inputs", "both"))
    for values in (inputs["train"].x, both["train"].x, both["train"].y):
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones(values.shape[1]))
    assert torch.equal(inputs["train"].y, raw["train"].y)
    for split in ("train", "val", "test"):  # with the numbers of training, which bring the values back
        mean, std = (torch.tensor(each) for each in both[split].scale["y"])
        torch.testing.assert_close(both[split].y * std + mean, raw[split].y)
        assert len({each[split].fingerprint for each in (raw, inputs, both)}) == 3
    assert both["test"].description == "x1, x2 to y; y in standard deviations of training"


def test_a_constant_column_is_only_shifted(make_tables: Make):
    root = make_tables({f"{split}/{i}.csv": 7 for split in ("train", "val", "test") for i in range(3)})
    for number, path in enumerate(root.rglob("*.csv")):  # 21 values of 0.1 have a computed deviation above 0
        value = 0.2 if path.parent.name == "test" else 0.1
        path.write_text("x1,x2,y\n" + f"{value},{number},7\n" * 7)
    tables = read_tables(root)
    assert tables["train"].x[:, 0].abs().max() == tables["train"].y.abs().max() == 0
    torch.testing.assert_close(tables["test"].x[:, 0], torch.full((21,), 0.1))


def test_folders_of_splits_are_taken_and_files_lie_at_any_depth(make_tables: Make):
    root = make_tables({"data/train/a/1.csv": 5, "data/train/2.csv": 5, "data/valid/3.csv": 6, "data/test/4.csv": 7})
    tables = read_tables(root)
    assert {split: each.names for split, each in tables.items()} == {
        "train": ("data/train/2", "data/train/a/1"), "val": ("data/valid/3",), "test": ("data/test/4",),
    }  # fmt: skip
    assert tables["test"].metadata["split_source"] == "the folders' own"


def test_the_seed_decides_a_random_split(make_tables: Make):
    root = make_tables(TEN)
    names = [read_tables(root, seed=seed)["train"].names for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_a_long_table_may_have_a_column_of_numbers_and_then_words():
    rows = 200_000  # more than pandas looks at together
    lines = ["x,y,note", *["1,2,3"] * rows, "1,2,end"]
    frame = _read_csv("\n".join(lines).encode())
    assert len(frame) == rows + 1 and frame["note"].iloc[-1] == "end" and frame["y"].sum() == 2 * (rows + 1)


def test_columns_are_chosen_by_name(make_tables: Make):
    root = make_tables(TEN, "age,dose,time")
    train = read_tables(root, inputs=["time", "age"], outputs=["dose"])["train"]
    assert (train.inputs, train.outputs) == (("time", "age"), ("dose",))


def test_a_changed_value_is_another_fingerprint_and_other_splits_stay(make_tables: Make):
    root = make_tables({"train/1.csv": 5, "val/2.csv": 5, "test/3.csv": 5})
    before = read_tables(root)
    text = (root / "val/2.csv").read_text()
    (root / "val/2.csv").write_text(text.replace("7.", "9.", 1) if "7." in text else text.replace("6.", "9.", 1))
    after = read_tables(root)
    changed = {split for split in before if before[split].fingerprint != after[split].fingerprint}
    assert changed == {"val"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x1,x2,y\n1,2,three\n", "bad.csv: row 1, column y: three is no number; mend or remove it"),
        ("x1,x2,y\n1,2,3\n1,,3\n", "row 2, column x2: nan is no number"),
        ("x1,x2,y\n1,inf,3\n", "row 1, column x2: inf is no number"),
        ("x1,x2,y\n1,1e39,3\n", "row 1, column x2: 1e+39 is no number"),
        ("x1,y\n1,2\n", "bad.csv: has no column x2; its columns are x1, y"),
        ("x1,x2,y\n", "bad.csv: has no rows"),
        ("", "bad.csv: not a CSV file (No columns"),
        ("x1,x2,y\n1,2,3,4\n", "bad.csv: not a CSV file (Length of header"),
        ("x1;x2;y\n1;2;1.234,5\n", "row 1, column y: 1.234,5 is no number in a file with decimal commas"),
        ("x1;x2;y\n1,5;2;2,5\n0,5;1;bad\n", "row 2, column y: bad is no number in a file with decimal commas"),
        ("x1;x2;y\n1,5;2;1\n0,5;1;1.234\n", "row 2, column y: 1.234 is no number in a file with decimal commas"),
        ("x1,x2, x2,y\n1,2,3,4\n", "bad.csv: two columns have the name x2"),
        ("x1,x2,y,y\n1,2,3,4\n", "bad.csv: two columns have the name y"),
        ("\x00\xff\x00", "bad.csv: "),
    ],
)
def test_a_file_that_is_no_table_is_named(make_tables: Make, content: str, message: str):
    root = make_tables({"train/1.csv": 5, "val/2.csv": 5, "test/3.csv": 5})
    (root / "train/bad.csv").write_text(content)
    with pytest.raises(FewshotError) as error:
        read_tables(root)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"1.txt": 5}, {}, "no CSV files are there"),
        ({"1.csv": 5, "2.csv": 5}, {}, "2 files leave none for val; add files"),
        ({"train/1.csv": 5, "test/2.csv": 5}, {}, "2 files leave none for val; add some, or set dataset.reader.split"),
        ({"train/1.csv": 5, "2.csv": 5}, {}, "2.csv is beside the folders of splits and in none of them"),
        (TEN, {"split": "folders"}, "no folders train, val and test are there"),
        (TEN, {"inputs": ["x9"]}, "has no column x9; its columns are x1, x2, y"),
        (TEN, {"inputs": "x1"}, "dataset.reader.inputs=x1: write a list of columns"),
        (TEN, {"outputs": ["x1"]}, "dataset.reader.outputs: x1 is an input too"),
        (TEN, {"standardize": "all"}, "dataset.reader.standardize=all: choose one of both, inputs, none"),
        (TEN, {"fractions": [1, 1, 1]}, "write three numbers above 0 with the sum 1"),
    ],
)
def test_mistakes_are_one_line(make_tables: Make, rows: dict[str, int], options: dict[str, Any], message: str):
    root = make_tables(rows)
    with pytest.raises(FewshotError) as error:
        read_tables(root, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_header_without_x_or_y_is_named(make_tables: Make):
    with pytest.raises(
        FewshotError, match=r"no column is named y; its columns are x, year; name some by dataset.reader.ou"
    ):
        read_tables(make_tables(TEN, "x,year"))


def test_a_file_in_two_splits_is_refused(make_tables: Make):
    root = make_tables({"train/1.csv": 5, "val/2.csv": 5, "test/3.csv": 5})
    (root / "test/4.csv").write_bytes((root / "train/1.csv").read_bytes())
    with pytest.raises(FewshotError, match=r"train/1.csv \(train\) is the same as .*test/4.csv \(test\); remove one"):
        read_tables(root)
