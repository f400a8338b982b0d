"""tieredImageNet: read from every layout, made small on the spot; what is not as it should be is named."""

import io
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshot.core.errors import FewshotError
from fewshot.data.datasets import tiered_imagenet as tiered
from fewshot.data.sources.layouts import published_split

from ..made_sources import Server, as_folder, encoded, refused_by

SIDE, IMAGES = 9, 4  # pixels, and images of each class
CLASSES = {split: names[3:1:-1] for split, names in published_split("tiered").items()}  # two each, not sorted
ROWS = {split: [(number, label) for number in range(IMAGES) for label in range(2)] for split in CLASSES}  # mixed
LABELS = {split: np.array([label for _, label in rows]) for split, rows in ROWS.items()}


def pixels(split: str, label: int, number: int) -> np.ndarray:
    """[SIDE, SIDE, 3], another one for each image, more red than blue."""
    random = np.random.RandomState(list(CLASSES).index(split) * 100 + label * 10 + number)
    return random.randint(0, 100, (SIDE, SIDE, 3), np.uint8) + np.array([120, 60, 0], np.uint8)


def pngs(split: str) -> list[bytes]:
    return [encoded(pixels(split, label, number)) for number, label in ROWS[split]]


def arrays(split: str) -> list[np.ndarray]:
    """As OpenCV encodes images now."""
    return [np.frombuffer(data, np.uint8).copy() for data in pngs(split)]


def labels(split: str, **changes: Any) -> dict[str, Any]:
    content = {"label_specific": LABELS[split], "label_specific_str": CLASSES[split]}
    return content | {"label_general": LABELS[split] // 2, "label_general_str": ["animal"]} | changes


def stack(split: str) -> np.ndarray:
    """[n, SIDE, SIDE, 3], blue first, as OpenCV decodes images."""
    return np.stack([pixels(split, label, number)[:, :, ::-1] for number, label in ROWS[split]])


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(save: Callable[..., None] = np.savez, **content: np.ndarray) -> bytes:
    file = io.BytesIO()
    save(file, **content)
    return file.getvalue()


def pickled(
    root: Path, prefix: str = "", protocol: int = 2, images: Callable[[str], Any] = arrays, **changes: Any
) -> Path:
    """The authors' files; a change is what to pickle as the content of one."""
    made = {}
    for split in CLASSES:
        for kind, content in (("images_png", images), ("labels", labels)):
            of = changes.get(f"{split}_{kind}", content(split))
            made[f"{prefix}{split}_{kind}.pkl"] = of if isinstance(of, bytes) else pickle.dumps(of, protocol)
    return as_folder(root, made)


def unpacked(root: Path, made: Callable[[np.ndarray], bytes], suffix: str = "npz", **changes: Any) -> Path:
    contents = {f"{split}_images.{suffix}": made(stack(split)) for split in CLASSES}
    contents |= {f"{split}_labels.pkl": pickle.dumps(labels(split)) for split in CLASSES}
    return as_folder(root, contents | {name.replace("__", "."): data for name, data in changes.items()})


def folders(root: Path, inner: str = "{split}/{name}") -> Path:
    files = {}
    for split, rows in ROWS.items():
        for number, label in rows:
            folder = inner.format(split=split, name=CLASSES[split][label])
            files[f"{folder}/{number}.png"] = encoded(pixels(split, label, number))
    return as_folder(root, files)


def renamed(root: Path, prefix: str) -> Path:
    for path in list(root.glob("val_*")):
        path.rename(root / f"{prefix}{path.name[3:]}")
    return root


def packed(source: Path, suffix: str) -> Path:
    """An archive in place of a folder."""
    made = Path(shutil.make_archive(str(source), suffix, source.parent, source.name))
    shutil.rmtree(source)
    return made


def python_2(split: str) -> bytes:
    """A list of its strings."""
    items = b"".join(b"T" + len(data).to_bytes(4, "little") + data + b"q\x01" for data in pngs(split))
    return b"\x80\x02]q\x00(" + items + b"e."


def compressed(array: np.ndarray) -> bytes:
    return npz(np.savez_compressed, images=array)


def stored(array: np.ndarray) -> bytes:
    return npz(images=array)


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "folders of splits": folders,
    "folders of no splits": lambda root: folders(root, "{name}"),
    "folders of ImageNet": lambda root: as_folder(
        folders(root, "ILSVRC/Data/CLS-LOC/train/{name}"),
        {"ILSVRC/Data/CLS-LOC/train/n00000001/1.JPEG": b"of no class"},
    ),
    "folders, zipped": lambda root: packed(folders(root), "zip"),
    "pickles": pickled,
    "pickles of columns": lambda root: pickled(root, images=lambda split: [a.reshape(-1, 1) for a in arrays(split)]),
    "pickles of bytes": lambda root: pickled(root, images=pngs),
    "pickles of protocol 0": lambda root: pickled(root, protocol=0),
    "pickles of protocol 5": lambda root: pickled(root, protocol=5),
    "pickles of Python 2": lambda root: pickled(root, images=python_2),
    "pickles as fetched": lambda root: pickled(root, "tiered-imagenet-"),
    "pickles deep down": lambda root: pickled(root / "data" / "tiered-imagenet").parent.parent,
    "pickles of validation": lambda root: renamed(pickled(root), "validation"),
    "pickles with keys of bytes": lambda root: pickled(
        root, **{f"{split}_labels": {key.encode(): value for key, value in labels(split).items()} for split in CLASSES}
    ),
    "pickles with names of bytes, lists": lambda root: pickled(
        root,
        **{
            f"{split}_labels": {
                "label_specific": list(LABELS[split].astype(np.int32)),
                "label_specific_str": np.array([name.encode() for name in CLASSES[split]], object),
            }
            for split in CLASSES
        },
    ),
    "pickles, zipped": lambda root: packed(pickled(root), "zip"),
    "pickles, in a tar": lambda root: packed(pickled(root), "tar"),
    "pickles, in a tar.gz": lambda root: packed(pickled(root), "gztar"),
    "pickles, in a tar in a folder": lambda root: packed(pickled(root / "tiered-imagenet"), "tar").parent,
    "npz, stored": lambda root: unpacked(root, stored),
    "npz, deflated": lambda root: unpacked(root, compressed),
    "npz, in a zip": lambda root: packed(unpacked(root, compressed), "zip"),
    "npz, in a tar": lambda root: packed(unpacked(root, stored), "tar"),
    "npy": lambda root: unpacked(root, npy, "npy"),
    "npy, in a zip": lambda root: packed(unpacked(root, npy, "npy"), "zip"),
    "pickles before npz": lambda root: pickled(unpacked(root, lambda array: b"passed over")),
}


