"""miniImageNet: every layout in small gives the same banks; what differs from the published data is named."""

import csv
import io
import pickle
import shutil
import struct
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshot.core.errors import FewshotError
from fewshot.data.bank import SPLITS, Split, fingerprint
from fewshot.data.datasets import mini_imagenet as mini
from fewshot.data.sources.published import published_split

from ..made_sources import WEB_PAGE, Attack, Server, as_archive, encoded, noise, refused_by

SIDE, EACH = 5, 3  # pixels, and images of a class
CLASSES = {
    split: names[:count] for (split, names), count in zip(published_split("mini").items(), (4, 3, 3), strict=True)
}
PLACES = (2, 3, 5)  # of the listed images among the originals
NUMBERS = (7, 2, 10, 113, 11)  # of the originals, in the names of their files; sorted 2, 7, 10, 11, 113
WORDS = {"train": "train", "val": "validation", "test": "test"}

Row = tuple[str, ...]


def pixels(name: str, number: int) -> np.ndarray:
    """Of the number-th image of a class."""
    return noise([int(name[1:]), number], SIDE, SIDE)


def images() -> Iterator[tuple[str, str, int, str]]:
    """Split, class and number of every image, and its name in the lists."""
    for split, names in CLASSES.items():
        for name in names:
            for number, place in enumerate(PLACES):
                yield split, name, number, f"{name}{place:08d}.jpg"


EXPECTED = {
    split: fingerprint(
        Split(
            np.stack([pixels(name, number).transpose(2, 0, 1) for name in names for number in range(EACH)]),
            [EACH] * len(names),
            names,
        )
    )
    for split, names in CLASSES.items()
}


def array_of(names: Sequence[str]) -> np.ndarray:
    return np.stack([pixels(name, number) for number in range(EACH) for name in names])


def by_class_dict(split: str) -> dict[str, Any]:
    """As learn2learn's pickles; the classes' images are mixed."""
    names = CLASSES[split][::-1]
    rows = {name: list(range(label, EACH * len(names), len(names))) for label, name in enumerate(names)}
    return {"image_data": array_of(names), "class_dict": rows}


def by_labels(split: str) -> dict[str, Any]:
    """As the pickles of FewShotWithoutForgetting."""
    names, first = CLASSES[split], {"train": 0, "val": 64, "test": 80}[split]
    numbers = {name: first + label for label, name in enumerate(names)}
    return {
        "data": array_of(names),
        "labels": list(numbers.values()) * EACH,
        "catname2label": numbers,
        "label2catname": {label: name for name, label in numbers.items()},
    }


def python2(content: dict[str, Any]) -> bytes:
    """The pickle that Python 2 wrote of it."""

    def opcodes(value: Any) -> bytes:
        if isinstance(value, dict):
            return b"}(" + b"".join(opcodes(key) + opcodes(each) for key, each in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, str):
            return b"U" + bytes([len(value)]) + value.encode()
        rows = value.tobytes()
        return (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
            + (b"(" + b"".join(map(opcodes, value.shape)) + b"t")
            + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            + (b"\x89T" + struct.pack("<i", len(rows)) + rows + b"tb")
        )

    return b"\x80\x02" + opcodes(content) + b"."


def in_bytes(content: dict[str, Any]) -> bytes:
    """The pickle of it with keys of bytes, the classes' too."""

    def encoded(content: dict[Any, Any]) -> dict[Any, Any]:
        return {
            key.encode() if isinstance(key, str) else key: encoded(value) if isinstance(value, dict) else value
            for key, value in content.items()
        }

    return pickled(encoded(content))


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def pickled(content: Any, protocol: int = 4) -> bytes:
    return pickle.dumps(content, protocol)


def as_class_dicts(root: Path, dump: Callable[[Any], bytes] = pickled, words: dict[str, str] = WORDS) -> None:
    for split in SPLITS:
        write(root / f"mini-imagenet-cache-{words[split]}.pkl", dump(by_class_dict(split)))


