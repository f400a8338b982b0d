"""CSV files: what their rows say, which image a row means, and every mistake in one line."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fewshot.core.errors import FewshotError
from fewshot.data.sources import split_csv
from fewshot.data.sources.archives import Files, open_files
from fewshot.data.sources.images import HEAD_BYTES, is_image
from fewshot.data.sources.split_csv import Row

from ..made_sources import as_folder, encoded, noise

HEAD = "filename,label,split"


def source(root: Path, *names: str, **lists: str | bytes) -> Files:
    """A folder of empty images and of CSV files."""
    root.mkdir(exist_ok=True)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, text in lists.items():
        (root / f"{name}.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return open_files(root)


@contextmanager
def refused(match: str) -> Iterator[None]:
    with pytest.raises(FewshotError, match=match) as caught:
        yield
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def found(files: Files, name: str) -> str | None:
    """The file of the image that a row names."""
    images = [file for file in files.names if is_image(file)]
    return split_csv.match_images(files, images, {name: Row("line 2", "train", "x")}).get(name)


def test_rows_come_with_where_they_stand_and_what_they_say(tmp_path: Path):
    rows = (
        "\ufeff Split ,other,LABEL,Filename",
        "Train,,x, a.png ",
        "",
        "valid,1,y,sub\\b.png",
        ",,,",
        "Train,2,x,a.png",
    )
    files = source(tmp_path, split="\r\n".join(rows))
    where = f"{tmp_path}/split.csv: line"
    assert split_csv.read_rows(files, {"split.csv": None}) == (
        "images",
        {"a.png": Row(f"{where} 2", "train", "x"), "sub\\b.png": Row(f"{where} 4", "val", "y")},
    )


def test_a_line_is_that_of_the_file_where_a_field_has_two(tmp_path: Path):
    files = source(tmp_path, split=f'{HEAD}\n"a\nb.png",x,train\nc.png,y,dev')
    with refused("split.csv: line 4: split 'dev'; write train, val or test"):
        split_csv.read_rows(files, {"split.csv": None})


def test_a_class_is_its_own_label(tmp_path: Path):
    files = source(tmp_path, split="label,split,class\nelse,test,cat")
    assert split_csv.read_rows(files, {"split.csv": None}) == (
        "classes",
        {"cat": Row(f"{tmp_path}/split.csv: line 2", "test", "cat")},
    )


def test_lists_of_one_split_each_may_lie_in_an_archive_or_elsewhere(tmp_path: Path):
    with zipfile.ZipFile(path := tmp_path / "data.zip", "w") as archive:
        archive.writestr("in/train.csv", "filename,label\na.png,x")
    (beside := tmp_path / "val.csv").write_text("label,filename\ny,b.png")
    assert split_csv.read_rows(open_files(path), {"in/train.csv": "train", beside: "val"}) == (
        "images",
        {"a.png": Row(f"{path}: in/train.csv: line 2", "train", "x"), "b.png": Row(f"{beside}: line 2", "val", "y")},
    )


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "columns ''; write filename,label,split or class,split, with commas, in the first line"),
        ("filename;label;split\na;x;train", "columns 'filename;label;split'; write .*, with commas"),
        ("filename,label,label,split\na,x,y,train", "columns 'filename,label,label,split'; write"),
        (HEAD, "no rows below the first line; write one for each"),
        (f"{HEAD}\na,x", "line 2: not a value for each of 'filename,label,split'"),
        (f"{HEAD}\na,x,train,more", "line 2: not a value for each of"),
        (f"{HEAD}\na, ,train", "line 2: not a value for each of"),
        (f"{HEAD}\na,x,train\na,y,train", "line 3: 'a' is listed as 'x' of train already; remove one: it belongs"),
        (f'{HEAD}\n"a,x,train', "no CSV in UTF-8"), (HEAD.encode("utf-16"), "no CSV in UTF-8"),
        (f"{HEAD}\ncaf\u00e9,x,train".encode("latin1"), "no CSV in UTF-8"),
        ("<!DOCTYPE html><html>404</html>", "a web page, not the file"),
        (f"{HEAD}\n{'a' * 200_000},x,train", "no CSV in UTF-8"),
        (f"{HEAD}\na,x,{'dev' * 1000}", "line 2: split 'devdev[dev]{,80}; write"),
    ],
)  # fmt: skip
def test_a_list_that_is_none_is_refused(tmp_path: Path, text: str | bytes, match: str):
    with refused(f"^{tmp_path}/split.csv: {match}"):
        split_csv.read_rows(source(tmp_path, split=text), {"split.csv": None})


def test_a_json_file_lists_the_classes_of_each_split(tmp_path: Path):
    path = tmp_path / "flower_splits.json"
    path.write_text('{"source": "made", "train": [90, "A340-300"], "test": ["F/A-18"], "valid": [7, 7]}')
    rows = {("90", "train"), ("A340-300", "train"), ("F/A-18", "test"), ("7", "val")}
    kind, read = split_csv.read_rows(source(tmp_path), {path: None})
    assert kind == "classes" and {(name, row.split) for name, row in read.items()} == rows
    assert all(row.label == name and row.where.startswith(f"{path}: ") for name, row in read.items())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "no JSON"),
        ("<!DOCTYPE html><html>", "a web page"),
        ("[1, 2]", "no lists of classes"),
        ('{"source": "made"}', "no lists of classes"),
        ('{"train": [["a"]]}', "no lists of classes"),
        ('{"training": ["a"]}', "split 'training'; write train, val or test"),
        ('{"train": ["a"], "test": ["a"]}', "'a' is listed as 'a' of train already"),
    ],
)
def test_a_json_file_that_lists_no_classes_is_refused(tmp_path: Path, text: str, match: str):
    (path := tmp_path / "splits.json").write_text(text)
    with refused(match):
        split_csv.read_rows(source(tmp_path), {path: None})


def test_an_image_of_two_lists_is_refused(tmp_path: Path):
    files = source(tmp_path, train="filename,label\na.png,x", test="filename,label\na.png,x")
    with refused("test.csv: line 2: 'a.png' is listed as 'x' of train already"):
        split_csv.read_rows(files, {"train.csv": "train", "test.csv": "test"})


@pytest.mark.parametrize("missing", ["split.csv", Path("nowhere/split.csv")])
def test_a_list_that_cannot_be_read_is_named(tmp_path: Path, missing: str | Path):
    with refused("split.csv: cannot be read .*No such file.*; mend it"):
        split_csv.read_rows(source(tmp_path), {missing: None})


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a/1.png", "a/1.png"), ("./b/../a/1.png", "a/1.png"), ("a\\1.png", "a/1.png"), ("2.png", "b/2.png"),
        ("b/2.png", "b/2.png"), ("3.png", "3.png"), ("c/3.png", "a/c/3.png"), ("cafe\u0301.png", "b/caf\u00e9.png"),
        (".png", None), ("/2.png", None), ("../a/1.png", None), ("notes.txt", None), ("", None),
    ],
)  # fmt: skip
def test_an_image_is_found_by_its_path_or_its_end(tmp_path: Path, name: str, file: str | None):
    files = source(tmp_path, "a/1.png", "b/1.png", "b/2.png", "3.png", "a/c/3.png", "b/caf\u00e9.png", "notes.txt")
    assert found(files, name) == file


def test_an_image_elsewhere_without_a_suffix_is_found_by_its_first_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    files, place = source(tmp_path / "root"), tmp_path / "elsewhere"
    as_folder(place, {"long": encoded(noise(1, 64, 64))[:HEAD_BYTES], "text": b"-", "a.txt": b"-", "a.png": b"-"})
    monkeypatch.setattr(Path, "read_bytes", None)  # which would read the whole of it
    names = [str(place / name) for name in ("long", "text", "a.txt", "a.png", "none")]
    assert [found(files, name) is not None for name in names] == [True, False, False, True, False]


def test_a_name_that_two_images_end_with_is_refused(tmp_path: Path):
    with refused("^line 2: '1.png' may be a/1.png or b/1.png; leave one of them .*, or write its path"):
        found(source(tmp_path, "a/1.png", "b/1.png"), "1.png")


@pytest.mark.parametrize(("place", "good"), [("", True), ("a", True), ("a/b", True), ("a/b/1", False), ("c", False)])
def test_lists_lie_in_the_root_or_in_a_folder_of_all_images(tmp_path: Path, place: str, good: bool):
    images, where = ["a/b/1/1.png", "a/b/2/1.png"], f"{place}/" if place else ""
    files = source(tmp_path, *images, f"{where}train.csv", f"{where}valid.csv", f"{where}test.csv")
    found = {f"{where}train.csv": "train", f"{where}valid.csv": "val", f"{where}test.csv": "test"}
    assert split_csv.find_csv_files(files, images, None) == (found if good else {})


def test_the_lists_that_lie_highest_are_taken(tmp_path: Path):
    files = source(tmp_path, "images/1.png", "images/split.csv", "train.csv", "val.csv", "test.csv")
    assert split_csv.find_csv_files(files, ["images/1.png"], None) == {
        f"{split}.csv": split for split in ("train", "val", "test")
    }


@pytest.mark.parametrize(
    "names", [["train"], ["train", "val"], ["split", "train", "val", "test"], ["train", "val", "validation", "test"]]
)
def test_lists_that_are_not_one_set_are_refused(tmp_path: Path, names: list[str]):
    files = source(tmp_path, "1.png", *(f"{name}.csv" for name in names))
    with refused("of the lists there is (split|train).csv.*; leave .* dataset.reader.split=folders"):
        split_csv.find_csv_files(files, ["1.png"], None)


def test_a_given_list_stands_alone_and_may_lie_below_the_root(tmp_path: Path):
    files = source(tmp_path, "1.png", "lists/mine.csv", "train.csv")
    for given in ("lists/mine.csv", tmp_path / "lists/mine.csv"):
        assert split_csv.find_csv_files(files, ["1.png"], given) == {tmp_path / "lists/mine.csv": None}
    with refused("dataset.reader.csv=none.csv: no such file, here or below"):
        split_csv.find_csv_files(files, ["1.png"], "none.csv")
