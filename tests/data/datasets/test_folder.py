"""One's own images: every layout in small, and every mistake that people make with folders, in one line."""

import io
import json
import os
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot.core.errors import FewshotError
from fewshot.data.bank import SPLITS, Bank
from fewshot.data.datasets import folder
from fewshot.data.sources.archives import open_files

from ..made_sources import as_folder, as_tar, as_zip, encoded, fingerprints, noise, refused_by

NAMES = [f"class {letter}" for letter in "abcdefghij"]  # 6, 2 and 2 by the fractions


def picture(seed: int, kind: str = "PNG") -> bytes:
    return encoded(noise(seed, 6, 8), kind)


def tree(*paths: str) -> dict[str, bytes]:
    """A different image for each path."""
    kinds = {"jpg": "JPEG", "JPG": "JPEG", "gif": "GIF"}
    return {path: picture(seed, kinds.get(path.rsplit(".")[-1], "PNG")) for seed, path in enumerate(paths)}


def classes(names: list[str] = NAMES, each: int = 2, below: str = "") -> dict[str, bytes]:
    return tree(
        *(f"{below}{name}/{number}.{'jpg' if number % 2 else 'png'}" for name in names for number in range(each))
    )


SPLIT = tree(*(f"{split}/{split}{c}/{i}.png" for split in SPLITS for c in "ab" for i in range(3)))


read = partial(folder.read_folder, size=4)
refused = partial(refused_by, read)


def named(banks: dict[str, Bank]) -> dict[str, list[str]]:
    return {split: list(bank.names) for split, bank in banks.items()}


