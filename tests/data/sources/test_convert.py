"""Conversion: whole banks or none, from any source the same, taken up again after any death where it stopped."""

import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewshot.core.errors import FewshotError
from fewshot.data.bank import Split, fingerprint, open_banks, verify, write_banks
from fewshot.data.sources import convert as module
from fewshot.data.sources.archives import Files, open_files
from fewshot.data.sources.convert import convert
from fewshot.data.sources.images import ImageSpec, decode_image
from fewshot.data.sources.parts import SplitSource, check_parts, part_of_files, part_of_labels

from ..made_sources import as_archive, as_folder, encoded, noise

LOOK = ImageSpec(8)
ABOUT = {"dataset": "made up", "source": "random"}
Change = Callable[[int], bytes | np.ndarray | None]


def pixels(number: int, side: int = 9) -> np.ndarray:
    return noise(number, side, side)


def png(number: int) -> bytes:
    return encoded(pixels(number))


def labelled(
    start: int, labels: list[int], names: list[str], before: Change = lambda i: None, asked: list[int] | None = None
) -> SplitSource:
    """Random images; `before` is told the place of each that is read, and may give another in its stead."""

    def images(first: int) -> Iterator[bytes | np.ndarray]:
        for i in range(first, len(labels)):
            if asked is not None:
                asked.append(start + i)
            other = before(i)
            yield pixels(start + i) if other is None else other

    return part_of_labels(names, np.array(labels), images, lambda i: f"source: row {start + i}")


def two(before: Change = lambda i: None, asked: list[int] | None = None) -> dict[str, SplitSource]:
    """40 images of train, of two classes by turns, and 10 of test."""
    return {
        "train": labelled(0, [1, 0] * 20, ["b", "a"], before, asked),
        "test": labelled(100, [0, 1] * 5, ["c", "d"], asked=asked),
    }


def expected() -> dict[str, Split]:
    """What `two` becomes, the plain way."""
    order = {
        "train": [*range(0, 40, 2), *range(1, 40, 2)],  # a before b, whose number is 0
        "test": [*range(100, 110, 2), *range(101, 110, 2)],
    }
    examples = {split: np.stack([decode_image(pixels(i), LOOK) for i in rows]) for split, rows in order.items()}
    return {
        "train": Split(examples["train"], [20, 20], ["a", "b"]),
        "test": Split(examples["test"], [5, 5], ["c", "d"]),
    }


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(folder: Path, parts: dict[str, SplitSource], message: str, **choices: Any) -> None:
    with pytest.raises(FewshotError, match=message) as caught:
        convert(folder, parts, choices.pop("look", LOOK), choices.pop("about", ABOUT), **choices)
    assert "\n" not in str(caught.value)


