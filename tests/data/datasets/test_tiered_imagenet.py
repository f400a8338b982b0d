"""tieredImageNet: every layout in small gives the same images; what differs from the published data is named."""

import io
import pickle
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshot.core.errors import FewshotError
from fewshot.data.bank import SPLITS
from fewshot.data.datasets import tiered_imagenet as tiered
from fewshot.data.sources import published
from fewshot.data.sources.archives import open_files
from fewshot.data.sources.parts import SplitSource
from fewshot.data.sources.published import published_split

from ..made_sources import WEB_PAGE, Attack, Server, as_archive, as_folder, encoded, refused_by

Files = dict[str, bytes]
SIDE, IMAGES = 9, 4  # pixels, and images of each class
CLASSES = {split: published_split("tiered")[split][3:1:-1] for split in SPLITS}  # two each, not sorted
ROWS = {split: [(number, label) for number in range(IMAGES) for label in range(2)] for split in CLASSES}  # mixed
LABELS = {split: np.array([label for _, label in rows]) for split, rows in ROWS.items()}


def pixels(split: str, label: int, number: int) -> np.ndarray:
    """[SIDE, SIDE, 3], different for each image, more red than blue."""
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


def npz(save: Callable[..., None] = np.savez, **content: np.ndarray) -> bytes:
    file = io.BytesIO()
    save(file, **content)
    return file.getvalue()


def pickled(prefix: str = "", protocol: int = 2, content_of: Callable[[str], Any] = arrays, **changes: Any) -> Files:
    """The authors' files; `changes` gives other contents by the name of a file."""
    files = {}
    for split in CLASSES:
        for kind, content in (("images_png", content_of), ("labels", labels)):
            value = changes.get(f"{split}_{kind}", content(split))
            data = value if isinstance(value, bytes) else pickle.dumps(value, protocol)
            files[f"{prefix}{split}_{kind}.pkl"] = data
    return files


def unpacked(form: Callable[[np.ndarray], bytes]) -> Files:
    files = {f"{split}_images.npz": form(stack(split)) for split in CLASSES}
    return files | {f"{split}_labels.pkl": pickle.dumps(labels(split)) for split in CLASSES}


def folders(inner: str) -> Files:
    return {
        f"{inner.format(split=split, name=CLASSES[split][label])}/{number}.png": encoded(pixels(split, label, number))
        for split, rows in ROWS.items()
        for number, label in rows
    }


def python_2(split: str) -> bytes:
    """The pickle that Python 2 wrote of a list of strings."""
    items = b"".join(b"T" + len(data).to_bytes(4, "little") + data + b"q\x01" for data in pngs(split))
    return b"\x80\x02]q\x00(" + items + b"e."


def as_lists(split: str) -> dict[str, Any]:
    """Labels in a list, and names of bytes."""
    names = np.array([name.encode() for name in CLASSES[split]], object)
    return {"label_specific": list(LABELS[split].astype(np.int32)), "label_specific_str": names}


def compressed(array: np.ndarray) -> bytes:
    return npz(np.savez_compressed, images=array)


def stored(array: np.ndarray) -> bytes:
    return npz(images=array)


def all_labels(change: Callable[[str], Any]) -> Files:
    return pickled(**{f"{split}_labels": change(split) for split in CLASSES})


