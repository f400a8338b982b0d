"""Embeddings: read from small zips and folders; what differs from the release is named, and nothing is kept."""

import pickle
import shutil
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank, Split, fingerprint
from fewshot.data.datasets import leo_embeddings as embeddings

from ..made_sources import WEB_PAGE, Attack, Server, fingerprints, refused_by

CLASSES = {"train": ["n03", "n01"], "val": ["n02"], "test": ["n05", "n04"]}
WIDTH = 640


def content(split: str = "train", images: int = 3, width: int = WIDTH) -> dict[str, Any]:
    """The content of one pickle: images of mixed classes, with features that differ everywhere."""
    keys = [f"n9999-{name}-{name}_{number}.jpg" for number in reversed(range(images)) for name in CLASSES[split]]
    random = np.random.RandomState(list(CLASSES).index(split))
    return {
        "keys": np.array(keys, dtype=object),
        "embeddings": random.randn(len(keys), width).astype(np.float32),
        "labels": np.array([CLASSES[split].index(key.split("-")[1]) for key in keys]),
    }


def contents(**changes: dict[str, Any]) -> dict[str, bytes]:
    """The pickle of each split."""
    return {split: pickle.dumps(changes.get(split, content(split)), 2) for split in CLASSES}


def as_zip(root: Path, pickles: dict[str, bytes], inner: str = "miniImageNet/center") -> Path:
    root.mkdir(exist_ok=True)
    with zipfile.ZipFile(root / "embeddings.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"embeddings/{inner}/", "")
        for split, data in pickles.items():
            archive.writestr(f"embeddings/{inner}/{split}_embeddings.pkl", data)
    return root / "embeddings.zip"


def as_folder(root: Path, pickles: dict[str, bytes], inner: str = "embeddings/miniImageNet/center") -> Path:
    (root / inner).mkdir(parents=True)
    for split, data in pickles.items():
        (root / inner / f"{split}_embeddings.pkl").write_bytes(data)
    return root / inner


refused = partial(refused_by, embeddings.read_leo_embeddings)


def test_the_published_zip_does_not_stand_for_another_dataset(root: Path, cache: Path):
    as_zip(root, contents())
    refused(root, cache, "published features are of miniImageNet and tieredImageNet alone", dataset="cub")
    refused(cache / "empty", cache, "published features are of miniImageNet and", dataset="cub", download=True)
    as_folder(root, contents(), "embeddings/cub/center")
    assert embeddings.read_leo_embeddings(root, cache, dataset="cub")["train"].shape == (WIDTH,)


@pytest.mark.parametrize("make", [as_zip, as_folder])
def test_rows_are_sorted_by_class_and_image(root: Path, cache: Path, make):
    make(root, contents())
    banks = embeddings.read_leo_embeddings(root, cache)
    assert {split: bank.names for split, bank in banks.items()} == {
        "train": ("n01", "n03"),
        "val": ("n02",),
        "test": ("n04", "n05"),
    }
    for split, bank in banks.items():
        assert bank.examples.dtype == torch.float32 and bank.examples.shape == (3 * len(bank.names), WIDTH)
        assert bank.sizes.tolist() == [3] * len(bank.names)
        given = content(split)
        features = dict(zip(given["keys"], given["embeddings"], strict=True))
        keys = [f"n9999-{name}-{name}_{number}.jpg" for name in bank.names for number in range(3)]
        assert np.array_equal(bank.examples.numpy(), np.stack([features[key] for key in keys]))
        assert bank.metadata["dataset"] == "miniImageNet embeddings"
        assert (bank.metadata["kind"], bank.metadata["width"]) == ("center", WIDTH) and embeddings.URL in bank.metadata[
            "source"
        ]


def variants() -> dict[str, dict[str, Any]]:
    """The same content in different forms."""
    given = content()
    order = np.random.RandomState(0).permutation(len(given["keys"]))
    return {
        "another order": {name: values[order] for name, values in given.items()},
        "lists, without labels": {"keys": list(given["keys"]), "embeddings": given["embeddings"]},
        "keys of text": given | {"keys": given["keys"].astype("U")},
        "keys of bytes": given | {"keys": given["keys"].astype("S")},
        "keys as bytes": given | {"keys": [key.encode() for key in given["keys"]]},
        "the other byte order": given | {"embeddings": given["embeddings"].astype(">f4")},
        "in Fortran's order": given | {"embeddings": np.asfortranarray(given["embeddings"])},
        "and other things": given | {"more": [1, {"a": "b"}]},
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint of the train split."""
    path = tmp_path_factory.mktemp("plain")
    as_folder(path, contents())
    return embeddings.read_leo_embeddings(path, path / "cache")["train"].fingerprint


@pytest.mark.parametrize("form", variants())
def test_the_form_of_a_pickle_does_not_matter(root: Path, cache: Path, plain: str, form: str):
    as_folder(root, contents() | {"train": pickle.dumps(variants()[form], 2)})
    assert embeddings.read_leo_embeddings(root, cache)["train"].fingerprint == plain


@pytest.mark.parametrize("layout", ["zip", "unpacked", "the inside of the unpacked"])
def test_the_files_are_found_in_every_layout(root: Path, cache: Path, layout: str):
    inner = "miniImageNet/multiview"
    if layout == "zip":
        as_zip(root, contents(), inner)
    else:
        as_folder(root, contents(), inner if "inside" in layout else f"embeddings/{inner}")
    banks = embeddings.read_leo_embeddings(root, cache, kind="multiview")
    assert banks["val"].names == ("n02",) and banks["val"].metadata["kind"] == "multiview"


def test_a_zip_holds_both_datasets_and_comes_before_a_folder(root: Path, cache: Path):
    as_zip(root, contents())
    as_zip(
        root,
        contents(val={**content("val"), "keys": ["0-n77-n77_1", "0-n77-n77_2", "0-n77-n77_3"]}),
        "tieredImageNet/center",
    )
    as_folder(root, contents(val=content("val", images=1)))
    assert len(embeddings.read_leo_embeddings(root, cache)["val"].examples) == 3
    tiered = embeddings.read_leo_embeddings(root, cache, "tiered")
    assert tiered["val"].names == ("n77",) and tiered["val"].metadata["dataset"] == "tieredImageNet embeddings"


def test_the_pickles_are_read_once(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    as_zip(root, contents())
    first = embeddings.read_leo_embeddings(root, cache)
    monkeypatch.setattr(embeddings.pickles, "load", None)
    assert embeddings.read_leo_embeddings(root, cache)["test"].fingerprint == first["test"].fingerprint
    assert len(list(cache.iterdir())) == 1 and next(cache.iterdir()).name.startswith("embeddings-mini-center-")


@pytest.mark.parametrize("make", [as_zip, as_folder])
def test_other_files_in_the_same_place_are_read_anew(root: Path, cache: Path, make):
    make(root, contents())
    before = embeddings.read_leo_embeddings(root, cache)["train"]
    shutil.rmtree(root)
    other = content()
    other["embeddings"][3, 5] += 1
    make(root, contents(train=other))
    after = embeddings.read_leo_embeddings(root, cache)["train"]
    assert (before.examples != after.examples).sum() == 1 and before.fingerprint != after.fingerprint


def test_missing_files_are_answered_with_the_three_ways_to_get_them(root: Path, cache: Path):
    refused(root, cache, "published features are of miniImageNet and tieredImageNet alone", dataset="glyphs")
    text = refused(root, cache, "neither embeddings.zip nor the folder embeddings/miniImageNet/center")
    ways = [embeddings.URL, "unpack", "features.reader.download=true", "features of your own", "export_leo_format="]
    ways.append("or features=conv4 to train an extractor on the images that are there")
    assert all(way in text for way in ways) and not root.exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"dataset": "../mini"}, "dataset='../mini': give the name of a dataset"),
        ({"kind": "corner"}, "kind='corner': mini has center and multiview only"),
        ({"dataset": "tiered", "kind": "multiview"}, "kind='multiview': tiered has center only"),
    ],
)  # fmt: skip
def test_an_argument_out_of_range_is_refused_in_one_line(root: Path, cache: Path, arguments: dict, match: str):
    refused(root, cache, match, **arguments)


def mistakes() -> dict[str, tuple[Any, str]]:
    """Unfit contents of one pickle, and what the error says."""
    given = content()
    keys, rows = list(given["keys"]), given["embeddings"]

    def key(value: Any) -> dict[str, Any]:
        return given | {"keys": [value, *keys[1:]]}

    nan, infinite = rows.copy(), rows.copy()
    nan[2, 7], infinite[4, 0] = np.nan, np.inf
    return {
        "no dict": ([given], "list indices must be integers"),
        "no keys": ({"embeddings": rows}, "'keys'"),
        "no embeddings": ({"keys": keys}, "'embeddings'"),
        "another width": (given | {"embeddings": rows[:, :512]}, "train: features of width 512, not 640"),
        "double precision": (given | {"embeddings": rows.astype(np.float64)}, "embeddings are float64 .6, 640., not"),
        "whole numbers": (given | {"embeddings": rows.astype(np.int32)}, "embeddings are int32"),
        "lists": (given | {"embeddings": rows.tolist()}, "'list' object has no attribute"),
        "one dimension": (given | {"embeddings": rows[:, 0]}, r"embeddings are float32 \(6,\), not"),
        "no width": (given | {"embeddings": rows[:, :0]}, r"6 keys for embeddings \(6, 0\)"),
        "not a number": (given | {"embeddings": nan}, f"features of '{keys[2].split('-')[2]}' are not all finite"),
        "infinite": (given | {"embeddings": infinite}, "are not all finite"),
        "more keys": (given | {"keys": [*keys, "0-n01-n01_9"]}, r"7 keys for embeddings \(6, 640\)"),
        "empty": ({"keys": [], "embeddings": rows[:0]}, "0 keys for embeddings"),
        "keys of numbers": (given | {"keys": np.arange(6)}, "has no attribute 'split'"),
        "one string": (given | {"keys": "abcdef"}, "not enough values to unpack"),
        "keys of no dimension": (given | {"keys": np.array("abcdef")}, "iteration over a 0-d array"),
        "a key of two parts": (key("n01-n01_7.jpg"), "not enough values to unpack"),
        "a key of four parts": (key("n9-n01-n01_7-2.jpg"), "too many values to unpack"),
        "a key of two classes": (key("n9-n01-n03_7.jpg"), "key 'n9-n01-n03_7.jpg' is not"),
        "a key without class": (key("n9--_7.jpg"), "key 'n9--_7.jpg' is not"),
        "an image twice": (key(keys[4].replace("n9999", "0")), f"image '{keys[4].split('-')[2]}' is there 2 times"),
        "a web page": (WEB_PAGE, "a web page, not the file"),
        "a pickle cut short": (contents()["train"][:-30], "no whole pickle"),
    }


@pytest.mark.parametrize(
    ("make", "mistake"),
    [*((as_folder, each) for each in mistakes()), (as_zip, "a web page"), (as_zip, "a pickle cut short")],
)
def test_a_mistake_is_named_in_one_line_with_the_file_and_what_to_do(root: Path, cache: Path, make, mistake: str):
    wrong, match = mistakes()[mistake]
    source = make(root, contents() | {"train": wrong if isinstance(wrong, bytes) else pickle.dumps(wrong, 2)})
    text = refused(root, cache, match)
    assert str(source) in text and "train" in text and "remove it and fetch embeddings.zip again" in text


def test_a_pickle_runs_nothing(root: Path, cache: Path):
    as_zip(root, contents(val=content("val") | {"labels": Attack(root / "made")}))
    text = refused(root, cache, r"embeddings.zip: embeddings/miniImageNet/center/val_embeddings.pkl: .*system")
    assert "again" in text and not (root / "made").exists()


def test_a_class_in_two_splits_is_refused(root: Path, cache: Path):
    as_zip(root, contents(test=content("test") | {"keys": content()["keys"]}))
    refused(root, cache, "class 'n01' is in train and in test")


def test_other_widths_have_to_be_meant_and_be_one(root: Path, cache: Path):
    as_folder(root, {split: pickle.dumps(content(split, width=5), 2) for split in CLASSES})
    refused(root, cache, "features of width 5, not 640")
    assert embeddings.read_leo_embeddings(root, cache, width=None)["val"].shape == (5,)
    assert embeddings.read_leo_embeddings(root, cache, width=5)["val"].metadata["width"] == 5
    with pytest.raises(FewshotError, match="features of width 5, not 640.*again"):  # from the cache, too
        embeddings.read_leo_embeddings(root, cache)
    as_folder(root / "mixed", contents(val=content("val", width=5)))
    with pytest.raises(FewshotError, match="val: features of width 5, not 640"):
        embeddings.read_leo_embeddings(root / "mixed", cache, width=None)


def flip(data: bytes) -> bytes:
    position = data.index(b"PK\x03\x04", 300) + 2000  # inside the first compressed pickle
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


ZIPS = {
    "cut": (lambda data: data[:-300], "not a zip file"),
    "a web page": (lambda data: WEB_PAGE, "a web page, not"),
    "empty": (lambda data: b"", "not a zip file|not a whole archive"),
    "changed inside": (flip, "_embeddings.pkl|not a whole archive"),
}


@pytest.mark.parametrize("damage", ZIPS)
def test_a_damaged_zip_is_refused(root: Path, cache: Path, damage: str):
    change, match = ZIPS[damage]
    path = as_zip(root, contents())
    path.write_bytes(change(path.read_bytes()))
    text = refused(root, cache, match)
    assert str(path) in text and ("again" in text or "by hand" in text)


def test_a_missing_pickle_is_named(root: Path, cache: Path):
    (as_folder(root, contents()) / "val_embeddings.pkl").unlink()
    refused(root, cache, "val_embeddings.pkl is missing: remove it and fetch embeddings.zip again")
    as_zip(root, {})
    refused(root, cache, "embeddings.zip: embeddings/miniImageNet/center/train_embeddings.pkl is missing: remove it")


@pytest.fixture
def server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    server.files["embeddings.zip"] = as_zip(tmp_path / "server", contents()).read_bytes()
    monkeypatch.setattr(embeddings, "URL", f"{server.url}/embeddings.zip")
    return server


def test_a_download_is_checked_and_then_read(server: Server, root: Path, cache: Path):
    assert embeddings.read_leo_embeddings(root, cache, download=True)["val"].names == ("n02",)
    embeddings.read_leo_embeddings(root, cache, download=True)
    assert server.asked == ["embeddings.zip"] and [path.name for path in root.iterdir()] == ["embeddings.zip"]


@pytest.mark.parametrize("damage", ZIPS)
def test_a_download_that_is_not_the_zip_is_thrown_away(server: Server, root: Path, cache: Path, damage: str):
    change, match = ZIPS[damage]
    server.files["embeddings.zip"] = change(server.files["embeddings.zip"])
    text = refused(root, cache, match, download=True)
    assert f"download {embeddings.URL} by hand to {root / 'embeddings.zip'}" in text and not list(root.iterdir())


def banks(names: dict[str, list[str]], width: int = 7, dtype: type = np.float32) -> dict[str, Bank]:
    """Features of 11, 12, ... examples of each class."""
    found = {}
    for split, classes in names.items():
        counts = [11 + i for i in range(len(classes))]
        rows = np.random.RandomState(len(split)).randn(sum(counts), width).astype(dtype)
        offsets = torch.tensor([0, *counts]).cumsum(0)
        sha256 = fingerprint(Split(rows, counts, classes))
        found[split] = Bank(torch.from_numpy(rows), offsets, tuple(classes), split, sha256, {})
    return found


NAMES = {
    "train": ["Angelic/character01", "Early_Aramaic/character01", "N'Ko/character-2", "n01532829"],
    "val": ["%2D", "100%25", "Basic Latin/U+0021", "Mkhedruli_(Georgian)/character01"],
    "test": ["-", "Ж", "語/文"],
}


def test_what_is_written_in_the_originals_layout_is_read_as_the_same_banks(root: Path, cache: Path):
    written = banks(NAMES)
    embeddings.write_originals(root, written, "tiered", "center")
    read = embeddings.read_leo_embeddings(root, cache, "tiered", width=7)
    for split, bank in written.items():
        assert read[split].names == bank.names and torch.equal(read[split].examples, bank.examples)
        assert read[split].fingerprint == bank.fingerprint and torch.equal(read[split].offsets, bank.offsets)
    assert read["val"].metadata["said"] == written["train"].metadata
    embeddings.write_originals(root / "again", read, "mini", "multiview")
    again = embeddings.read_leo_embeddings(root / "again", cache, "mini", "multiview", width=None)
    assert fingerprints(again) == fingerprints(written)


def test_what_features_say_of_themselves_does_not_make_them_the_tasks_of_other_images(root: Path, cache: Path):
    written = {
        split: replace(bank, metadata={"extractor": {"images": {split: "f"}}}) for split, bank in banks(NAMES).items()
    }
    assert written["test"].image_fingerprint == "f"
    embeddings.write_originals(root, written, "mini", "center")
    read = embeddings.read_leo_embeddings(root, cache, width=7)
    assert all(bank.image_fingerprint == bank.fingerprint for bank in read.values())
    (root / "embeddings/miniImageNet/center/about.json").write_text("{")
    with pytest.raises(FewshotError, match="about.json: cannot be read .JSONDecodeError") as caught:
        embeddings.read_leo_embeddings(root, cache, width=7)
    assert "\n" not in str(caught.value)


def test_what_is_written_has_the_originals_layout(root: Path):
    embeddings.write_originals(root, banks(CLASSES | {"train": ["n01", "n03"], "test": ["n04"]}), "mini", "center")
    folder = root / "embeddings" / "miniImageNet" / "center"
    assert sorted(path.name for path in folder.iterdir()) == [
        "about.json",
        *(f"{split}_embeddings.pkl" for split in sorted(CLASSES)),
    ]
    assert folder.stat().st_mode & 0o777 == 0o755 and len(list(folder.parent.iterdir())) == 1
    data = (folder / "train_embeddings.pkl").read_bytes()
    found = pickle.loads(data, encoding="latin1")
    assert data[:2] == b"\x80\x02" and set(found) == {"keys", "embeddings"}
    assert found["keys"].shape[0] == len(found["embeddings"]) == 23 and found["embeddings"].dtype == np.float32
    for key in found["keys"]:  # what DeepMind's program demands
        _, name, image = key.split("-")
        assert image.split("_")[0] == name


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (banks(NAMES | {"val": ["Angelic/character01"]}), "class 'Angelic/character01' is in train and in val"),
        (banks(NAMES, dtype=np.float64), "bank train: .*embeddings are float64"),
        (banks(NAMES | {"test": [""]}), "bank test: .*key '0--_00000000' is not"),
        (banks({"train": ["a"], "test": ["b"]}), "banks train, test given: give train, val and test"),
        (banks(NAMES) | {"val": banks(NAMES, width=3)["val"]}, "features of width 3, not 7"),
    ],
)
def test_banks_that_would_not_come_back_are_refused(root: Path, given: dict[str, Bank], match: str):
    with pytest.raises(FewshotError, match=match) as caught:
        embeddings.write_originals(root, given, "mini", "center")
    assert "\n" not in str(caught.value) and "fetch" not in str(caught.value)
    assert not [path for path in root.rglob("*") if path.is_file()]


def test_nothing_is_written_over_or_beside_the_originals(root: Path):
    as_folder(root / "a", {}, "embeddings/miniImageNet/center")
    as_folder(root / "b", {}, "miniImageNet/center")
    as_zip(root / "c", {})
    for name in "abc":
        with pytest.raises(FewshotError, match="is there already: remove it, or write to another folder"):
            embeddings.write_originals(root / name, banks(NAMES), "mini", "center")
