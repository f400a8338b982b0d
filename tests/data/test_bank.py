"""Banks: what is written is what is opened, and nothing else is opened."""

import errno
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.data import bank
from fewshot.data.bank import Split, fingerprint, fingerprint_of_file, open_banks, verify, write_banks


def split(seed: int = 0, counts: tuple[int, ...] = (2, 3, 1)) -> Split:
    examples = np.random.RandomState(seed).randint(0, 256, size=(sum(counts), 1, 4, 4), dtype=np.uint8)
    return Split(examples, list(counts), [f"class {i}" for i in range(len(counts))])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(folder: Path, change) -> None:
    listing = json.loads((folder / "bank.json").read_text())
    change(listing)
    (folder / "bank.json").write_text(json.dumps(listing))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_banks(tmp_path / "bank", {"train": split(0), "test": split(1)}, {"source": "made up"})
    return tmp_path / "bank"


def test_a_bank_comes_back_as_it_was_written(folder: Path):
    banks = open_banks(folder)
    assert list(banks) == ["train", "test"]
    for seed, (name, opened) in enumerate(banks.items()):
        assert opened.examples.dtype == torch.uint8 and opened.shape == (1, 4, 4)
        assert np.array_equal(opened.examples.numpy(), split(seed).examples)
        assert opened.offsets.tolist() == [0, 2, 5, 6] and opened.sizes.tolist() == [2, 3, 1]
        assert opened.names == ("class 0", "class 1", "class 2")
        assert opened.split == name and opened.about == {"source": "made up"}
        assert opened.fingerprint == fingerprint(split(seed))


def test_features_keep_their_dtype(tmp_path: Path):
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    write_banks(tmp_path / "bank", {"test": Split(features, [4], ["one"])}, {})
    assert torch.equal(open_banks(tmp_path / "bank")["test"].examples, torch.from_numpy(features))


def test_writing_into_an_opened_bank_leaves_the_files_alone(folder: Path):
    before = files(folder)
    opened = open_banks(folder)["train"]
    opened.examples.zero_()
    assert files(folder) == before
    assert open_banks(folder)["train"].examples.any()


def test_the_fingerprint_sees_pixels_counts_names_and_dtype():
    one = split()
    examples = one.examples.copy()
    examples[0, 0, 0, 0] ^= 1
    others = [
        Split(examples, one.counts, one.names),
        Split(one.examples, [3, 2, 1], one.names),
        Split(one.examples, one.counts, one.names[::-1]),
        Split(one.examples.astype(np.float32), one.counts, one.names),
        Split(one.examples.reshape(6, 1, 2, 8), one.counts, one.names),
    ]
    assert len({fingerprint(each) for each in [one, *others]}) == 6
    assert fingerprint(one) == fingerprint(split())


