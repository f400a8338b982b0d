"""Omniglot: read from small zips and folders; what is damaged is named, and nothing is left behind."""

import collections
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot.core.errors import FewshotError
from fewshot.data.datasets import omniglot

from .. import made_sources
from ..made_sources import as_archive, fingerprints, refused_by

NAMES = ["Angelic/character01", "Angelic/character02", "Greek/character01"]


def picture(seed: int, size: tuple[int, int] = (105, 105), mode: str = "1") -> bytes:
    """A png with black strokes on white, as the originals are."""
    pixels = np.full(size[::-1], 255, np.uint8)
    x, y = np.random.RandomState(seed).randint(10, 70, size=2)
    pixels[y : y + 6, x : x + 30] = 0
    pixels[y : y + 30, x : x + 6] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def drawings(names: list[str] = NAMES) -> dict[str, bytes]:
    """Path below the source to png, 20 of each character."""
    return {
        f"{name}/{index:04d}_{number:02d}.png": picture(index * 100 + number)
        for index, name in enumerate(names, start=1)
        for number in range(1, 21)
    }


def as_zip(root: Path, pngs: dict[str, bytes], half: str = "images_background") -> Path:
    return as_archive(root / f"{half}.zip", {f"{half}/{name}": data for name, data in pngs.items()})


def as_folder(root: Path, pngs: dict[str, bytes], half: str = "images_background") -> Path:
    return made_sources.as_folder(root / half, pngs)


def characters(source: Path, resample: str = "lanczos") -> dict[str, np.ndarray]:
    return omniglot._read_half(source, 28, resample)


@pytest.fixture
def whole(tmp_path: Path, monkeypatch) -> Path:
    """A root with a small Omniglot: two alphabets in background, one in evaluation."""
    split_of = {NAMES[0]: "train", NAMES[1]: "val", "Greek/character01": "train", "Tengwar/character01": "test"}
    monkeypatch.setattr(omniglot, "vinyals_split", lambda: (split_of, "made up"))
    root = tmp_path / "root"
    root.mkdir()
    as_zip(root, drawings())
    as_zip(root, drawings(["Tengwar/character01"]), "images_evaluation")
    return root


@pytest.mark.parametrize("resample", ["lanczos", "nearest"])
def test_a_zip_and_a_folder_give_the_same_pictures(tmp_path: Path, resample: str):
    pngs = drawings()
    pngs |= {"Greek/character01/._0003_01.png": b"of a Mac", "Greek/strokes.txt": b"not a drawing"}
    zipped = characters(as_zip(tmp_path, pngs), resample)
    unpacked = characters(as_folder(tmp_path, pngs), resample)
    assert list(zipped) == list(unpacked) == NAMES
    for name in NAMES:
        assert zipped[name].dtype == np.uint8 and zipped[name].shape == (20, 28, 28)
        assert np.array_equal(zipped[name], unpacked[name])


def test_strokes_are_bright_and_lie_where_they_were_drawn():
    original = 255 - np.asarray(Image.open(io.BytesIO(picture(3))).convert("L"))
    small = omniglot._decode(picture(3), 28, "lanczos")
    assert small.max() > 200 and np.median(small) == 0
    rows, columns = (np.nonzero(small > 100)[axis].mean() for axis in (0, 1))
    assert [rows, columns] == pytest.approx(
        [(np.nonzero(original)[axis].mean() - 1.4) / 3.75 for axis in (0, 1)], abs=0.6
    )


def test_nearest_is_what_pillow_makes_of_the_originals_lanczos():
    with Image.open(io.BytesIO(picture(5))) as image:
        theirs = 255 - np.asarray(image.resize((28, 28), Image.Resampling.LANCZOS).convert("L"))
    assert np.array_equal(omniglot._decode(picture(5), 28, "nearest"), theirs)


def changed(path: str, data: bytes) -> dict[str, bytes]:
    return drawings() | {path: data}


def without(path: str) -> dict[str, bytes]:
    return {name: data for name, data in drawings().items() if not name.startswith(path)}