# The files, and the suffix of the archive that they are in, if any.
LAYOUTS: dict[str, tuple[Files, str]] = {
    "folders of ImageNet": (folders("ILSVRC/train/{name}") | {"ILSVRC/train/n00000001/1.JPEG": b"of no class"}, ""),
    "pickles": (pickled(), ""),
    "pickles of columns": (pickled(content_of=lambda split: [a.reshape(-1, 1) for a in arrays(split)]), ""),
    "pickles of bytes": (pickled(content_of=pngs), ""),
    "pickles of protocol 0": (pickled(protocol=0), ""),
    "pickles of Python 2": (pickled(content_of=python_2), ""),
    "pickles as fetched": (pickled("tiered-imagenet-"), ""),
    "pickles deep down": (pickled("data/tiered-imagenet/"), ""),
    "pickles of validation": ({name.replace("val_", "validation_"): data for name, data in pickled().items()}, ""),
    "pickles with keys of bytes": (
        all_labels(lambda split: {key.encode(): value for key, value in labels(split).items()}),
        "",
    ),
    "pickles with names of bytes, lists": (all_labels(as_lists), ""),
    "pickles, zipped": (pickled(), "zip"),
    "pickles, in a tar.gz": (pickled("tiered-imagenet/"), "tar.gz"),
    "npz, deflated": (unpacked(compressed), ""),
    "npz, in a zip": (unpacked(compressed), "zip"),
    "pickles before npz": (unpacked(lambda array: b"not read") | pickled(), ""),
}


def made(root: Path, layout: str) -> Path:
    files, suffix = LAYOUTS[layout]
    return as_archive(root / f"tiered.{suffix}", files) if suffix else as_folder(root, files)


read = partial(tiered.read_tiered_imagenet, size=SIDE, allow_partial=True)
refused = partial(refused_by, read)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_images(root: Path, cache: Path, layout: str):
    banks = read(made(root, layout), cache)
    assert list(banks) == ["train", "val", "test"]
    for split, bank in banks.items():
        assert bank.names == tuple(sorted(CLASSES[split])) and bank.sizes.tolist() == [IMAGES] * 2
        meant = [pixels(split, CLASSES[split].index(name), i) for name in bank.names for i in range(IMAGES)]
        assert np.array_equal(bank.examples.numpy(), np.stack(meant).transpose(0, 3, 1, 2))
        metadata = bank.metadata
        assert metadata["dataset"] == "tiered" and layout.split()[0].strip(",") in metadata["layout"]
        assert metadata["split_source"].startswith("Ren et al.") and str(root) not in str(metadata)


def part_of_val(root: Path) -> SplitSource:
    found = tiered._find(open_files(root), published_split("tiered"))
    assert not isinstance(found, str)
    return found[0]["val"]