@pytest.fixture(autouse=True)
def often(monkeypatch) -> None:
    """A note of how far it is after every 8 images."""
    monkeypatch.setattr(module, "AT_ONCE", 4)
    monkeypatch.setattr(module, "SAVE_EVERY", 2)
    monkeypatch.setattr(module.os, "fsync", lambda file: None)  # slow, and of use only where the machine dies too


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "banks"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that `two` becomes when nothing comes between."""
    folder = tmp_path_factory.mktemp("whole") / "banks"
    convert(folder, two(), LOOK, ABOUT)
    return content(folder)


def is_whole(folder: Path, whole: dict[str, bytes]) -> None:
    assert content(folder) == whole
    assert list(folder.parent.iterdir()) == [folder]


def test_a_bank_is_what_the_plain_way_gives(folder: Path, whole: dict[str, bytes]):
    convert(folder, two(), LOOK, ABOUT)
    is_whole(folder, whole)
    assert set(whole) == {"bank.json", "train.npy", "test.npy"}
    banks = open_banks(folder)
    assert list(banks) == ["train", "test"]
    for split, plain in expected().items():
        assert banks[split].fingerprint == fingerprint(plain)
        assert np.array_equal(banks[split].examples.numpy(), plain.examples)
        assert banks[split].sizes.tolist() == plain.counts and list(banks[split].names) == plain.names
        assert banks[split].about == ABOUT | {"shared_images": 0}
    verify(folder, lambda split, rows: None)


def test_a_bank_written_at_once_has_the_same_arrays(folder: Path, whole: dict[str, bytes], tmp_path: Path):
    write_banks(tmp_path / "other", expected(), ABOUT | {"shared_images": 0})
    assert content(tmp_path / "other") == whole


def source(root: Path, kind: str) -> Files:
    """12 images of three classes, in an order that is not sorted."""
    names = [f"{name}/{number:02d}.png" for number in (2, 0, 3, 1) for name in ("b", "a", "c")]
    members = {name: png(place) for place, name in enumerate(names)}
    path = root / kind
    if kind == "folder":
        as_folder(path, members)
    else:
        as_archive(path, members if kind == "source.zip" else {f"./{name}": data for name, data in members.items()})
    return open_files(path)


KINDS = ("folder", "source.zip", "source.tar", "source.tar.gz")


def classes(files: Files, names: str = "abc") -> dict[str, list[str]]:
    return {name: [file for file in files.names if file[0] == name] for name in names}


@pytest.mark.parametrize("look", [LOOK, ImageSpec(5, channels=1, resize="crop", resample="bilinear")], ids=str)
def test_every_kind_of_source_gives_the_same_bank_sorted_by_file_name(tmp_path: Path, look: ImageSpec):
    for kind in KINDS:
        files = source(tmp_path, kind)
        parts = {"train": part_of_files(files, classes(files, "ca")), "test": part_of_files(files, classes(files, "b"))}
        convert(tmp_path / f"{kind}-banks", parts, look, ABOUT)
    made = [content(tmp_path / f"{kind}-banks") for kind in KINDS]
    assert made.count(made[0]) == len(KINDS)
    # The place of each in the archive, by class and name.
    rows = {"train": [4, 10, 1, 7, 5, 11, 2, 8], "test": [3, 9, 0, 6]}
    names, banks = {"train": ["a", "c"], "test": ["b"]}, open_banks(tmp_path / "folder-banks")
    for split, places in rows.items():
        examples = np.stack([decode_image(png(place), look) for place in places])
        assert banks[split].fingerprint == fingerprint(Split(examples, [4] * len(names[split]), names[split]))


def child(target: Callable[[], object]) -> Any:
    """Another process, a real one; it ends with the code 3 if `target` raises."""

    def run() -> None:
        try:
            target()
        except BaseException:
            os._exit(3)

    process = multiprocessing.get_context("fork").Process(target=run)
    with warnings.catch_warnings(action="ignore"):  # of threads, which the child does not need
        process.start()
    return process


def dies(target: Callable[[], object]) -> None:
    process = child(target)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def kill(at: int) -> Change:
    """Kills its own process when the image at a place is asked for."""
    return lambda i: os.kill(os.getpid(), signal.SIGKILL) if i == at else None


@pytest.mark.parametrize(("at", "noted"), [(0, 0), (7, 0), (8, 8), (15, 8), (21, 16), (39, 32)])
def test_after_a_death_it_goes_on_at_its_last_note_to_the_same_bytes(
    folder: Path, whole: dict[str, bytes], at: int, noted: int
):
    dies(lambda: convert(folder, two(kill(at)), LOOK, ABOUT))
    assert not folder.exists()
    with pytest.raises(FewshotError, match="not a readable bank"):
        open_banks(folder)
    assert not (folder.with_name("banks.part") / "bank.json").exists()
    asked: list[int] = []
    convert(folder, two(asked=asked), LOOK, ABOUT)
    assert asked == [*range(noted, 40), *range(100, 110)]
    is_whole(folder, whole)


def test_several_deaths_one_after_the_other_lose_nothing(folder: Path, whole: dict[str, bytes]):
    for at in (3, 9, 13, 13, 30):
        dies(lambda at=at: convert(folder, two(kill(at)), LOOK, ABOUT))
    parts = two() | {"test": labelled(100, [0, 1] * 5, ["c", "d"], kill(5))}
    dies(lambda: convert(folder, parts, LOOK, ABOUT))
    asked: list[int] = []
    convert(folder, two(asked=asked), LOOK, ABOUT)
    assert asked == [*range(100, 110)]
    is_whole(folder, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_death_files_are_read_from_the_middle(tmp_path: Path, kind: str, monkeypatch):
    files = source(tmp_path, kind)
    part = part_of_files(files, classes(files))
    convert(tmp_path / "at once", {"train": part}, LOOK, ABOUT)

    def images(first: int) -> Iterator[bytes | np.ndarray]:
        for i, data in enumerate(part.images(first), start=first):
            kill(10)(i)
            yield data

    dies(lambda: convert(tmp_path / "banks", {"train": SplitSource(**(vars(part) | {"images": images}))}, LOOK, ABOUT))
    assert json.loads((tmp_path / "banks.part" / "progress.json").read_text())["done"] == {"train": 8}
    convert(tmp_path / "banks", {"train": part}, LOOK, ABOUT)
    assert content(tmp_path / "banks") == content(tmp_path / "at once")


def test_the_bank_is_named_last_of_all_and_a_death_before_reads_nothing_again(
    folder: Path, whole: dict[str, bytes], monkeypatch
):
    def dies_at_it(work: Path, place: Path) -> None:
        assert work.with_name("banks") == place == folder and not place.exists()
        assert (work / "bank.json").read_bytes() == whole["bank.json"]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "replace_folder", dies_at_it)
        with pytest.raises(KeyboardInterrupt):
            convert(folder, two(), LOOK, ABOUT)
    assert not folder.exists()
    asked: list[int] = []
    convert(folder, two(asked=asked), LOOK, ABOUT)
    assert asked == []
    is_whole(folder, whole)


def test_there_is_no_bank_as_long_as_an_image_is_missing(folder: Path, whole: dict[str, bytes]):
    seen = []

    def look_around(i: int) -> None:
        with pytest.raises(FewshotError, match="not a readable bank"):
            open_banks(folder)
        with pytest.raises(FewshotError, match="not a readable bank"):
            open_banks(folder.with_name("banks.part"))
        seen.append(i)

    convert(folder, two(look_around), LOOK, ABOUT)
    assert len(seen) == 40
    is_whole(folder, whole)


def test_what_is_whole_is_not_made_again(folder: Path, whole: dict[str, bytes]):
    convert(folder, two(), LOOK, ABOUT)
    asked: list[int] = []
    convert(folder, two(asked=asked), LOOK, ABOUT | {"source": "another"})
    assert asked == []
    is_whole(folder, whole)


OTHERS = {
    "size": {"look": ImageSpec(9)},
    "resize": {"look": ImageSpec(8, resize="crop")},
    "words": {"about": ABOUT | {"source": "another"}},
    "labels": {"train": labelled(0, [1, 0] * 19 + [0, 1], ["b", "a"])},
    "class names": {"train": labelled(0, [1, 0] * 20, ["b", "aa"])},
    "an image more": {"train": labelled(0, [1, 0] * 20 + [1], ["b", "a"])},
    "file names": {"train": labelled(1, [1, 0] * 20, ["b", "a"])},
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_source_under_the_same_name_begins_anew(folder: Path, tmp_path: Path, other: str):
    choices = {"look": LOOK, "about": ABOUT} | OTHERS[other]
    parts = two() | ({"train": choices.pop("train")} if "train" in choices else {})
    dies(lambda: convert(folder, two(kill(30)), LOOK, ABOUT))
    convert(folder, parts, **choices)
    convert(tmp_path / "plain", parts, **choices)
    assert content(folder) == content(tmp_path / "plain")


def test_a_file_that_takes_the_place_of_another_begins_anew(tmp_path: Path):
    files = source(tmp_path, "folder")
    last = files.names[-1]
    (tmp_path / "folder" / last).rename(tmp_path / "last")
    (tmp_path / "folder" / last).write_bytes(b"damaged")
    fails(
        tmp_path / "banks", {"train": part_of_files(files, classes(files))}, f"{last}: damaged.*replace it, or remove"
    )
    # As many as before, and the same first and last one, but others are in other places.
    (tmp_path / "last").rename(tmp_path / "folder" / last)
    (tmp_path / "folder/a/01.png").rename(tmp_path / "folder/a/04.png")
    files = open_files(tmp_path / "folder")
    part = {"train": part_of_files(files, classes(files))}
    convert(tmp_path / "banks", part, LOOK, ABOUT)
    convert(tmp_path / "plain", part, LOOK, ABOUT)
    assert content(tmp_path / "banks") == content(tmp_path / "plain")


def test_a_note_is_taken_only_of_what_is_on_the_disk(folder: Path, monkeypatch):
    events: list[tuple[str, int]] = []
    note = folder.with_name("banks.part") / "progress.json"

    def synced(file: int) -> None:
        before = json.loads(note.read_text())["done"] if note.exists() else {"train": 0, "test": 0}
        events.append((os.path.basename(os.readlink(f"/proc/self/fd/{file}")), sum(before.values())))

    if not Path("/proc/self/fd").exists():
        pytest.skip("only Linux tells which file it is")
    monkeypatch.setattr(module.os, "fsync", synced)
    convert(folder, two(), LOOK, ABOUT)
    assert events == [*(("train.npy", done) for done in (0, 8, 16, 24, 32)), ("test.npy", 40), ("test.npy", 48)]


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"null", b'{"key": 1}', b'{"done": {}}', b"\xff\xfe\x00"])
def test_a_damaged_note_begins_anew(folder: Path, whole: dict[str, bytes], note: bytes):
    dies(lambda: convert(folder, two(kill(30)), LOOK, ABOUT))
    (folder.with_name("banks.part") / "progress.json").write_bytes(note)
    convert(folder, two(), LOOK, ABOUT)
    is_whole(folder, whole)


def test_a_full_disk_is_told_and_with_room_the_same_call_goes_on(folder: Path, whole: dict[str, bytes]):
    limits, asked = resource.getrlimit(resource.RLIMIT_FSIZE), []

    def fill(i: int) -> None:
        if i == 21:  # from now on no file can be written beyond its 20th image
            resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 192, limits[1]))

    try:
        fails(folder, two(fill), r"banks.part: cannot be written \(File too large\); make room, then the same command")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not folder.exists()
    convert(folder, two(asked=asked), LOOK, ABOUT)
    assert asked == [*range(16, 40), *range(100, 110)]
    is_whole(folder, whole)


def test_too_little_room_is_told_before_anything_is_read(folder: Path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=50 * 192 - 1))
    asked: list[int] = []
    fails(folder, two(asked=asked), "banks.part: 0.0 MB are needed and 0.0 MB free; make room")
    assert asked == []
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=50 * 192))
    convert(folder, two(), LOOK, ABOUT)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "cache").write_text("a file")
    fails(tmp_path / "cache" / "banks", two(), "cannot be written")


@pytest.fixture
def arrived(monkeypatch) -> Any:
    """Is told of every process that comes to the lock."""
    semaphore, flock = multiprocessing.get_context("fork").Semaphore(0), module.fcntl.flock

    def told(*args: Any) -> None:
        semaphore.release()
        flock(*args)

    monkeypatch.setattr(module.fcntl, "flock", told)
    return semaphore


def test_of_two_processes_one_converts_and_the_other_waits_for_it(folder: Path, whole: dict[str, bytes], arrived: Any):
    def pause(i: int) -> None:
        if i == 21:
            for _ in range(3):
                assert arrived.acquire(timeout=60)
            assert not folder.exists()

    def second() -> None:
        asked: list[int] = []
        convert(folder, two(asked=asked), LOOK, ABOUT)
        assert not asked
        verify(folder, lambda split, rows: None)

    begun = multiprocessing.get_context("fork").Event()
    processes = [child(lambda: convert(folder, two(lambda i: begun.set() or pause(i)), LOOK, ABOUT))]
    assert begun.wait(60)
    processes += [child(second), child(second)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    is_whole(folder, whole)


def test_where_the_process_that_converts_dies_the_one_that_waits_goes_on(
    folder: Path, whole: dict[str, bytes], arrived: Any
):
    begun = multiprocessing.get_context("fork").Event()

    def pause(i: int) -> None:
        if i == 21:
            begun.set()
            signal.pause()

    def goes_on() -> None:
        asked: list[int] = []
        convert(folder, two(asked=asked), LOOK, ABOUT)
        assert asked[0] == 16

    first = child(lambda: convert(folder, two(pause), LOOK, ABOUT))
    assert begun.wait(60)
    second = child(goes_on)
    for _ in range(2):
        assert arrived.acquire(timeout=60)
    os.kill(first.pid, signal.SIGKILL)
    for process in (first, second):
        process.join(60)
    assert (first.exitcode, second.exitcode) == (-signal.SIGKILL, 0)
    is_whole(folder, whole)


def test_two_that_replace_the_same_bank_do_so_one_after_the_other(folder: Path, whole: dict[str, bytes], arrived: Any):
    begun, failed = threading.Event(), []

    def run(before: Change = lambda i: None) -> None:
        try:
            convert(folder, two(before), LOOK, ABOUT, overwrite=True)
        except BaseException as error:
            failed.append(error)

    def pause(i: int) -> None:
        if i == 21:
            begun.set()
            assert arrived.acquire(timeout=60) and arrived.acquire(timeout=60)

    threads = [threading.Thread(target=run, args=(pause,)), threading.Thread(target=run)]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    is_whole(folder, whole)


def test_again_replaces_a_whole_bank(folder: Path, whole: dict[str, bytes]):
    convert(folder, {"val": labelled(7, [0], ["x"])}, LOOK, ABOUT)
    convert(folder, two(), LOOK, ABOUT, overwrite=True)
    is_whole(folder, whole)


def test_again_leaves_the_old_bank_where_it_fails_and_where_it_dies(folder: Path, whole: dict[str, bytes]):
    convert(folder, two(), LOOK, ABOUT)
    other = {"train": labelled(7, [0] * 30, ["x"], lambda i: b"" if i == 21 else None)}
    fails(folder, other, "source: row 28: it is empty; replace it", overwrite=True)
    assert content(folder) == whole
    dies(lambda: convert(folder, {"train": labelled(7, [0] * 30, ["x"], kill(25))}, LOOK, ABOUT, overwrite=True))
    assert content(folder) == whole
    asked: list[int] = []
    convert(folder, {"train": labelled(7, [0] * 30, ["x"], asked=asked)}, LOOK, ABOUT, overwrite=True)
    assert asked == [*range(7 + 21, 7 + 30)] and open_banks(folder)["train"].names == ("x",)
    assert list(folder.parent.iterdir()) == [folder]


def test_what_an_earlier_try_left_goes_when_the_bank_is_there(folder: Path, whole: dict[str, bytes]):
    convert(folder, two(), LOOK, ABOUT)
    dies(lambda: convert(folder, two(kill(21)), LOOK, ABOUT, overwrite=True))
    assert folder.with_name("banks.part").exists()
    convert(folder, two(), LOOK, ABOUT)
    is_whole(folder, whole)


EMPTY = part_of_labels([], np.zeros(0, int), lambda i: iter(()), str)
IMPOSSIBLE = {
    "no classes": ({"train": EMPTY}, "split train has no classes"),
    "a class without images": (
        {"train": labelled(0, [0, 2], ["a", "b", "c"])},
        "class b of train has no images",
    ),
    "a class in two splits": (
        {"train": labelled(0, [0, 1], ["a", "b"]), "test": labelled(5, [0, 1], ["c", "a"])},
        "class a is in train and in test; splits share no class",
    ),
    "a class named twice": (
        {"train": labelled(0, [0, 1, 2], ["b", "a", "b"])},
        "class b of train is named twice; give every class a name of its own",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_classes_that_make_no_bank_are_refused_before_anything_is_read(folder: Path, case: str):
    parts, message = IMPOSSIBLE[case]
    with pytest.raises(FewshotError, match=f"^{folder}: {message}"):
        convert(folder, parts, LOOK, ABOUT)
    with pytest.raises(FewshotError, match=f"^the list: {message}"):
        check_parts("the list", parts)
    assert not folder.parent.exists()


@pytest.mark.parametrize(("label", "row"), [(-1, 2), (3, 0)])
def test_a_label_that_is_none_is_refused(label: int, row: int):
    labels = [0, 1, 2]
    labels[row] = label
    with pytest.raises(FewshotError, match=f"source: row {row}: label {label}, but there are 3 classes; fetch"):
        labelled(0, labels, ["a", "b", "c"])


def test_a_file_in_two_classes_or_twice_in_one_or_not_there_is_refused(tmp_path: Path):
    files = source(tmp_path, "source.zip")
    for listed in ({"a": ["a/00.png"], "b": ["b/00.png", "a/00.png"]}, {"a": ["a/00.png", "a/00.png"]}):
        with pytest.raises(
            FewshotError, match="source.zip: a/00.png: listed twice; an image belongs to one class, once"
        ):
            part_of_files(files, listed)
    with pytest.raises(FewshotError, match="source.zip: a/09.png: listed, but not there; fetch the data again"):
        part_of_files(files, {"a": ["a/00.png", "a/09.png"], "b": ["b/00.png"]})


@pytest.mark.parametrize("at", [0, 21, 39])
def test_fewer_images_than_labels_are_refused(folder: Path, at: int):
    def images(first: int) -> Iterator[np.ndarray]:
        return (pixels(i) for i in range(first, at))

    part = part_of_labels(["a"], np.zeros(40, int), images, lambda i: f"source: row {i}")
    fails(folder, {"train": part}, f"source: row {at}: the source ends before it; fetch it again")
    assert not folder.exists()


@pytest.mark.parametrize("at", [0, 5, 21, 39])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty; replace it, or remove it"),
        (png(1)[:-40], "damaged, or no image"),
        (b"<html>", "it is a web page"),
        (np.zeros((5, 5)), "an array"),
    ],
)
def test_an_unreadable_image_is_named_and_mended_it_goes_on(
    folder: Path, whole: dict[str, bytes], at: int, data: bytes | np.ndarray, message: str
):
    fails(folder, two(lambda i: data if i == at else None), f"^source: row {at}: {message}")
    assert not folder.exists()
    asked: list[int] = []
    convert(folder, two(asked=asked), LOOK, ABOUT)
    assert asked[0] == at
    is_whole(folder, whole)


@pytest.mark.parametrize("at", [0, 6, 21])
@pytest.mark.parametrize(
    "error", [OSError("Input/output error"), ValueError("two\nlines"), EOFError(), RuntimeError("x")]
)
def test_a_source_that_breaks_off_is_named_at_the_very_image(folder: Path, at: int, error: Exception):
    def breaks(i: int) -> None:
        if i == at:
            raise error

    words = " ".join(str(error).split()) or "EOFError"
    fails(folder, two(breaks), rf"^source: row {at}: cannot be read \({words}\); mend it, or fetch it again$")


def test_a_source_that_does_not_open_is_named(folder: Path):
    def images(first: int) -> Iterator[bytes]:
        raise FileNotFoundError(2, "No such file or directory", "data.npz")

    part = part_of_labels(["a"], np.zeros(3, int), images, lambda i: f"data.npz: row {i}")
    fails(folder, {"train": part}, r"^data.npz: row 0: cannot be read \(.*No such file or directory: 'data.npz'\)")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_damaged_after_it_was_listed_is_named(tmp_path: Path, kind: str):
    files = source(tmp_path, kind)
    part = part_of_files(files, classes(files))
    if kind == "folder":
        (files.root / "c/03.png").unlink()
    else:
        files.root.write_bytes(files.root.read_bytes()[: files.root.stat().st_size // 2])
    name = "c/03.png" if kind == "folder" else r"[abc]/0\d.png"
    fails(tmp_path / "banks", {"train": part}, f"{kind}.*{name}: (cannot be read|damaged|the source ends).*")


def sharing() -> dict[str, SplitSource]:
    """Row 2 of train, the second image of b, stands three times in test; and one image twice in train, as it may."""
    return {
        "train": labelled(0, [1, 0, 1, 0, 0], ["a", "b"], lambda i: pixels(1) if i == 3 else None),
        "test": labelled(50, [1, 1, 0, 0, 0], ["c", "d"], lambda i: pixels(2) if i in (0, 3, 4) else None),
        "val": labelled(80, [0, 0], ["e"], lambda i: pixels(51) if i else None),
    }


def test_an_image_in_two_splits_is_refused_with_its_places(folder: Path):
    fails(
        folder,
        sharing(),
        r"^4 images that two splits share: source: row 2 \(train\) is the same image as source: row 53 "
        r"\(test\): a leak; .*and 1 more; of each: remove one, or set dataset.reader.on_overlap=count",
    )
    assert not folder.exists()


def test_images_in_two_splits_are_counted_where_this_is_asked(folder: Path):
    convert(folder, sharing(), LOOK, ABOUT, on_overlap="count")
    assert open_banks(folder)["val"].about["shared_images"] == 4


@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_memory_does_not_grow_with_the_images(tmp_path: Path, kind: str, monkeypatch):
    """200 MB of them, in a process of its own, with the true numbers of images at once."""
    monkeypatch.undo()
    large = np.random.RandomState(0).randint(0, 256, (400, 500, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(large).save(file, "BMP")

    def images(first: int) -> Iterator[bytes | np.ndarray]:
        for i in range(first, 340):
            if kind == "arrays":
                yield np.roll(large, i, axis=1)
            else:
                yield file.getvalue()[:-1] + bytes([i % 256])

    def peak() -> int:
        return int(next(line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM")))

    def measured() -> None:
        before = peak()
        part = part_of_labels(["a"], np.zeros(340, int), images, str)
        convert(tmp_path / "banks", {"train": part}, ImageSpec(84, resample="bilinear"), ABOUT)
        (tmp_path / "grown").write_text(str(peak() - before))

    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells the peak of a process")
    process = child(measured)
    process.join(60)
    assert process.exitcode == 0 and int((tmp_path / "grown").read_text()) < 100_000  # KB
    shutil.rmtree(tmp_path / "banks")


@pytest.mark.parametrize("again", [False, True])
def test_images_that_were_replaced_since_they_were_read_are_read_again(tmp_path: Path, again: bool):
    folder = tmp_path / "source"
    for i in range(12):
        (folder / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(i)).save(folder / f"a/{i:02d}.png")
    (folder / "a/11.png").write_bytes(b"damaged")

    def part() -> dict[str, SplitSource]:
        files = open_files(folder)
        return {"train": part_of_files(files, {"a": files.names})}

    fails(tmp_path / "banks", part(), "11.png: damaged.*")
    assert json.loads((tmp_path / "banks.part/progress.json").read_text())["done"]["train"] > 2
    for i in (1, 11):
        Image.fromarray(pixels(100 + i)).save(folder / f"a/{i:02d}.png")
    convert(tmp_path / "banks", part(), LOOK, ABOUT, overwrite=again)
    examples = open_banks(tmp_path / "banks")["train"].examples.numpy()
    for i in range(12):
        assert (examples[i] == decode_image(pixels(100 + i if i in (1, 11) else i), LOOK)).all()
