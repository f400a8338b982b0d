"""Support and query images as people lay them out, and those that cannot be read."""

from __future__ import annotations

import shutil
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot.core.errors import FewshotError
from fewshot.data.sources import image_sets
from fewshot.data.sources.image_sets import load_images, read_query, read_support
from fewshot.data.sources.images import ImageSpec

SPEC = ImageSpec(8, 1)


def draw(path: Path, grey: int = 0, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, grey).save(path)


@pytest.fixture
def support(tmp_path: Path) -> Path:
    for name in ("cat/1.png", "cat/2.png", "a dog/far/below/1.png"):
        draw(tmp_path / "support" / name)
    return tmp_path / "support"


def test_class_folders_may_hold_any_number_of_images_and_further_folders(support: Path) -> None:
    images = read_support(support)
    assert images.classes == ["a dog", "cat"]
    assert list(zip(images.names, images.labels, strict=True)) == [
        ("a dog/far/below/1.png", "a dog"), ("cat/1.png", "cat"), ("cat/2.png", "cat"),
    ]  # fmt: skip


def test_files_that_are_no_images_are_told(support: Path) -> None:
    assert read_support(support).notes == []
    (support / "cat/3.heic").write_bytes(b"a photo that Pillow does not know")
    assert read_support(support).notes == ["support: passed over 1 file that is no image: 1 .heic"]


def test_one_spelling_of_a_class_is_as_good_as_another(support: Path) -> None:
    draw(support / "Zoe\u0308/1.png")  # a letter and its mark, as macOS has them
    assert "Zo\u00eb" in read_support(support).classes


def test_an_archive_stands_for_its_folder(support: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "all"), "zip", support)
    assert sorted(read_support(tmp_path / "all.zip").names) == read_support(support).names
    images = read_query(str(tmp_path / "all.zip"), ["cat"])
    assert sorted(images.labels) == ["a dog", "cat", "cat"]
    assert all(image.pixels is not None for image in load_images(images, SPEC))


def test_folders_that_all_images_are_in_name_no_class(support: Path, tmp_path: Path) -> None:
    (support / "__MACOSX").mkdir()
    shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path, "support")
    for root in (tmp_path / "all.zip", support):
        assert read_support(root).classes == ["a dog", "cat"]
    shutil.move(support, tmp_path / "photos/more/support")
    assert read_support(tmp_path / "photos").classes == ["a dog", "cat"]
    assert sorted(read_query(str(tmp_path / "photos"), ["cat"]).labels) == ["a dog", "cat", "cat"]
    (tmp_path / "photos/more/support/empty").mkdir()
    with pytest.raises(FewshotError, match="class empty has no images"):
        read_support(tmp_path / "photos")
    for name in ("a dog", "empty"):
        shutil.rmtree(tmp_path / f"photos/more/support/{name}")
    assert read_query(str(tmp_path / "photos"), ["cat"]).labels == ["cat", "cat"]
    assert read_query(str(tmp_path / "photos"), ["dog"]).labels == ["", ""]


def test_what_is_wrong_with_a_support_set_is_one_line(support: Path) -> None:
    def problem(root: Path = support) -> str:
        with pytest.raises(FewshotError) as error:
            read_support(root)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert problem(support / "none").startswith(f"support={support}/none: no such folder; name one")
    (support / "empty").mkdir()
    assert problem() == f"support={support}: class empty has no images; put some there, or remove the folder"
    (support / "empty" / "notes.txt").write_text("none")
    (support / "nothing").mkdir()
    assert "2 classes without images" in problem()
    draw(support / "loose.png")
    assert "1 image is in no class folder, such as loose.png; put a folder of images there" in problem()
    only = support.parent / "only"
    draw(only / "cat" / "1.png")
    assert f"support={only}: has one class, cat, and two are needed" in problem(only)
    (support.parent / "void").mkdir()
    assert "no images are there" in problem(support.parent / "void")


def test_queries_are_a_folder_an_image_or_a_pattern(tmp_path: Path) -> None:
    for name in ("cat/1.png", "bird/2.png", "3.png"):
        draw(tmp_path / "query" / name)
    images = read_query(str(tmp_path / "query"), ["cat", "dog"])
    assert list(zip(images.names, images.labels, strict=True)) == [
        ("3.png", ""), ("bird/2.png", "bird"), ("cat/1.png", "cat"),
    ]  # fmt: skip
    for query, names in (("query/3.png", ["query/3.png"]), ("query/*/*.png", ["query/bird/2.png", "query/cat/1.png"])):
        images = read_query(str(tmp_path / query), ["cat"])
        assert images.names == [str(tmp_path / name) for name in names]
        assert len(list(load_images(images, SPEC))) == len(names)
    for nothing in ("none", "query/*.jpg"):
        with pytest.raises(FewshotError, match="no such file or folder; name a folder of images, a file, or a pattern"):
            read_query(str(tmp_path / nothing), [])


def test_damaged_images_do_not_stop_the_others(tmp_path: Path) -> None:
    for number in range(70):  # more than are read at once
        draw(tmp_path / f"{number:02}.png", number, (number + 1, 9))
    (tmp_path / "33.png").write_bytes(b"no image")
    (tmp_path / "69.png").write_bytes(b"")
    (tmp_path / "20.png").unlink()
    (tmp_path / "20.png").symlink_to("nowhere")
    loaded = list(load_images(read_query(str(tmp_path), []), SPEC))
    assert [number for number, image in enumerate(loaded) if image.pixels is None] == [20, 33, 69]
    assert "cannot be read" in loaded[20].problem and loaded[69].problem == "it is empty"
    for number, image in enumerate(loaded):
        if image.pixels is not None:
            assert image.shape == (1, 9, number + 1)
            np.testing.assert_array_equal(image.pixels, np.full((1, 8, 8), number))


def test_a_copied_file_has_the_digest_of_its_original(support: Path, tmp_path: Path) -> None:
    draw(tmp_path / "query" / "other.png", 9)
    shutil.copy(support / "cat" / "1.png", tmp_path / "query" / "copy.png")
    (copy, other) = load_images(read_query(str(tmp_path / "query"), []), SPEC)
    known = {image.digest for image in load_images(read_support(support), SPEC)}
    assert copy.digest in known and other.digest not in known


def test_a_member_of_an_archive_that_is_damaged_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "q.zip", "w") as archive:
        archive.writestr("a.png", b"no image")
    (image,) = load_images(read_query(str(tmp_path / "q.zip"), []), SPEC)
    assert image.problem == "damaged, or no image that Pillow can open"


def test_only_a_few_images_are_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sets, "MAX_BYTES", 1 << 20)  # a file's buffer has this size before it is read
    draw(tmp_path / "0.png", 0, (200, 200))
    for number in range(1, 200):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{number}.png")
    images = read_query(str(tmp_path), [])
    tracemalloc.start()
    count = sum(image.pixels is not None for image in load_images(images, ImageSpec(200)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 200 and peak < 12e6  # all pixels are 24 MB