@pytest.mark.parametrize("layout", ["pickles", "pickles of Python 2", "npz, deflated"])
def test_reading_resumes_at_any_image(root: Path, layout: str):
    part = part_of_val(made(root, layout))
    whole = [np.asarray(item).tobytes() for item in part.images(0)]
    assert len(whole) == 2 * IMAGES
    for first in range(1, 2 * IMAGES):
        assert [np.asarray(item).tobytes() for item in part.images(first)] == whole[first:]
    assert "val_images" in part.describe(2) and part.describe(2).endswith("image 3")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published classes and numbers of images are those of these tests."""
    monkeypatch.setattr(
        published, "published_split", lambda _: {split: sorted(names) for split, names in CLASSES.items()}
    )
    monkeypatch.setattr(tiered, "TOTALS", dict.fromkeys(CLASSES, 2 * IMAGES))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("layout", ["folders of ImageNet", "pickles", "npz, deflated"])
def test_the_published_numbers_are_complete_and_an_image_too_few_is_not(
    root: Path, cache: Path, layout: str, monkeypatch: pytest.MonkeyPatch
):
    banks = read(made(root, layout), cache, allow_partial=False)
    assert not banks["test"].metadata["allow_partial"] and (cache / f"tiered-{SIDE}-squash-lanczos").is_dir()
    monkeypatch.setitem(tiered.TOTALS, "val", 2 * IMAGES + 1)
    match = "2 classes and 8 images of val, not 2 classes and 9 images; .*reader.allow_partial=true"
    with pytest.raises(FewshotError, match=match):
        read(root, cache, allow_partial=False, overwrite=True)


def english(**names: list[str]) -> dict[str, Any]:
    return {f"{split}_labels": labels(split, label_specific_str=of) for split, of in names.items()}


def test_english_names_are_kept_and_made_distinct(root: Path, cache: Path):
    names = english(train=["crane", "cat, true cat"], val=["dog ", "dog"], test=["crane", "maillot"])
    banks = read(as_folder(root, pickled(**names)), cache)
    assert {split: bank.names for split, bank in banks.items()} == {
        "train": ("cat, true cat", "crane (train)"),
        "val": ("dog (0)", "dog (1)"),
        "test": ("crane (test)", "maillot"),
    }
    meant = np.stack([pixels("train", label, i) for label in (1, 0) for i in range(IMAGES)]).transpose(0, 3, 1, 2)
    assert np.array_equal(banks["train"].examples.numpy(), meant)
    assert banks["train"].metadata["split_source"] == "the files' own"


def test_of_english_names_the_numbers_of_classes_and_images_are_checked(root: Path, cache: Path):
    as_folder(root, pickled(**english(train=["a", "b"], val=["c", "d"], test=["e", "f"])))
    match = "2 classes and 8 images of train, not 351 classes and 448695 images; .*allow_partial=true"
    refused(root, cache, match, allow_partial=False)


@pytest.mark.parametrize("key", ["label_specific", "labels"])
def test_without_names_classes_are_called_by_split_and_number(root: Path, cache: Path, key: str):
    start = {"train": 0, "val": 351, "test": 448}  # in the files for MetaOptNet numbers go on
    content = {f"{split}_labels": {key: (LABELS[split] + start[split]).tolist()} for split in CLASSES}
    banks = read(as_folder(root, pickled(**content)), cache)
    assert {split: bank.names for split, bank in banks.items()} == {
        "train": ("train 0000", "train 0001"),
        "val": ("val 0351", "val 0352"),
        "test": ("test 0448", "test 0449"),
    }
    meant = np.stack([pixels("val", label, i) for label in range(2) for i in range(IMAGES)]).transpose(0, 3, 1, 2)
    assert np.array_equal(banks["val"].examples.numpy(), meant)


def test_a_class_by_its_wordnet_id_in_another_split_is_refused(root: Path, cache: Path):
    changed = labels("val", label_specific_str=[CLASSES["val"][0], CLASSES["test"][0]])
    refused(as_folder(root, pickled(val_labels=changed)), cache, f"{CLASSES['test'][0]} is no class of val in the pub")


def test_a_wordnet_id_twice_is_refused(root: Path, cache: Path):
    changed = labels("val", label_specific_str=CLASSES["val"][:1] * 2)
    refused(as_folder(root, pickled(val_labels=changed)), cache, f"class {CLASSES['val'][0]} is in val and in val")


def mistakes(made: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Unfit contents of one pickle, and what the error says."""
    images, given = arrays("val"), labels("val")
    lists = "something else than a list"
    unfit_images = {
        "fewer images": (images[1:], "7 images for the 8 labels beside it"),
        "no images": ([], "0 images for the 8 labels beside it"),
        "more images": ([*images, b"x"], "more images for the 8 labels beside it"),
        "a call for an image": ([*images[:7], Attack(made)], "asks for .*system"),
        "a call for all": (Attack(made), lists),
        "an image twice": ([*images[:7], images[0]], "refers to one image twice"),
        "a tuple": (tuple(images), lists),
        "an array of objects": (np.array([*images, None], object)[:-1], lists),
        "a list of numbers": ([1] * 8, "the list holds something else, int"),
        "decoded images": (list(stack("val")), r"image 1 is an array \(9, 9, 3\) of uint8, not the bytes of a PNG"),
        "other numbers": ([images[0], images[1].astype(int)], "image 2 is an array .* of int64, not"),
        "a damaged PNG": ([*images[:4], images[4][:60], *images[5:]], "image 5: damaged, or "),
        "an empty PNG": ([*images[:7], b""], "image 8: it is empty"),
        "text": (["Ж"] * 8, "image 1: damaged, or "),
        "a pickle cut short": (pickle.dumps(images, 4)[:-300], "no whole pickle"),
        "an empty file": (b"", "no whole pickle"),
        "a web page": (WEB_PAGE, "a web page, not the file"),
    }
    unfit_labels = {
        "a call for labels": (given | {"label_general": Attack(made)}, "asks for .*system"),
        "no dict": ([1, 2], "'list' object has no attribute 'items'"),
        "no labels": ({"label_general": [1]}, "KeyError: 'labels'"),
        "a label too high": (given | {"label_specific": LABELS["val"] + 1}, "go from 1 to 2, names from 0 to 1"),
        "a label below 0": (given | {"label_specific": LABELS["val"] - 1}, "go from -1 to 0, names from 0 to 1"),
        "an enormous label": ({"labels": [10**5000] * 8}, "labels are object"),
        "labels of text": (given | {"label_specific": ["0"] * 8}, "labels are <U1"),
        "labels of halves": (given | {"label_specific": LABELS["val"] / 2}, "labels are float64"),
        "labels in a table": (given | {"label_specific": LABELS["val"][:, None]}, r"labels are int64 \(8, 1\)"),
        "none of the labels": (given | {"label_specific": []}, r"labels are float64 \(0,\)"),
        "names of numbers": (given | {"label_specific_str": [1, 2]}, "'int' object has no attribute 'split'"),
        "a name too many": (given | {"label_specific_str": ["a", "b", "c"]}, "class c of val has no images"),
        "a web page as labels": (WEB_PAGE, "a web page, not the file"),
    }
    found = {name: ({"val_images_png": content}, match) for name, (content, match) in unfit_images.items()}
    return found | {name: ({"val_labels": content}, match) for name, (content, match) in unfit_labels.items()}


