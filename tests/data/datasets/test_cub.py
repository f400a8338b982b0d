"""CUB-200-2011: 200 classes of small images made on the spot, as the authors' archive and otherwise."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot.core.errors import FewshotError
from fewshot.data.datasets import cub
from fewshot.data.sources.layouts import published_split

from ..made_sources import Server, as_archive, as_folder, encoded, noise, refused_by

SPLITS = published_split("cub")
CLASSES = sorted(name for names in SPLITS.values() for name in names)
ARCHIVE = "CUB_200_2011.tgz"
IMAGES = 203  # one of each class, and three more of the first


def picture(seed: int) -> bytes:
    return encoded(noise(seed, 5, 6), "JPEG" if seed else "PNG")


def birds() -> dict[str, bytes]:
    """ "<class>/<file>" to image."""
    names = [CLASSES[0]] * 3 + CLASSES
    return {f"{name}/Bird_{seed:04d}.{'jpg' if seed else 'PNG'}": picture(seed) for seed, name in enumerate(names)}


def published(images: dict[str, bytes], listed: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """Member to content of the authors' archive."""
    rows = "".join(f"{i} {name}\n" for i, name in enumerate(sorted(listed or images), start=1))
    members = {"attributes.txt": b"1 has_bill_shape::curved\n", "CUB_200_2011/README": b"", "._CUB_200_2011": b"\0"}
    members |= {f"CUB_200_2011/images/{name}": data for name, data in images.items()}
    return members | {"CUB_200_2011/images.txt": rows.encode(), "CUB_200_2011/parts/parts.txt": b"1 back\n"}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cub, "IMAGES", IMAGES)


read = partial(cub.read, size=4)
refused = partial(refused_by, read)


def already_split(images: dict[str, bytes]) -> dict[str, bytes]:
    split_of = {name: split for split, names in SPLITS.items() for name in names}
    return {f"{split_of[name.split('/')[0]]}/{name}": data for name, data in images.items()}