def as_category_splits(root: Path, dump: Callable[[Any], bytes] = pickled) -> None:
    for split in SPLITS:
        phase = "train_phase_train" if split == "train" else split
        write(root / f"miniImageNet_category_split_{phase}.pickle", dump(by_labels(split)))
    for phase in ("val", "test"):  # these are not opened
        write(root / f"miniImageNet_category_split_train_phase_{phase}.pickle", b"more images of the training classes")


def as_lists(root: Path, change: Callable[[str, list[Row]], list[Row]] = lambda split, rows: rows) -> None:
    for split in SPLITS:
        rows: list[Row] = [("filename", "label")]
        rows += [(image, name) for of, name, _, image in images() if of == split]
        file = io.StringIO(newline="")
        csv.writer(file).writerows(change(split, rows))
        write(root / f"{split}.csv", file.getvalue().encode())


def as_images(root: Path, folder: str = "images") -> None:
    for split, name, number, image in images():
        write(root / folder.format(split=split, name=name) / image, encoded(pixels(name, number)))


def as_originals(root: Path, folder: str = "{name}") -> None:
    for names in CLASSES.values():
        for name in names:
            for place, number in enumerate(sorted(NUMBERS), start=1):
                image = pixels(name, PLACES.index(place) if place in PLACES else 100 + place)
                write(root / folder.format(name=name) / f"{name}_{number}.JPEG", encoded(image))
    write(root / folder.format(name="n01440764") / "n01440764_1.JPEG", b"of another class")


def as_list_and_images(root: Path, folder: str = "images") -> None:
    as_lists(root)
    as_images(root, folder)


def as_list_and_originals(root: Path, folder: str = "{name}") -> None:
    as_lists(root)
    as_originals(root, folder)


def as_folders(root: Path) -> None:
    as_images(root, "{name}")


def packed(root: Path, make: Callable[[Path], Any], suffix: str) -> Path:
    """An archive of what `make` makes, or a folder."""
    if suffix == "folder":
        make(root)
        return root
    make(root / "unpacked")
    paths = [path for path in sorted((root / "unpacked").rglob("*.*")) if path.is_file()]
    files = {path.relative_to(root / "unpacked").as_posix(): path.read_bytes() for path in paths}
    shutil.rmtree(root / "unpacked")
    return as_archive(root / f"mini.{suffix}", files)


read = partial(mini.read, size=SIDE, allow_partial=True)
refused = partial(refused_by, read)


def is_as_expected(root: Path, cache: Path, layout: str) -> None:
    banks = read(root, cache)
    assert {split: bank.fingerprint for split, bank in banks.items()} == EXPECTED
    assert [path.name for path in cache.iterdir()] == [f"mini-{SIDE}-squash-lanczos-part"]
    metadata = banks["test"].metadata
    assert metadata["layout"] == layout and metadata["allow_partial"] is True and metadata["shared_images"] == 0
    assert str(root.parent) not in str(metadata)


def naming_all(content: dict[str, Any]) -> bytes:
    """The pickle of it with names for the classes of other splits, too."""
    others = {name: 1000 + i for i, name in enumerate(name for names in CLASSES.values() for name in names)}
    return pickled(content | {"catname2label": others | content["catname2label"]})


CLASS_DICTS, LABELS = "pickles of class_dict", "pickles of labels and catname2label"
BY_NAME = "images by their names in the published lists"
BY_PLACE = "ImageNet's training images, by their places in the published lists"
FOLDERS = "class folders"
LAYOUTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "learn2learn's pickles": (lambda root: as_class_dicts(root, lambda content: pickled(content, 2)), CLASS_DICTS),
    "the same, of val": (lambda root: as_class_dicts(root, words={split: split for split in SPLITS}), CLASS_DICTS),
    "of Python 2": (lambda root: as_class_dicts(root, python2), CLASS_DICTS),
    "two folders deeper": (lambda root: as_class_dicts(root / "a" / "b"), CLASS_DICTS),
    "category splits": (as_category_splits, LABELS),
    "category splits of Python 2": (lambda root: as_category_splits(root, python2), LABELS),
    "category splits with keys of bytes": (lambda root: as_category_splits(root, in_bytes), LABELS),
    "category splits that name all classes": (lambda root: as_category_splits(root, naming_all), LABELS),
    "images and lists": (as_list_and_images, BY_NAME),
    "images in folders, and lists": (lambda root: as_list_and_images(root, "{split}/{name}"), BY_NAME),
    "ImageNet and lists": (as_list_and_originals, BY_PLACE),
    "ImageNet deeper, and lists": (lambda root: as_list_and_originals(root, "ILSVRC/train/{name}"), BY_PLACE),
    "class folders": (as_folders, FOLDERS),
    "split class folders": (lambda root: as_images(root, "mini/{split}/{name}"), FOLDERS),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_banks(root: Path, cache: Path, layout: str):
    make, words = LAYOUTS[layout]
    make(root)
    is_as_expected(root, cache, words)