@pytest.mark.parametrize("mistake", mistakes(Path()))
def test_a_mistake_in_a_pickle_is_named_in_one_line_and_nothing_is_run(root: Path, cache: Path, mistake: str):
    changes, match = mistakes(root / "made")[mistake]
    refused(as_folder(root, pickled(protocol=4, **changes)), cache, match)
    assert not (root / "made").exists()


def flipped(array: np.ndarray) -> bytes:
    """Damaged within what is packed."""
    data = bytearray(compressed(array))
    at = len(data) // 2
    data[at : at + 40] = bytes(byte ^ 0xFF for byte in data[at : at + 40])
    return bytes(data)


def silent(array: np.ndarray) -> bytes:
    """One bit is changed, which only the checksum shows."""
    data = bytearray(stored(array))
    data[data.index(array.tobytes()) + array.nbytes - 1] ^= 1
    return bytes(data)


ARRAYS: dict[str, tuple[bytes, str]] = {
    "another key": (npz(arr_0=stack("val")), "no item named 'images.npy' in the archive"),
    "another type": (stored(stack("val").astype(np.float32)), "float32 .8, 9, 9, 3., not uint8"),
    "objects": (stored(np.array([None], object)), "object .1,., not uint8"),
    "grey images": (stored(stack("val")[..., 0]), "uint8 .8, 9, 9., not uint8 .images, height, width, 3"),
    "Fortran's order": (stored(np.asfortranarray(stack("val"))), "uint8 .8, 9, 9, 3., not"),
    "images without pixels": (stored(stack("val")[:, :0]), "uint8 .8, 0, 9, 3., not"),
    "fewer images": (stored(stack("val")[1:]), "7 images for the 8 labels beside it"),
    "a damaged stream": (flipped(stack("val")), "cannot be read "),
    "a bit changed": (silent(stack("val")), "Bad CRC-32"),
    "cut short": (stored(stack("val"))[:-300], "not a zip file"),
    "a longer member": (npz(images=stack("val")).replace(b"(8, 9, 9, 3)", b"(8, 9, 8, 3)"), "cannot be read"),
    "a web page": (WEB_PAGE, "a web page, not the file"),
    "empty": (b"", "not a zip file"),
}


@pytest.mark.parametrize("mistake", ARRAYS)
def test_a_mistake_in_an_npz_is_named_in_one_line(root: Path, cache: Path, mistake: str):
    data, match = ARRAYS[mistake]
    text = refused(as_folder(root, unpacked(stored) | {"val_images.npz": data}), cache, f"val_images.npz: .*{match}")
    assert f"{tiered.URL}/tiered-imagenet-train_images_png.pkl" in text


