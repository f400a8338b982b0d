"""miniImageNet: every layout in small gives the same banks; what differs from the published data is named."""

import pickle
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

from ..made_sources import WEB_PAGE, Attack, Server, as_archive, as_folder, encoded, noise, refused_by

SIDE, EACH = 5, 3  # pixels, and images of a class
PUBLISHED = published_split("mini")
CLASSES = {"train": PUBLISHED["train"][:4], "val": PUBLISHED["val"][:3], "test": PUBLISHED["test"][:3]}
TRAIN, VAL = CLASSES["train"][0], CLASSES["val"][0]
PLACES = (2, 3, 5)  # of the listed images among the originals
NUMBERS = (7, 2, 10, 113, 11)  # of the originals, in the names of their files; sorted 2, 7, 10, 11, 113
OF_IMAGENET = mini.FEWER, mini.ORIGINALS
Files = dict[str, bytes]
Rows = list[tuple[str, ...]]

read = partial(mini.read_mini_imagenet, size=SIDE, allow_partial=True)
refused = partial(refused_by, read)


def pixels(name: str, number: int) -> np.ndarray:
    """Image `number` of a class."""
    return noise([int(name[1:]), number], SIDE, SIDE)


def images() -> Iterator[tuple[str, str, int, str]]:
    """Split, class and number of every image, and its name in the lists."""
    for split, names in CLASSES.items():
        for name in names:
            for number, place in enumerate(PLACES):
                yield split, name, number, f"{name}{place:08d}.jpg"


@pytest.fixture(autouse=True)
def small_imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many training images of each class as `originals` has."""
    monkeypatch.setattr(mini, "ORIGINALS", len(NUMBERS))
    monkeypatch.setattr(mini, "FEWER", {CLASSES["test"][0]: len(NUMBERS) + 1})


def expected() -> dict[str, str]:
    """The fingerprint of each split."""
    found = {}
    for split, names in CLASSES.items():
        rows = np.stack([pixels(name, number).transpose(2, 0, 1) for name in names for number in range(EACH)])
        found[split] = fingerprint(Split(rows, [EACH] * len(names), names))
    return found


def array_of(names: Sequence[str]) -> np.ndarray:
    return np.stack([pixels(name, number) for number in range(EACH) for name in names])


def by_class_dict(split: str) -> dict[str, Any]:
    """The content of learn2learn's pickles; the images of different classes are mixed."""
    names = CLASSES[split][::-1]
    rows = {name: list(range(label, EACH * len(names), len(names))) for label, name in enumerate(names)}
    return {"image_data": array_of(names), "class_dict": rows}


def by_labels(split: str) -> dict[str, Any]:
    """The content of the pickles of FewShotWithoutForgetting."""
    names, first = CLASSES[split], {"train": 0, "val": 64, "test": 80}[split]
    numbers = {name: first + label for label, name in enumerate(names)}
    return {"data": array_of(names), "labels": list(numbers.values()) * EACH, "catname2label": numbers}


def naming_all(content: dict[str, Any]) -> dict[str, Any]:
    """The same with names for the classes of other splits, too."""
    others = {name: 1000 + i for i, name in enumerate(name for names in CLASSES.values() for name in names)}
    return content | {"catname2label": others | content["catname2label"]}


def in_bytes(content: Any) -> Any:
    """The same with keys of bytes, also of the classes."""
    if not isinstance(content, dict):
        return content
    return {key.encode() if isinstance(key, str) else key: in_bytes(value) for key, value in content.items()}


def dump(content: Any) -> bytes:
    return pickle.dumps(content, 4)


def class_dicts(change: Callable[[Any], Any] = lambda content: content, protocol: int = 4, val: str = "val") -> Files:
    words = {"train": "train", "val": val, "test": "test"}
    return {
        f"mini-imagenet-cache-{words[split]}.pkl": pickle.dumps(change(by_class_dict(split)), protocol)
        for split in SPLITS
    }


def category_splits(change: Callable[[Any], Any] = lambda content: content) -> Files:
    words = {"train": "train_phase_train", "val": "val", "test": "test"}
    files = {f"miniImageNet_category_split_{words[split]}.pickle": dump(change(by_labels(split))) for split in SPLITS}
    unused = {f"miniImageNet_category_split_train_phase_{split}.pickle": b"is not opened" for split in ("val", "test")}
    return files | unused


def lists(change: Callable[[str, Rows], Rows] = lambda split, rows: rows) -> Files:
    files = {}
    for split in SPLITS:
        rows: Rows = [("filename", "label")]
        rows += [(image, name) for of, name, _, image in images() if of == split]
        text = "\n".join(",".join(f'"{value}"' for value in row) for row in change(split, rows))
        files[f"{split}.csv"] = text.encode()
    return files