@pytest.mark.parametrize("layout", ["learn2learn's pickles", "images and lists", "ImageNet and lists"])
@pytest.mark.parametrize(("suffix", "given"), [("zip", "archive"), ("tar.gz", "folder")])
def test_archives_give_the_same_banks(root: Path, cache: Path, layout: str, suffix: str, given: str):
    make, words = LAYOUTS[layout]
    archive = packed(root, make, suffix)
    is_as_expected(archive if given == "archive" else root, cache, words)


@pytest.mark.parametrize("suffix", ["pkl", "pickle"])
@pytest.mark.parametrize("content", [by_class_dict, by_labels])
def test_a_pickle_is_known_by_its_keys_whatever_its_name(root: Path, cache: Path, suffix: str, content: Any):
    for split in SPLITS:
        write(root / f"{split}.{suffix}", pickled(content(split)))
    is_as_expected(root, cache, CLASS_DICTS if content is by_class_dict else LABELS)


@pytest.mark.parametrize("given", ["folder", "zip"])
def test_lists_may_lie_beside_imagenets_classes(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, given: str):
    monkeypatch.setattr(mini, "IMAGES", len(NUMBERS) - 1)  # so that the classes have more
    source = packed(root, as_originals, given)
    as_lists(source.parent)
    is_as_expected(source, cache, BY_PLACE)


def test_lists_beside_class_folders_are_passed_over(root: Path, cache: Path):
    as_folders(root / "mini")
    for split in SPLITS:
        write(root / f"{split}.csv", b"of another data set")
    is_as_expected(root / "mini", cache, FOLDERS)


def test_the_images_that_are_named_in_the_lists_come_before_imagenets(root: Path, cache: Path):
    as_originals(root, "train/{name}")
    as_list_and_images(root)
    for path in (root / "train").rglob("*_7.JPEG"):
        path.write_bytes(b"not taken")
    is_as_expected(root, cache, BY_NAME)


