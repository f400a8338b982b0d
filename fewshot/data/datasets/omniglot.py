"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people (Lake et al. 2015).

The files are the official images_background.zip and images_evaluation.zip (github.com/brendenlake/omniglot,
folder python) or what they unpack to. Rotated classes are not made here but by the sampler.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fewshot.core.errors import FewshotError, one_line
from fewshot.core.paths import expand_path
from fewshot.data.bank import Bank, Split, open_banks, write_banks
from fewshot.data.sources.faults import faults_listed, raise_faults

CHARACTERS = {"images_background": 964, "images_evaluation": 659}
DRAWINGS = 20  # of each character, numbered from 1
SIDE = 105  # pixels of the original, 1 bit each, strokes black
MAX_BYTES = 1 << 16  # of one png, unpacked; the largest original has under 1 KB
# The background alphabets held out by the split "lake": those that Vinyals et al. validate on, 172 characters.
LAKE_VAL = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
AGAIN = (
    "remove what is there and fetch images_background.zip and images_evaluation.zip again "
    "(dataset.reader.download=true does it)"
)


def read(
    root: str | Path,
    cache: str | Path,
    split: str = "vinyals",
    size: int = 28,
    resample: str = "lanczos",
    download: bool = False,
    overwrite: bool = False,
) -> dict[str, Bank]:
    """The banks "train", "val" and "test" of images [M, 1, size, size] uint8, strokes 255 on 0.

    Class names are "<Alphabet>/character<NN>". The originals are read once, then the cache is opened without them.

    Args:
        root: folder with the two zips or the two unpacked folders, or with either below `omniglot-py` as torchvision
            has them.
        cache: folder in which the banks are kept, in a folder of their own.
        split: "vinyals": 1028/172/423 characters (Vinyals et al. 2016); all rotations of a character share a split.
            "lake": test is the evaluation set of 659, val the background alphabets of `LAKE_VAL` (a choice of this
            toolkit: Lake et al. hold none out), train the 792 characters left.
            "random1200": all characters pooled, 1100/100/423 as in cbfinn/maml. The original shuffles in the order
            that its file system lists folders in, so its split cannot be had again; this one shuffles sorted names.
        size: side of a picture in pixels.
        resample: "lanczos" filters in 8-bit grey and is smooth. "nearest" picks single pixels, so only 0 and 255
            occur: Pillow does this to 1-bit images whatever filter is asked, so the published programs (cbfinn/maml,
            openai/supervised-reptile) had such pictures.
        download: fetch what is missing through torchvision, into `root`.
        again: read the originals although the banks are there.

    Raises:
        FewshotError: an argument out of range, files that are missing or damaged, or a damaged cache.
    """
    if split not in ("vinyals", "lake", "random1200"):
        raise FewshotError(f"omniglot: split={split!r}: choose vinyals, lake or random1200")
    if resample not in ("lanczos", "nearest"):
        raise FewshotError(f"omniglot: resample={resample!r}: choose lanczos or nearest")
    if not 1 <= size <= SIDE:
        raise FewshotError(f"omniglot: size={size}: choose 1 to {SIDE} pixels")
    root, cache = expand_path(root), expand_path(cache)
    folder = cache / f"omniglot-{split}-{size}-{resample}"
    with faults_listed(cache / "omniglot-faults.txt"):
        if overwrite or not folder.exists():
            _convert(folder, root, split, size, resample, download)
    return open_banks(folder)


def _convert(folder: Path, root: Path, split: str, size: int, resample: str, download: bool) -> None:
    """Read the originals and write the banks."""
    parts = {
        name: _characters(_source(root, name, download), size, resample, expected)
        for name, expected in CHARACTERS.items()
    }
    characters = {name: drawings for part in parts.values() for name, drawings in sorted(part.items())}
    vinyals, source = _vinyals()
    stray = sorted(set(vinyals) ^ set(characters))
    stray = [f"{root}: {name} is missing, or is no character of Omniglot" for name in stray]
    raise_faults("characters too many or missing", stray, AGAIN)
    if split == "lake":
        source = f"Lake et al. 2015, background and evaluation; val: {', '.join(LAKE_VAL)}"
        where = _lake(parts["images_background"], parts["images_evaluation"])
    elif split == "random1200":
        source = "1100/100/423 of the sorted characters, shuffled by numpy RandomState(1)"
        where = _random1200(characters)
    else:
        where = vinyals
    about = {"dataset": "omniglot", "source": "Omniglot (Lake et al. 2015)", "split": split, "split_source": source}
    about |= {"size": size, "resample": resample}
    write_banks(folder, _banks(characters, where), about)