# How the images may lie below the root, and what is said of it.
LAYOUTS = {
    "the archive": (lambda root: as_archive(root / ARCHIVE, published(birds())), "class folders in an arch"),
    "unzipped by a browser": (lambda root: as_archive(root / "CUB_200_2011.tar", published(birds())), "an archive"),
    "unzipped, its name kept": (
        lambda root: as_archive(root / "CUB.tar", published(birds())).rename(root / ARCHIVE),
        "class folders in an archive",
    ),
    "a zip": (lambda root: as_archive(root / "CUB_200_2011.zip", birds()), "class folders in an archive"),
    "unpacked": (lambda root: as_folder(root, published(birds())), "class folders in a folder"),
    "the images alone": (lambda root: as_folder(root, birds()), "class folders in a folder"),
    "split": (lambda root: as_folder(root, already_split(birds())), "class folders of each split in a folder"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_banks(root: Path, cache: Path, layout: str):
    make, words = LAYOUTS[layout]
    make(root)
    banks = read(root, cache)
    assert {split: list(bank.names) for split, bank in banks.items()} == SPLITS
    assert banks["train"].sizes.tolist() == [4] + [1] * 99
    small = Image.fromarray(noise(0, 5, 6)).resize((4, 4), Image.Resampling.LANCZOS)  # of the one png
    assert torch.equal(banks["train"].examples[0], torch.from_numpy(np.array(small).transpose(2, 0, 1)))
    about = banks["val"].about
    assert words in about["layout"] and about["complete"] is True and about["dataset"] == "cub"
    assert str(root.parent) not in str(about)
    plain = as_folder(root / "plain", birds())
    assert {s: b.fingerprint for s, b in read(plain, cache / "b").items()} == {
        s: b.fingerprint for s, b in banks.items()
    }


def test_root_may_be_the_archive_itself_or_the_unpacked_folder(root: Path, cache: Path):
    archive = as_archive(root / "birds.tar.gz", published(birds()))
    folder = as_folder(root / "unpacked", published(birds())) / "CUB_200_2011"
    prints = [read(path, cache / path.name)["test"].fingerprint for path in (archive, folder)]
    assert prints[0] == prints[1]


def test_the_cache_is_opened_without_the_source_and_every_choice_has_a_bank_of_its_own(root: Path, cache: Path):
    archive = as_archive(root / ARCHIVE, published(birds()))
    first = read(root, cache)["train"]
    cropped = read(root, cache, resize="crop", resample="bilinear")["train"]
    assert not torch.equal(first.examples, cropped.examples)
    archive.unlink()
    assert read(root, cache)["train"].fingerprint == first.fingerprint
    assert read(root, cache, resize="crop", resample="bilinear")["train"].about["resize"] == "crop"
    with pytest.raises(FewshotError, match="no CUB-200-2011 is there"):
        read(root, cache, overwrite=True)
    with pytest.raises(FewshotError, match="no CUB-200-2011 is there"):
        read(root, cache, size=5)


def test_masks_that_are_unpacked_beside_the_images_are_no_images(root: Path, cache: Path):
    masks = {f"segmentations/{name.rsplit('.', 1)[0]}.png": picture(0) for name in birds()}
    as_folder(root / "CUB_200_2011", masks)
    as_folder(root, published(birds()))
    assert len(read(root, cache)["train"].examples) == 103


FIRST, LAST = sorted(birds())[0], sorted(birds())[-1]


def without(name: str) -> dict[str, bytes]:
    return {each: data for each, data in birds().items() if each != name}


DAMAGE = {
    "a class is missing": (without(LAST), None, "1 of 50 classes of test are missing, such as 200.*complete=false"),
    "an image is missing": (without(FIRST), None, "202 images, not 203.*complete=false"),
    "an image too many": (birds() | {f"{CLASSES[7]}/copy.jpg": picture(7)}, None, "204 images, not 203"),
    "a row whose image is missing": (without(FIRST), birds(), "images.txt: line 1: a row whose image is missing: 001"),
    "an image without a row": (birds() | {f"{CLASSES[7]}/copy.jpg": picture(7)}, birds(), "copy.jpg: not listed"),
    "a row that is none": (birds(), {f"{CLASSES[7]}": b""}, "images.txt: line 1 is not '<number> <class>/<image>'"),
    "a damaged image": (birds() | {LAST: picture(9)[:100]}, None, f"{LAST}: damaged"),
    "an empty image": (birds() | {LAST: b""}, None, f"{LAST}: it is empty"),
    "a class in two places": (
        {f"images/{name}": data for name, data in birds().items()} | {f"copy/{LAST}": picture(1)},
        None,
        "200.Common_Yellowthroat lies in .* and in .*leave it in one place",
    ),
    "another split": (
        {name.replace(f"train/{FIRST[:3]}", f"val/{FIRST[:3]}"): data for name, data in already_split(birds()).items()},
        None,
        "001.Black_footed_Albatross lies in .*val/001.*, but belongs to train in the published split",
    ),
}


@pytest.mark.parametrize("make", [as_folder, lambda root, members: as_archive(root / ARCHIVE, members)])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_in_one_line(root: Path, cache: Path, make: Any, damage: str):
    images, listed, match = DAMAGE[damage]
    if listed is not None:
        images = published(images, listed)
    elif not any("images/" in name for name in images):
        images = {f"CUB_200_2011/images/{name}": data for name, data in images.items()}
    make(root, images)
    assert str(root) in refused(root, cache, match)


def test_a_part_is_converted_where_it_is_asked_for(root: Path, cache: Path):
    few = {name: data for name, data in birds().items() if name[:3] in ("001", "002", "003", "004")}
    as_folder(root, published(few, birds()))
    refused(root, cache, "98 of 100 classes of train are missing, such as 005.Crested_Auklet.*complete=false")
    banks = read(root, cache, complete=False)
    assert [len(bank.names) for bank in banks.values()] == [2, 1, 1] and banks["val"].about["complete"] is False
    assert [path.name for path in cache.iterdir()] == ["cub-4-squash-lanczos-part"]


def test_a_part_without_a_class_of_each_split_is_refused(root: Path, cache: Path):
    as_folder(root, {name: data for name, data in birds().items() if name[:3] in ("001", "002")})
    refused(
        root,
        cache,
        "no class of test is there; add images of 004.Groove_billed_Ani or others",
        complete=False,
    )


@pytest.mark.parametrize("other", ["nothing", "other files", "no folder"])
def test_where_nothing_is_there_the_ways_to_get_it_are_said(root: Path, cache: Path, other: str):
    if other != "no folder":
        as_folder(root, {"cats/1.jpg": picture(1)} if other == "other files" else {"readme": b""})
    text = refused(root, cache, "no CUB-200-2011 is there")
    command = "python tools/prepare.py dataset=cub dataset.reader.size=4"
    ways = [f"put CUB_200_2011.tgz from {cub.PAGE} there", f"or {command} dataset.reader.download=true"]
    if other == "no folder":
        ways.append(f"or {command} source=<path>")
    else:  # where files were looked for there, the same command is no remedy
        ways += ["name another place by source=<path>", "with dataset=folder"]
    assert all(way in text for way in ways)


def test_an_archive_of_something_else_is_refused(root: Path, cache: Path):
    path = as_archive(root / ARCHIVE, {"cats/1.jpg": picture(1)})
    for given in (root, path):
        text = refused(given, cache, "tgz: without class folders of CUB-200-2011.*replace it", download=True)
        assert str(path) in text


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>sign in</html>", b"\x1f\x8b"])
def test_an_archive_that_is_damaged_is_refused(root: Path, cache: Path, content: bytes):
    as_folder(root, {"CUB_200_2011.tgz": content})
    refused(root, cache, "CUB_200_2011.tgz: (a web page|not a whole archive).*fetch")


@pytest.mark.parametrize(("choice", "value"), [("size", 0), ("resize", "stretch"), ("resample", "nearest")])
def test_a_choice_out_of_range_is_refused(root: Path, cache: Path, choice: str, value: Any):
    refused(root, cache, f"dataset.reader.{choice}={value}: choose", **{choice: value})


@pytest.fixture
def server(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(cub, "URL", f"{server.url}/{ARCHIVE}")
    return server


def test_a_download_is_checked_and_read(server: Server, root: Path, cache: Path, tmp_path: Path):
    server.files[ARCHIVE] = as_archive(tmp_path / "made.tgz", published(birds())).read_bytes()
    assert len(read(root, cache, download=True)["test"].names) == 50
    assert [path.name for path in root.iterdir()] == [ARCHIVE]
    server.files[ARCHIVE] = b"gone"
    assert len(read(root, cache, download=True, overwrite=True)["test"].names) == 50  # it is not fetched again


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: b"<!DOCTYPE html><html>sign in</html>", "a web page, not the archive"),
        (lambda data: b"PK\x03\x04" + data, "no gzip file"),
        (lambda data: b"", "no gzip file"),
        (lambda data: data[:-200], "not a whole archive"),
        (lambda data: data[:2000] + bytes([data[2000] ^ 0xFF]) + data[2001:], "not a whole archive"),
    ],
)
def test_a_download_that_is_not_the_archive_is_thrown_away(
    server: Server, root: Path, cache: Path, tmp_path: Path, change: Any, match: str
):
    server.files[ARCHIVE] = change(as_archive(tmp_path / "made.tgz", published(birds())).read_bytes())
    text = refused(root, cache, match, download=True)
    assert f"download {cub.URL} by hand to {root / ARCHIVE}" in text and not list(root.iterdir())


def test_a_web_page_in_place_of_the_archive_says_where_that_is_to_be_had(tmp_path: Path):
    (tmp_path / "CUB_200_2011.tgz").write_bytes(b"<!DOCTYPE html><html>quota</html>" * 100)
    with pytest.raises(FewshotError, match=f"a web page, not an archive: .* from {cub.PAGE}$"):
        cub.read(tmp_path, tmp_path / "cache")
