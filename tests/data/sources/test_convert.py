"""Conversion: complete banks or none, the same from any source, resumed after an interruption."""

import json
import multiprocessing
import os
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewshot.core.errors import FewshotError
from fewshot.data.bank import Split, fingerprint, open_banks
from fewshot.data.sources import convert as module
from fewshot.data.sources.archives import Files, open_files
from fewshot.data.sources.convert import check_banks, convert, remove_attempts
from fewshot.data.sources.images import ImageSpec, decode_image
from fewshot.data.sources.parts import SplitSource, check_parts, part_of_files, part_of_labels

from ..made_sources import as_archive, as_folder, encoded, noise

SPEC = ImageSpec(8)
METADATA = {"dataset": "made up", "source": "random"}
Change = Callable[[int], bytes | np.ndarray | None]


def pixels(number: int, side: int = 9) -> np.ndarray:
    return noise(number, side, side)


def png(number: int) -> bytes:
    return encoded(pixels(number))


def labelled(
    start: int, labels: list[int], names: list[str], before: Change = lambda i: None, asked: list[int] | None = None
) -> SplitSource:
    """Random images; before(i) is called for each that is read, and may give another one in its place."""

    def images(first: int) -> Iterator[bytes | np.ndarray]:
        for i in range(first, len(labels)):
            if asked is not None:
                asked.append(start + i)
            other = before(i)
            yield pixels(start + i) if other is None else other

    return part_of_labels(names, np.array(labels), images, f"source {start}")


def two(before: Change = lambda i: None, asked: list[int] | None = None) -> dict[str, SplitSource]:
    """40 images of train, of two alternating classes, and 10 of test."""
    return {
        "train": labelled(0, [1, 0] * 20, ["b", "a"], before, asked),
        "test": labelled(100, [0, 1] * 5, ["c", "d"], asked=asked),
    }


def expected() -> dict[str, Split]:
    """The splits that `two` should become."""
    order = {
        "train": [*range(0, 40, 2), *range(1, 40, 2)],  # a before b, whose number is 0
        "test": [*range(100, 110, 2), *range(101, 110, 2)],
    }
    examples = {split: np.stack([decode_image(pixels(i), SPEC) for i in rows]) for split, rows in order.items()}
    return {
        "train": Split(examples["train"], [20, 20], ["a", "b"]),
        "test": Split(examples["test"], [5, 5], ["c", "d"]),
    }


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(folder: Path, parts: dict[str, SplitSource], message: str, **choices: Any) -> None:
    with pytest.raises(FewshotError, match=message) as caught:
        convert(folder, parts, SPEC, METADATA, **choices)
    assert "\n" not in str(caught.value)