PNG = "Greek/character01/0003_07.png"
DAMAGE = {
    "image of another size": (changed(PNG, picture(1, (105, 104))), "0003_07.png: not a readable .*105x104"),
    "image of another depth": (changed(PNG, picture(1, mode="L")), "0003_07.png: not a readable .*mode L"),
    "image cut short": (changed(PNG, picture(1)[:60]), "0003_07.png: not a readable drawing"),
    "no image": (changed(PNG, b"<html>"), "0003_07.png: not a readable drawing .no image"),
    "empty image": (changed(PNG, b""), "0003_07.png: not a readable drawing"),
    "gif": (changed(PNG, b"GIF89a" + bytes(40)), "0003_07.png: not a readable drawing"),
    "drawing missing": (without(PNG), "Greek/character01: drawing 7 of 20 is missing, or too many"),
    "drawing too many": (changed("Greek/character01/0003_21.png", picture(1)), "drawing 21 of 20"),
    "character missing": (without("Greek/character01/"), "Greek/character01 is missing, or is no character"),
    "nothing there": ({"readme": b""}, "4 characters too many or missing|3 characters too many or missing"),
}


@pytest.mark.parametrize("make", [as_zip, as_folder])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_in_one_line_with_what_to_do(whole: Path, cache: Path, make, damage: str):
    pngs, message = DAMAGE[damage]
    (whole / "images_background.zip").unlink()
    make(whole, pngs)
    assert "again" in refused_by(omniglot.read_omniglot, whole, cache, message)


def cut(source: Path) -> None:
    source.write_bytes(source.read_bytes()[:-300])


def flip(source: Path) -> None:
    data = bytearray(source.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 0xFF
    source.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, flip, lambda source: source.write_bytes(b"<html>404</html>")])
def test_a_damaged_zip_is_refused(whole: Path, cache: Path, damage):
    damage(whole / "images_background.zip")
    refused_by(omniglot.read_omniglot, whole, cache, "images_background.zip.*(again|by hand)")


@pytest.mark.parametrize("layout", ["zips", "folders", "torchvision zips", "torchvision folders"])
def test_both_halves_are_found_in_every_layout(tmp_path: Path, layout: str):
    place = tmp_path / "omniglot-py" if "torchvision" in layout else tmp_path
    place.mkdir(exist_ok=True)
    for half in omniglot.HALVES:
        made = (as_zip if "zips" in layout else as_folder)(place, drawings(NAMES[:1]), half)
        assert omniglot._find_half(tmp_path, half, False) == made


def test_missing_files_are_answered_with_the_three_ways_to_get_them(tmp_path: Path):
    with pytest.raises(FewshotError) as caught:
        omniglot.read_omniglot(tmp_path / "root", tmp_path / "cache", "vinyals")
    text = str(caught.value)
    assert "\n" not in text and str(tmp_path / "root") in text
    assert all(way in text for way in ("images_background.zip", "unpack", "dataset.reader.download=true"))
    assert not list(tmp_path.iterdir())


def test_a_download_is_asked_for_each_missing_half_and_then_read(whole: Path, tmp_path: Path, monkeypatch):
    asked = []

    def fetch(root: Path, background: bool, download: bool) -> None:
        asked.append((background, download))
        (root / "omniglot-py").mkdir()
        as_zip(root / "omniglot-py", drawings(["Tengwar/character01"]), "images_evaluation")

    (whole / "images_evaluation.zip").unlink()
    for name in ("torchvision", "torchvision.datasets"):  # importing the true one takes seconds
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(Omniglot=fetch))
    assert omniglot.read_omniglot(whole, tmp_path / "cache", "vinyals", download=True)["test"].names == (
        "Tengwar/character01",
    )
    assert asked == [(False, True)]


def test_the_banks_hold_the_drawings_of_each_split(whole: Path, cache: Path):
    banks = omniglot.read_omniglot(whole, cache, "vinyals", resample="lanczos")
    assert {split: bank.names for split, bank in banks.items()} == {
        "train": ("Angelic/character01", "Greek/character01"),
        "val": ("Angelic/character02",),
        "test": ("Tengwar/character01",),
    }
    for bank in banks.values():
        assert bank.examples.dtype == torch.uint8 and bank.examples.shape == (20 * len(bank.names), 1, 28, 28)
        assert bank.offsets.tolist() == list(range(0, 20 * len(bank.names) + 1, 20))
        assert bank.metadata["split"] == "vinyals" and bank.metadata["resample"] == "lanczos"
    drawn = characters(whole / "images_background.zip")["Greek/character01"]
    assert np.array_equal(banks["train"].examples[20:, 0].numpy(), drawn)


def test_the_cache_is_opened_without_the_source(whole: Path, tmp_path: Path):
    first = omniglot.read_omniglot(whole, tmp_path / "cache", split="vinyals", size=20)
    again = omniglot.read_omniglot(tmp_path / "gone", tmp_path / "cache", split="vinyals", size=20)
    assert first["test"].fingerprint == again["test"].fingerprint
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["omniglot-vinyals-20-nearest"]