def image_files(folder: str = "images") -> Files:
    return {
        f"{folder.format(split=split, name=name)}/{image}": encoded(pixels(name, number))
        for split, name, number, image in images()
    }


def originals(folder: str = "{name}") -> Files:
    files = {}
    for name in [name for names in CLASSES.values() for name in names]:
        for place, number in enumerate(sorted(NUMBERS), start=1):
            image = pixels(name, PLACES.index(place) if place in PLACES else 100 + place)
            files[f"{folder.format(name=name)}/{name}_{number}.JPEG"] = encoded(image)
    another = CLASSES["test"][0]  # whose number is not the usual one
    files[f"{folder.format(name=another)}/{another}_900.JPEG"] = encoded(pixels(another, 900))
    return files | {f"{folder.format(name='n01440764')}/n01440764_1.JPEG": b"of another class"}


def below(folder: str, files: Files) -> Files:
    return {f"{folder}/{name}": data for name, data in files.items()}


CLASS_DICTS, LABELS = "pickles of class_dict", "pickles of labels and catname2label"
BY_NAME = "images by their names in the published lists"
BY_PLACE = "ImageNet's training images, by their places in the published lists"
FOLDERS = "class folders"
LAYOUTS: dict[str, tuple[Files, str]] = {
    "learn2learn's pickles": (class_dicts(protocol=2, val="validation"), CLASS_DICTS),
    "of val, with keys of bytes": (class_dicts(in_bytes), CLASS_DICTS),
    "two folders deeper": (below("a/b", class_dicts()), CLASS_DICTS),
    "with other names": ({f"{split}.pickle": dump(by_class_dict(split)) for split in SPLITS}, CLASS_DICTS),
    "category splits": (category_splits(), LABELS),
    "category splits with keys of bytes": (category_splits(in_bytes), LABELS),
    "category splits that name all classes": (category_splits(naming_all), LABELS),
    "category splits with other names": ({f"{split}.pkl": dump(by_labels(split)) for split in SPLITS}, LABELS),
    "images and lists": (lists() | image_files(), BY_NAME),
    "images in folders, and lists": (below("a", lists() | image_files("{split}/{name}")), BY_NAME),
    "images and lists beside originals": (
        lists() | image_files() | dict.fromkeys(originals("train/{name}"), b"not taken"),
        BY_NAME,
    ),
    "ImageNet and lists": (lists() | originals(), BY_PLACE),
    "ImageNet deeper, and lists": (lists() | originals("ILSVRC/train/{name}"), BY_PLACE),
    "class folders": (image_files("{name}"), FOLDERS),
}


def is_as_expected(root: Path, cache: Path, layout: str) -> None:
    banks = read(root, cache)
    assert {split: bank.fingerprint for split, bank in banks.items()} == expected()
    assert banks["test"].metadata["layout"] == layout and str(root.parent) not in str(banks["test"].metadata)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_banks(root: Path, cache: Path, layout: str):
    files, words = LAYOUTS[layout]
    is_as_expected(as_folder(root, files), cache, words)


@pytest.mark.parametrize("layout", ["learn2learn's pickles", "images and lists", "ImageNet and lists"])
@pytest.mark.parametrize(("suffix", "given"), [("zip", "archive"), ("tar.gz", "folder")])
def test_archives_give_the_same_banks(root: Path, cache: Path, layout: str, suffix: str, given: str):
    files, words = LAYOUTS[layout]
    archive = as_archive(root / f"mini.{suffix}", files)
    is_as_expected(archive if given == "archive" else root, cache, words)


@pytest.mark.parametrize("make", [as_folder, lambda root, files: as_archive(root / "mini.zip", files)])
def test_lists_may_be_beside_imagenets_classes(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, make: Any):
    monkeypatch.setattr(mini, "IMAGES", len(NUMBERS) - 1)  # so that the classes have more
    source = make(root, originals())
    as_folder(source.parent, lists())
    is_as_expected(source, cache, BY_PLACE)


def test_lists_beside_class_folders_are_not_used(root: Path, cache: Path):
    as_folder(root / "mini", image_files("{name}"))
    as_folder(root, {f"{split}.csv": b"of another dataset" for split in SPLITS})
    is_as_expected(root / "mini", cache, FOLDERS)