@pytest.fixture(autouse=True)
def often(monkeypatch) -> None:
    """Save the progress after every 8 images."""
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "SAVE_EVERY", 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "banks"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that `two` becomes without an interruption."""
    folder = tmp_path_factory.mktemp("whole") / "banks"
    convert(folder, two(), SPEC, METADATA)
    return content(folder)


def is_whole(folder: Path, whole: dict[str, bytes]) -> None:
    assert content(folder) == whole
    assert list(folder.parent.iterdir()) == [folder]


def test_a_bank_has_every_image_in_its_row(folder: Path, whole: dict[str, bytes]):
    convert(folder, two(), SPEC, METADATA)
    is_whole(folder, whole)
    assert set(whole) == {"bank.json", "train.npy", "test.npy"}
    banks = open_banks(folder)
    assert list(banks) == ["train", "test"]
    for split, plain in expected().items():
        assert banks[split].fingerprint == fingerprint(plain)
        assert np.array_equal(banks[split].examples.numpy(), plain.examples)
        assert banks[split].sizes.tolist() == plain.counts and list(banks[split].names) == plain.names
        assert banks[split].metadata == METADATA | {"shared_images": 0}
    assert check_banks(folder) == 0


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


KINDS = ("folder", "source.zip", "source.tar.gz")


def classes(files: Files, names: str = "abc") -> dict[str, list[str]]:
    return {name: [file for file in files.names if file[0] == name] for name in names}


@pytest.mark.parametrize("spec", [SPEC, ImageSpec(5, channels=1, resize="crop", resample="bilinear")], ids=str)
def test_every_kind_of_source_gives_the_same_bank_sorted_by_file_name(tmp_path: Path, spec: ImageSpec):
    for kind in KINDS:
        files = source(tmp_path, kind)
        parts = {"train": part_of_files(files, classes(files, "ca")), "test": part_of_files(files, classes(files, "b"))}
        convert(tmp_path / f"{kind}-banks", parts, spec, METADATA)
    made = [content(tmp_path / f"{kind}-banks") for kind in KINDS]
    assert made.count(made[0]) == len(KINDS)
    # The place of each in the archive, by class and name.
    rows = {"train": [4, 10, 1, 7, 5, 11, 2, 8], "test": [3, 9, 0, 6]}
    names, banks = {"train": ["a", "c"], "test": ["b"]}, open_banks(tmp_path / "folder-banks")
    for split, places in rows.items():
        examples = np.stack([decode_image(png(place), spec) for place in places])
        assert banks[split].fingerprint == fingerprint(Split(examples, [4] * len(names[split]), names[split]))


def child(target: Callable[[], object]) -> Any:
    """Another process, which ends with code 3 if `target` raises."""

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
    """Kill this process when image `at` is read."""
    return lambda i: os.kill(os.getpid(), signal.SIGKILL) if i == at else None


def interrupt(folder: Path, at: int, **choices: Any) -> None:
    """Convert `two` until image `at` is read."""

    def stop(i: int) -> None:
        if i == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(folder, two(stop), SPEC, METADATA, **choices)


@pytest.mark.parametrize(("at", "saved"), [(0, 0), (8, 8), (39, 32)])
def test_a_killed_conversion_is_resumed_at_its_saved_progress(
    folder: Path, whole: dict[str, bytes], at: int, saved: int
):
    dies(lambda: convert(folder, two(kill(at)), SPEC, METADATA))
    assert not folder.exists()
    with pytest.raises(FewshotError, match="not a readable bank"):
        open_banks(folder)
    assert not (folder.with_name("banks.part") / "bank.json").exists()
    asked: list[int] = []
    convert(folder, two(asked=asked), SPEC, METADATA)
    assert asked == [*range(saved, 40), *range(100, 110)]
    is_whole(folder, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_conversion_reads_files_from_the_middle(tmp_path: Path, kind: str):
    files = source(tmp_path, kind)
    part = part_of_files(files, classes(files))
    convert(tmp_path / "at once", {"train": part}, SPEC, METADATA)

    def images(first: int) -> Iterator[bytes | np.ndarray]:
        for i, data in enumerate(part.images(first), start=first):
            if i == 10:
                raise KeyboardInterrupt
            yield data

    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "banks", {"train": replace(part, images=images)}, SPEC, METADATA)
    assert json.loads((tmp_path / "banks.part" / "progress.json").read_text())["done"] == {"train": 8}
    convert(tmp_path / "banks", {"train": part}, SPEC, METADATA)
    assert content(tmp_path / "banks") == content(tmp_path / "at once")


def test_the_bank_gets_its_name_last_and_an_interruption_before_reads_nothing_again(
    folder: Path, whole: dict[str, bytes], monkeypatch
):
    def stop(work: Path, place: Path) -> None:
        assert work.with_name("banks") == place == folder and not place.exists()
        assert (work / "bank.json").read_bytes() == whole["bank.json"]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "replace_folder", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(folder, two(), SPEC, METADATA)
    assert not folder.exists()
    asked: list[int] = []
    convert(folder, two(asked=asked), SPEC, METADATA)
    assert asked == []
    is_whole(folder, whole)


def test_a_complete_bank_is_not_made_again(folder: Path, whole: dict[str, bytes]):
    convert(folder, two(), SPEC, METADATA)
    asked: list[int] = []
    convert(folder, two(asked=asked), SPEC, METADATA | {"source": "another"})
    assert asked == []
    is_whole(folder, whole)


OTHERS: dict[str, dict[str, Any]] = {
    "size": {"spec": ImageSpec(9)},
    "metadata": {"metadata": METADATA | {"source": "another"}},
    "labels": {"train": labelled(0, [1, 0] * 19 + [0, 1], ["b", "a"])},
    "class names": {"train": labelled(0, [1, 0] * 20, ["b", "aa"])},
    "an image more": {"train": labelled(0, [1, 0] * 20 + [1], ["b", "a"])},
    "file names": {"train": labelled(1, [1, 0] * 20, ["b", "a"])},
}


@pytest.mark.parametrize("other", OTHERS)
def test_progress_of_another_request_is_not_resumed(folder: Path, tmp_path: Path, other: str):
    choices = {"spec": SPEC, "metadata": METADATA} | OTHERS[other]
    parts = two() | ({"train": choices.pop("train")} if "train" in choices else {})
    interrupt(folder, 30)
    convert(folder, parts, **choices)
    convert(tmp_path / "plain", parts, **choices)
    assert content(folder) == content(tmp_path / "plain")


@pytest.mark.parametrize("data", [b"", b"[]", b'{"done": {}}', b"\xff\xfe\x00"])
def test_damaged_progress_is_not_resumed(folder: Path, whole: dict[str, bytes], data: bytes):
    interrupt(folder, 30)
    (folder.with_name("banks.part") / "progress.json").write_bytes(data)
    convert(folder, two(), SPEC, METADATA)
    is_whole(folder, whole)


def test_a_full_disk_is_named_and_with_room_the_same_call_resumes(folder: Path, whole: dict[str, bytes]):
    limits, asked = resource.getrlimit(resource.RLIMIT_FSIZE), []

    def fill(i: int) -> None:
        if i == 21:  # from now on no file can be written beyond its 20th image
            resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 192, limits[1]))

    try:
        fails(folder, two(fill), r"banks.part: cannot be written \(File too large\); make room, then the same command")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not folder.exists()
    convert(folder, two(asked=asked), SPEC, METADATA)
    assert asked == [*range(16, 40), *range(100, 110)]
    is_whole(folder, whole)


def test_too_little_room_is_named_before_anything_is_read(folder: Path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=50 * 192 - 1))
    asked: list[int] = []
    fails(folder, two(asked=asked), "banks.part: 0.0 MB are needed and 0.0 MB free; make room")
    assert asked == []
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=50 * 192))
    convert(folder, two(), SPEC, METADATA)


@pytest.fixture
def arrived(monkeypatch) -> Any:
    """Counts the processes that come to the lock."""
    semaphore, flock = multiprocessing.get_context("fork").Semaphore(0), module.fcntl.flock

    def counted(*args: Any) -> None:
        semaphore.release()
        flock(*args)

    monkeypatch.setattr(module.fcntl, "flock", counted)
    return semaphore


def test_of_two_processes_one_converts_and_the_other_waits_for_it(folder: Path, whole: dict[str, bytes], arrived: Any):
    def pause(i: int) -> None:
        if i == 21:
            for _ in range(2):
                assert arrived.acquire(timeout=60)
            assert not folder.exists()

    def second() -> None:
        asked: list[int] = []
        convert(folder, two(asked=asked), SPEC, METADATA)
        assert not asked
        check_banks(folder)

    begun = multiprocessing.get_context("fork").Event()
    processes = [child(lambda: convert(folder, two(lambda i: begun.set() or pause(i)), SPEC, METADATA))]
    assert begun.wait(60)
    processes.append(child(second))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    is_whole(folder, whole)


def test_if_the_converting_process_dies_the_waiting_one_resumes(folder: Path, whole: dict[str, bytes], arrived: Any):
    begun = multiprocessing.get_context("fork").Event()

    def pause(i: int) -> None:
        if i == 21:
            begun.set()
            signal.pause()

    def goes_on() -> None:
        asked: list[int] = []
        convert(folder, two(asked=asked), SPEC, METADATA)
        assert asked[0] == 16

    first = child(lambda: convert(folder, two(pause), SPEC, METADATA))
    assert begun.wait(60)
    second = child(goes_on)
    for _ in range(2):
        assert arrived.acquire(timeout=60)
    os.kill(first.pid, signal.SIGKILL)
    for process in (first, second):
        process.join(60)
    assert (first.exitcode, second.exitcode) == (-signal.SIGKILL, 0)
    is_whole(folder, whole)


def test_overwrite_keeps_the_old_bank_if_it_fails_or_is_interrupted(folder: Path, whole: dict[str, bytes]):
    convert(folder, two(), SPEC, METADATA)
    other = {"train": labelled(7, [0] * 30, ["x"], lambda i: b"" if i == 21 else None)}
    fails(folder, other, "source 7: image 22: it is empty; replace it", overwrite=True)
    assert content(folder) == whole
    dies(lambda: convert(folder, {"train": labelled(7, [0] * 30, ["x"], kill(25))}, SPEC, METADATA, overwrite=True))
    assert content(folder) == whole
    asked: list[int] = []
    convert(folder, {"train": labelled(7, [0] * 30, ["x"], asked=asked)}, SPEC, METADATA, overwrite=True)
    assert asked == [*range(7 + 21, 7 + 30)] and open_banks(folder)["train"].names == ("x",)
    assert list(folder.parent.iterdir()) == [folder]


def test_earlier_attempts_are_removed_unless_a_process_converts_there(folder: Path, whole: dict[str, bytes]):
    convert(folder, two(), SPEC, METADATA)
    interrupt(folder, 21, overwrite=True)
    convert(folder, two(), SPEC, METADATA)
    is_whole(folder, whole)
    interrupt(folder.with_name("bank2"), 21)
    with (folder.with_name("bank2.part") / "lock").open() as lock:
        module.fcntl.flock(lock, module.fcntl.LOCK_EX)
        remove_attempts(folder.parent, "bank?")
        assert folder.with_name("bank2.part").exists()
    remove_attempts(folder.parent, "bank?")
    is_whole(folder, whole)


EMPTY = part_of_labels([], np.zeros(0, int), lambda i: iter(()), "nothing")
IMPOSSIBLE = {
    "no classes": ({"train": EMPTY}, "no classes of train; add some"),
    "a class without images": ({"train": labelled(0, [0, 2], ["a", "b", "c"])}, "class b of train has no images"),
    "a class in two splits": (
        {"train": labelled(0, [0, 1], ["a", "b"]), "test": labelled(5, [0, 1], ["c", "a"])},
        "class a is in train and in test; rename one: splits share no class",
    ),
    "a class named twice": ({"train": labelled(0, [0, 1, 2], ["b", "a", "b"])}, "class b is in train and in train"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_classes_that_make_no_bank_are_refused(case: str):
    parts, message = IMPOSSIBLE[case]
    with pytest.raises(FewshotError, match=f"^the list: {message}"):
        check_parts("the list", parts)


def test_a_file_in_two_classes_or_twice_in_one_is_refused(tmp_path: Path):
    files = source(tmp_path, "source.zip")
    for listed in ({"a": ["a/00.png"], "b": ["b/00.png", "a/00.png"]}, {"a": ["a/00.png", "a/00.png"]}):
        with pytest.raises(FewshotError, match="source.zip: a/00.png: listed twice; an image belongs to one class"):
            part_of_files(files, listed)


@pytest.mark.parametrize("at", [0, 21])
def test_fewer_images_than_labels_are_refused(folder: Path, at: int):
    def images(first: int) -> Iterator[np.ndarray]:
        return (pixels(i) for i in range(first, at))

    part = part_of_labels(["a"], np.zeros(40, int), images, "source")
    fails(folder, {"train": part}, f"source: image {at + 1}: the source ends before it; fetch it again")
    assert not folder.exists()


@pytest.mark.parametrize("at", [0, 21])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty; replace it, or remove it"),
        (png(1)[:-40], "damaged, or "),
        (b"<html>", "it is a web page"),
        (np.zeros((5, 5)), "an array"),
    ],
)
def test_a_damaged_image_is_named_and_with_it_mended_the_call_resumes(
    folder: Path, whole: dict[str, bytes], at: int, data: bytes | np.ndarray, message: str
):
    fails(folder, two(lambda i: data if i == at else None), f"^source 0: image {at + 1}: {message}")
    assert not folder.exists()
    asked: list[int] = []
    convert(folder, two(asked=asked), SPEC, METADATA)
    assert asked[0] == at
    is_whole(folder, whole)


@pytest.mark.parametrize("at", [0, 21])
@pytest.mark.parametrize("error", [OSError("Input/output error"), ValueError("two\nlines"), EOFError()])
def test_a_source_that_fails_is_named_with_the_image(folder: Path, at: int, error: Exception):
    def breaks(i: int) -> None:
        if i == at:
            raise error

    words = " ".join(str(error).split()) or "EOFError"
    fails(folder, two(breaks), rf"^source 0: image {at + 1}: cannot be read \({words}\); mend it, or fetch it again$")


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
    """Image 3 of train is three times in test; and one image is twice in train, which is no fault."""
    return {
        "train": labelled(0, [1, 0, 1, 0, 0], ["a", "b"], lambda i: pixels(1) if i == 3 else None),
        "test": labelled(50, [1, 1, 0, 0, 0], ["c", "d"], lambda i: pixels(2) if i in (0, 3, 4) else None),
        "val": labelled(80, [0, 0], ["e"], lambda i: pixels(51) if i else None),
    }


def test_an_image_in_two_splits_is_refused_with_its_places_or_counted(folder: Path):
    fails(
        folder,
        sharing(),
        r"^4 images that two splits share: source 0: image 3 \(train\) is the same image as source 50: image 4 "
        r"\(test\); .*and 1 more; for each: remove one, or set dataset.reader.on_overlap=count",
    )
    assert not folder.exists()
    convert(folder, sharing(), SPEC, METADATA, on_overlap="count")
    assert (metadata := open_banks(folder)["val"].metadata)["shared_images"] == 4 == check_banks(folder)
    assert metadata["notes"][0].startswith("2 images are there twice in one split, such as source 50: image 4 (test)")


def test_copies_within_a_split_are_told_where_a_test_would_know_them(folder: Path, capsys: pytest.CaptureFixture[str]):
    source = two(lambda i: pixels(0) if i < 5 else None)  # copies in the training, which are no fault
    source["test"] = labelled(50, [1, 1, 0, 0, 0], ["c", "d"], lambda i: pixels(50) if i in (3, 4) else None)
    convert(folder, source, SPEC, METADATA)
    [note] = open_banks(folder)["test"].metadata["notes"]
    assert note.startswith("2 images are there twice in one split, such as source 50: image 4 (test) and ")
    assert note.endswith(" in the support set, under another label")
    assert note in capsys.readouterr().err
    source["test"] = labelled(50, [1, 1, 0, 0, 0], ["c", "d"], lambda i: pixels(99) if i in (3, 4) else None)
    convert(folder, source, SPEC, METADATA, overwrite=True)
    [note] = open_banks(folder)["test"].metadata["notes"]
    assert note.endswith(" in the support set")


@pytest.mark.parametrize("byte", [-1, -10 * 192])
def test_a_flipped_bit_is_found_by_the_check(folder: Path, byte: int):
    convert(folder, two(), SPEC, METADATA)
    data = bytearray((folder / "test.npy").read_bytes())
    data[byte] ^= 1
    (folder / "test.npy").write_bytes(data)
    changed(folder, "test.npy: its content has changed since it was prepared")


@pytest.mark.parametrize("entry", [{"counts": [4, 6]}, {"names": ["d", "c"]}, {"sha256": "0" * 64}])
def test_another_listing_is_found_by_the_check(folder: Path, entry: dict[str, Any]):
    convert(folder, two(), SPEC, METADATA)
    listing = json.loads((folder / "bank.json").read_text())
    listing["splits"]["test"] |= entry
    (folder / "bank.json").write_text(json.dumps(listing))
    changed(folder, "test.npy: its content has changed since it was prepared")


def changed(folder: Path, message: str) -> None:
    with pytest.raises(FewshotError, match=message) as caught:
        check_banks(folder)
    assert "\n" not in str(caught.value) and f"delete the folder {folder}" in str(caught.value)


def test_memory_does_not_grow_with_the_images(tmp_path: Path, monkeypatch):
    """200 MB of images, in a process of its own, with the true size of a batch."""
    monkeypatch.undo()
    large = np.random.RandomState(0).randint(0, 256, (400, 500, 3)).astype(np.uint8)

    def images(first: int) -> Iterator[np.ndarray]:
        return (np.roll(large, i, axis=1) for i in range(first, 340))

    def peak() -> int:
        return int(next(line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM")))

    def convert_and_measure() -> None:
        before = peak()
        part = part_of_labels(["a"], np.zeros(340, int), images, "source")
        convert(tmp_path / "banks", {"train": part}, ImageSpec(8, resample="bilinear"), METADATA)
        (tmp_path / "grown").write_text(str(peak() - before))

    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells the peak of a process")
    process = child(convert_and_measure)
    process.join(60)
    assert process.exitcode == 0 and int((tmp_path / "grown").read_text()) < 100_000  # KB


def test_images_that_were_replaced_since_they_were_read_are_read_again(tmp_path: Path):
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
    convert(tmp_path / "banks", part(), SPEC, METADATA)
    examples = open_banks(tmp_path / "banks")["train"].examples.numpy()
    for i in range(12):
        assert (examples[i] == decode_image(pixels(100 + i if i in (1, 11) else i), SPEC)).all()
