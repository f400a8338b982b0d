"""Glyphs: the embedded default dataset, drawn once in seconds from the fonts that matplotlib ships.

A class is a Unicode character that many DejaVu and STIX faces hold, an example is one of these faces under a
small affine change. As Omniglot is split by alphabet, so are the glyphs by Unicode block: the test characters
come from writing systems that no training character belongs to. Characters whose drawings look alike (Latin A,
Greek Alpha, Cyrillic A) are one class, kept in the block that comes first, across the splits as within them.

Rotations by 90 degrees turn some classes into others (arrows, box drawings): leave them to Omniglot.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFilter, ImageFont, features

from fewshot.core.errors import FewshotError
from fewshot.core.paths import expand_path
from fewshot.data.bank import Bank, Split, open_banks, write_banks

# Unicode blocks (first and last code point, Blocks.txt of the standard), each wholly in one split.
BLOCKS: dict[str, dict[str, tuple[int, int]]] = {
    "train": {
        "Basic Latin": (0x0000, 0x007F),
        "Latin-1 Supplement": (0x0080, 0x00FF),
        "Latin Extended-A": (0x0100, 0x017F),
        "Latin Extended-B": (0x0180, 0x024F),
        "IPA Extensions": (0x0250, 0x02AF),
        "Spacing Modifier Letters": (0x02B0, 0x02FF),
        "Combining Diacritical Marks": (0x0300, 0x036F),
        "Phonetic Extensions": (0x1D00, 0x1D7F),
        "Phonetic Extensions Supplement": (0x1D80, 0x1DBF),
        "Latin Extended Additional": (0x1E00, 0x1EFF),
        "General Punctuation": (0x2000, 0x206F),
        "Superscripts and Subscripts": (0x2070, 0x209F),
        "Currency Symbols": (0x20A0, 0x20CF),
        "Letterlike Symbols": (0x2100, 0x214F),
        "Number Forms": (0x2150, 0x218F),
        "Miscellaneous Technical": (0x2300, 0x23FF),
        "Box Drawing": (0x2500, 0x257F),
        "Block Elements": (0x2580, 0x259F),
        "Geometric Shapes": (0x25A0, 0x25FF),
        "Miscellaneous Symbols": (0x2600, 0x26FF),
        "Latin Extended-C": (0x2C60, 0x2C7F),
        "Supplemental Punctuation": (0x2E00, 0x2E7F),
        "Modifier Tone Letters": (0xA700, 0xA71F),
        "Latin Extended-D": (0xA720, 0xA7FF),
        "Alphabetic Presentation Forms": (0xFB00, 0xFB4F),
    },
    "val": {
        "Armenian": (0x0530, 0x058F),
        "Georgian": (0x10A0, 0x10FF),
        "Mathematical Operators": (0x2200, 0x22FF),
        "Miscellaneous Mathematical Symbols-A": (0x27C0, 0x27EF),
        "Miscellaneous Mathematical Symbols-B": (0x2980, 0x29FF),
        "Supplemental Mathematical Operators": (0x2A00, 0x2AFF),
    },
    "test": {
        "Greek and Coptic": (0x0370, 0x03FF),
        "Cyrillic": (0x0400, 0x04FF),
        "Cyrillic Supplement": (0x0500, 0x052F),
        "Greek Extended": (0x1F00, 0x1FFF),
        "Arrows": (0x2190, 0x21FF),
        "Supplemental Arrows-A": (0x27F0, 0x27FF),
        "Miscellaneous Symbols and Arrows": (0x2B00, 0x2BFF),
    },
}
# Everything that decides what a picture looks like. The cache folder is named after it, so change it freely.
RECIPE: dict[str, Any] = {
    "version": 1,  # to be raised when the drawing code changes
    "faces_per_class": 12,  # a character in fewer faces is left out
    "reference_face": "DejaVuSans",  # look-alikes are judged in this one
    "look_alike": 0.045,  # squared distance over squared norm, below which two characters are one
    "ink": 0.64,  # longer side of the glyph over the side of the picture, at scale 1
    "rotation": 15.0,  # degrees, either way
    "scale": [0.8, 1.15],  # of width and height, each by itself
    "shear": 0.15,  # either way
    "shift": 0.06,  # over the side of the picture, either way
}
POINT_SIZE = 64  # pixels per em of the outlines before the affine change
OVERSAMPLING = 2  # the affine change draws this many times finer, then averages


def read(
    cache: str | Path, examples: int = 20, size: int = 28, seed: int = 0, overwrite: bool = False
) -> dict[str, Bank]:
    """The banks "train", "val" and "test" of images [M, 1, size, size], strokes 255 on 0; drawn on the first call.

    The result is the same to the bit for one set of font files and one Pillow; `about` names the versions.

    Args:
        cache: folder in which the banks are kept, in a folder of their own.
        examples: drawings of each character. The first ones use different faces, then faces come again.
        size: side of a picture in pixels.
        seed: of the faces' order and the affine changes; the classes do not depend on it.
        again: draw them although the banks are there.

    Raises:
        FewshotError: an argument out of range, matplotlib without its fonts, or a damaged cache.
    """
    if examples < 1 or size < 8 or not 0 <= seed < 2**32:
        raise FewshotError(
            f"glyphs: examples={examples}, size={size}, seed={seed}: give examples >= 1, size >= 8, 0 <= seed < 2**32"
        )
    faces = _faces()
    about = {
        "dataset": "glyphs",
        "source": "Unicode characters in the DejaVu and STIX fonts of matplotlib",
        "examples": examples,
        "size": size,
        "seed": seed,
        "recipe": RECIPE,
        "blocks": {split: list(blocks) for split, blocks in BLOCKS.items()},
        "matplotlib": matplotlib.__version__,
        "pillow": PIL.__version__,
        "freetype": features.version("freetype2"),
        "fonts_sha256": hashlib.sha256(b"".join(path.read_bytes() for path in faces)).hexdigest(),
    }
    key = hashlib.sha256(json.dumps([about, BLOCKS], sort_keys=True).encode()).hexdigest()[:16]
    folder = expand_path(cache) / f"glyphs-{key}"
    if overwrite or not folder.exists():
        splits, found = _draw(faces, examples, size, seed)
        write_banks(folder, splits, about | {"characters": found})
    return open_banks(folder)


def _faces() -> list[Path]:
    """The font files, sorted by name."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = sorted(path for path in folder.glob("*.ttf") if path.name.startswith(("DejaVu", "STIX")))
    if RECIPE["reference_face"] not in [path.stem for path in faces] or len(faces) < RECIPE["faces_per_class"]:
        raise FewshotError(f"{folder}: the DejaVu and STIX fonts are not there: reinstall matplotlib with its fonts")
    return faces