def _source(root: Path, name: str, download: bool) -> Path:
    """The zip or folder of one half. The zip comes first: it is what the authors published."""
    places = [root, *(sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else [])]
    for path in [place / f"{name}.zip" for place in places]:
        if path.is_file():
            return path
    for path in [place / name for place in places]:
        if path.is_dir():
            return path
    if not download:
        raise FewshotError(
            f"{root}: neither {name}.zip nor the folder {name} is there: put images_background.zip and "
            "images_evaluation.zip there, or unpack them there, or set dataset.reader.download=true"
        )
    from torchvision.datasets import Omniglot

    try:
        Omniglot(root, background=name == "images_background", download=True)
    except (OSError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise FewshotError(
            f"{root}: fetching {name}.zip failed ({one_line(error)}): put it there by hand, "
            "from https://github.com/brendenlake/omniglot, folder python"
        ) from error
    return _source(root, name, False)


def _characters(source: Path, size: int, resample: str, expected: int) -> dict[str, np.ndarray]:
    """Every character of a zip or folder: name to [20, size, size] uint8.

    Raises:
        FewshotError: the source cannot be read, a drawing is missing, damaged or of another size, or there are not
            `expected` characters.
    """
    found: dict[str, dict[int, np.ndarray]] = {}
    stray, damaged = [], []
    try:
        for name, data in _drawings(source):
            character, number = name.rsplit("/", 1)[0], _number(name)
            if not 1 <= number <= DRAWINGS or number in found.setdefault(character, {}):
                stray.append(f"{source}: {name} is not one of {DRAWINGS} drawings")
                continue
            try:
                found[character][number] = _picture(data, size, resample)
            except (*DAMAGED, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
                reason = "no image" if isinstance(error, UnidentifiedImageError) else one_line(error)
                damaged.append(f"{source}: {name}: not a readable drawing ({reason})")
    except DAMAGED as error:
        raise FewshotError(f"{source}: cannot be read to its end ({one_line(error)}): {AGAIN}") from error
    raise_faults("files that are no drawings", stray, f"remove it, or {AGAIN}")
    raise_faults("damaged drawings", damaged, AGAIN)
    missing = [
        f"{source}: {character}: drawing {number} of {DRAWINGS} is missing"
        for character, drawings in sorted(found.items())
        for number in range(1, DRAWINGS + 1)
        if number not in drawings
    ]
    raise_faults("drawings that are missing", missing, AGAIN)
    if len(found) != expected:
        raise FewshotError(f"{source}: {len(found)} characters, expected {expected}: {AGAIN}")
    return {name: np.stack([drawings[i] for i in sorted(drawings)]) for name, drawings in found.items()}


def _drawings(source: Path) -> Iterator[tuple[str, bytes]]:
    """("<Alphabet>/character<NN>/<file>.png", its bytes) of every drawing; hidden and other files are passed over."""
    if source.is_dir():
        for path in sorted(source.rglob("*.png")):
            if name := _drawing(path.relative_to(source).as_posix()):
                with path.open("rb") as file:
                    yield name, file.read(MAX_BYTES)
        return
    with zipfile.ZipFile(source) as archive:
        for name in sorted(archive.namelist()):
            if drawing := _drawing(name):
                try:
                    with archive.open(name) as file:
                        data = file.read(MAX_BYTES)
                except DAMAGED as error:
                    raise FewshotError(f"{source}: {name}: cannot be unpacked ({one_line(error)}): {AGAIN}") from error
                yield drawing, data


def _drawing(name: str) -> str | None:
    """`<Alphabet>/character<NN>/<file>.png` of a drawing's path, folders before it and in between left out."""
    match = re.search(r"(?:^|/)([^/]+/character[^/]*)/(?:[^/]+/)?([^/.][^/]*\.png)$", name)
    return None if match is None or match[1].startswith((".", "__MACOSX")) else f"{match[1]}/{match[2]}"


def _number(name: str) -> int:
    """The number of a drawing, from its file's name `<dddd>_<NN>.png`; 0 for another name."""
    match = re.fullmatch(r"\d{4}_(\d\d)\.png", name.rsplit("/", 1)[1], re.ASCII)
    return int(match.group(1)) if match else 0


def _picture(data: bytes, size: int, resample: str) -> np.ndarray:
    """[size, size] uint8, strokes 255 on 0."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.size != (SIDE, SIDE) or image.mode != "1":
            raise ValueError(f"{image.width}x{image.height} of mode {image.mode}, not {SIDE}x{SIDE} of 1 bit")
        if resample == "nearest":
            grey = image.resize((size, size), Image.Resampling.NEAREST).convert("L")
        else:
            grey = image.convert("L").resize((size, size), Image.Resampling.LANCZOS)
    return 255 - np.asarray(grey)


def _vinyals() -> tuple[dict[str, str], str]:
    """The split of every character of Omniglot, and where this comes from."""
    text = resources.files("fewshot.data").joinpath("splits/omniglot_vinyals.json").read_text(encoding="utf-8")
    listing = json.loads(text)
    where = {
        f"{alphabet}/character{number:02d}": listing["letters"][letter]
        for alphabet, letters in listing["alphabets"].items()
        for number, letter in enumerate(letters, start=1)
    }
    return where, listing["source"]


def _lake(background: Mapping[str, object], evaluation: Mapping[str, object]) -> dict[str, str]:
    where = {name: "val" if name.split("/")[0] in LAKE_VAL else "train" for name in background}
    return where | dict.fromkeys(evaluation, "test")


def _random1200(characters: Mapping[str, object]) -> dict[str, str]:
    # RandomState, not Generator: NumPy promises that its numbers stay the same in every version.
    order = np.random.RandomState(1).permutation(len(characters))
    names = sorted(characters)
    splits = ["train"] * 1100 + ["val"] * 100 + ["test"] * 423
    return {names[int(index)]: split for index, split in zip(order, splits, strict=True)}


def _banks(characters: Mapping[str, np.ndarray], where: Mapping[str, str]) -> dict[str, Split]:
    """The splits, the classes of each sorted by name."""
    banks = {}
    for split in ("train", "val", "test"):
        names = [name for name in sorted(characters) if where[name] == split]
        examples = np.concatenate([characters[name] for name in names])[:, None]
        banks[split] = Split(examples, [len(characters[name]) for name in names], names)
    return banks