read = partial(tiered.read, size=SIDE, complete=False)
refused = partial(refused_by, read)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_images(root: Path, cache: Path, layout: str):
    banks = read(LAYOUTS[layout](root), cache)
    assert list(banks) == ["train", "val", "test"]
    for split, bank in banks.items():
        assert bank.names == tuple(sorted(CLASSES[split])) and bank.sizes.tolist() == [IMAGES] * 2
        meant = [pixels(split, CLASSES[split].index(name), i) for name in bank.names for i in range(IMAGES)]
        assert np.array_equal(bank.examples.numpy(), np.stack(meant).transpose(0, 3, 1, 2))
        assert bank.about["classes"] == "WordNet ids, as published" and not bank.about["complete"]
        assert bank.about["dataset"] == "tiered" and layout.split()[0].strip(",") in bank.about["layout"]
        assert bank.about["split_source"].startswith("Ren et al.") and str(root) not in str(bank.about)


def test_equal_images_have_equal_fingerprints_in_all_lossless_layouts(tmp_path: Path):
    found = [
        [bank.fingerprint for bank in read(LAYOUTS[layout](tmp_path / layout / "root"), tmp_path / layout).values()]
        for layout in ("folders of splits", "pickles", "npz, deflated", "npy, in a zip")
    ]
    assert all(prints == found[0] for prints in found) and len(set(found[0])) == 3


def test_images_are_made_to_size(root: Path, cache: Path):
    banks = read(pickled(root), cache, size=5, resize="crop", resample="bilinear")
    assert banks["val"].shape == (3, 5, 5) and (cache / "tiered-5-crop-bilinear-part" / "bank.json").is_file()