def test_a_huge_bank_opens_without_being_read(tmp_path: Path):
    folder, rows = tmp_path / "bank", 2_400_000  # 84x84 RGB... 16 GB and more, all of it a hole in the file
    write_banks(folder, {"train": Split(np.zeros((1, 3, 48, 48), np.uint8), [1], ["all"])}, {})
    np.lib.format.open_memmap(folder / "train.npy", mode="w+", dtype=np.uint8, shape=(rows, 3, 48, 48)).flush()
    assert (folder / "train.npy").stat().st_size > 16e9
    rewrite(folder, lambda it: it["splits"]["train"].update(counts=[rows], shape=[rows, 3, 48, 48]))
    start = time.perf_counter()
    opened = open_banks(folder)["train"]
    assert len(opened.examples) == rows and not opened.examples[rows // 2].any()
    assert time.perf_counter() - start < 2
    del opened
    (folder / "train.npy").unlink()


def cut_array(folder: Path) -> None:
    path = folder / "test.npy"
    path.write_bytes(path.read_bytes()[:-1])


def cut_header(folder: Path) -> None:
    path = folder / "test.npy"
    path.write_bytes(path.read_bytes()[:20])


def pickled_array(folder: Path) -> None:
    np.save(folder / "test.npy", np.array([{}], dtype=object), allow_pickle=True)


DAMAGE = {
    "no folder": lambda f: f.rename(f.with_name("elsewhere")),
    "no json": lambda f: (f / "bank.json").unlink(),
    "no array": lambda f: (f / "test.npy").unlink(),
    "array cut short": cut_array,
    "header cut short": cut_header,
    "empty array file": lambda f: (f / "test.npy").write_bytes(b""),
    "pickled array": pickled_array,
    "array of another shape": lambda f: np.save(f / "test.npy", np.zeros((6, 1, 5, 4), np.uint8)),
    "array of another order": lambda f: np.save(f / "test.npy", np.zeros((6, 1, 4, 4), np.uint8, order="F")),
    "array of another dtype": lambda f: np.save(f / "test.npy", np.zeros((6, 1, 4, 4), np.int8)),
    "json cut short": lambda f: (f / "bank.json").write_text((f / "bank.json").read_text()[:50]),
    "binary json": lambda f: (f / "bank.json").write_bytes(b"\xff\xfe\x00"),
    "foreign json": lambda f: (f / "bank.json").write_text('{"name": "something else"}'),
    "json list": lambda f: (f / "bank.json").write_text("[1, 2]"),
    "another format": lambda f: rewrite(f, lambda it: it.update(format=99)),
    "count too large": lambda f: rewrite(f, lambda it: it["splits"]["test"].update(counts=[2, 3, 2])),
    "class without examples": lambda f: rewrite(f, lambda it: it["splits"]["test"].update(counts=[0, 5, 1])),
    "negative count": lambda f: rewrite(f, lambda it: it["splits"]["test"].update(counts=[-1, 6, 1])),
    "name too few": lambda f: rewrite(f, lambda it: it["splits"]["test"].update(names=["a", "b"])),
    "no counts": lambda f: rewrite(f, lambda it: it["splits"]["test"].pop("counts")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_bank_is_refused_in_one_line(folder: Path, damage: str):
    DAMAGE[damage](folder)
    with pytest.raises(FewshotError) as caught:
        open_banks(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value) and "delete" in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        Split(split().examples, [2, 3], ["a", "b"]),
        Split(split().examples, [2, 3, 1], ["a", "b"]),
        Split(split().examples, [0, 5, 1], ["a", "b", "c"]),
        Split(np.zeros((0, 1, 4, 4), np.uint8), [], []),
    ],
)
def test_a_split_that_does_not_fit_together_is_not_written(tmp_path: Path, wrong: Split):
    with pytest.raises(FewshotError, match="train") as caught:
        write_banks(tmp_path / "bank", {"train": wrong}, {})
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space left"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_and_keeps_the_earlier_bank(folder: Path, monkeypatch, error: BaseException):
    before, save = files(folder.parent), np.save

    def fails_at_the_second(path, *args, **kwargs):
        if Path(path).name == "test.npy":
            Path(path).write_bytes(b"half")
            raise error
        save(path, *args, **kwargs)

    monkeypatch.setattr(bank.np, "save", fails_at_the_second)
    for target in (folder, folder.with_name("new")):
        with pytest.raises((FewshotError, KeyboardInterrupt), match=r"|cannot be written \(no space left\); make room"):
            write_banks(target, {"train": split(2), "test": split(3)}, {})
        assert files(folder.parent) == before and list(folder.parent.iterdir()) == [folder]


def test_a_new_bank_replaces_the_earlier_one(folder: Path):
    write_banks(folder, {"val": split(7)}, {})
    assert list(open_banks(folder)) == ["val"]
    assert {path.name for path in folder.iterdir()} == {"bank.json", "val.npy"}
    assert list(folder.parent.iterdir()) == [folder]


def rows_of(folder: Path) -> dict[str, list[bytes]]:
    """The rows of each split that `verify` hands out."""
    rows: dict[str, list[bytes]] = {}
    verify(folder, lambda name, some: rows.setdefault(name, []).extend(map(bytes, some)))
    return rows


@pytest.mark.parametrize("block", [1, 16, 40, 1 << 24])
def test_verifying_reads_every_row_in_order_and_finds_a_whole_bank_whole(folder: Path, block: int, monkeypatch):
    monkeypatch.setattr(bank, "BLOCK", block)
    rows = {name: [row.tobytes() for row in split(seed).examples] for seed, name in enumerate(("train", "test"))}
    assert rows_of(folder) == rows
    path, found = folder / "test.npy", []
    assert fingerprint_of_file(path, [2, 3, 1], split().names, found.extend) == fingerprint(split(1))
    assert [bytes(row) for row in found] == rows["test"]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3, 4), (5, 1)])
def test_a_files_fingerprint_is_that_of_its_split(tmp_path: Path, dtype: type, shape: tuple[int, ...]):
    examples = np.random.RandomState(0).randint(0, 256, shape).astype(dtype)
    np.save(tmp_path / "a.npy", examples)
    found = fingerprint_of_file(tmp_path / "a.npy", [5], ["one"], lambda rows: None)
    assert found == fingerprint(Split(examples, [5], ["one"]))


def not_verified(folder: Path, message: str) -> None:
    with pytest.raises(FewshotError, match=message) as caught:
        rows_of(folder)
    assert "\n" not in str(caught.value) and f"delete the folder {folder}" in str(caught.value)