@pytest.mark.parametrize(("kind", "part"), [("labels", b"animal"), ("images_png", b"IEND")])
def test_a_change_that_only_the_checksum_of_an_archive_shows_is_refused(
    root: Path, cache: Path, kind: str, part: bytes
):
    files = pickled(protocol=4)
    archive = as_archive(root / "a.zip", {name: data + bytes(1 << 17) for name, data in files.items()})
    data, within = bytearray(archive.read_bytes()), files[f"val_{kind}.pkl"]
    data[data.index(within) + within.index(part) - (9 if kind == "images_png" else 0)] ^= 1
    archive.write_bytes(data)
    refused(archive, cache, rf"a.zip: val_{kind}.pkl: cannot be read \(BadZipFile: Bad CRC-32")


@pytest.mark.parametrize("missing", ["train_labels.pkl", "test_images_png.pkl"])
def test_a_missing_file_is_named_with_the_ways_to_get_it(root: Path, cache: Path, missing: str):
    files = pickled() | {"others.zip": b"not read"}
    del files[missing]
    text = refused(as_folder(root, files), cache, f"{missing} is missing")
    assert all(way in text for way in ("put train_images_png.pkl", "source=", "dataset.reader.download=true"))


def test_a_file_in_two_places_is_refused(root: Path, cache: Path):
    files = pickled() | {"tiered-imagenet-validation_labels.pkl": b""}
    refused(as_folder(root, files), cache, "val.*_labels.pkl and .*val.*_labels.pkl are both there: leave one of them")


@pytest.fixture
def server(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Of the authors' files."""
    server.files = pickled("tiered-imagenet-")
    monkeypatch.setattr(tiered, "URL", server.url)
    return server


def test_what_is_missing_is_fetched_and_then_read(server: Server, root: Path, cache: Path, tmp_path: Path):
    there = read(as_folder(tmp_path / "other", pickled()), tmp_path)
    as_folder(root, {"tiered/val_labels.pkl": pickle.dumps(labels("val"))})
    banks = read(root, cache, download=True)
    assert {split: bank.fingerprint for split, bank in banks.items()} == {s: b.fingerprint for s, b in there.items()}
    names = [f"tiered-imagenet-{s}_{k}.pkl" for k in ("images_png", "labels") for s in CLASSES]
    assert server.asked == [name for name in names if "val_labels" not in name]
    read(root, cache, download=True, overwrite=True)
    assert len(server.asked) == 5 and len(list(root.iterdir())) == 6


@pytest.mark.parametrize("content", [b"<html>sign in</html>.", b"", b"\x80\x02]q\x00(", b"PK\x03\x04 ."])
def test_a_download_that_is_no_pickle_is_thrown_away(server: Server, root: Path, cache: Path, content: bytes):
    name = "tiered-imagenet-train_images_png.pkl"
    server.files[name] = content
    text = refused(root, cache, f"{name}.part: (a web page, not the file|no whole pickle)", download=True)
    assert f"download {tiered.URL}/{name} by hand to {root / name}" in text and not list(root.iterdir())


def test_the_first_images_are_there_before_the_last_are_read(root: Path):
    data = pickle.dumps([np.full(1000, 1, np.uint8) for _ in range(3000)], 4)
    as_folder(root, pickled(val_images_png=data[:-1000], val_labels={"labels": [0] * 3000}))
    images = part_of_val(root).images(0)
    assert len(list(islice(images, 1000))) == 1000
    with pytest.raises(FewshotError, match="no whole pickle"):
        list(images)


def test_a_tar_is_read_with_members_of_any_order(root: Path, cache: Path):
    files = dict(sorted(pickled("tiered-imagenet/").items(), reverse=True))
    assert read(as_archive(root / "a.tar", files), cache)["train"].names == tuple(sorted(CLASSES["train"]))