def test_the_cache_is_opened_without_the_source_and_made_anew_when_asked(root: Path, cache: Path):
    first = read(pickled(root), cache)
    (root / "val_labels.pkl").unlink()
    assert read(root, cache)["val"].fingerprint == first["val"].fingerprint
    with pytest.raises(FewshotError, match="val_labels.pkl is missing"):
        read(root, cache, overwrite=True)
    as_folder(root, {"val_labels.pkl": pickle.dumps(labels("val", label_specific=1 - LABELS["val"]))})
    assert read(root, cache, overwrite=True)["val"].fingerprint != first["val"].fingerprint


@pytest.mark.parametrize("layout", ["pickles", "pickles of Python 2", "npz, stored", "npz, deflated", "npy"])
def test_images_are_taken_up_again_anywhere(root: Path, layout: str):
    part = tiered._parts(LAYOUTS[layout](root), False, "")[0]["val"]
    whole = [np.asarray(item).tobytes() for item in part.images(0)]
    assert len(whole) == 2 * IMAGES
    for first in range(1, 2 * IMAGES):
        assert [np.asarray(item).tobytes() for item in part.images(first)] == whole[first:]
    assert "val_images" in part.where(2) and part.where(2).endswith("image 3")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published are the classes and images that are made here."""
    monkeypatch.setattr(tiered, "published_split", lambda _: {split: sorted(names) for split, names in CLASSES.items()})
    monkeypatch.setattr(tiered, "TOTALS", dict.fromkeys(CLASSES, 2 * IMAGES))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("layout", ["folders of splits", "pickles", "npz, stored"])
def test_what_is_complete_has_a_folder_without_part(root: Path, cache: Path, layout: str):
    banks = read(LAYOUTS[layout](root), cache, complete=True)
    assert banks["test"].about["complete"] and (cache / f"tiered-{SIDE}-squash-lanczos").is_dir()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("layout", ["folders of splits", "pickles", "npz, stored"])
def test_an_image_too_few_is_not_complete(root: Path, cache: Path, layout: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(tiered.TOTALS, "val", 2 * IMAGES + 1)
    refused(LAYOUTS[layout](root), cache, "8 images of val, not 9; .*reader.complete=false", complete=True)


@pytest.mark.parametrize("layout", ["folders of splits", "pickles", "npz, stored"])
def test_without_the_published_classes_it_is_not_complete(root: Path, cache: Path, layout: str):
    refused(LAYOUTS[layout](root), cache, "349 of 351 classes of train are missing.*complete=false", complete=True)


def english(**names: list[str]) -> dict[str, Any]:
    return {f"{split}_labels": labels(split, label_specific_str=of) for split, of in names.items()}


def test_english_names_are_kept_and_made_distinct(root: Path, cache: Path):
    names = english(train=["crane", "cat, true cat"], val=["dog ", "dog"], test=["crane", "maillot"])
    banks = read(pickled(root, **names), cache)
    assert {split: bank.names for split, bank in banks.items()} == {
        "train": ("cat, true cat", "crane (train)"),
        "val": ("dog (0)", "dog (1)"),
        "test": ("crane (test)", "maillot"),
    }
    meant = np.stack([pixels("train", label, i) for label in (1, 0) for i in range(IMAGES)]).transpose(0, 3, 1, 2)
    assert np.array_equal(banks["train"].examples.numpy(), meant)
    assert banks["train"].about["classes"] == "names, as in the labels"
    assert banks["train"].about["split_source"] == "the files' own"


@pytest.mark.usefixtures("small")
def test_of_english_names_the_numbers_of_classes_and_images_are_checked(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    pickled(root, **english(train=["a", "b"], val=["c", "d"], test=["e", "f"]))
    monkeypatch.setitem(tiered.TOTALS, "test", 7)
    refused(root, cache, "2 classes and 8 images of test, not 2 and 7; .*complete=false", complete=True)
    monkeypatch.undo()
    refused(root, cache, "2 classes and 8 images of train, not 351 and 448695; .*complete=false", complete=True)
    monkeypatch.setattr(tiered, "published_split", lambda _: CLASSES)
    monkeypatch.setattr(tiered, "TOTALS", dict.fromkeys(CLASSES, 2 * IMAGES))
    assert read(root, cache, complete=True)["val"].names == ("c", "d")


@pytest.mark.parametrize("key", ["label_specific", "labels"])
def test_without_names_classes_are_called_by_split_and_number(root: Path, cache: Path, key: str):
    start = {"train": 0, "val": 351, "test": 448}  # in the files for MetaOptNet numbers go on
    content = {f"{split}_labels": {key: (LABELS[split] + start[split]).tolist()} for split in CLASSES}
    banks = read(pickled(root, **content), cache)
    assert {split: bank.names for split, bank in banks.items()} == {
        "train": ("train 0000", "train 0001"),
        "val": ("val 0351", "val 0352"),
        "test": ("test 0448", "test 0449"),
    }
    assert banks["val"].about["classes"] == "numbers, as in the labels"
    meant = np.stack([pixels("val", label, i) for label in range(2) for i in range(IMAGES)]).transpose(0, 3, 1, 2)
    assert np.array_equal(banks["val"].examples.numpy(), meant)


def test_a_class_by_its_wordnet_id_in_another_split_is_refused(root: Path, cache: Path):
    changed = labels("val", label_specific_str=[CLASSES["val"][0], CLASSES["test"][0]])
    refused(pickled(root, val_labels=changed), cache, f"{CLASSES['test'][0]} is no class of val in the published split")
    folders(root / "other", "{split}/{name}")
    (root / "other" / "test" / CLASSES["test"][0]).rename(root / "other" / "val" / CLASSES["test"][0])
    refused(root / "other", cache, f"class {CLASSES['test'][0]} lies in val/.*belongs to test")


def test_a_wordnet_id_twice_is_refused(root: Path, cache: Path):
    changed = labels("val", label_specific_str=CLASSES["val"][:1] * 2)
    refused(pickled(root, val_labels=changed), cache, f"{CLASSES['val'][0]} is no class of val.*or there twice")


def test_a_split_of_folders_without_classes_is_refused(root: Path, cache: Path):
    shutil.rmtree(folders(root) / "val")
    refused(root, cache, "no class of val is there; add images of n0")


class Asks:
    """Pickles to a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def mistakes(made: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """What may be wrong with one pickle, and what the error says."""
    images, given = arrays("val"), labels("val")
    whole = pickle.dumps(images, 4)
    return {
        "fewer images": ({"val_images_png": images[1:]}, "val_images_png.pkl: 7 images for the 8 labels beside it"),
        "no images": ({"val_images_png": []}, "val_images_png.pkl: 0 images for the 8 labels beside it"),
        "more images": ({"val_images_png": [*images, b"x"]}, "val_images_png.pkl: more images than the 8 labels"),
        "a call for an image": (
            {"val_images_png": [*images[:7], Asks(made)]},
            "val_images_png.pkl: .*asks for .*mkdir",
        ),
        "a call for all": ({"val_images_png": Asks(made)}, "val_images_png.pkl: .*something else than a list"),
        "a call for labels": (
            {"val_labels": given | {"label_general": Asks(made)}},
            "val_labels.pkl: .*asks for .*mkdir",
        ),
        "an image twice": (
            {"val_images_png": [*images[:7], images[0]]},
            "val_images_png.pkl: .*shared within the pickle",
        ),
        "a tuple": ({"val_images_png": tuple(images)}, "val_images_png.pkl: .*something else than a list"),
        "an array of objects": (
            {"val_images_png": np.array([*images, None], object)[:-1]},
            "val_images_png.pkl: .*something else than a list",
        ),
        "a list of numbers": ({"val_images_png": [1] * 8}, "val_images_png.pkl: .*the list holds something else, int"),
        "decoded images": (
            {"val_images_png": list(stack("val"))},
            r"image 1 is an array \(9, 9, 3\) of uint8, not the b",
        ),
        "rows of bytes": ({"val_images_png": [i[None] for i in images]}, r"image 1 is an array \(1, \d+\) of uint8"),
        "other numbers": (
            {"val_images_png": [images[0], images[1].astype(int)]},
            "image 2 is an array .* of int64, not",
        ),
        "a damaged PNG": (
            {"val_images_png": [*images[:4], images[4][:60], *images[5:]]},
            "val_images_png.pkl: image 5: damaged, or no image",
        ),
        "an empty PNG": ({"val_images_png": [*images[:7], b""]}, "val_images_png.pkl: image 8: it is empty"),
        "text": ({"val_images_png": ["Ж"] * 8}, "val_images_png.pkl: image 1: damaged, or no image"),
        "a pickle cut short": ({"val_images_png": whole[:-300]}, "val_images_png.pkl: no whole pickle"),
        "an empty file": ({"val_images_png": b""}, "val_images_png.pkl: no whole pickle"),
        "no dict": ({"val_labels": [1, 2]}, "val_labels.pkl: it holds no dict"),
        "no labels": ({"val_labels": {"label_general": [1]}}, 'val_labels.pkl: it has neither "label_specific" nor'),
        "a label too high": (
            {"val_labels": given | {"label_specific": LABELS["val"] + 1}},
            'val_labels.pkl: "label_specific" goes from 1 to 2, the names from 0 to 1',
        ),
        "a label below 0": (
            {"val_labels": given | {"label_specific": LABELS["val"] - 1}},
            'val_labels.pkl: "label_specific" goes from -1 to 0, the names from 0 to 1',
        ),
        "a label below 0 without names": (
            {"val_labels": {"labels": [-1] * 8}},
            'val_labels.pkl: "labels" goes from -1 to',
        ),
        "an enormous label": (
            {"val_labels": {"labels": [10**5000] * 8}},
            'val_labels.pkl: "labels" is no list of whole',
        ),
        "labels of text": (
            {"val_labels": given | {"label_specific": ["0"] * 8}},
            '"label_specific" is no list of whole n',
        ),
        "labels of halves": (
            {"val_labels": given | {"label_specific": LABELS["val"] / 2}},
            "is no list of whole numbers",
        ),
        "labels of truth": (
            {"val_labels": given | {"label_specific": LABELS["val"] > 0}},
            "is no list of whole numbers",
        ),
        "labels in a table": (
            {"val_labels": given | {"label_specific": LABELS["val"][:, None]}},
            "is no list of whole",
        ),
        "one label": ({"val_labels": given | {"label_specific": 3}}, "is no list of whole numbers"),
        "none of the labels": ({"val_labels": given | {"label_specific": []}}, "is no list of whole numbers"),
        "names of numbers": ({"val_labels": given | {"label_specific_str": [1, 2]}}, '_str" is no list of names'),
        "one name": ({"val_labels": given | {"label_specific_str": "ab"}}, '_str" is no list of names'),
        "a name too many": (
            {"val_labels": given | {"label_specific_str": ["a", "b", "c"]}},
            "class c of val has no images",
        ),
    }


@pytest.mark.parametrize("mistake", mistakes(Path()))
def test_a_mistake_in_a_pickle_is_named_in_one_line_and_nothing_is_run(root: Path, cache: Path, mistake: str):
    changes, match = mistakes(root / "made")[mistake]
    refused(pickled(root, protocol=4, **changes), cache, match)
    assert not (root / "made").exists()


def flipped(array: np.ndarray) -> bytes:
    """Damaged within what is packed."""
    data = bytearray(compressed(array))
    at = len(data) // 2
    data[at : at + 40] = bytes(byte ^ 0xFF for byte in data[at : at + 40])
    return bytes(data)


def silent(array: np.ndarray) -> bytes:
    """With one bit changed that only the checksum sees."""
    data = bytearray(stored(array))
    data[data.index(array.tobytes()) + array.nbytes - 1] ^= 1
    return bytes(data)


ARRAYS: dict[str, tuple[bytes, str]] = {
    "another key": (npz(arr_0=stack("val")), 'val_images.npz: it holds arr_0, no "images"'),
    "another type": (stored(stack("val").astype(np.float32)), "val_images.npz: float32 .8, 9, 9, 3., not uint8"),
    "objects": (stored(np.array([None], object)), "val_images.npz: object .1,., not uint8"),
    "grey images": (
        stored(stack("val")[..., 0]),
        "val_images.npz: uint8 .8, 9, 9., not uint8 .images, height, width, 3",
    ),
    "channels first": (stored(stack("val").transpose(0, 3, 1, 2).copy()), "val_images.npz: uint8 .8, 3, 9, 9., not"),
    "Fortran's order": (stored(np.asfortranarray(stack("val"))), "val_images.npz: uint8 .8, 9, 9, 3., not"),
    "images without pixels": (stored(stack("val")[:, :0]), "val_images.npz: uint8 .8, 0, 9, 3., not"),
    "fewer images": (stored(stack("val")[1:]), "val_images.npz: 7 images for the 8 labels beside it"),
    "a damaged stream": (flipped(stack("val")), "val_images.npz: cannot be read .*fetch the authors"),
    "a bit changed": (silent(stack("val")), "val_images.npz: cannot be read .Bad CRC-32.*fetch the authors"),
    "cut short": (stored(stack("val"))[:-300], "val_images.npz: cannot be read .*not a zip file.*fetch the authors"),
    "a member that is longer": (
        npz(images=stack("val")).replace(b"(8, 9, 9, 3)", b"(8, 9, 8, 3)"),
        "val_images.npz: cannot be read .*fetch the authors",
    ),
    "a web page": (b"<!DOCTYPE html><html>", "val_images.npz: a web page, not the file; .*https://zenodo.org/record/"),
    "empty": (b"", "val_images.npz: cannot be read"),
}


@pytest.mark.parametrize("mistake", ARRAYS)
def test_a_mistake_in_an_npz_is_named_in_one_line(root: Path, cache: Path, mistake: str):
    data, match = ARRAYS[mistake]
    refused(unpacked(root, stored, val_images__npz=data), cache, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: data[:-100], "not as long as it says"),
        (lambda data: data + b"x", "not as long as it says"),
        (lambda data: data[:20], "cannot be read"),
        (lambda data: data[:6] + b"\x09" + data[7:], "cannot be read"),
        (lambda data: npy(np.array([Asks(Path("/nowhere"))], object)), r"val_images.npy: object \(1,\), not uint8"),
    ],
)
def test_a_damaged_npy_is_named_in_one_line(root: Path, cache: Path, change: Callable[[bytes], bytes], match: str):
    unpacked(root, npy, "npy")
    as_folder(root, {"val_images.npy": change((root / "val_images.npy").read_bytes())})
    refused(root, cache, f"val_images.npy: .*{match}" if "npy" not in match else match)


