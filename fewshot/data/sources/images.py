"""Decode one image file or array to an example of a Bank: 8 bits, square, one channel or three."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fewshot.core.checks import check_choice
from fewshot.core.errors import FewshotError, one_line

Image.init()
# Registered by Pillow, but no photographs: pages and drawings, films, containers, FITS (which can unpack to any size),
# suffixes that other kinds of files have too (Gerber, point clouds), pointers and icons.
OTHER_FORMATS = {"BUFR", "EPS", "FITS", "FLI", "GBR", "GRIB", "HDF5", "IPTC", "MPEG", "PCD", "PDF", "WMF"}
OTHER_FORMATS |= {"CUR", "ICNS", "ICO"}
FORMATS = tuple(sorted(set(Image.registered_extensions().values()) & set(Image.OPEN) - OTHER_FORMATS))
# Pillow opens MPO files, which hold several pictures, as JPEG.
SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO"))
SUFFIX = re.compile(r"\.[a-z]\w*$")
# The first bytes of JPEG, PNG, GIF, TIFF, WebP, JPEG 2000, AVIF, BMP and PPM files.
MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|II\*\0|MM\0\*|RIFF....WEBP|\0\0\0\x0cjP  |....ftyp.{0,40}?avi[fs]"
    rb"|BM....\0{4}....[\x0c-\x7c]\0\0\0|P[1-6]\s+(#[^\n]*\n\s*)*\d+\s+\d+\s",
    re.DOTALL,
)
HEIC = re.compile(rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL)
HEAD_BYTES = 1 << 12  # of a file without a suffix, read to see whether it is an image
LARGEST_SIDE = 1024  # of an example
DARK = 1 << 12  # cameras and microscopes write 12 bits of data as 16
TIFF_BITS, TIFF_PHOTOMETRIC = 258, 262  # numbers of the fields BitsPerSample and PhotometricInterpretation, TIFF 6.0
WHITE_IS_ZERO = 0  # a value of the second; of 8 bits Pillow exchanges light and dark itself
MAX_PIXELS = 89_478_485  # of a decoded image; beyond it Pillow warns of decompression bombs
RESIZES = ("squash", "crop")
FILTERS = {name: Image.Resampling[name.upper()] for name in ("lanczos", "bilinear", "nearest")}


@dataclass(frozen=True)
class ImageSpec:
    """How an image becomes an example.

    Args:
        size: side of the square in pixels.
        channels: 3 (RGB) or 1 (grey).
        resize: "squash" ignores the proportions, as cbfinn/maml does; "crop" resizes the short side to `size` and
            keeps the middle of the long one, as torchvision's Resize and CenterCrop do.
        resample: "lanczos" (cbfinn/maml), "bilinear" (mmfewshot) or "nearest" (Omniglot's drawings).
        upright: an image is turned as its EXIF data say, as photos of a phone are meant. Published datasets are taken
            as they are stored, as in the original programs.

    Raises:
        FewshotError: an argument is out of range.
    """

    size: int
    channels: int = 3
    resize: str = "squash"
    resample: str = "lanczos"
    upright: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= LARGEST_SIDE:
            raise FewshotError(f"dataset.reader.size={self.size!r}: choose 1 to {LARGEST_SIDE} pixels")
        if self.channels not in (1, 3):
            raise FewshotError(f"dataset.reader.channels={self.channels}: choose 1 (grey) or 3 (colour)")
        check_choice("dataset.reader.resize", self.resize, RESIZES)
        check_choice("dataset.reader.resample", self.resample, tuple(FILTERS))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an example."""
        return self.channels, self.size, self.size


def decode_image(data: bytes | np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Decode the bytes of an image file, or convert an array [H, W, 3], [H, W, 1] or [H, W] uint8.

    Of an animation or a file of several pages the first one is taken, transparent pixels lie on white, and of 16 or 12
    bits the upper 8 are kept.

    Returns:
        [C, size, size] uint8.

    Raises:
        ValueError: no image of a known format, a truncated one, one with more pixels than is safe, or an array of
            another shape or type.
    """
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or not data.size or data.ndim not in (2, 3) or data.shape[2:] not in ((), (1,), (3,)):
            raise ValueError(f"an array {data.shape} of {data.dtype}, not [height, width, 3] of uint8")
        return fit_image(Image.fromarray(data.squeeze(2) if data.shape[2:] == (1,) else data), spec)
    with open_image(data, upright=spec.upright) as image:
        return fit_image(image, spec)


@contextmanager
def open_image(data: bytes, *, upright: bool) -> Iterator[Image.Image]:
    """Open the bytes of an image file, in mode RGB or L, as `decode_image` and `ImageSpec` say.

    Raises:
        ValueError: as `decode_image`, or the block failed.
    """
    if not data:
        raise ValueError("it is empty")
    if is_web_page(data):
        raise ValueError("it is a web page")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            bits = _bits(image, data)
            image.load()  # here, where damaged pixels are an error
            if upright:
                with suppress(Exception):  # of damaged EXIF data, which are written anew once the pixels are turned
                    ImageOps.exif_transpose(image, in_place=True)
            yield _to_8_bits(image, bits)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"it has more than {MAX_PIXELS:,} pixels, too many to unpack") from error
    except UnidentifiedImageError as error:  # its own message holds a memory address
        if HEIC.match(data):
            raise ValueError("HEIC, which is not read; save it as JPEG") from error
        raise ValueError("damaged, or no image that Pillow can open") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds of errors on damaged files
        raise ValueError(f"damaged, or unfit ({one_line(error)})") from error


def make_thumbnail(data: bytes, side: int) -> bytes:
    """A JPEG of colour, or a PNG of grey, of at most `side` pixels in width and height, upright.

    Raises:
        ValueError: as `decode_image`.
    """
    with open_image(data, upright=True) as image:
        image.thumbnail((side, side))
        file = io.BytesIO()
        image.save(file, "PNG" if image.mode == "L" else "JPEG", quality=80, optimize=True)
    return file.getvalue()


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits of each channel that a TIFF or PNG says it has; of other formats 8."""
    if image.format == "TIFF":
        return getattr(image, "tag_v2", {}).get(TIFF_BITS, (8,))[0]
    return data[24] if image.format == "PNG" else 8


def _to_8_bits(image: Image.Image, bits: int) -> Image.Image:
    """The image in mode RGB or L.

    Args:
        bits: of each channel in the file. Of 16 bits of colour Pillow has kept the upper 8 already.
    """
    too_dark = f"pixels of 16 bits, all below {DARK:,}, would be nearly black; rescale it, and save it with 8 bits"
    # 16 bits of grey, which Pillow may read as 32; a TIFF may say that it has 12.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = bits if image.format == "TIFF" else 16
        values = np.asarray(image).clip(0, (1 << 16) - 1)
        negative = getattr(image, "tag_v2", {}).get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO
        if bits == 16 and values.max() < DARK:
            raise ValueError(too_dark.replace("black", "white") if negative else too_dark)
        values = (1 << bits) - 1 - values if negative else values
        return Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}; save it with 8 bits")
    colours = [band for band in image.getbands() if band != "A"] if bits == 16 else []
    if colours and max(np.asarray(image.getchannel(band)).max() for band in colours) < DARK >> 8:
        raise ValueError(too_dark)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def fit_image(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    """The image as an example: [C, size, size] uint8."""
    image = image.convert("L" if spec.channels == 1 else "RGB")
    width, height = image.size
    if spec.resize == "crop" and width != height:
        short = min(width, height)
        scaled = (max(spec.size, spec.size * width // short), max(spec.size, spec.size * height // short))
        if scaled[0] * scaled[1] > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels, too narrow to crop")
        image = image.resize(scaled, FILTERS[spec.resample])
        left, top = round((scaled[0] - spec.size) / 2), round((scaled[1] - spec.size) / 2)
        image = image.crop((left, top, left + spec.size, top + spec.size))
    elif image.size != (spec.size, spec.size):
        image = image.resize((spec.size, spec.size), FILTERS[spec.resample])
    return np.asarray(image).reshape(spec.size, spec.size, spec.channels).transpose(2, 0, 1)


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case, with its dot; empty if none begins with a letter."""
    match = SUFFIX.search(name.lower())
    return match[0] if match else ""


def is_image(name: str) -> bool:
    """Whether a file has the suffix of an image."""
    return suffix_of(name) in SUFFIXES


def has_image_magic(head: bytes) -> bool:
    """Whether a file with these first HEAD_BYTES is an image in a format of MAGIC, whatever its name."""
    return MAGIC.match(head) is not None


def is_web_page(head: bytes) -> bool:
    """Whether a file with these first bytes is HTML or XML, which a failed download leaves."""
    start = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


def describe_skipped(names: Iterable[str]) -> dict[str, Any]:
    """Metadata on the files that are no images: their number by suffix, and a note; empty if there are none.

    A note reads "passed over 96 files that are no images: 90 .txt, 6 .db".
    """
    by_suffix = _count_suffixes(names)
    if not by_suffix:
        return {}
    total = sum(by_suffix.values())
    noun = "1 file that is no image" if total == 1 else f"{total:,} files that are no images"
    return {"passed_over": by_suffix, "notes": [f"passed over {noun}: {_list_suffixes(by_suffix)}"]}


def describe_others(names: Iterable[str], folder: str) -> str:
    """What a class folder without images holds, such as " (it holds 300 .heic)"; "" if it is empty."""
    inside = f"/{folder}/"
    by_suffix = _count_suffixes(name for name in names if inside in f"/{name}")
    return f" (it holds {_list_suffixes(by_suffix)})" if by_suffix else ""


def _count_suffixes(names: Iterable[str]) -> dict[str, int]:
    """The number of files by suffix, the most frequent first."""
    counts = Counter(suffix_of(name) or "without a suffix" for name in names)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _list_suffixes(by_suffix: Mapping[str, int]) -> str:
    texts = [f"{count:,} {suffix}" for suffix, count in by_suffix.items()]
    if len(texts) > 6:
        texts[5:] = [f"and {len(texts) - 5} other kinds"]
    return ", ".join(texts)