OF_SPLIT = {split: [f"{split}a", f"{split}b"] for split in SPLITS}
ROWS = [(path.rsplit("/", 1)[1], *path.split("/")[:2]) for path in SPLIT]  # file, split, class
# The same classes and images in every shape, with the name of the layout.
SHAPES: dict[str, tuple[dict[str, bytes], str]] = {
    "folders": (SPLIT, "class folders in folders of the splits"),
    "other words": (
        {p.replace("val/", "Validation/").replace("train/", "Train/"): d for p, d in SPLIT.items()},
        "class folders in folders of the splits",
    ),
    "one folder more": ({f"data/all/{p}": d for p, d in SPLIT.items()}, "class folders in folders of the splits"),
    "a folder below each class": (
        {f"{p.rsplit('/', 1)[0]}/images/{p.rsplit('/', 1)[1]}": d for p, d in SPLIT.items()}
        | {f"{split}/{split}a/boxes.txt": b"1 2" for split in OF_SPLIT},
        "class folders in folders of the splits",
    ),
    "a folder above the classes": (
        {p.replace("/", "/img/", 1): d for p, d in SPLIT.items()},
        "class folders in folders of the splits",
    ),
    "csv of classes": (
        {p.split("/", 1)[1]: d for p, d in SPLIT.items()}
        | {"split.csv": "\n".join(["class,split", *(f"{n},{s}" for s in OF_SPLIT for n in OF_SPLIT[s])]).encode()},
        "a CSV of classes",
    ),
    "csv of images": (
        {f"images/{p.replace('/', '_')}": d for p, d in SPLIT.items()}
        | {"split.csv": "".join(["filename,label,split\n", *(f"{s}_{c}_{f},{c},{s}\n" for f, s, c in ROWS)]).encode()},
        "a CSV of images",
    ),
    "three csvs": (
        {f"mini/images/{p.replace('/', '_')}": d for p, d in SPLIT.items()}
        | {
            f"mini/{split}.csv": "".join(
                ["filename,label\r\n", *(f"images\\{s}_{c}_{f},{c}\r\n" for f, s, c in ROWS if s == split)]
            ).encode()
            for split in OF_SPLIT
        },
        "train.csv, val.csv and test.csv of images",
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The fingerprints of SPLIT's banks."""
    path = tmp_path_factory.mktemp("plain")
    return fingerprints(read(as_folder(path / "root", SPLIT), path / "cache"))


@pytest.mark.parametrize("make", [as_folder, as_tar])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_banks(root: Path, cache: Path, plain: list[str], shape: str, make: Any):
    files, words = SHAPES[shape]
    banks = read(make(root, files), cache)
    assert named(banks) == OF_SPLIT and all(bank.sizes.tolist() == [3, 3] for bank in banks.values())
    assert fingerprints(banks) == plain
    for split, bank in banks.items():
        assert [files[name] for name in bank.image_names()] == [SPLIT[p] for p in sorted(SPLIT) if p.startswith(split)]
    metadata = banks["val"].metadata
    assert metadata["layout"] == words and metadata["images_left_out"] == 0 and metadata["shared_images"] == 0
    assert str(root.parent) not in str(metadata) and {"dataset", "source", "split_source", "size"} <= set(metadata)


def test_classes_are_split_by_a_fraction_that_the_seed_shuffles(root: Path, cache: Path):
    as_folder(root, classes())
    banks = read(root, cache)
    order = np.random.RandomState(0).permutation(10)
    expected = [sorted(NAMES[i] for i in part) for part in (order[:6], order[6:8], order[8:])]
    assert list(named(banks).values()) == expected and banks["test"].metadata["layout"] == "class folders"
    assert "6/2/2" in banks["train"].metadata["split_source"]
    assert [len(names) for names in named(read(root, cache, fractions=[0.4, 0.2, 0.4])).values()] == [4, 2, 4]
    assert named(read(root, cache, seed=1)) != named(banks)


@pytest.mark.parametrize("count", [6, 7, 8, 9, 10, 13])
def test_the_fractions_that_are_advised_for_few_classes_will_do(root: Path, cache: Path, count: int):
    as_folder(root, classes([f"{number:02d}" for number in range(count)], each=1))
    if count < 10:
        advice = refused(root, cache, f"{count} classes would be split ./1/., and each split needs 2")
        assert "fractions=[0.34,0.33,0.33]" in advice
    banks = read(root, cache, fractions=(0.34, 0.33, 0.33))
    assert min(len(bank.names) for bank in banks.values()) >= 2


def test_an_example_is_what_its_image_is_made_into(root: Path, cache: Path):
    as_folder(root, SPLIT)
    squashed, grey = read(root, cache)["train"], read(root, cache, channels=1, resize="crop", name="grey")["train"]
    with Image.open(io.BytesIO(SPLIT["train/traina/0.png"])) as image:
        small = np.asarray(image.resize((4, 4), Image.Resampling.LANCZOS))
    assert torch.equal(squashed.examples[0], torch.from_numpy(small.transpose(2, 0, 1).copy()))
    assert grey.shape == (1, 4, 4) and grey.metadata["dataset"] == "grey"


def test_a_changed_source_gives_other_banks_and_the_same_source_the_same(root: Path, cache: Path):
    as_folder(root, SPLIT)
    first = fingerprints(read(root, cache, name="birds"))
    assert fingerprints(read(root, cache, name="birds")) == first
    assert [path.name[:6] + path.name[18:] for path in cache.iterdir()] == ["birds-"]
    as_folder(root, tree("train/traina/new.jpg"))
    assert read(root, cache, name="birds")["train"].sizes.tolist() == [4, 3]
    (root / "train/traina/new.jpg").unlink()
    assert fingerprints(read(root, cache, name="birds")) == first and len(list(cache.iterdir())) == 2
    as_folder(root, {"test/testb/0.png": picture(99, "JPEG")})
    assert fingerprints(read(root, cache, name="birds"))[:2] == first[:2] and len(list(cache.iterdir())) == 3
    as_folder(root, {"split.csv": b"class,split\ntraina,train\ntestb,val\ntesta,test\n"})
    (root / "train").rename(root / "tr")
    refused(root, root.parent / "none", "tr is beside test, and is none of train, val")
    (root / "tr").rename(root / "train")
    assert named(read(root, cache, name="birds")) == {"train": ["traina"], "val": ["testb"], "test": ["testa"]}
    (root / "split.csv").rename(root / "Split.CSV")
    assert named(read(root, cache, name="birds")) == {"train": ["traina"], "val": ["testb"], "test": ["testa"]}


def test_an_edit_that_keeps_the_size_is_noticed_by_its_time(root: Path, cache: Path):
    as_folder(root, SPLIT | {"test/testb/9.ppm": b"P6 6 5 255\n" + bytes(90)})
    first = fingerprints(read(root, cache, on_overlap="count"))
    image = root / "test/testb/9.ppm"
    before = image.stat().st_mtime_ns
    image.write_bytes(b"P6 6 5 255\n" + bytes([200] * 90))
    os.utime(image, ns=(before, before + 1))
    second = fingerprints(read(root, cache, on_overlap="count"))
    assert second[:2] == first[:2] and second[2] != first[2] and len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("make", [as_zip, as_tar])
def test_a_changed_archive_gives_other_banks(root: Path, cache: Path, make: Any):
    first = fingerprints(read(make(root, SPLIT), cache))
    second = fingerprints(read(make(root, SPLIT | {"test/testb/2.png": picture(99)}), cache))
    assert second[:2] == first[:2] and second[2] != first[2]


def test_names_that_are_not_ascii_are_fine_and_are_found_in_either_form(root: Path, cache: Path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    names = [decomposed, "Ж", "語", "خانه\u200cها", "a b", "ß"]
    rows = zip([composed, *names[1:]], ("train", "train", "val", "val", "test", "test"), strict=True)
    table = "class,split\n" + "".join(f"{name},{split}\n" for name, split in rows)
    for make in (as_folder, as_zip):
        banks = read(make(root, classes(names) | {"split.csv": table.encode()}), cache)
        assert named(banks) == {"train": [decomposed, "Ж"], "val": ["خانه\u200cها", "語"], "test": ["a b", "ß"]}


def test_what_a_csv_does_not_list_is_left_out_and_counted(root: Path, cache: Path):
    table = b"filename,label,split,extra\nclass a/0.png,x,train,1\nclass b/0.png,y,val,2\n./class c/1.jpg,z,test,3\n"
    banks = read(as_folder(root, classes() | {"split.csv": table}), cache)
    assert named(banks) == {"train": ["x"], "val": ["y"], "test": ["z"]}
    assert banks["train"].metadata["images_left_out"] == 17
    assert banks["train"].metadata["notes"] == ["left out 17 images in no list of the split"]


@pytest.mark.parametrize(
    ("label", "split", "match"), [("x", "train", "listed twice"), ("x y", "val", "the same image as ")]
)
def test_an_image_that_two_rows_name_differently_is_refused(
    root: Path, cache: Path, label: str, split: str, match: str
):
    rows = ("class a/0.png,x,train", f"./class a/0.png,{label},{split}", "class b/0.png,v,val", "class c/0.png,z,test")
    as_folder(root, table("filename,label,split", *rows))
    refused(root, cache, f"class a/0.png.*{match}")


@pytest.mark.parametrize("place", ["absolute", "below root"])
def test_a_csv_may_have_another_name_and_place(root: Path, cache: Path, tmp_path: Path, place: str):
    as_folder(root, SHAPES["csv of classes"][0])
    (root / "split.csv").rename(path := tmp_path / "mine.csv" if place == "absolute" else root / "mine.csv")
    banks = read(root, cache, csv=path if place == "absolute" else "mine.csv")
    assert named(banks) == OF_SPLIT and "mine" not in str(banks["val"].metadata)
    refused(root, cache / "b", "neither split.csv nor train.csv.* or set dataset.reader.split=random", split="csv")


def test_a_csv_of_another_name_may_lie_in_the_archive(root: Path, cache: Path):
    files = dict(SHAPES["csv of classes"][0])
    files["lists/mine.csv"] = files.pop("split.csv")
    assert named(read(as_zip(root, files), cache, csv="lists/mine.csv")) == OF_SPLIT


def test_prepared_data_beside_class_folders_are_refused_before_anything_is_written(root: Path):
    as_folder(root, classes())
    for place in (root, root / "deeper/banks"):
        refused(root, place, f"{root}: holds the folder of prepared data, {place}; put the images into a folder of")
    assert not (root / "deeper").exists()


def test_prepared_data_beside_a_folder_of_class_folders_are_no_images(root: Path):
    as_folder(root, classes(below="photos/"))
    first = read(root, root / "data/banks")
    run = tree("data/banks/sheet.png", "runs/birds-5w1s/maml/episode.png")
    files = {f"runs/birds-5w1s/maml/{name}": b"" for name in ("config.yaml", "data.json")}
    as_folder(root, run | files | {"docs/read.me": b"of other things", "photos/config.yaml": b"a person's own"})
    assert fingerprints(read(root, root / "data/banks")) == fingerprints(first)


def test_a_json_file_of_class_splits_splits_class_folders(root: Path, cache: Path, tmp_path: Path):
    as_folder(root, SHAPES["csv of classes"][0])
    (root / "split.csv").unlink()
    (path := tmp_path / "splits.json").write_text(json.dumps({"source": "made"} | OF_SPLIT))
    banks = read(root, cache, csv=path)
    assert named(banks) == OF_SPLIT and banks["val"].metadata["layout"] == "a JSON file of classes"


@pytest.mark.parametrize("sign", ["_", "-"])
def test_a_slash_in_the_name_of_a_class_is_another_sign_in_its_folder(
    root: Path, cache: Path, tmp_path: Path, sign: str
):
    as_folder(root, {path.replace("traina", f"F-16A{sign}B"): data for path, data in SPLIT.items()})
    listed = {split: [name.replace("traina", "F-16A/B") for name in names] for split, names in OF_SPLIT.items()}
    (path := tmp_path / "splits.json").write_text(json.dumps(listed))
    assert f"F-16A{sign}B" in named(read(root, cache, csv=path))["train"]


def test_split_says_which_of_several_layouts_is_taken(root: Path, cache: Path):
    table = b"class,split\ntraina,test\nvala,train\ntesta,val\n"
    as_folder(root, SPLIT | {"split.csv": table})
    assert named(read(root, cache))["val"] == ["testa"]
    assert named(read(root, cache, split="folders")) == OF_SPLIT
    pooled = read(root, cache, split="random", fractions=(0.34, 0.33, 0.33))
    assert sorted(name for names in named(pooled).values() for name in names) == sorted(
        c + x for c in OF_SPLIT for x in "ab"
    )
    assert pooled["val"].metadata["layout"] == "class folders, pooled from test, train, val"


def test_split_random_pools_a_class_that_two_splits_have(root: Path, cache: Path):
    as_folder(root, classes(below="train/") | {f"test/{path}": picture(i, "GIF") for i, path in enumerate(classes())})
    refused(root, cache, "no classes of val; add some, or set dataset.reader.split=random")
    banks = read(root, cache, split="random")
    assert [bank.sizes.tolist() for bank in banks.values()] == [[4] * 6, [4] * 2, [4] * 2]


def table(*lines: str, name: str = "split.csv") -> dict[str, bytes]:
    return classes() | {name: "\n".join(lines).encode()}


CLASS_ROWS = ("class a,train", "class b,val", "class c,test")
MISTAKES: dict[str, tuple[dict[str, bytes], str]] = {
    # Depth.
    "no class folders": (tree("a.png", "b.png"), "images in no class folder: found a.png; wanted: <class>/<image>"),
    "images beside class folders": (classes() | tree("z.png"), "images in no class folder: found z.png and class a/0"),
    "no class folders in the splits": (tree("train/a.png", "val/b.png", "test/c.png"), "no class folder: found t"),
    "no class folders in one split": (SPLIT | tree("val/z.png"), "in no class folder: found val/z.png and t.*wanted"),
    "images beside the splits": (SPLIT | tree("z.png"), "images in no class folder: found z.png and"),
    "one folder too deep": (tree("g/a/1.png", "g/b/1.png", "h/c/1.png"), "folders too deep: found g/a/1.png; wanted"),
    "different depths": (tree("a/1.png", "g/b/1.png"), "different depths: found a/1.png and g/b/1.png; wanted"),
    "too deep in a split": (SPLIT | tree("val/g/a/1.png"), "different depths: found .* and val/g/a/1.png; wanted"),
    # Classes.
    "no images": (
        {"readme.txt": b"", "a/1.heic": b""},
        "no images are there; passed over 2 files .*: 1 .heic, 1 .txt; w",
    ),
    "nothing": ({"a/.DS_Store": b""}, "no images are there"),
    "an archive inside": ({"images.zip": b"PK"}, "no images are there.*; give the archive .*images.zip instead"),
    "a class of other files": (
        classes() | {"class k/1.heic": b"-"},
        r"class class k has no images \(it holds 1 .heic\); add some, or remove the folder",
    ),
    "such a class in a split": (SPLIT | {"val/z/1.txt": b"-"}, "class z of val has no images"),
    "too few classes": (classes(NAMES[:5]), "5 classes would be split 3/1/1, and each split needs 2: add classes"),
    "one class": (classes(NAMES[:1]), "1 classes would be split 1/0/0"),
    "case": (classes([*NAMES, "Class A"]), r"classes [cC]lass [aA] \(.*differ only by case"),
    "forms": (classes([*NAMES, "caf\u00e9", "cafe\u0301"]), "differ only by case or by how letters are composed"),
    "case in splits": (SPLIT | tree("test/TrainA/1.png"), r"traina \(train\) and TrainA \(test\) differ only by case"),
    "a class in two splits": (
        SPLIT | tree("test/vala/1.png"),
        "vala is in val and in test; rename one, or set dataset.reader.classes=same",
    ),
    # Splits.
    "no val": ({p: d for p, d in SPLIT.items() if p[:3] != "val"}, "no classes of val; add some.*split=random"),
    "only train": (classes(below="train/"), "no classes of val; add some, or set dataset.reader.split=random"),
    "another split": (SPLIT | tree("dev/a/1.png"), "dev is beside test, and is none of train, val"),
    "val twice": (SPLIT | tree("valid/a/1.png"), "two folders of val, valid is one; join them"),
    # Images.
    "unprintable file": (SPLIT | tree("val/vala/a\nb.png"), r"'val/vala/a\\nb.png': a name that cannot be printed"),
    "damaged": (SPLIT | {"val/vala/0.png": SPLIT["val/vala/0.png"][:60]}, "val/vala/0.png: damaged.*replace it"),
    "empty": (SPLIT | {"val/vala/0.png": b""}, "val/vala/0.png: it is empty"),
    "text of an image's name": (SPLIT | {"val/vala/0.png": b"hello"}, "val/vala/0.png: damaged, or "),
    # CSVs.
    "other split": (table("class,split", *CLASS_ROWS, "class d,dev"), "line 5: split 'dev'; write train, val or test"),
    "no val rows": (table("class,split", *CLASS_ROWS[::2]), "no classes of val; add some"),
    "no such class": (
        table("class,split", *CLASS_ROWS, "class z,val"),
        "line 5: a row whose class folder is missing: 'class z'",
    ),
    "label in two": (
        table("filename,label,split", "class a/0.png,x,train", "class b/0.png,x,val", "class c/0.png,z,test"),
        "class x is in train and in val",
    ),
    "no such image": (table("filename,label,split", "9.png,x,train"), "line 2: a row whose image is missing: '9.png'"),
    "label of two lines": (
        table("filename,label,split", '0.png,"x\ny",train', name="split.csv")
        | {"split.csv": b'filename,label,split\nclass a/0.png,"x\ny",train\nclass b/0.png,y,val\nclass c/0.png,z,test'},
        r"'x\\ny': a name that cannot be printed",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_in_one_line(root: Path, cache: Path, mistake: str):
    files, match = MISTAKES[mistake]
    assert str(root) in refused(as_folder(root, files), cache, match)


@pytest.mark.parametrize("mistake", ["different depths", "such a class in a split", "damaged"])
def test_a_mistake_in_an_archive_is_named_too(root: Path, cache: Path, mistake: str):
    files, match = MISTAKES[mistake]
    assert str(root) in refused(as_zip(root, files), cache, match)


@pytest.mark.parametrize("place", ["elsewhere", "root"])
def test_a_row_that_leads_out_of_the_root_has_no_image(root: Path, cache: Path, tmp_path: Path, place: str):
    as_folder(root, table("filename,label,split", f"../{place}/class a/0.png,x,train"))
    as_folder(tmp_path / "elsewhere", classes())
    assert str(root) in refused(root, cache, "line 2: a row whose image is missing")


@pytest.mark.parametrize("place", ["class k", "images/class k"])
def test_an_empty_class_folder_is_refused(root: Path, cache: Path, place: str):
    as_folder(root, classes(below="images/" if "/" in place else ""))
    (root / place).mkdir()
    refused(root, cache, "class class k has no images; add some, or remove the folder")
    (root / place).rename(root / place.replace("class k", ".hidden"))
    assert len(read(root, cache)["train"].names) == 6


def test_links_to_class_folders_and_back_are_followed_once(root: Path, cache: Path, tmp_path: Path):
    as_folder(tmp_path / "elsewhere", classes())
    root.mkdir()
    for name in NAMES:
        (root / name).symlink_to(tmp_path / "elsewhere" / name, target_is_directory=True)
        (tmp_path / "elsewhere" / name / "back").symlink_to(root, target_is_directory=True)
    assert [len(bank.examples) for bank in read(root, cache).values()] == [12, 4, 4]


def test_images_that_two_splits_share_may_be_counted(root: Path, cache: Path):
    as_folder(root, SPLIT | {"test/testb/9.png": SPLIT["val/vala/0.png"]})
    assert read(root, cache, on_overlap="count")["test"].metadata["shared_images"] == 1
    refused(root, cache / "b", r"vala/0.png \(val\) is the same image as .*testb/9.png \(test\)")
    with pytest.raises(FewshotError, match="the same image"):  # though it was counted before
        read(root, cache)


@pytest.mark.parametrize(
    ("choices", "match"),
    [
        ({"split": "class"}, "split=class: choose one of auto, folders, csv, random"),
        ({"split": "folders"}, "no folders train, val and test are there; make them, or set dataset.reader.spl"),
        ({"split": "csv"}, "neither split.csv nor train.csv, val.csv and test.csv is there"),
        ({"csv": "none.csv"}, "dataset.reader.csv=none.csv: no such file"),
        ({"csv": "none.csv", "split": "random"}, "csv is given, and split=random: leave one of them out"),
        ({"fractions": (0.5, 0.5)}, "write three numbers above 0 with the sum 1"),
        ({"fractions": (0.5, 0.2, 0.2)}, "three numbers above 0"),
        ({"fractions": (1.0, 0.5, -0.5)}, "three numbers above 0"),
        ({"fractions": (float("nan"), 0.5, 0.5)}, "three numbers above 0"),
        ({"fractions": ("a", "b", "c")}, "three numbers above 0"), ({"seed": -1}, "seed=-1: choose a whole number"),
        ({"seed": 1 << 32}, "choose a whole number"),
        ({"on_overlap": "ignore"}, "on_overlap=ignore: choose one of refuse, count"),
        ({"name": "../birds"}, "name=../birds: write letters, digits"), ({"size": 0}, "size=0: choose 1 to 1024"),
        ({"channels": 2}, "channels=2: choose 1"),
    ],
)  # fmt: skip
def test_a_choice_out_of_range_is_refused(root: Path, cache: Path, choices: dict[str, Any], match: str):
    refused(as_folder(root, classes()), cache, match, **choices)


def test_a_file_without_a_suffix_is_an_image_by_its_content(root: Path, cache: Path):
    bare = {f"{path.rsplit('.', 1)[0]}": data for path, data in SPLIT.items()}
    for make in (as_folder, as_tar):
        banks = read(make(root, bare | {"train/traina/LICENSE": b"MIT", "val/README": b""}), cache)
        assert named(banks) == OF_SPLIT and all(bank.sizes.tolist() == [3, 3] for bank in banks.values())
        assert banks["val"].metadata["passed_over"] == {"without a suffix": 2}


def test_what_was_passed_over_is_counted_and_named(root: Path, cache: Path, capsys: pytest.CaptureFixture[str]):
    other = {f"train/traina/{i}.heic": b"-" for i in range(3)} | {"val/vala/Thumbs.db": b"-", "notes.TXT": b"-"}
    metadata = read(as_folder(root, SPLIT | other), cache)["val"].metadata
    assert metadata["passed_over"] == {".heic": 3, ".db": 1, ".txt": 1}
    note = "note: folder: passed over 5 files that are no images: 3 .heic, 1 .db, 1 .txt"
    assert note.removeprefix("note: folder: ") in metadata["notes"] and note in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("between", ["images", "train", "whatever"])
def test_one_folder_of_the_same_name_in_every_class_is_looked_through(root: Path, cache: Path, between: str):
    plain = read(as_folder(root, classes()), cache)
    inner = {f"{path.split('/')[0]}/{between}/{path.split('/')[1]}": data for path, data in classes().items()}
    other = root.with_name("other")
    assert fingerprints(read(as_folder(other, inner | {"class a/boxes.txt": b"1"}), cache)) == fingerprints(plain)
    as_folder(other, {"class k/boxes.txt": b"1"})
    refused(other, cache / "b", "class class k has no images")


ONE_CLASS_EACH = {"train": [f"c{i}" for i in range(6)], "val": ["bird"], "test": ["fish"]}


def shaped(**of: str) -> dict[str, bytes]:
    """Two images of each class in ONE_CLASS_EACH, by the shape of a split's paths, such as "{}/images"."""
    folders = [f"{split}/{of[split].format(name)}" for split, names in ONE_CLASS_EACH.items() for name in names]
    return tree(*(f"{folder}/{i}.png" for folder in folders for i in range(2)))


@pytest.mark.parametrize(
    "of",
    [
        {"train": "{}/view", "val": "{}/view", "test": "{}/view"},
        {"train": "view/{}", "val": "view/{}", "test": "view/{}"},
        {"train": "{}/photo", "val": "{}/photo", "test": "{}/photo"},
        {"train": "{}/images", "val": "{}/img", "test": "{}/JPEG"},
        {"train": "images/{}", "val": "img/{}", "test": "JPEG/{}"},
        {"train": "{}/images", "val": "{}", "test": "{}"},
        {"train": "images/{}", "val": "{}", "test": "data/{}/jpg"},
    ],
)  # fmt: skip
def test_splits_of_one_class_keep_it_whatever_folder_is_in_between(root: Path, cache: Path, of: dict[str, str]):
    as_folder(root, shaped(**of))
    assert named(read(root, cache)) == ONE_CLASS_EACH
    pooled = read(root, cache, split="random", fractions=(0.34, 0.33, 0.33))
    every = sorted(name for names in ONE_CLASS_EACH.values() for name in names)
    assert sorted(name for bank in pooled.values() for name in bank.names) == every
    assert all(bank.sizes.tolist() == [2] * len(bank.names) for bank in pooled.values())


@pytest.mark.parametrize(
    "of",
    [
        {"train": "{}/view", "val": "{}/side", "test": "{}/view"},
        {"train": "{}", "val": "{}/view", "test": "{}/view"},
        {"train": "view/{}", "val": "{}", "test": "{}"},
        {"train": "{}/images", "val": "images/{}", "test": "{}/images"},
    ],
)
@pytest.mark.parametrize("split", ["auto", "random"])
def test_where_more_than_one_folder_may_be_the_class_it_is_refused(
    root: Path, cache: Path, of: dict[str, str], split: str
):
    refused(as_folder(root, shaped(**of)), cache, "folders too deep: found", split=split)


def test_a_class_may_have_the_name_of_a_split(root: Path, cache: Path):
    banks = read(as_folder(root, classes([*NAMES[:9], "test"])), cache)
    assert "test" in [name for names in named(banks).values() for name in names]


@pytest.mark.parametrize(("flat", "make"), [("images/", as_folder), ("", as_zip)])
def test_tiny_imagenets_own_layout_is_split_by_the_classes_of_train(root: Path, cache: Path, flat: str, make: Any):
    tiny = {f"tiny/train/{path.replace('/', '/images/')}": data for path, data in classes().items()}
    tiny |= {f"tiny/train/{name}/{name}_boxes.txt": b"" for name in NAMES} | {"tiny/val/val_annotations.txt": b""}
    loose = tree(*(f"tiny/{split}/{flat}{split}_{i}.png" for split in ("val", "test") for i in range(3)))
    source = make(root, tiny | loose)
    banks = read(source, cache)
    assert named(banks) == named(read(as_folder(root.with_name("plain"), classes()), cache))
    metadata = banks["train"].metadata
    assert metadata["images_left_out"] == 6 and metadata["layout"] == "class folders, pooled from train"
    place = flat.rstrip("/") and f"/{flat[:-1]}"
    note = f"left out 6 images of tiny/test{place}, tiny/val{place}, which are in no class folder; the classes of train"
    assert metadata["notes"][0].startswith(note)
    refused(source, cache / "b", "are in no class folder; put them into some, or set .*split=random", split="folders")


PLACES = {
    "absolute": "{root}/{path}",
    "absolute by way of another folder": "{root}/../{root.name}/{path}",
    "absolute elsewhere": "{elsewhere}/{path}",
    "from home": "~/elsewhere/{path}",
    "with a dot": " ./{path} ",
    "of another system": ".\\{path}",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_row_may_name_an_image_in_any_way(
    root: Path, cache: Path, tmp_path: Path, plain: list[str], place: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    elsewhere = as_folder(tmp_path / "elsewhere", SPLIT)
    as_folder(root, {} if "else" in place or "home" in place else SPLIT)
    rows = ["filename,label,split"]
    for path in SPLIT:
        split, name, _ = path.split("/")
        row = PLACES[place].format(root=root, elsewhere=elsewhere, path=path)
        rows.append(f"{row.replace('/', chr(92)) if place == 'of another system' else row},{name},{split}")
    as_folder(root, {"split.csv": "\n".join(rows).encode()})
    assert fingerprints(read(root, cache)) == plain
    refused(root, cache / "b", "no such file, here or below", csv=f"{root}/none.csv")


def test_all_rows_whose_image_is_missing_are_in_a_file_until_a_call_succeeds(root: Path, cache: Path):
    head = "filename,label,split"
    rows = [f"{c}/{i}.png,{c},{split}" for c, split in (("a", "train"), ("b", "val"), ("c", "test")) for i in range(9)]
    as_folder(root, tree("a/0.png", "b/0.png", "c/0.png") | {"split.csv": "\n".join([head, *rows]).encode()})
    text = refused(root, cache, "^24 rows whose image is missing: .*line 3: .*'a/1.png'.* more; for each: put it below")
    assert text.endswith(f"; all are listed in {cache}/folder-faults.txt")
    faults = (cache / "folder-faults.txt").read_text().splitlines()
    assert len(faults) == 24 and all("a row whose image is missing" in fault for fault in faults)
    as_folder(root, {"split.csv": "\n".join([head, *rows[::9]]).encode()})
    read(root, cache)
    assert [path.suffix for path in cache.iterdir()] == [""]


@pytest.mark.parametrize("make", [as_folder, as_tar])
def test_all_damaged_images_are_in_a_file_and_nothing_of_the_attempt_stays(root: Path, cache: Path, make: Any):
    bad = {"class a/0.png": b"", "class b/0.png": b"hello", "class c/1.jpg": SPLIT["val/vala/0.png"][:60]}
    bad |= {"class d/0.png": b"<html>", "class e/0.png": b"GIF89a"}
    text = refused(make(root, classes() | bad), cache, "^5 damaged images: .*; for each: replace it, or remove it; all")
    listed = (cache / "folder-faults.txt").read_text().splitlines()
    assert len(listed) == 5 and str(cache / "folder-faults.txt") in text
    assert all(any(f"{path}: " in line for line in listed) for path in bad)
    assert not list(cache.glob("*.part"))
    good = classes(each=3)
    assert fingerprints(read(make(root, good), cache)) == fingerprints(
        read(make(root.with_name("good"), good), root / "other")
    )
    assert len(list(cache.iterdir())) == 1


def test_an_image_that_cannot_be_read_does_not_hide_the_others(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    lost = ("class a/0.png", "class b/1.jpg")
    files = open_files(as_folder(root, classes()))

    def open_name(name: str) -> Any:
        if name in lost:
            raise OSError(5, "Input/output error")
        return (root / name).open("rb")

    broken = replace(files, session=lambda: nullcontext(open_name))
    monkeypatch.setattr(folder, "open_files", lambda path: broken)
    reason = r"cannot be read \(\[Errno 5\] Input/output error\); "
    refused(root, cache, f"^2 damaged images: .*/class [ab]/..(png|jpg): {reason}.*/class [ab]/..(png|jpg): {reason}")


TWO = classes(["cat", "dog"], each=10)


def test_the_same_classes_in_all_splits_have_other_images(tmp_path: Path) -> None:
    root = as_folder(tmp_path / "pets", TWO)
    banks = read(root, tmp_path / "banks", classes="same", fractions=[0.5, 0.2, 0.3])
    assert named(banks) == {split: ["cat", "dog"] for split in SPLITS}
    assert [bank.sizes.tolist() for bank in banks.values()] == [[5, 5], [2, 2], [3, 3]]
    images = [image.numpy().tobytes() for bank in banks.values() for image in bank.examples]
    assert len(set(images)) == 20
    about = banks["test"].metadata
    assert about["classes"] == "same"
    assert about["split_source"] == "50/20/30 % of the sorted images of each class, shuffled by numpy RandomState(0)"
    again = read(root, tmp_path / "banks", classes="same", fractions=[0.5, 0.2, 0.3], seed=1)
    assert fingerprints(again) != fingerprints(banks)


@pytest.mark.parametrize("layout", ["folders", "csv"])
def test_the_same_classes_are_taken_from_folders_of_splits_and_a_csv(tmp_path: Path, layout: str) -> None:
    files = tree(*(f"{split}/{name}/{i}.png" for split in SPLITS for name in ("cat", "dog") for i in range(2)))
    if layout == "csv":
        rows = [(path.replace("/", "_"), *path.split("/")[:2]) for path in files]
        files = {path.replace("/", "_"): data for path, data in files.items()}
        files["split.csv"] = "\n".join(["filename,split,label", *map(",".join, rows)]).encode()
    banks = read(as_folder(tmp_path / "pets", files), tmp_path / "banks", classes="same")
    assert named(banks) == {split: ["cat", "dog"] for split in SPLITS}


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (classes(["cat", "dog"], each=2), {}, "class cat: 2 images leave none for val; "),
        (SPLIT, {}, "class testa is not in train"),
        (TWO, {"classes": "equal"}, "dataset.reader.classes=equal: choose one of same"),
    ],
)
def test_mistakes_about_the_same_classes_are_one_line(
    tmp_path: Path, files: dict[str, bytes], options: dict[str, Any], message: str
) -> None:
    root = as_folder(tmp_path / "pets", files)
    refused(root, tmp_path / "banks", message, **({"classes": "same"} | options))