def test_one_pickle_at_a_time_is_in_memory(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    as_class_dicts(root)
    load, loaded = mini.pickles.load, []

    def watched(*args: Any) -> Any:
        assert not any(array() is not None for array in loaded)
        content = load(*args)
        loaded.append(weakref.ref(content["image_data"]))
        return content

    monkeypatch.setattr(mini.pickles, "load", watched)
    is_as_expected(root, cache, CLASS_DICTS)
    assert len(loaded) == 2 * len(SPLITS)


@pytest.mark.parametrize("make", [as_class_dicts, as_list_and_images])
def test_a_split_whose_file_is_missing_is_named(root: Path, cache: Path, make: Callable[[Path], None]):
    make(root)
    for path in [*root.glob("*test.*")]:
        path.unlink()
    refused(root, cache, "train.(pkl|csv) is there, but none of test: ")


@pytest.mark.parametrize("name", ["a/mini-imagenet-cache-val.pkl", "val.pickle"])
def test_two_pickles_of_a_split_are_refused(root: Path, cache: Path, name: str):
    as_class_dicts(root)
    write(root / name, pickled(by_class_dict("val")))
    refused(root, cache, f"{name} .*both there: leave one of them|and {name} are both there: leave one of them")


def renamed(content: dict[str, Any], name: Any) -> dict[str, Any]:
    """With the last class called otherwise."""
    key = "class_dict" if "class_dict" in content else "catname2label"
    *others, (_, last) = content[key].items()
    return content | {key: dict([*others, (name, last)])}


TRAIN, VAL = CLASSES["train"][0], CLASSES["val"][0]
DICT, OTHER = by_class_dict("val"), by_labels("val")
ROWS, BYTES = DICT["class_dict"], DICT["image_data"]
PICKLES: dict[str, tuple[Any, str]] = {
    "a list": ([1, 2], "'list' object has no attribute 'items'"),
    "other keys": ({"images": BYTES, "class_dict": ROWS}, "KeyError: 'image_data'"),
    "images of floats": (DICT | {"image_data": BYTES / 255}, r"images are float64 \(9, 5, 5, 3\)"),
    "grey images": (DICT | {"image_data": BYTES[..., 0]}, r"images are uint8 \(9, 5, 5\)"),
    "channels first": (DICT | {"image_data": BYTES.transpose(0, 3, 1, 2)}, r"images are uint8 \(9, 3, 5, 5\)"),
    "no images": (DICT | {"image_data": BYTES[:0]}, r"images are uint8 \(0, "),
    "images in a list": (DICT | {"image_data": list(BYTES)}, "'list' object has no attribute 'dtype'"),
    "rows in a list": (DICT | {"class_dict": [1]}, "'list' object has no attribute 'items'"),
    "rows of floats": (DICT | {"class_dict": {VAL: [0.0, 1.0]}}, "IndexError"),
    "a row too high": (DICT | {"class_dict": {VAL: [0, 99]}}, "index 99 is out of bounds"),
    "a row twice": (DICT | {"class_dict": ROWS | {VAL: [0, 0, 1]}}, "not one class for each image"),
    "a row of no class": (DICT | {"class_dict": ROWS | {VAL: ROWS[VAL][:-1]}}, "not one class for each image"),
    "too few labels": (OTHER | {"labels": OTHER["labels"][1:]}, "not one class for each image|IndexError"),
    "labels of text": (OTHER | {"labels": ["64"] * 9}, "not one class for each image"),
    "a class with a name": (renamed(DICT, "goldfish"), "class 'goldfish' is in none of the published splits, not of v"),
    "a number for a class": (renamed(OTHER, 64), "class 64 is in none of the published splits"),
    "a class of train": (renamed(OTHER, TRAIN), "'n01532829' is of train of the published splits"),
    "a class with a line break": (renamed(DICT, "n01\nn02"), r"class 'n01\\nn02' is in none"),
    "a web page": (WEB_PAGE, "a web page, not the file; wanted: "),
    "a pickle cut short": (pickled(DICT)[:-30], "no whole pickle"),
}


@pytest.mark.parametrize("odd", PICKLES)
@pytest.mark.parametrize("given", ["folder", "zip"])
def test_an_unfit_pickle_is_named_with_what_to_do(root: Path, cache: Path, odd: str, given: str):
    content, match = PICKLES[odd]

    def make(root: Path) -> None:
        as_class_dicts(root)
        data = content if isinstance(content, bytes) else pickled(content)
        write(root / "mini-imagenet-cache-validation.pkl", data)

    source = packed(root, make, given)
    text = refused(source, cache, f"^{source}.*mini-imagenet-cache-validation.pkl: .*{match}")
    assert text.endswith(f"; fetch {mini.URL}/mini-imagenet-cache-validation.pkl in its place")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("where", ["the whole", "image_data", "class_dict"])
def test_a_pickle_runs_nothing_and_is_refused_by_name(root: Path, cache: Path, protocol: int, where: str):
    attack = Attack(root / "made")
    as_class_dicts(root)
    content = attack if where == "the whole" else by_class_dict("train") | {where: attack}
    write(root / "mini-imagenet-cache-train.pkl", pickled(content, protocol))
    refused(root, cache, "mini-imagenet-cache-train.pkl: .*it asks for '(posix|nt).system'.*; fetch https")
    assert not (root / "made").exists()


def test_a_damaged_pickle_in_a_zip_is_refused(root: Path, cache: Path):
    archive = packed(root, as_class_dicts, "zip")
    data = archive.read_bytes()
    archive.write_bytes(data.replace(pixels(CLASSES["val"][2], 0).tobytes(), bytes(SIDE * SIDE * 3)))
    refused(archive, cache, "mini.zip: mini-imagenet-cache-validation.pkl: cannot be read .*CRC.*; fetch https")


def only(split: str, change: Callable[[list[Row]], list[Row]]) -> Callable[[str, list[Row]], list[Row]]:
    return lambda of, rows: change(rows) if of == split else rows


LISTS: dict[str, tuple[Callable[[str, list[Row]], list[Row]], str]] = {
    "an image that is missing": (
        only("train", lambda rows: [*rows, (f"{TRAIN}00000009.jpg", TRAIN)]),
        f"train.csv: line 14: image '{TRAIN}00000009.jpg' is not in .*; put it there",
    ),
    "a class that is not published": (
        only("val", lambda rows: [*rows, ("n0144076400000001.jpg", "n01440764")]),
        "val.csv: line 11: class 'n01440764' is in none of the published splits, not of val; take the published list",
    ),
    "a class in two lists": (
        only("val", lambda rows: [*rows, (f"{TRAIN}00000004.jpg", TRAIN)]),
        f"val.csv: line 11: class '{TRAIN}' is of train of the published splits, not of val; take the published list",
    ),
    "an image of two classes": (
        only("val", lambda rows: [*rows, (rows[1][0], CLASSES["val"][1])]),
        r"val.csv: line 11: '\w+.jpg' is listed as 'n01855672' of val already",
    ),
    "no head": (only("val", lambda rows: rows[1:]), "val.csv: columns '.*jpg,n01855672'; write filename,label"),
    "a line break": (only("val", lambda rows: [*rows, ("a\nb", VAL)]), r"image 'a\\nb' is not in "),
    "an image of another suffix": (
        only("val", lambda rows: [*rows, (f"{VAL}00000001.png", VAL)]),
        "val.csv: line 11: image .* is not in",
    ),
    "a number from zero": (
        only("val", lambda rows: [*rows, (f"{VAL}00000000.jpg", VAL)]),
        "val.csv: line 11: image .* is not in",
    ),
}


@pytest.mark.parametrize("make", [as_images, as_originals])
@pytest.mark.parametrize("odd", LISTS)
def test_an_unfit_list_is_named_with_what_to_do(root: Path, cache: Path, odd: str, make: Any):
    change, match = LISTS[odd]
    make(root)
    as_lists(root, change)
    refused(root, cache, match)


def test_two_images_of_a_listed_name_are_refused(root: Path, cache: Path):
    as_list_and_images(root)
    as_images(root, "more")
    refused(root, cache, "30 rows .* may be images/n01532829.*.jpg or more/n01532829.*.jpg; .*leave one of them")


def test_two_originals_of_a_number_are_refused(root: Path, cache: Path):
    as_list_and_originals(root)
    write(root / f"{VAL}_113.jpg", encoded(pixels(VAL, 0)))
    refused(root, cache, f"{VAL}_113.jpg and {VAL}/{VAL}_113.JPEG are both there|113.JPEG and {VAL}_113.jpg are both")


def test_a_class_of_imagenet_that_is_not_whole_is_refused(root: Path, cache: Path):
    as_list_and_originals(root)
    (root / VAL / f"{VAL}_2.JPEG").unlink()
    text = refused(
        root, cache, f"val.csv: line 4: image '{VAL}00000005.jpg' is not in .* all of ImageNet's training images"
    )
    assert "remove the lists" in text


def test_classes_of_more_than_600_images_need_the_lists(root: Path, cache: Path):
    as_folders(root)
    for number in range(600):
        (root / VAL / f"{VAL}_{number}.JPEG").touch()
    refused(root, cache, f"class {VAL} has more than 600 images, .*put the lists train.csv,")


def test_an_unreadable_image_is_named(root: Path, cache: Path):
    as_list_and_images(root)
    write(root / "images" / f"{VAL}00000003.jpg", encoded(pixels(VAL, 0))[:40])
    refused(root, cache, f"^{root}/images/{VAL}00000003.jpg: damaged, or ")


def whole(each: int) -> dict[str, tuple[np.ndarray, dict[str, list[int]]]]:
    """All of miniImageNet in images of one pixel, each with another colour: images and rows of every split."""
    found, first = {}, 0
    for split, names in published_split("mini").items():
        total = len(names) * each
        numbers = np.arange(first, first := first + total, dtype="<u4")
        rows = {name: list(range(each * i, each * i + each)) for i, name in enumerate(names)}
        found[split] = numbers.view(np.uint8).reshape(total, 1, 1, 4)[..., :3], rows
    return found


def test_the_published_counts_are_complete(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mini, "IMAGES", 30)
    for split, (data, rows) in whole(30).items():
        write(root / f"{split}.pkl", pickled({"image_data": data, "class_dict": rows}))
    banks = mini.read(root, cache, size=1)
    for split, names in published_split("mini").items():
        assert banks[split].names == tuple(names) and set(banks[split].sizes.tolist()) == {30}
        assert np.array_equal(banks[split].examples[:, :, 0, 0].numpy(), whole(30)[split][0][:, 0, 0])
    assert banks["train"].metadata["allow_partial"] is False and banks["train"].metadata["shared_images"] == 0
    assert [path.name for path in cache.iterdir()] == ["mini-1-squash-lanczos"]
    data, rows = whole(30)["val"]
    rows["n09256479"].pop()
    write(root / "val.pkl", pickled({"image_data": data[:-1], "class_dict": rows}))
    with pytest.raises(FewshotError, match="class n09256479 has 29 images, not 30; .*allow_partial=true"):
        mini.read(root, cache, size=1, overwrite=True)


@pytest.mark.slow
def test_class_folders_of_the_published_counts_are_complete(root: Path, cache: Path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    for split, (data, rows) in whole(600).items():
        for name, numbers in rows.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number, row in enumerate(numbers):
                body = chunk(b"IDAT", zlib.compress(b"\0" + data[row].tobytes())) + chunk(b"IEND", b"")
                (folder / f"{name}{number:08d}.png").write_bytes(head + body)
    banks = mini.read(root, cache, size=8)
    for split, names in published_split("mini").items():
        assert banks[split].names == tuple(names) and set(banks[split].sizes.tolist()) == {600}
        assert np.array_equal(banks[split].examples[:, :, 3, 5].numpy(), whole(600)[split][0][:, 0, 0])
    assert banks["train"].metadata["shared_images"] == 0


@pytest.fixture
def server(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Of learn2learn's pickles."""
    server.files = {f"mini-imagenet-cache-{WORDS[split]}.pkl": pickled(by_class_dict(split)) for split in SPLITS}
    monkeypatch.setattr(mini, "URL", server.url)
    return server


def test_a_download_fetches_three_pickles_and_reads_them(server: Server, root: Path, cache: Path):
    banks = read(root, cache, download=True)
    assert {split: bank.fingerprint for split, bank in banks.items()} == EXPECTED
    assert server.asked == list(server.files) and {path.name for path in root.iterdir()} == set(server.files)
    read(root, cache, download=True, overwrite=True)
    assert len(server.asked) == 3


def test_a_download_fetches_only_what_is_missing(server: Server, root: Path, cache: Path):
    as_class_dicts(root)
    (root / "mini-imagenet-cache-validation.pkl").unlink()
    read(root, cache, download=True)
    assert server.asked == ["mini-imagenet-cache-validation.pkl"]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (WEB_PAGE, "a web page, not the file"),
        (pickled(by_class_dict("val"))[:-9], "no whole pickle"),
        (pickled(by_class_dict("train")), "class 'n01749939' is of train of the published splits, not of val"),
        (pickled(Attack(Path("/nowhere"))), "it asks for '(posix|nt).system'"),
    ],
)
def test_a_wrong_download_does_not_get_the_name(server: Server, root: Path, cache: Path, data: bytes, match: str):
    name = "mini-imagenet-cache-validation.pkl"
    server.files[name] = data
    text = refused(root, cache, match, download=True)
    assert f"download {mini.URL}/{name} by hand to {root}/{name}" in text
    assert [path.name for path in root.iterdir()] == ["mini-imagenet-cache-train.pkl"]
