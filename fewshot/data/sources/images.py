"""One image file or array to one example of a Bank: 8 bits, a square, one channel or three."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from fewshot.core.errors import FewshotError, one_line

Image.init()
# What Pillow registers besides raster images that it decodes itself: pages and drawings, films, containers that it only
# knows by name, FITS (which may be packed without a limit), and suffixes that other kinds of files have too (Gerber,
# point clouds).
NO_IMAGES = {"BUFR", "EPS", "FITS", "FLI", "GBR", "GRIB", "HDF5", "IPTC", "MPEG", "PCD", "PDF", "WMF"}
NO_IMAGES |= {"CUR", "ICNS", "ICO"}  # pointers and icons, such as a folder's own
FORMATS = tuple(sorted(set(Image.registered_extensions().values()) & set(Image.OPEN) - NO_IMAGES))
# MPO, of several pictures, is opened as the JPEG that it begins with.
SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO"))
MAGIC = ("AVIF", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")  # whose files begin as nothing else does
HEADED = ("BMP", "PPM")  # whose first two letters may begin a text; the rest of the header may not
HEAD_BYTES = 1 << 12  # of a file, which tell whether it is an image
SUFFIX = re.compile(r"\.[a-z]\w*$")
MAX_PIXELS = 89_478_485  # of an image unpacked; from here on Pillow warns of decompression bombs
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class ImageSpec:
    """What an image is made into.

    Args:
        size: side of the square in pixels.
        channels: 3 (RGB) or 1 (grey).
        resize: "squash" whatever the proportions, as cbfinn/maml does, or "crop": the short side becomes `size` and
            the middle of the long one is kept, as torchvision's Resize and CenterCrop do.
        resample: "lanczos" (cbfinn/maml) or "bilinear" (mmfewshot).

    Raises:
        FewshotError: an argument out of range.
    """

    size: int
    channels: int = 3
    resize: str = "squash"
    resample: str = "lanczos"

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or not 1 <= self.size <= 1024:
            raise FewshotError(f"dataset.reader.size={self.size}: choose 1 to 1024 pixels")
        if self.channels not in (1, 3):
            raise FewshotError(f"dataset.reader.channels={self.channels}: choose 1 (grey) or 3 (colour)")
        if self.resize not in ("squash", "crop"):
            raise FewshotError(f"dataset.reader.resize={self.resize}: choose squash or crop")
        if self.resample not in FILTERS:
            raise FewshotError(f"dataset.reader.resample={self.resample}: choose {' or '.join(FILTERS)}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the example."""
        return self.channels, self.size, self.size


def decode_image(data: bytes | np.ndarray, look: ImageSpec) -> np.ndarray:
    """[C, size, size] uint8 of an image file's bytes, or of an array [H, W, 3], [H, W, 1] or [H, W] uint8.

    Pixels are taken as they are stored (an EXIF rotation is not applied, as in the originals); of an animation the
    first frame; transparency lies on white; 16 bits of grey become 8.

    Raises:
        ValueError: no image of a known format, a truncated one, one of more pixels than Pillow thinks safe, or an array
            of another kind.
    """
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or not data.size or data.ndim not in (2, 3) or data.shape[2:] not in ((), (1,), (3,)):
            raise ValueError(f"an array {data.shape} of {data.dtype}, not [height, width, 3] of uint8")
        return _square(Image.fromarray(data.squeeze(2) if data.shape[2:] == (1,) else data), look)
    if not data:
        raise ValueError("it is empty")
    if web_page(data):
        raise ValueError("it is a web page")
    try:
        with SILENCE, Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return _square(_eight_bits(image), look)
    except Image.DecompressionBombError as error:
        raise ValueError("it has more pixels than is safe to unpack") from error
    except UnidentifiedImageError as error:  # whose own words hold an address in memory
        raise ValueError("damaged, or no image that Pillow can open") from error
    except _UnfitError:
        raise
    except Exception as error:  # damage can look like anything
        raise ValueError(f"damaged, or no image ({one_line(error)})") from error


def suffix_of(name: str) -> str:
    """What a file's name ends with from its last dot on, in small letters; empty where that begins with no letter."""
    found = SUFFIX.search(name.lower())
    return found[0] if found else ""


def is_image(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return suffix_of(name) in SUFFIXES


def holds_image(head: bytes) -> bool:
    """Whether a file of these first HEAD_BYTES is an image in a format of MAGIC or HEADED, whatever its name."""
    # HEIC and AVIF files lie in one kind of container, whose first box says which of them it is.
    box = head[: int.from_bytes(head[:4])]
    if any(_begins_like(kind, head[:16]) for kind in MAGIC if kind != "AVIF" or b"avif" in box or b"avis" in box):
        return True
    try:
        with SILENCE, Image.open(io.BytesIO(head), formats=HEADED):
            return True
    except Exception:  # damage can look like anything
        return False


def _begins_like(kind: str, start: bytes) -> bool:
    accept = Image.OPEN[kind][1] if kind in Image.OPEN else None
    return accept is not None and accept(start) is True  # a text where Pillow was built without the format


def count_suffixes(names: Iterable[str]) -> dict[str, int]:
    """How many files there are of each suffix, the most first; those without one under "without a suffix"."""
    counts = Counter(suffix_of(name) or "without a suffix" for name in names)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def describe_suffixes(counts: Mapping[str, int]) -> str:
    """Such as "96 files that are no images: 90 .txt, 6 .db"."""
    kinds = [f"{count:,} {suffix}" for suffix, count in counts.items()]
    more = f" and {len(kinds) - 5} other kinds" if len(kinds) > 6 else ""
    total = sum(counts.values())
    noun = "1 file that is no image" if total == 1 else f"{total:,} files that are no images"
    return f"{noun}: {', '.join(kinds[:5] if more else kinds)}{more}"


def web_page(head: bytes) -> bool:
    """Whether a file begins like the pages that download links turn into."""
    start = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


class _Silence:
    """No warnings of odd metadata, of which ImageNet has its share, while any thread is in here.

    Filters are the whole process's: were each thread to keep and restore them, the last one would restore another's.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._filters = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._filters = warnings.catch_warnings(action="ignore")
                self._filters.__enter__()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.__exit__(None, None, None)


SILENCE = _Silence()


class _UnfitError(ValueError):
    """A whole image that is of no use here."""


def _eight_bits(image: Image.Image) -> Image.Image:
    """RGB or L."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        if image.mode == "I" and image.format in ("PNG", "PPM"):  # where Pillow reads 16 bits as 32
            values = np.asarray(image)
            if values.min() >= 0 and values.max() < 1 << 16:
                return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
        raise _UnfitError(f"pixels of mode {image.mode}; save it with 8 bits")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _square(image: Image.Image, look: ImageSpec) -> np.ndarray:
    image = image.convert("L" if look.channels == 1 else "RGB")
    width, height = image.size
    if look.resize == "crop" and width != height:
        short = min(width, height)
        scaled = (max(look.size, look.size * width // short), max(look.size, look.size * height // short))
        if scaled[0] * scaled[1] > MAX_PIXELS:
            raise _UnfitError(f"{width}x{height} pixels, too narrow to crop")
        image = image.resize(scaled, FILTERS[look.resample])
        left, top = round((scaled[0] - look.size) / 2), round((scaled[1] - look.size) / 2)
        image = image.crop((left, top, left + look.size, top + look.size))
    elif image.size != (look.size, look.size):
        image = image.resize((look.size, look.size), FILTERS[look.resample])
    return np.asarray(image).reshape(look.size, look.size, look.channels).transpose(2, 0, 1)