def _draw(faces: list[Path], examples: int, size: int, seed: int) -> tuple[dict[str, Split], dict[str, int]]:
    """All splits, and how many characters were left after each step."""
    charmaps = [frozenset(FT2Font(str(path)).get_charmap()) for path in faces]
    fonts = [ImageFont.truetype(path, POINT_SIZE, layout_engine=ImageFont.Layout.BASIC) for path in faces]
    reference = fonts[[path.stem for path in faces].index(RECIPE["reference_face"])]
    held = [
        code
        for _, _, code in _codes()
        if sum(code in charmap for charmap in charmaps) >= RECIPE["faces_per_class"]
        and code in charmaps[fonts.index(reference)]
    ]
    inks = {code: ink for code in held if (ink := _ink(reference, code)) is not None}
    classes = _distinct(inks)
    # RandomState, not Generator: NumPy promises that its numbers stay the same in every version.
    random = np.random.RandomState(seed)
    images: dict[str, list[np.ndarray]] = {split: [] for split in BLOCKS}
    names: dict[str, list[str]] = {split: [] for split in BLOCKS}
    for split, block, code in _codes():
        if code not in classes:
            continue
        drawn = [_ink(font, code) for font, charmap in zip(fonts, charmaps, strict=True) if code in charmap]
        inked = [ink for ink in drawn if ink is not None]
        order = random.permutation(len(inked))
        changes = random.uniform(-1, 1, size=(examples, 6))
        images[split] += [_change(inked[order[i % len(order)]], change, size) for i, change in enumerate(changes)]
        names[split].append(f"{block}/U+{code:04X}")
    splits = {
        split: Split(np.stack(images[split])[:, None], [examples] * len(names[split]), names[split]) for split in BLOCKS
    }
    return splits, {"held": len(held), "not empty": len(inks), "distinct": len(classes)}


def _codes() -> Iterator[tuple[str, str, int]]:
    """(split, block, code point) of every code point of every block, in the order of the code points."""
    blocks = [(first, last, split, name) for split in BLOCKS for name, (first, last) in BLOCKS[split].items()]
    for first, last, split, name in sorted(blocks):
        yield from ((split, name, code) for code in range(first, last + 1))


def _ink(font: ImageFont.FreeTypeFont, code: int) -> Image.Image | None:
    """The drawing of a character, cropped to a margin of one pixel; None if there is nothing to see."""
    left, top, right, bottom = (math.floor(edge) for edge in font.getbbox(chr(code)))
    picture = Image.new("L", (max(1, right - left + 2), max(1, bottom - top + 2)))
    ImageDraw.Draw(picture).text((1 - left, 1 - top), chr(code), fill=255, font=font)
    box = picture.getbbox()
    return picture.crop((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1)) if box else None


def _distinct(inks: Mapping[int, Image.Image]) -> set[int]:
    """The characters left when each one that looks like an earlier one that was kept is dropped."""
    soft = [
        np.asarray(Image.fromarray(_change(ink, np.zeros(6), 28)).filter(ImageFilter.GaussianBlur(1)), np.float64)
        for ink in inks.values()
    ]
    # Whole numbers far below 2**53: the products are exact, whatever order a BLAS adds them in.
    flat = np.stack(soft).reshape(len(soft), -1)
    norms = (flat * flat).sum(1)
    distances = norms[:, None] + norms[None] - 2 * flat @ flat.T
    alike = distances <= RECIPE["look_alike"] * np.minimum(norms[:, None], norms[None])
    kept: list[int] = []
    for row in range(len(soft)):
        if not alike[row, kept].any():
            kept.append(row)
    codes = list(inks)
    return {codes[row] for row in kept}


def _change(ink: Image.Image, change: np.ndarray, size: int) -> np.ndarray:
    """[size, size] uint8: the drawing fitted into the picture, under an affine change.

    Args:
        change: [6] rotation, width, height, shear, shift right, shift down, each from -1 to 1; zeros leave the
            drawing as it is.
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