@pytest.mark.parametrize("name", ["val_images_png", "val_labels"])
def test_a_web_page_is_said_to_be_one(root: Path, cache: Path, name: str):
    text = refused(pickled(root, **{name: b"\n<html>sign in</html>"}), cache, f"{name}.pkl: a web page, not the file")
    assert not cache.exists()  # before the other images are converted
    assert f"{tiered.URL}/tiered-imagenet-train_images_png.pkl" in text


@pytest.mark.parametrize("kind", ["labels", "images_png"])
def test_a_change_in_an_archive_that_only_its_checksum_sees_is_refused(root: Path, cache: Path, kind: str):
    pickled(root, protocol=4)
    with zipfile.ZipFile(f"{root}.zip", "w") as archive:  # not packed
        for path in root.iterdir():
            archive.writestr(path.name, path.read_bytes() + bytes(1 << 17))  # what follows a pickle is passed over
    data, within = bytearray(Path(f"{root}.zip").read_bytes()), (root / f"val_{kind}.pkl").read_bytes()
    at = data.index(within) + (within.index(b"animal") if kind == "labels" else within.index(b"IEND") - 9)
    data[at] ^= 1
    Path(f"{root}.zip").write_bytes(data)
    refused(Path(f"{root}.zip"), cache, rf"root.zip: val_{kind}.pkl: cannot be read \(Bad CRC-32")


