"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people (Lake et al. 2015).

The files are the official images_background.zip and images_evaluation.zip (github.com/brendenlake/omniglot, folder
python) or the folders that they unpack to. The sampler makes rotated classes, not this reader.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fewshot.core.checks import check_choice
from fewshot.core.errors import FewshotError, one_line
from fewshot.core.files import lock_dir
from fewshot.core.paths import expand_path
from fewshot.data.bank import SPLITS, Bank, Split, open_banks, write_banks
from fewshot.data.sources.archives import DAMAGED, open_files
from fewshot.data.sources.faults import list_faults, raise_faults

HALVES = ("images_background", "images_evaluation")
DRAWINGS = 20  # of each character, numbered from 1
SIDE = 105  # pixels of the originals, which have 1 bit per pixel and black strokes
# <Alphabet>/character<NN>/<dddd>_<number>.png, with at most one folder in between.
DRAWING = re.compile(r"(?:.*/)?([^/]+/character[^/]*)/(?:[^/]+/)?\d{4}_(\d\d)\.png", re.ASCII)
# The background alphabets that the split "lake" holds out: those that Vinyals et al. validate on, 172 characters.
LAKE_VAL = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
AGAIN = (
    "remove what is there and fetch images_background.zip and images_evaluation.zip again "
    "(dataset.reader.download=true does it)"
)


def read_omniglot(
    root: str | Path,
    cache: str | Path,
    split: str = "random1200",
    size: int = 28,
    resample: str = "nearest",
    download: bool = False,
    overwrite: bool = False,
) -> dict[str, Bank]:
    """The banks "train", "val" and "test" of images [M, 1, size, size] uint8, strokes 255 on 0.

    Class names are "<Alphabet>/character<NN>". The originals are read once; then the cache is opened without them.

    Args:
        root: folder with the two zips or the two unpacked folders, or with a folder that holds them, such as
            torchvision's `omniglot-py`.
        cache: folder that holds the bank folders.
        split: "vinyals": 1028/172/423 characters (Vinyals et al. 2016); all rotations of a character share a split.
            "lake": test is the evaluation set of 659, val the background alphabets of `LAKE_VAL` (a choice of this
            toolkit: Lake et al. hold none out), train the other 792 characters.
            "random1200": all characters pooled, 1100/100/423 as in cbfinn/maml. The original shuffles in the order in
            which its file system lists folders, so that its split is lost; this one shuffles sorted names.
        size: side of a picture in pixels.
        resample: "lanczos" filters in 8-bit grey and is smooth. "nearest" picks single pixels, so that only 0 and 255
            occur. Pillow does that to 1-bit images whatever filter is asked for, so the original programs (cbfinn/maml,
            openai/supervised-reptile) had such pictures.
        download: fetch what is missing through torchvision, into `root`.
        overwrite: read the originals although the banks are there.

    Raises:
        FewshotError: an argument is out of range, files are missing or damaged, or the cache is damaged.
    """
    check_choice("dataset.reader.split", split, ("vinyals", "lake", "random1200"))
    check_choice("dataset.reader.resample", resample, ("lanczos", "nearest"))
    if not 1 <= size <= SIDE:
        raise FewshotError(f"dataset.reader.size={size}: choose 1 to {SIDE} pixels")
    root, cache = expand_path(root), expand_path(cache)
    folder = cache / f"omniglot-{split}-{size}-{resample}"
    with list_faults(cache / "omniglot-faults.txt"):
        if overwrite or not folder.exists():
            halves = [_read_half(_find_half(root, half, download), size, resample) for half in HALVES]
            characters = halves[0] | halves[1]
            split_of, split_source = vinyals_split()
            wrong = sorted(set(split_of) ^ set(characters))
            wrong = [f"{root}: {name} is missing, or is no character of Omniglot" for name in wrong]
            raise_faults("characters too many or missing", wrong, AGAIN)
            if split == "lake":
                split_source = f"Lake et al. 2015, background and evaluation; val: {', '.join(LAKE_VAL)}"
                split_of = lake_split(*halves)
            elif split == "random1200":
                split_source = "1100/100/423 of the sorted characters, shuffled by numpy RandomState(1)"
                split_of = random_split(characters)
            metadata = {"dataset": "omniglot", "source": "Omniglot (Lake et al. 2015)", "split": split}
            metadata |= {"split_source": split_source, "size": size, "resample": resample}
            splits = {}
            for each in SPLITS:
                names = [name for name in sorted(characters) if split_of[name] == each]
                examples = np.concatenate([characters[name] for name in names])[:, None]
                splits[each] = Split(examples, [DRAWINGS] * len(names), names)
            write_banks(folder, splits, metadata)
    return open_banks(folder)


