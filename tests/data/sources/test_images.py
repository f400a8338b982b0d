"""Images: what each kind of file becomes; a damaged one gives an example or a reason, and nothing else."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps
from torchvision.transforms import InterpolationMode, v2

from fewshot.core.errors import FewshotError
from fewshot.data.sources.images import (
    FORMATS,
    HEAD_BYTES,
    SUFFIXES,
    ImageSpec,
    decode_image,
    describe_skipped,
    has_image_magic,
    is_image,
    is_web_page,
)

# In a conversion Pillow's warnings are ignored, see `convert`.
pytestmark = pytest.mark.filterwarnings("ignore")

SIDE = 24
RANDOM = np.random.RandomState(0)
COLOUR = RANDOM.randint(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
GREY = RANDOM.randint(0, 256, (SIDE, SIDE)).astype(np.uint8)
ALPHA = RANDOM.randint(0, 256, (SIDE, SIDE)).astype(np.uint8)
PALETTE = RANDOM.randint(0, 256, (8, 3)).astype(np.uint8)
INDEX = RANDOM.randint(0, 8, (SIDE, SIDE)).astype(np.uint8)
SLOPE = np.stack(np.broadcast_arrays(*np.ogrid[0:250:24j, 0:250:24j], 60), axis=2).astype(np.uint8)  # JPEG likes it


def encoded(image: Image.Image, kind: str, **choices) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **choices)
    return file.getvalue()


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """[H, W, 3] of pixels [H, W] or [H, W, 3] on white."""
    values, alpha = np.dstack([pixels] * (1 if pixels.ndim == 3 else 3)).astype(float), alpha[:, :, None] / 255
    return values * alpha + 255 * (1 - alpha)


def paletted() -> Image.Image:
    image = Image.fromarray(INDEX)
    image.putpalette(PALETTE.tobytes())
    return image


def picture(mode: str) -> tuple[Image.Image, np.ndarray]:
    """An image of a mode, and its pixels in RGB."""
    if mode == "1":
        return Image.fromarray(GREY > 99), np.dstack([np.where(GREY > 99, 255, 0)] * 3)
    if mode == "L":
        return Image.fromarray(GREY), np.dstack([GREY] * 3)
    if mode == "LA":
        return Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), on_white(GREY, ALPHA)
    if mode == "P":
        return paletted(), PALETTE[INDEX]
    if mode == "RGB":
        return Image.fromarray(COLOUR), COLOUR
    if mode == "RGBA":
        return Image.fromarray(np.dstack([COLOUR, ALPHA])), on_white(COLOUR, ALPHA)
    if mode == "CMYK":  # inks are what is missing of white, and no black
        inks = [Image.fromarray(plane) for plane in np.moveaxis(255 - COLOUR, 2, 0)]
        return Image.merge("CMYK", [*inks, Image.new("L", (SIDE, SIDE))]), COLOUR
    assert mode == "I;16"
    return Image.fromarray(GREY.astype(np.uint16) * 256 + ALPHA), np.dstack([GREY] * 3)


WHOLE = [
    *[("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
    *[("BMP", mode) for mode in ("1", "P", "RGB")],
    *[("GIF", mode) for mode in ("1", "P")],
    *[("TIFF", mode) for mode in ("LA", "RGBA", "CMYK", "I;16")],
    *[("PPM", mode) for mode in ("1", "L", "RGB")],
    *[("WEBP", mode) for mode in ("RGB", "RGBA")],
]


@pytest.mark.parametrize(("kind", "mode"), WHOLE)
def test_an_image_of_the_size_keeps_its_pixels_on_white(kind: str, mode: str):
    image, expected = picture(mode)
    choices = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    made = decode_image(encoded(image, kind, **choices), ImageSpec(SIDE))
    assert made.shape == (3, SIDE, SIDE) and made.dtype == np.uint8
    blended = mode in ("LA", "RGBA")  # in whole numbers, by Pillow
    assert np.abs(made.transpose(1, 2, 0) - np.asarray(expected, float)).max() <= (1 if blended else 0)


@pytest.mark.parametrize(("kind", "transparency"), [("PNG", bytes([255, 0, 128])), ("PNG", 3), ("GIF", 3)])
def test_a_transparent_colour_of_a_palette_lies_on_white(kind: str, transparency: bytes | int):
    alpha = np.full(256, 255)
    if isinstance(transparency, int):
        alpha[transparency] = 0
    else:
        alpha[: len(transparency)] = list(transparency)
    data = encoded(paletted(), kind, transparency=transparency)
    made = decode_image(data, ImageSpec(SIDE)).transpose(1, 2, 0)
    assert np.abs(made - on_white(PALETTE[INDEX], alpha[INDEX])).max() <= 1


@pytest.mark.parametrize(("mode", "value"), [("L", int(GREY[0, 0])), ("RGB", tuple(COLOUR[0, 0].tolist())), ("1", 0)])
def test_a_colour_that_a_png_calls_transparent_is_white(mode: str, value):
    image, expected = picture(mode)
    colour = expected == np.asarray(value)
    made = decode_image(encoded(image, "PNG", transparency=value), ImageSpec(SIDE)).transpose(1, 2, 0)
    assert np.array_equal(made, np.where(colour.all(2, keepdims=True), 255, expected))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_is_near_to_what_it_was_made_of(mode: str):
    data = encoded(Image.fromarray(SLOPE).convert(mode), "JPEG", quality=98, subsampling=0)
    assert (b"Adobe" in data) == (mode == "CMYK")  # inverted inks, as Photoshop has them
    expected = np.asarray(Image.fromarray(SLOPE).convert("L").convert("RGB")) if mode == "L" else SLOPE
    assert np.abs(decode_image(data, ImageSpec(SIDE)).transpose(1, 2, 0) - expected.astype(float)).max() < 8


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pgm(kind: str, values: np.ndarray, maximum: int = 65535) -> bytes:
    return f"{kind}\n{SIDE} {SIDE}\n{maximum}\n".encode() + values.astype(">u2").tobytes()


def test_sixteen_bits_become_their_upper_eight():
    wide = COLOUR.astype(np.uint16) * 256 + ALPHA[:, :, None]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    assert np.array_equal(decode_image(png(SIDE, SIDE, 16, 2, rows), ImageSpec(SIDE)), COLOUR.transpose(2, 0, 1))
    made = decode_image(pgm("P6", wide), ImageSpec(SIDE))
    assert np.abs(made.transpose(1, 2, 0) - COLOUR.astype(float)).max() <= 1  # Pillow rounds these
    assert np.array_equal(decode_image(pgm("P5", wide[:, :, 0]), ImageSpec(SIDE, channels=1))[0], COLOUR[:, :, 0])
    big = Image.frombytes("I;16B", (SIDE, SIDE), wide[:, :, 0].astype(">u2").tobytes())
    assert np.array_equal(decode_image(encoded(big, "TIFF"), ImageSpec(SIDE, channels=1))[0], COLOUR[:, :, 0])


def test_twelve_bits_become_their_upper_eight():
    values = (GREY.astype(np.uint16) * 16 + ALPHA % 16).ravel()
    first, second = values[::2], values[1::2]  # two values lie in three bytes
    packed = np.stack([first >> 4, first % 16 << 4 | second >> 8, second % 256], 1).astype(np.uint8).tobytes()
    fields = {256: SIDE, 257: SIDE, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: SIDE, 279: len(packed)}
    listing = b"".join(struct.pack("<HHII", field, 4, 1, value) for field, value in fields.items())
    data = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(fields)) + listing + bytes(4)
    assert np.array_equal(decode_image(data, ImageSpec(SIDE, channels=1))[0], GREY)


def test_sixteen_bits_of_which_twelve_are_used_are_refused():
    values = GREY.astype(np.uint16) * 16 + 15
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.dstack([values] * 3))
    colour = png(SIDE, SIDE, 16, 2, rows)
    grey = [encoded(Image.fromarray(values), kind) for kind in ("TIFF", "PNG")]
    clear = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.dstack([*[values] * 3, values * 0 + 65535]))
    for data in (*grey, pgm("P5", values), colour, png(SIDE, SIDE, 16, 6, clear)):
        with pytest.raises(ValueError, match="pixels of 16 bits, all below 4,096, would be nearly black; rescale it"):
            decode_image(data, ImageSpec(SIDE))


def test_a_tiff_of_sixteen_bits_in_which_white_is_zero_is_no_negative():
    wide = GREY.astype(np.uint16) * 256 + 255
    data = encoded(Image.fromarray(65535 - wide), "TIFF", tiffinfo={262: 0})
    assert np.array_equal(decode_image(data, ImageSpec(SIDE, channels=1))[0], GREY)
    with pytest.raises(ValueError, match="all below 4,096, would be nearly white"):
        decode_image(encoded(Image.fromarray(GREY.astype(np.uint16)), "TIFF", tiffinfo={262: 0}), ImageSpec(SIDE))


def test_an_image_of_a_phone_that_pillow_cannot_open_is_named():
    with pytest.raises(ValueError, match="^HEIC, which is not read; save it as JPEG$"):
        decode_image(b"\0\0\0\x18ftypheic" + bytes(40), ImageSpec(SIDE))


FLOATS = Image.fromarray(GREY.astype(np.float32))
TOO_DEEP = {
    "float TIFF": encoded(FLOATS, "TIFF"),
    "integer TIFF": encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"),
    "float PFM": encoded(FLOATS, "PPM"),
}


@pytest.mark.parametrize("kind", TOO_DEEP)
def test_pixels_of_32_bits_are_refused(kind: str):
    with pytest.raises(ValueError, match="^damaged, or unfit .pixels of mode [IF]; save it with 8 bits.$"):
        decode_image(TOO_DEEP[kind], ImageSpec(SIDE))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_images_the_first_is_taken(kind: str):
    first, second = paletted().convert("RGB"), Image.new("RGB", (SIDE, SIDE), "red")
    choices = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], **choices)
    assert np.array_equal(decode_image(data, ImageSpec(SIDE)).transpose(1, 2, 0), PALETTE[INDEX])


@pytest.mark.parametrize(
    ("kind", "orientation"),
    [*(("JPEG", each) for each in range(1, 10)), ("PNG", 6), ("WEBP", 6), ("TIFF", 6)],  # 9 is none
)
def test_a_photo_is_turned_as_its_exif_data_say_where_that_is_asked_for(kind: str, orientation: int):
    exif = Image.Exif()
    exif[0x112] = orientation
    turned, plain = encoded(Image.fromarray(SLOPE), kind, exif=exif), encoded(Image.fromarray(SLOPE), kind)
    assert turned != plain
    if kind != "TIFF":  # which Pillow always turns
        assert np.array_equal(decode_image(turned, ImageSpec(SIDE)), decode_image(plain, ImageSpec(SIDE)))
    with Image.open(io.BytesIO(turned)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode_image(turned, ImageSpec(SIDE, upright=True)), wanted)


def test_a_photo_is_turned_though_other_exif_data_are_damaged():
    exif = Image.Exif()
    exif[0x112], exif[0x8825] = 6, {1: "N", 2: (1.0, 2.0, 3.0)}  # where it was taken
    damaged = bytearray(exif.tobytes())
    damaged[44] = 1  # with which Pillow 13 cannot write them
    data = encoded(Image.fromarray(SLOPE), "JPEG", exif=bytes(damaged))
    stored = decode_image(data, ImageSpec(SIDE))
    assert np.array_equal(decode_image(data, ImageSpec(SIDE, upright=True)), np.rot90(stored, -1, axes=(1, 2)))


def test_grey_becomes_three_equal_channels_and_colour_its_luma():
    colour = decode_image(encoded(Image.fromarray(GREY), "PNG"), ImageSpec(SIDE))
    assert np.array_equal(colour, np.broadcast_to(GREY, (3, SIDE, SIDE)))
    grey = decode_image(encoded(Image.fromarray(COLOUR), "PNG"), ImageSpec(SIDE, channels=1))
    assert grey.shape == (1, SIDE, SIDE)
    assert np.abs(grey[0] - COLOUR @ np.array([0.299, 0.587, 0.114])).max() <= 1


SIZES = [(30, 47), (47, 30), (33, 33), (5, 8), (1, 1), (1, 500), (101, 24)]


@pytest.mark.parametrize("resample", ["lanczos", "bilinear"])
@pytest.mark.parametrize("size", SIZES)
def test_crop_and_squash_are_what_torchvision_does_to_pillow_images(size: tuple[int, int], resample: str):
    pixels = np.random.RandomState(sum(size)).randint(0, 256, (*size, 3)).astype(np.uint8)
    data, how = encoded(Image.fromarray(pixels), "PNG"), InterpolationMode(resample)
    for resize, theirs in (
        ("crop", v2.Compose([v2.Resize(SIDE, interpolation=how), v2.CenterCrop(SIDE)])),
        ("squash", v2.Resize((SIDE, SIDE), interpolation=how)),
    ):
        made = decode_image(data, ImageSpec(SIDE, resize=resize, resample=resample))
        assert np.array_equal(made.transpose(1, 2, 0), np.asarray(theirs(Image.fromarray(pixels))))


def test_a_strip_of_5000_pixels_is_cropped_and_a_longer_one_refused_before_it_fills_memory():
    strip = np.repeat(np.arange(5000) // 20, 3).reshape(1, 5000, 3).astype(np.uint8)
    assert set(np.unique(decode_image(strip, ImageSpec(84, resize="crop")))) <= {124, 125}
    with pytest.raises(ValueError, match="200000x1 pixels, too narrow to crop"):
        decode_image(np.zeros((1, 200_000, 3), np.uint8), ImageSpec(84, resize="crop"))
    assert not decode_image(np.zeros((1, 200_000, 3), np.uint8), ImageSpec(84)).any()


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (SIDE, SIDE, 1), (SIDE, SIDE, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_is_what_its_png_is(shape: tuple[int, ...], channels: int):
    pixels = RANDOM.randint(0, 256, shape).astype(np.uint8)
    before = pixels.copy()
    image = Image.fromarray(pixels.reshape(shape[: 2 if shape[2:] == (1,) else 3]))
    for array in (pixels, np.asfortranarray(pixels), np.repeat(pixels, 2, axis=1)[:, ::2]):
        for size in (SIDE, 11):
            spec = ImageSpec(size, channels)
            assert np.array_equal(decode_image(array, spec), decode_image(encoded(image, "PNG"), spec))
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 5, 3)), np.zeros((5, 5), object), np.zeros((5, 5, 4), np.uint8), np.zeros((3, 5, 5), np.uint8),
        np.zeros((0, 5, 3), np.uint8), np.zeros((1, 5, 5, 3), np.uint8), np.array(5, np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)  # fmt: skip
def test_an_array_of_another_kind_is_refused(array: np.ndarray):
    with pytest.raises(ValueError, match=r"^an array \(.*\) of \w+, not \[height, width, 3\] of uint8$"):
        decode_image(array, ImageSpec(16))


FILES = {
    "PNG": encoded(Image.fromarray(COLOUR), "PNG"),
    "PNG palette": encoded(paletted(), "PNG", transparency=bytes([255, 0, 128])),
    "JPEG": encoded(Image.fromarray(SLOPE), "JPEG"),
    "JPEG progressive": encoded(Image.fromarray(SLOPE), "JPEG", progressive=True),
    "JPEG CMYK": encoded(Image.fromarray(SLOPE).convert("CMYK"), "JPEG"),
    "BMP": encoded(Image.fromarray(COLOUR), "BMP"),
    "GIF": encoded(paletted(), "GIF"),
    "PPM": encoded(Image.fromarray(COLOUR), "PPM"),
    "PPM plain": f"P3 {SIDE} {SIDE} 255 ".encode() + " ".join(map(str, COLOUR.ravel())).encode(),
    "TIFF": encoded(Image.fromarray(COLOUR), "TIFF"),
    "TIFF lzw": encoded(Image.fromarray(SLOPE), "TIFF", compression="tiff_lzw"),
    "TIFF jpeg": encoded(Image.fromarray(SLOPE), "TIFF", compression="jpeg"),
    "WEBP": encoded(Image.fromarray(SLOPE), "WEBP"),
}


def reason(data: bytes, spec: ImageSpec) -> str:
    """Why these bytes give no example; empty if they give one."""
    try:
        made = decode_image(data, spec)
    except ValueError as error:
        words = str(error)
        assert words and "\n" not in words and " at 0x" not in words
        return words
    assert made.shape == spec.shape and made.dtype == np.uint8
    return ""


@pytest.mark.parametrize("kind", sorted(set(FILES) - {"PPM plain"}))  # a number cut short is a number
def test_a_file_cut_short_is_refused_unless_no_pixel_is_missing(kind: str):
    data, spec = FILES[kind], ImageSpec(SIDE)
    whole = decode_image(data, spec)
    refused = 0
    for end in {*range(0, len(data), max(1, len(data) // 20)), *range(len(data) - 24, len(data))}:
        if reason(data[:end], spec):
            refused += 1
        else:
            assert np.array_equal(decode_image(data[:end], spec), whole)
            assert kind in ("PNG", "PNG palette", "GIF") and end > len(data) - 24  # their last bytes only mark the end
    assert refused > 20


NO_IMAGES = {
    "nothing": (b"", "^it is empty$"),
    "page": (b"\xef\xbb\xbf\n <!DOCTYPE html><html><body>404</body></html>", "^it is a web page$"),
    "drawing": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "^it is a web page$"),
    "text": (b"class,image\na,b\n", "^damaged, or no image that Pillow can open"),
    "zeros": (bytes(1000), "^damaged, or no image that Pillow can open"),
    "a page": (encoded(Image.fromarray(COLOUR), "PDF"), "^damaged, or (unfit|no image)"),
    "PNG of no pixels": (png(0, 0, 8, 2, b""), "^damaged, or (unfit|no image)"),
    "PNG of no height": (png(5, 0, 8, 2, b""), "^damaged, or (unfit|no image)"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image_is_refused(kind: str):
    data, message = NO_IMAGES[kind]
    with pytest.raises(ValueError, match=message):
        decode_image(data, ImageSpec(SIDE))


BOMBS = {
    "PNG": png(50_000, 50_000, 8, 2, b""),
    "PNG of 100 megapixels": png(10_000, 10_000, 8, 0, b""),
    "BMP": b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "GIF": b"GIF89a"
    + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0)
    + bytes(6)
    + b","
    + struct.pack("<HHHHBB", 0, 0, 65535, 65535, 0, 8),
    "PPM": b"P6 50000 50000 255 ",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_more_pixels_than_is_safe_are_refused_without_unpacking_them(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match="^it has more than 89,478,485 pixels, too many to unpack$"):
        decode_image(BOMBS[kind], ImageSpec(SIDE))


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_give_an_example_or_a_reason_and_nothing_else(kind: str):
    random = np.random.RandomState(len(kind))
    for number in range(12):
        data = bytearray(FILES[kind])
        for _ in range(random.randint(1, 4)):
            at = random.randint(min(len(data), 64 if number % 2 else len(data)))
            if random.randint(3):
                data[at] = random.randint(256)
            else:
                del data[at : at + random.randint(1, 9)]
        reason(bytes(data), ImageSpec(16, (1, 3)[number % 2], ("crop", "squash")[number % 3 == 0]))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"size": 0}, "size=0: choose 1 to 1024"), ({"size": 1025}, "size=1025"), ({"size": 84.5}, "size=84.5"),
        ({"size": "84"}, "size='84'"), ({"channels": 2}, "channels=2"),
        ({"resize": "stretch"}, "resize=stretch: choose one of squash, crop"),
        ({"resample": "cubic"}, "resample=cubic: choose one of lanczos, bilinear, nearest"),
    ],
)  # fmt: skip
def test_a_choice_that_cannot_be_is_refused(choices: dict, message: str):
    with pytest.raises(FewshotError, match=message):
        ImageSpec(**({"size": 84} | choices))


def test_no_image_is_taken_for_a_web_page():
    assert not any(is_web_page(data) for data in FILES.values())
    assert is_web_page(b"<HTML>") and not is_web_page(b"") and not is_web_page(b"html")


def test_images_are_known_by_their_suffixes():
    assert all(is_image(f"a/b{end}") for suffix in SUFFIXES for end in (suffix, suffix.upper()))
    assert {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".tga"} <= SUFFIXES
    others = ["a.pdf", "a.eps", "a.mpg", "a.wmf", "a.h5", "a.txt", "a", "png", ".png/a", "a.png.part", "a.ico", "A.CUR"]
    assert not any(map(is_image, others))


MAGIC = {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"}


@pytest.mark.parametrize("kind", sorted({*FORMATS, "MPO"} & set(Image.SAVE)))
def test_every_format_that_pillow_writes_and_opens_becomes_an_example(kind: str):
    mode = {"MSP": "1", "XBM": "1", "BLP": "P"}.get(kind, "RGB")
    data = encoded(Image.fromarray(SLOPE).convert(mode), kind)
    assert decode_image(data, ImageSpec(SIDE)).shape == (3, SIDE, SIDE)
    assert has_image_magic(data[:HEAD_BYTES]) is (kind in MAGIC)


def test_an_image_is_known_by_its_first_bytes():
    assert all(has_image_magic(encoded(Image.fromarray(SLOPE).convert(mode), "PPM")) for mode in ("1", "L"))
    assert has_image_magic(b"P6\n# made by hand\n24 24\n255\n")


@pytest.mark.parametrize(
    "head",
    [
        b"", b"read me", b"BMW, Audi and other cars, " * 9, b"Python 3.11\nP6 is not here",
        b"P3 and P6 are projects", b"P1 " + b"# x \n" * 60, bytes(100), encoded(Image.fromarray(SLOPE), "PDF"),
        encoded(Image.fromarray(SLOPE), "TGA"), encoded(Image.fromarray(SLOPE), "ICO"),
        b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(40),
    ],
)  # fmt: skip
def test_what_begins_like_no_image_is_none(head: bytes):
    assert not has_image_magic(head)


def test_skipped_files_are_counted_by_suffix():
    assert describe_skipped([]) == {}
    kinds = [f"a.{'x' * n}" for n in range(1, 9)]
    assert describe_skipped(["a/b.TXT", "c.txt", "README"]) == {
        "passed_over": {".txt": 2, "without a suffix": 1},
        "notes": ["passed over 3 files that are no images: 2 .txt, 1 without a suffix"],
    }
    assert describe_skipped(kinds)["notes"][0].endswith("1 .xxxxx, and 3 other kinds")