@pytest.mark.parametrize("at", [-1, -48, -96])
@pytest.mark.parametrize("bit", [0, 7])
def test_one_flipped_bit_is_found(folder: Path, at: int, bit: int):
    data = bytearray((folder / "test.npy").read_bytes())
    data[at] ^= 1 << bit
    (folder / "test.npy").write_bytes(data)
    open_banks(folder)
    not_verified(folder, "test.npy: its content is not what it was when it was prepared")


def test_one_flipped_bit_of_a_header_changes_nothing_unseen(folder: Path):
    data = (folder / "test.npy").read_bytes()
    before, refused = rows_of(folder), []
    for at in range(len(data) - 96):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            (folder / "test.npy").write_bytes(damaged)
            try:
                with warnings.catch_warnings(action="ignore"):  # NumPy tries to read it as if Python 2 had written it
                    assert rows_of(folder) == before
            except FewshotError as error:
                refused.append(str(error))
    assert len(refused) > 500 and not any("\n" in words for words in refused)


LATER = {
    "array cut short": (cut_array, "not a readable bank"),
    "header cut short": (cut_header, "not a readable bank"),
    "array of more bytes": (
        lambda f: (f / "test.npy").write_bytes((f / "test.npy").read_bytes() + b"\0"),
        "test.npy: its content",
    ),
    "counts of other classes": (
        lambda f: rewrite(f, lambda it: it["splits"]["test"].update(counts=[3, 2, 1])),
        "test.npy: its content",
    ),
    "a count too many": (
        lambda f: rewrite(f, lambda it: it["splits"]["test"].update(counts=[3, 3, 1])),
        "not a readable bank",
    ),
    "names by turns": (
        lambda f: rewrite(f, lambda it: it["splits"]["test"]["names"].reverse()),
        "test.npy: its content",
    ),
    "splits by turns": (
        lambda f: rewrite(
            f, lambda it: it.update(splits=dict(zip(("test", "train"), it["splits"].values(), strict=True)))
        ),
        "its content",
    ),
    "another fingerprint": (
        lambda f: rewrite(f, lambda it: it["splits"]["test"].update(sha256="0" * 64)),
        "test.npy: its content",
    ),
}


@pytest.mark.parametrize("change", LATER)
def test_a_bank_that_was_changed_is_not_verified(folder: Path, change: str):
    damage, message = LATER[change]
    damage(folder)
    not_verified(folder, message)


def test_a_file_shorter_than_it_says_has_no_fingerprint(folder: Path):
    cut_array(folder)
    with pytest.raises(ValueError):
        fingerprint_of_file(folder / "test.npy", [2, 3, 1], split().names, lambda rows: None)


def test_banks_that_cannot_get_their_place_leave_the_old_ones_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bank.json").write_text(name)
    true_replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise OSError(28, "No space left on device")
        true_replace(source, target)

    monkeypatch.setattr(bank.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        bank.replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old/bank.json").read_text() == "old"
    monkeypatch.setattr(bank.os, "replace", true_replace)
    bank.replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old/bank.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="tells of memory on Linux alone")
def test_processes_share_one_bank_without_copies(tmp_path: Path):
    write_banks(tmp_path / "bank", {"train": Split(np.ones((64, 1 << 16), np.uint8), [64], ["a"])}, {})
    reader = (
        "import sys; from pathlib import Path; from fewshot.data.bank import open_banks;"
        "bank = open_banks(Path(sys.argv[1]))['train']; total = int(bank.examples.sum());"
        "parts = Path('/proc/self/smaps').read_text().split('train.npy')[1].split('VmFlags')[0];"
        "found = {line.split(':')[0]: int(line.split()[1]) for line in parts.splitlines() if line.endswith('kB')};"
        "print(total, found['Rss'], found['Anonymous'])"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", reader, str(tmp_path / "bank")], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in running:
        total, resident, own = map(int, process.communicate(timeout=120)[0].split())
        assert total == 64 << 16
        assert resident >= 4096 and own == 0  # KiB


def test_joined_banks_give_the_examples_of_both_and_copy_neither(tmp_path: Path):
    first = Split(np.arange(12, dtype=np.float32).reshape(6, 2), [2, 4], ["a", "b"])
    second = Split(np.arange(100, 106, dtype=np.float32).reshape(3, 2), [3], ["c"])
    write_banks(tmp_path / "bank", {"train": first, "val": second}, {})
    banks = open_banks(tmp_path / "bank")
    both = bank.concat_banks(banks["train"], banks["val"])
    assert (both.names, both.sizes.tolist(), both.split) == (("a", "b", "c"), [2, 4, 3], "train")
    found = both.rows(torch.tensor([8, 0, 6, 5]))
    assert found.tolist() == [[104, 105], [0, 1], [100, 101], [10, 11]]
    assert both.examples is banks["train"].examples
    assert both.fingerprint not in (banks["train"].fingerprint, banks["val"].fingerprint)