def _find_half(root: Path, half: str, download: bool) -> Path:
    """The zip or folder of one half. The zip comes first: it is what the authors published."""
    folders = [root, *(sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else [])]
    for name in (f"{half}.zip", half):
        for folder in folders:
            if (folder / name).exists():
                return folder / name
    if not download:
        raise FewshotError(
            f"{root}: neither {half}.zip nor the folder {half} is there: put images_background.zip and "
            "images_evaluation.zip there, or unpack them there, or set dataset.reader.download=true"
        )
    from torchvision.datasets import Omniglot

    scratch, zip_file = root / f".{half}", root / f"{half}.zip"  # which is there whole, or not at all
    with lock_dir(scratch, wait=True):
        try:
            if not zip_file.exists():  # else another process has just fetched it
                Omniglot(scratch, background=half == HALVES[0], download=True)
                os.replace(next(scratch.rglob(zip_file.name)), zip_file)
        except DAMAGED as error:
            raise FewshotError(
                f"{root}: fetching {half}.zip failed ({one_line(error)}): put it there by hand, "
                "from https://github.com/brendenlake/omniglot, folder python"
            ) from error
    shutil.rmtree(scratch, ignore_errors=True)
    return _find_half(root, half, False)


def _read_half(source: Path, size: int, resample: str) -> dict[str, np.ndarray]:
    """Every character of a zip or folder, by name: [20, size, size] uint8."""
    files = open_files(source)
    characters: dict[str, dict[int, np.ndarray]] = {}
    damaged = []
    matches = [match for name in files.names if (match := DRAWING.fullmatch(name))]
    try:
        for match, data in zip(matches, files.read([match[0] for match in matches]), strict=True):
            drawings = characters.setdefault(match[1], {})
            try:
                drawings[int(match[2])] = _decode(data, size, resample)
            except (*DAMAGED, Image.DecompressionBombError) as error:
                reason = "no image" if isinstance(error, UnidentifiedImageError) else one_line(error)
                damaged.append(f"{files.describe(match[0])}: not a readable drawing ({reason})")
    except DAMAGED as error:
        raise FewshotError(f"{source}: cannot be read to its end ({one_line(error)}): {AGAIN}") from error
    raise_faults("damaged drawings", damaged, AGAIN)
    wanted = set(range(1, DRAWINGS + 1))
    wrong = [
        f"{source}: {name}: drawing {number} of {DRAWINGS} is missing, or too many"
        for name, drawings in sorted(characters.items())
        for number in sorted(wanted ^ set(drawings))
    ]
    raise_faults("drawings that are missing or too many", wrong, AGAIN)
    return {
        name: np.stack([drawings[number] for number in sorted(drawings)])
        for name, drawings in sorted(characters.items())
    }


def _decode(data: bytes, size: int, resample: str) -> np.ndarray:
    """[size, size] uint8, strokes 255 on 0, from the bytes of a PNG."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.size != (SIDE, SIDE) or image.mode != "1":
            raise ValueError(f"{image.width}x{image.height} of mode {image.mode}, not {SIDE}x{SIDE} of 1 bit")
        if resample == "nearest":
            grey = image.resize((size, size), Image.Resampling.NEAREST).convert("L")
        else:
            grey = image.convert("L").resize((size, size), Image.Resampling.LANCZOS)
    return 255 - np.asarray(grey)


def vinyals_split() -> tuple[dict[str, str], str]:
    """The split of every character of Omniglot in Vinyals et al. 2016, and the source of that."""
    text = resources.files("fewshot.data").joinpath("splits/omniglot_vinyals.json").read_text(encoding="utf-8")
    listing = json.loads(text)
    split_of = {
        f"{alphabet}/character{number:02d}": listing["letters"][letter]
        for alphabet, letters in listing["alphabets"].items()
        for number, letter in enumerate(letters, start=1)
    }
    return split_of, listing["source"]


def lake_split(background: Mapping[str, object], evaluation: Mapping[str, object]) -> dict[str, str]:
    """The split of every character, if the evaluation set is the test."""
    split_of = {name: "val" if name.split("/")[0] in LAKE_VAL else "train" for name in background}
    return split_of | dict.fromkeys(evaluation, "test")


def random_split(characters: Mapping[str, object]) -> dict[str, str]:
    """The split of every character, drawn at random as in cbfinn/maml."""
    # RandomState, not Generator: NumPy promises that its numbers stay the same in every version.
    order = np.random.RandomState(1).permutation(len(characters))
    names = sorted(characters)
    splits = ["train"] * 1100 + ["val"] * 100 + ["test"] * 423
    return {names[int(index)]: split for index, split in zip(order, splits, strict=True)}