def test_one_pickle_at_a_time_is_in_memory(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    load, loaded = mini.pickles.load, []

    def watched(*args: Any) -> Any:
        assert not any(array() is not None for array in loaded)
        content = load(*args)
        loaded.append(weakref.ref(content["image_data"]))
        return content

    monkeypatch.setattr(mini.pickles, "load", watched)
    is_as_expected(as_folder(root, class_dicts()), cache, CLASS_DICTS)
    assert len(loaded) == 2 * len(SPLITS)


def test_images_that_are_prepared_in_another_size_are_named(root: Path, cache: Path, tmp_path: Path):
    read(as_folder(root, class_dicts()), cache)
    with pytest.raises(
        FewshotError, match=f"of 7 pixels are not prepared, those of {SIDE} are: .*reader.size=7`, or name"
    ):
        read(tmp_path / "nowhere", cache, size=7)
    with pytest.raises(FewshotError, match="no miniImageNet is there"):
        read(tmp_path / "nowhere", tmp_path / "empty")


@pytest.mark.parametrize("files", [class_dicts(), lists() | image_files()])
def test_a_split_whose_file_is_missing_is_named(root: Path, cache: Path, files: Files):
    as_folder(root, {name: data for name, data in files.items() if "test." not in name})
    refused(root, cache, "train.(pkl|csv) is there, but none of test: ")


@pytest.mark.parametrize("name", ["a/mini-imagenet-cache-val.pkl", "val.pickle"])
def test_two_pickles_of_a_split_are_refused(root: Path, cache: Path, name: str):
    as_folder(root, class_dicts(val="validation") | {name: dump(by_class_dict("val"))})
    refused(root, cache, f"{name} .*both there: leave one of them|and {name} are both there: leave one of them")


def renamed(content: dict[str, Any], name: Any) -> dict[str, Any]:
    """The last class has another name."""
    key = "class_dict" if "class_dict" in content else "catname2label"
    *others, (_, last) = content[key].items()
    return content | {key: dict([*others, (name, last)])}


DICT, OTHER = by_class_dict("val"), by_labels("val")
ROWS, IMAGES = DICT["class_dict"], DICT["image_data"]
PICKLES: dict[str, tuple[Any, str]] = {
    "a list": ([1, 2], "'list' object has no attribute 'items'"),
    "other keys": ({"images": IMAGES, "class_dict": ROWS}, "KeyError: 'image_data'"),
    "images of floats": (DICT | {"image_data": IMAGES / 255}, r"images are float64 \(9, 5, 5, 3\)"),
    "grey images": (DICT | {"image_data": IMAGES[..., 0]}, r"images are uint8 \(9, 5, 5\)"),
    "channels first": (DICT | {"image_data": IMAGES.transpose(0, 3, 1, 2)}, r"images are uint8 \(9, 3, 5, 5\)"),
    "no images": (DICT | {"image_data": IMAGES[:0]}, r"images are uint8 \(0, "),
    "images in a list": (DICT | {"image_data": list(IMAGES)}, "'list' object has no attribute 'dtype'"),
    "rows in a list": (DICT | {"class_dict": [1]}, "'list' object has no attribute 'items'"),
    "rows of floats": (DICT | {"class_dict": {VAL: [0.0, 1.0]}}, "IndexError"),
    "a row too high": (DICT | {"class_dict": {VAL: [0, 99]}}, "index 99 is out of bounds"),
    "a row twice": (DICT | {"class_dict": ROWS | {VAL: [0, 0, 1]}}, "not one class for each image"),
    "a row of no class": (DICT | {"class_dict": ROWS | {VAL: ROWS[VAL][:-1]}}, "not one class for each image"),
    "too few labels": (OTHER | {"labels": OTHER["labels"][1:]}, "not one class for each image"),
    "labels of text": (OTHER | {"labels": ["64"] * 9}, "not one class for each image"),
    "a class with a name": (renamed(DICT, "goldfish"), "class 'goldfish' is in none of the published splits, not of v"),
    "a number for a class": (renamed(OTHER, 64), "class 64 is in none of the published splits"),
    "a class of train": (renamed(OTHER, TRAIN), "'n01532829' is of train of the published splits"),
    "a class with a line break": (renamed(DICT, "n01\nn02"), r"class 'n01\\nn02' is in none"),
    "a web page": (WEB_PAGE, "a web page, not the file; wanted: "),
    "a pickle cut short": (dump(DICT)[:-30], "no whole pickle"),
    "an attack": (Attack(Path("/nowhere/made")), "it asks for '(posix|nt).system'"),
    "an attack for images": (DICT | {"image_data": Attack(Path("/nowhere/made"))}, "it asks for '(posix|nt).system'"),
}


@pytest.mark.parametrize(
    ("archive", "odd"),
    [*(("", each) for each in PICKLES), ("mini.zip", "an attack"), ("mini.zip", "a pickle cut short")],
)
def test_an_unfit_pickle_is_named_with_what_to_do(root: Path, cache: Path, odd: str, archive: str):
    content, match = PICKLES[odd]
    name = "mini-imagenet-cache-validation.pkl"
    files = class_dicts(val="validation") | {name: content if isinstance(content, bytes) else dump(content)}
    source = as_archive(root / archive, files) if archive else as_folder(root, files)
    text = refused(source, cache, f"^{source}.*{name}: .*{match}")
    assert text.endswith(f"; fetch {mini.URL}/{name} in its place")


def test_a_damaged_pickle_in_a_zip_is_refused(root: Path, cache: Path):
    archive = as_archive(root / "mini.zip", class_dicts(val="validation"))
    damaged = archive.read_bytes().replace(pixels(CLASSES["val"][2], 0).tobytes(), bytes(SIDE * SIDE * 3))
    archive.write_bytes(damaged)
    refused(archive, cache, "mini.zip: mini-imagenet-cache-validation.pkl: cannot be read .*CRC.*; fetch https")


def only(split: str, change: Callable[[Rows], Rows]) -> Files:
    """Lists with a change in that of one split."""
    return lists(lambda of, rows: change(rows) if of == split else rows)


def with_row(*row: str) -> Files:
    return only("val", lambda rows: [*rows, row])


LISTS: dict[str, tuple[Files, str]] = {
    "an image that is missing": (
        only("train", lambda rows: [*rows, (f"{TRAIN}00000009.jpg", TRAIN)]),
        f"train.csv: line 14: image '{TRAIN}00000009.jpg' is not in .*; put it there, or all of ImageNet's training",
    ),
    "a class that is not published": (
        with_row("n0144076400000001.jpg", "n01440764"),
        "val.csv: line 11: class 'n01440764' is in none of the published splits, not of val; take the published list",
    ),
    "a class in two lists": (
        with_row(f"{TRAIN}00000004.jpg", TRAIN),
        f"val.csv: line 11: class '{TRAIN}' is of train of the published splits, not of val; take the published list",
    ),
    "an image of two classes": (
        with_row(f"{VAL}00000002.jpg", CLASSES["val"][1]),
        r"val.csv: line 11: '\w+.jpg' is listed as 'n01855672' of val already",
    ),
    "no head": (only("val", lambda rows: rows[1:]), "val.csv: columns '.*jpg,n01855672'; write filename,label"),
    "a line break": (with_row("a\nb", VAL), r"image 'a\\nb' is not in "),
    "an image of another suffix": (with_row(f"{VAL}00000001.png", VAL), "val.csv: line 11: image .* is not in"),
    "a number from zero": (with_row(f"{VAL}00000000.jpg", VAL), "val.csv: line 11: image .* is not in"),
}


@pytest.mark.parametrize("files", [image_files(), originals()], ids=["images", "originals"])
@pytest.mark.parametrize("odd", LISTS)
def test_an_unfit_list_is_named_with_what_to_do(root: Path, cache: Path, odd: str, files: Files):
    listed, match = LISTS[odd]
    refused(as_folder(root, files | listed), cache, match)


def test_classes_of_imagenet_with_fewer_images_are_published_ones():
    fewer, usual = OF_IMAGENET
    assert fewer.keys() <= {name for names in PUBLISHED.values() for name in names}
    assert all(mini.IMAGES < count < usual for count in fewer.values())


def test_two_images_of_a_name_are_refused(root: Path, cache: Path):
    as_folder(root / "a", lists() | image_files() | image_files("more"))
    refused(root / "a", cache, "30 rows .* may be images/n01532829.*.jpg or more/n01532829.*.jpg; .*leave one of them")
    as_folder(root / "b", lists() | originals() | {f"{VAL}_113.jpg": encoded(pixels(VAL, 0))})
    refused(root / "b", cache, f"{VAL}_113.jpg and {VAL}/{VAL}_113.JPEG are both there|JPEG and {VAL}_113.jpg are both")


@pytest.mark.parametrize("number", [2, 113, 500], ids=["without the first", "without the last", "with one more"])
def test_a_class_without_exactly_imagenets_images_is_refused(root: Path, cache: Path, number: int):
    """Lists name images by their places, which a missing or another image shifts."""
    files, file = lists() | originals(), f"{VAL}/{VAL}_{number}.JPEG"
    if number in NUMBERS:
        del files[file]
    else:
        files[file] = encoded(pixels(VAL, 0))
    count = 4 if number in NUMBERS else 6
    match = f"class {VAL} has {count} images, and 5 in ImageNet's training set; the lists count them: put all there"
    refused(as_folder(root, files), cache, match)


def test_classes_of_more_than_600_images_need_the_lists(root: Path, cache: Path):
    as_folder(root, image_files("{name}") | {f"{VAL}/{VAL}_{number}.JPEG": b"" for number in range(600)})
    refused(root, cache, f"class {VAL} has more than 600 images, .*put the lists train.csv,")


def test_a_damaged_image_is_named_as_its_own_file(root: Path, cache: Path):
    as_folder(root, lists() | originals() | {f"{VAL}/{VAL}_7.JPEG": encoded(pixels(VAL, 0))[:40]})
    refused(root, cache, f"^{root}/{VAL}/{VAL}_7.JPEG: damaged, or ")


def whole(each: int) -> Iterator[tuple[str, np.ndarray, dict[str, list[int]]]]:
    """Split, images of one pixel with different colours, and rows of each class, for the published classes."""
    first = 0
    for split, names in PUBLISHED.items():
        numbers = np.arange(first, first := first + len(names) * each, dtype="<u4")
        rows = {name: list(range(each * i, each * i + each)) for i, name in enumerate(names)}
        yield split, numbers.view(np.uint8).reshape(-1, 1, 1, 4)[..., :3], rows


def test_the_published_counts_are_complete(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mini, "IMAGES", 30)
    files = {f"{split}.pkl": dump({"image_data": data, "class_dict": rows}) for split, data, rows in whole(30)}
    banks = mini.read_mini_imagenet(as_folder(root, files), cache, size=1)
    for split, data, rows in whole(30):
        assert banks[split].names == tuple(rows) and set(banks[split].sizes.tolist()) == {30}
        assert np.array_equal(banks[split].examples[:, :, 0, 0].numpy(), data[:, 0, 0])
    assert banks["train"].metadata["allow_partial"] is False and banks["train"].metadata["shared_images"] == 0
    assert [path.name for path in cache.iterdir()] == ["mini-1-squash-lanczos"]
    _, data, rows = list(whole(30))[1]
    rows["n09256479"].pop()
    as_folder(root, {"val.pkl": dump({"image_data": data[:-1], "class_dict": rows})})
    with pytest.raises(FewshotError, match="class n09256479 has 29 images, not 30; .*allow_partial=true"):
        mini.read_mini_imagenet(root, cache, size=1, overwrite=True)


@pytest.mark.slow
def test_class_folders_of_the_published_counts_are_complete(root: Path, cache: Path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    for split, data, rows in whole(600):
        for name, numbers in rows.items():
            bodies = [chunk(b"IDAT", zlib.compress(b"\0" + data[row].tobytes())) for row in numbers]
            files = {f"{name}{i:08d}.png": head + body + chunk(b"IEND", b"") for i, body in enumerate(bodies)}
            as_folder(root / split / name, files)
    banks = mini.read_mini_imagenet(root, cache, size=8)
    for split, data, rows in whole(600):
        assert banks[split].names == tuple(rows) and set(banks[split].sizes.tolist()) == {600}
        assert np.array_equal(banks[split].examples[:, :, 3, 5].numpy(), data[:, 0, 0])


@pytest.fixture
def server(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server of learn2learn's pickles."""
    server.files = class_dicts(val="validation")
    monkeypatch.setattr(mini, "URL", server.url)
    return server


def test_a_download_fetches_the_pickles_that_are_missing(server: Server, root: Path, cache: Path):
    banks = read(root, cache, download=True)
    assert {split: bank.fingerprint for split, bank in banks.items()} == expected()
    assert server.asked == list(server.files) and {path.name for path in root.iterdir()} == set(server.files)
    (root / "mini-imagenet-cache-validation.pkl").unlink()
    read(root, cache, download=True, overwrite=True)
    assert server.asked[3:] == ["mini-imagenet-cache-validation.pkl"]


@pytest.mark.parametrize("odd", ["a web page", "a pickle cut short", "a class of train", "an attack"])
def test_a_wrong_download_does_not_get_the_name(server: Server, root: Path, cache: Path, odd: str):
    content, match = PICKLES[odd]
    name = "mini-imagenet-cache-validation.pkl"
    server.files[name] = content if isinstance(content, bytes) else dump(content)
    text = refused(root, cache, match, download=True)
    assert f"download {mini.URL}/{name} by hand to {root}/{name}" in text
    assert [path.name for path in root.iterdir()] == ["mini-imagenet-cache-train.pkl"]