@pytest.mark.parametrize("missing", ["train_labels.pkl", "test_images_png.pkl"])
def test_a_missing_file_is_named_with_the_ways_to_get_it(root: Path, cache: Path, missing: str):
    (pickled(root) / missing).unlink()
    as_folder(root, {"others.zip": b"passed over"})
    text = refused(root, cache, f"{missing} is missing")
    assert all(way in text for way in ("put train_images_png.pkl", "source=", "dataset.reader.download=true"))


@pytest.mark.parametrize("there", [False, True])
def test_where_nothing_is_the_ways_to_get_it_are_named(root: Path, cache: Path, there: bool):
    if there:
        as_folder(root, {"readme.txt": b"nothing", "train/cat/1.png": b""})
    text = refused(root, cache, "no tieredImageNet is there")
    ways = ("put train_images_png.pkl", "named by WordNet id", "tools/prepare.py", "source=", "reader.download=true")
    assert all(way in text for way in ways) and root.exists() == there


def test_an_archive_of_something_else_is_named_whatever_may_be_fetched(root: Path, cache: Path):
    source = packed(as_folder(root, {"readme.txt": b"nothing"}), "zip")
    refused(source, cache, "root.zip: no tieredImageNet is there: put", download=True)


def test_a_file_in_two_places_is_refused(root: Path, cache: Path):
    pickled(root)
    shutil.copy(root / "val_labels.pkl", root / "tiered-imagenet-validation_labels.pkl")
    refused(root, cache, "val.*_labels.pkl and .*val.*_labels.pkl are both there: leave one of them")


