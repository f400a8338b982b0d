"""CUB-200-2011: 200 classes of small images, in the authors' archive and otherwise."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fewshot.data.datasets import cub
from fewshot.data.sources.published import published_split

from ..made_sources import WEB_PAGE, Server, as_archive, as_folder, encoded, fingerprints, noise, refused_by

SPLITS = published_split("cub")
CLASSES = sorted(name for names in SPLITS.values() for name in names)
ARCHIVE = "CUB_200_2011.tgz"
IMAGE = encoded(noise(0, 5, 6), "JPEG")
BIRDS = {
    f"{name}/Bird_{number:04d}.jpg": IMAGE for number, name in enumerate([CLASSES[0], *CLASSES])
}  # the first has 2

read = partial(cub.read_cub, size=4)
refused = partial(refused_by, read)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cub, "IMAGES", len(BIRDS))


def published(images: dict[str, bytes]) -> dict[str, bytes]:
    """The members of the authors' archive."""
    members = {"attributes.txt": b"1 has_bill_shape::curved\n", "CUB_200_2011/README": b"", "._CUB_200_2011": b"\0"}
    members |= {f"CUB_200_2011/images/{name}": data for name, data in images.items()}
    return members | {"CUB_200_2011/parts/parts.txt": b"1 back\n"}


LAYOUTS: dict[str, Callable[[Path], Any]] = {
    "the archive": lambda root: as_archive(root / ARCHIVE, published(BIRDS)),
    "the archive and another": lambda root: (
        as_archive(root / ARCHIVE, published(BIRDS)),
        as_archive(root / "segmentations.tgz", {}),
    ),
    "unzipped by a browser": lambda root: as_archive(root / "CUB_200_2011.tar", published(BIRDS)),
    "unzipped, its name kept": lambda root: as_archive(root / "CUB.tar", published(BIRDS)).rename(root / ARCHIVE),
    "a zip": lambda root: as_archive(root / "CUB_200_2011.zip", BIRDS),
    "unpacked": lambda root: as_folder(root, published(BIRDS)),
    "with masks": lambda root: as_folder(
        root, published(BIRDS) | {f"CUB_200_2011/segmentations/{name}": IMAGE for name in BIRDS}
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The fingerprints of the banks of class folders."""
    path = tmp_path_factory.mktemp("cub")
    return fingerprints(read(as_folder(path / "root", BIRDS), path / "cache", allow_partial=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_banks(root: Path, cache: Path, plain: list[str], layout: str):
    LAYOUTS[layout](root)
    banks = read(root, cache)
    assert {split: list(bank.names) for split, bank in banks.items()} == SPLITS
    assert banks["train"].sizes.tolist() == [2] + [1] * 99 and fingerprints(banks) == plain
    assert [path.name for path in cache.iterdir()] == ["cub-4-squash-lanczos"]


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (dict(list(BIRDS.items())[:-1]), "1 of 50 classes of test are missing, such as 200.*allow_partial=true"),
        (dict(list(BIRDS.items())[1:]), "200 images, not 201.*allow_partial=true"),
        (BIRDS | {f"{CLASSES[7]}/copy.jpg": IMAGE}, "202 images, not 201"),
    ],
)
def test_incomplete_data_are_refused(root: Path, cache: Path, images: dict[str, bytes], match: str):
    assert str(root) in refused(as_folder(root, published(images)), cache, match)


@pytest.mark.parametrize("content", [b"", WEB_PAGE, b"\x1f\x8b"])
def test_a_damaged_archive_is_refused(root: Path, cache: Path, content: bytes):
    as_folder(root, {ARCHIVE: content})
    refused(root, cache, f"{ARCHIVE}: (a web page|not a whole archive).*fetch")


@pytest.fixture
def server(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(cub, "URL", f"{server.url}/{ARCHIVE}")
    return server


def test_a_download_is_checked_and_read(server: Server, root: Path, cache: Path, tmp_path: Path):
    server.files[ARCHIVE] = as_archive(tmp_path / "made.tgz", published(BIRDS)).read_bytes()
    assert len(read(root, cache, download=True)["test"].names) == 50
    assert [path.name for path in root.iterdir()] == [ARCHIVE]
    read(root, cache, download=True, overwrite=True)
    assert server.asked == [ARCHIVE]


@pytest.mark.parametrize(
    "change", [lambda _: WEB_PAGE, lambda _: b"", lambda data: data[:-200], lambda data: b"P" + data]
)
def test_a_download_that_is_not_the_archive_is_thrown_away(
    server: Server, root: Path, cache: Path, tmp_path: Path, change: Any
):
    server.files[ARCHIVE] = change(as_archive(tmp_path / "made.tgz", published(BIRDS)).read_bytes())
    text = refused(root, cache, "a web page, not the archive|not a whole archive", download=True)
    assert f"download {cub.URL} by hand to {root / ARCHIVE}" in text and not list(root.iterdir())