@pytest.mark.parametrize("argument", [{"split": "mine"}, {"resample": "cubic"}, {"size": 0}, {"size": 500}])
def test_an_argument_out_of_range_is_refused_in_one_line(root: Path, cache: Path, argument: dict):
    refused_by(omniglot.read_omniglot, root, cache, f"dataset.reader.{next(iter(argument))}=", **argument)


def test_the_vinyals_split_has_the_published_sizes():
    where, source = omniglot.vinyals_split()
    assert collections.Counter(where.values()) == {"train": 1028, "val": 172, "test": 423}
    assert len({name.split("/")[0] for name in where}) == 50
    assert "Vinyals" in source
    # The one alphabet that the published lists divide.
    assert [where[f"Gurmukhi/character{number}"] for number in (41, 42, 45)] == ["train", "test", "test"]


def test_the_lake_split_tests_on_the_evaluation_set_and_validates_on_whole_alphabets():
    evaluation = [name for name in omniglot.vinyals_split()[0] if name.startswith(("Angelic/", "Tengwar/"))]
    background = [name for name in omniglot.vinyals_split()[0] if name not in evaluation]
    where = omniglot.lake_split(dict.fromkeys(background), dict.fromkeys(evaluation))
    assert sum(split == "val" for split in where.values()) == 172
    assert {name for name, split in where.items() if split == "test"} == set(evaluation)
    assert {name.split("/")[0] for name, split in where.items() if split == "val"} == set(omniglot.LAKE_VAL)


def test_the_random_split_has_cbfinns_sizes_and_forgets_the_order_of_the_files():
    names = list(omniglot.vinyals_split()[0])
    where = omniglot.random_split(dict.fromkeys(names))
    assert collections.Counter(where.values()) == {"train": 1100, "val": 100, "test": 423}
    assert where == omniglot.random_split(dict.fromkeys(reversed(names)))


@pytest.mark.slow
@pytest.mark.skipif("FEWSHOT_OMNIGLOT" not in os.environ, reason="FEWSHOT_OMNIGLOT names the folder of the zips")
@pytest.mark.parametrize(
    ("split", "sizes"),
    [("vinyals", [1028, 172, 423]), ("lake", [792, 172, 659]), ("random1200", [1100, 100, 423])],
)
def test_the_real_omniglot_is_read_whole(tmp_path: Path, split: str, sizes: list[int]):
    banks = omniglot.read_omniglot(os.environ["FEWSHOT_OMNIGLOT"], tmp_path, split)
    assert [len(bank.names) for bank in banks.values()] == sizes
    assert sum(len(bank.examples) for bank in banks.values()) == 1623 * 20
    assert len(set().union(*(bank.names for bank in banks.values()))) == 1623
    assert all((bank.examples.flatten(1).amax(1) > 0).all() for bank in banks.values())


SHAPES = {
    "a folder of the same name": ("{half}/{half}", "{name}"),
    "all in a folder": ("python/{half}", "{name}"),
    "below each character": ("{half}", "{folder}/images/{file}"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_in_between_is_looked_through(whole: Path, tmp_path: Path, shape: str):
    plain = omniglot.read_omniglot(whole, tmp_path / "plain", "vinyals")
    place, form = SHAPES[shape]
    for half, names in (("images_background", NAMES), ("images_evaluation", ["Tengwar/character01"])):
        pngs = drawings(names).items()
        pngs = {form.format(name=n, folder=n.rsplit("/", 1)[0], file=n.rsplit("/", 1)[1]): data for n, data in pngs}
        as_folder(tmp_path / "other", pngs, place.format(half=half))
    assert fingerprints(omniglot.read_omniglot(tmp_path / "other", tmp_path / "cache", "vinyals")) == fingerprints(
        plain
    )


def test_all_drawings_that_are_damaged_or_missing_are_listed(whole: Path, cache: Path):
    pngs = drawings()
    broken = dict.fromkeys(list(pngs)[:5], b"damaged")
    for change, match in (
        (pngs | broken, "^5 damaged drawings: "),
        (dict(list(pngs.items())[5:]), "^5 drawings that are"),
    ):
        as_zip(whole, change)
        refused_by(
            omniglot.read_omniglot, whole, cache, f"{match}.*and [2-4] more; for each: remove what is there and fetch"
        )
        assert len((cache / "omniglot-faults.txt").read_text().splitlines()) == 5
    as_zip(whole, pngs)
    omniglot.read_omniglot(whole, cache, "vinyals")
    assert not list(cache.glob("*faults*"))