@pytest.mark.parametrize("argument", [{"size": 0}, {"resize": "pad"}, {"resample": "nearest"}])
def test_an_argument_out_of_range_is_refused(root: Path, cache: Path, argument: dict[str, Any]):
    refused(root, cache, f"dataset.reader.{next(iter(argument))}=", **argument)


@pytest.fixture
def server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Of the authors' files."""
    server.files = {path.name: path.read_bytes() for path in pickled(tmp_path / "server", "tiered-imagenet-").iterdir()}
    monkeypatch.setattr(tiered, "URL", server.url)
    return server


def test_what_is_missing_is_fetched_and_then_read(server: Server, root: Path, cache: Path, tmp_path: Path):
    there = read(pickled(tmp_path / "other"), tmp_path)
    as_folder(root, {"tiered/val_labels.pkl": pickle.dumps(labels("val"))})
    banks = read(root, cache, download=True)
    assert {split: bank.fingerprint for split, bank in banks.items()} == {s: b.fingerprint for s, b in there.items()}
    names = [f"tiered-imagenet-{s}_{k}.pkl" for s in CLASSES for k in ("images_png", "labels")]
    assert server.asked == [name for name in names if "val_labels" not in name]
    read(root, cache, download=True, overwrite=True)
    assert len(server.asked) == 5 and len(list(root.iterdir())) == 6


