"""Glyphs: the embedded default dataset, drawn once in seconds from the fonts that matplotlib ships.

A class is a Unicode character that many DejaVu and STIX faces have. An example is the character in one of these faces,
under a small affine change. As Omniglot is split by alphabet, glyphs are split by Unicode block: the test characters
come from writing systems that no training character belongs to. Characters that look alike (Latin A, Greek Alpha,
Cyrillic A) are one class, in the block that comes first, across the splits as within them.

Rotations by 90 degrees turn some classes into others (arrows, box drawings): use them with Omniglot only.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, features

from fewshot.core.errors import FewshotError
from fewshot.core.paths import expand_path
from fewshot.data.bank import SPLITS, Bank, Split, open_banks, write_banks

# Everything that decides what a picture looks like. The name of the bank folder depends on it, so change it freely.
RECIPE: dict[str, Any] = {
    "version": 1,  # raise it when the drawing code changes
    "faces_per_class": 12,  # a character in fewer faces is left out
    "reference_face": "DejaVuSans",  # the face in which characters are compared
    "look_alike": 0.045,  # squared distance over squared norm, up to which two characters are one class
    "ink": 0.64,  # longer side of the glyph over the side of the picture, at scale 1
    "rotation": 15.0,  # degrees, in both directions
    "scale": [0.8, 1.15],  # of width and height, independently
    "shear": 0.15,  # in both directions
    "shift": 0.06,  # over the side of the picture, in both directions
}
POINT_SIZE = 64  # pixels per em of the drawing before the affine change
OVERSAMPLING = 2  # the affine change draws at this many times the size, then averages


def read_glyphs(
    cache: str | Path, examples: int = 20, size: int = 28, seed: int = 0, overwrite: bool = False
) -> dict[str, Bank]:
    """The banks "train", "val" and "test" of images [M, 1, size, size], strokes 255 on 0; drawn on the first call.

    The result is the same bit for bit for one set of font files and one Pillow; the metadata give their versions.

    Args:
        cache: folder that holds the bank folders.
        examples: drawings of each character. The first ones have different faces, then the faces repeat.
        size: side of a picture in pixels.
        seed: of the order of faces and of the affine changes; the classes do not depend on it.
        overwrite: draw although the banks are there.

    Raises:
        FewshotError: an argument is out of range, matplotlib has no fonts, or the cache is damaged.
    """
    if examples < 1 or size < 8 or not 0 <= seed < 2**32:
        raise FewshotError(
            f"glyphs: examples={examples}, size={size}, seed={seed}: give examples >= 1, size >= 8, 0 <= seed < 2**32"
        )
    blocks, faces = _load_blocks(), _find_faces()
    metadata = {
        "dataset": "glyphs",
        "source": "Unicode characters in the DejaVu and STIX fonts of matplotlib",
        "examples": examples,
        "size": size,
        "seed": seed,
        "recipe": RECIPE,
        "blocks": {split: list(blocks[split]) for split in SPLITS},
        "matplotlib": importlib.metadata.version("matplotlib"),
        "pillow": importlib.metadata.version("pillow"),
        "freetype": features.version("freetype2"),
        "fonts_sha256": hashlib.sha256(b"".join(path.read_bytes() for path in faces)).hexdigest(),
    }
    key = hashlib.sha256(json.dumps([metadata, blocks], sort_keys=True).encode()).hexdigest()[:16]
    folder = expand_path(cache) / f"glyphs-{key}"
    if overwrite or not folder.exists():
        splits, counts = _draw(faces, examples, size, seed)
        write_banks(folder, splits, metadata | {"characters": counts})
    return open_banks(folder)


def _load_blocks() -> dict[str, dict[str, tuple[int, int]]]:
    """First and last code point of each Unicode block of each split."""
    text = resources.files("fewshot.data").joinpath("splits/glyphs.json").read_text(encoding="utf-8")
    listing = json.loads(text)
    return {
        split: {name: (int(first, 16), int(last, 16)) for name, (first, last) in listing[split].items()}
        for split in SPLITS
    }


def _find_faces() -> list[Path]:
    """The font files, sorted by name. They are found without importing matplotlib, which takes long."""
    package = importlib.util.find_spec("matplotlib")
    assert package is not None and package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
    faces = sorted(path for path in folder.glob("*.ttf") if path.name.startswith(("DejaVu", "STIX")))
    if RECIPE["reference_face"] not in [path.stem for path in faces] or len(faces) < RECIPE["faces_per_class"]:
        raise FewshotError(f"{folder}: the DejaVu and STIX fonts are not there: reinstall matplotlib with its fonts")
    return faces


def _draw(faces: list[Path], examples: int, size: int, seed: int) -> tuple[dict[str, Split], dict[str, int]]:
    """All splits, and the number of characters left after each step."""
    from matplotlib.ft2font import FT2Font

    charmaps = [frozenset(FT2Font(str(path)).get_charmap()) for path in faces]
    fonts = [ImageFont.truetype(path, POINT_SIZE, layout_engine=ImageFont.Layout.BASIC) for path in faces]
    reference = [path.stem for path in faces].index(RECIPE["reference_face"])
    codes = list(_all_codes())
    candidates = [
        code
        for _, _, code in codes
        if sum(code in charmap for charmap in charmaps) >= RECIPE["faces_per_class"] and code in charmaps[reference]
    ]
    inks = {code: ink for code in candidates if (ink := _ink(fonts[reference], code)) is not None}
    classes = _drop_look_alikes(inks)
    # RandomState, not Generator: NumPy promises that its numbers stay the same in every version.
    random = np.random.RandomState(seed)
    images: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, block, code in codes:
        if code not in classes:
            continue
        drawn = [_ink(font, code) for font, charmap in zip(fonts, charmaps, strict=True) if code in charmap]
        drawn = [ink for ink in drawn if ink is not None]
        order = random.permutation(len(drawn))
        changes = random.uniform(-1, 1, size=(examples, 6))
        images[split] += [_transform(drawn[order[i % len(order)]], change, size) for i, change in enumerate(changes)]
        names[split].append(f"{block}/U+{code:04X}")
    splits = {
        split: Split(np.stack(images[split])[:, None], [examples] * len(names[split]), names[split]) for split in SPLITS
    }
    return splits, {"held": len(candidates), "not empty": len(inks), "distinct": len(classes)}


def _all_codes() -> Iterator[tuple[str, str, int]]:
    """(split, block, code point) of every code point of every block, in the order of the code points."""
    listing = _load_blocks()
    blocks = [(first, last, split, name) for split in SPLITS for name, (first, last) in listing[split].items()]
    for first, last, split, name in sorted(blocks):
        yield from ((split, name, code) for code in range(first, last + 1))


def _ink(font: ImageFont.FreeTypeFont, code: int) -> Image.Image | None:
    """The drawing of a character, cropped to a margin of one pixel; None if there is nothing to see."""
    left, top, right, bottom = (math.floor(edge) for edge in font.getbbox(chr(code)))
    picture = Image.new("L", (max(1, right - left + 2), max(1, bottom - top + 2)))
    ImageDraw.Draw(picture).text((1 - left, 1 - top), chr(code), fill=255, font=font)
    box = picture.getbbox()
    return picture.crop((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1)) if box else None


def _drop_look_alikes(inks: Mapping[int, Image.Image]) -> set[int]:
    """The characters without those that look like an earlier one that is kept."""
    blurred = [
        np.asarray(Image.fromarray(_transform(ink, np.zeros(6), 28)).filter(ImageFilter.GaussianBlur(1)), np.float64)
        for ink in inks.values()
    ]
    # These are whole numbers far below 2**53, so the products are exact in whatever order a BLAS adds them.
    flat = np.stack(blurred).reshape(len(blurred), -1)
    norms = (flat * flat).sum(1)
    distances = norms[:, None] + norms[None] - 2 * flat @ flat.T
    alike = distances <= RECIPE["look_alike"] * np.minimum(norms[:, None], norms[None])
    kept: list[int] = []
    for row in range(len(blurred)):
        if not alike[row, kept].any():
            kept.append(row)
    codes = list(inks)
    return {codes[row] for row in kept}


def _transform(ink: Image.Image, change: np.ndarray, size: int) -> np.ndarray:
    """[size, size] uint8: the drawing, fitted into the picture, under an affine change.

    Args:
        change: [6] rotation, width, height, shear, shift right, shift down, each from -1 to 1; zeros change nothing.
        size: side of the picture in pixels.
    """
    side = size * OVERSAMPLING
    turn, wide, high, shear, right, down = (float(value) for value in change)
    low, top = RECIPE["scale"]
    angle = math.radians(RECIPE["rotation"] * turn)
    fit = RECIPE["ink"] * side / (max(ink.size) - 2)
    # From 1 at 0 to the bounds at -1 and 1.
    width, height = (fit * (1 + (top - 1) * value if value > 0 else 1 + (1 - low) * value) for value in (wide, high))
    spin = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forward = spin @ np.array([[width, width * RECIPE["shear"] * shear], [0.0, height]])
    backward = np.linalg.inv(forward)
    middle = np.array([side * (0.5 + RECIPE["shift"] * right), side * (0.5 + RECIPE["shift"] * down)])
    offset = np.array(ink.size) / 2 - backward @ middle
    # Rounded, so that a last digit that differs between processors changes no pixel.
    rows = [round(float(value), 6) for value in (*backward[0], offset[0], *backward[1], offset[1])]
    drawn = ink.transform((side, side), Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
    return np.asarray(drawn.reduce(OVERSAMPLING))