@pytest.mark.parametrize("layout", ["folders of splits", "npz, stored"])
def test_nothing_is_fetched_where_a_layout_is_there(server: Server, root: Path, cache: Path, layout: str):
    read(LAYOUTS[layout](root), cache, download=True)
    assert not server.asked


@pytest.mark.parametrize("content", [b"<html>sign in</html>.", b"", b"\x80\x02]q\x00(", b"PK\x03\x04 ."])
def test_a_download_that_is_no_pickle_is_thrown_away(server: Server, root: Path, cache: Path, content: bytes):
    name = "tiered-imagenet-train_images_png.pkl"
    server.files[name] = content
    text = refused(root, cache, f"{name}.part: (a web page, not the file|no whole pickle)", download=True)
    assert f"download {tiered.URL}/{name} by hand to {root / name}" in text and not list(root.iterdir())


def test_a_download_that_fails_says_so(server: Server, root: Path, cache: Path):
    del server.files["tiered-imagenet-train_labels.pkl"]
    refused(root, cache, "fetching tiered-imagenet-train_labels.pkl failed .*404", download=True)
    assert [path.name for path in root.iterdir()] == ["tiered-imagenet-train_images_png.pkl"]


def test_the_first_images_are_there_before_the_last_are_read(root: Path):
    whole = pickle.dumps([np.full(1000, 1, np.uint8) for _ in range(3000)], 4)
    pickled(root, val_images_png=whole[:-1000], val_labels={"labels": [0] * 3000})
    part = tiered._parts(root, False, "")[0]["val"]
    images = part.images(0)
    assert len(list(islice(images, 1000))) == 1000
    with pytest.raises(FewshotError, match="no whole pickle"):
        list(images)


def test_the_published_numbers():
    assert [len(names) for names in published_split("tiered").values()] == [351, 97, 160]
    assert sum(tiered.TOTALS.values()) == 779_165


def test_a_tar_is_read_with_members_of_any_order(root: Path, cache: Path):
    pickled(root)
    with tarfile.open(f"{root}.tar", "w") as archive:
        for path in sorted(root.iterdir(), reverse=True):
            archive.add(path, f"tiered-imagenet/{path.name}")
    assert read(Path(f"{root}.tar"), cache)["train"].names == tuple(sorted(CLASSES["train"]))
