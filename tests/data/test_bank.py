"""Banks: what is written is what is opened, and nothing else is opened."""

import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.data import bank
from fewshot.data.bank import Bank, Split, fingerprint, fingerprint_of_file, open_banks, write_banks


def split(seed: int = 0, counts: tuple[int, ...] = (2, 3, 1)) -> Split:
    examples = np.random.RandomState(seed).randint(0, 256, size=(sum(counts), 1, 4, 4), dtype=np.uint8)
    return Split(examples, list(counts), [f"class {i}" for i in range(len(counts))])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """A change of bank.json."""

    def apply(folder: Path) -> None:
        listing = json.loads((folder / "bank.json").read_text())
        change(listing)
        (folder / "bank.json").write_text(json.dumps(listing))

    return apply


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
        assert opened.split == name and opened.metadata == {"source": "made up"}
        assert opened.fingerprint == fingerprint(split(seed))


def test_a_bank_that_is_written_again_repairs_a_damaged_file_and_leaves_a_whole_one(folder: Path):
    def write_again() -> None:
        write_banks(folder, {"train": split(0), "test": split(1)}, {"source": "made up"})

    whole, times = files(folder), {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    write_again()
    assert times == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "train.npy").write_bytes(whole["train.npy"][:-1] + b"?")
    write_again()
    assert files(folder) == whole
    (folder / "test.npy").unlink()
    write_again()
    assert files(folder) == whole


def test_features_keep_their_dtype(tmp_path: Path):
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    write_banks(tmp_path / "bank", {"test": Split(features, [4], ["one"])}, {})
    assert torch.equal(open_banks(tmp_path / "bank")["test"].examples, torch.from_numpy(features))


def test_writing_into_an_opened_bank_leaves_the_files_alone(folder: Path):
    before = files(folder)
    open_banks(folder)["train"].examples.zero_()
    assert files(folder) == before and open_banks(folder)["train"].examples.any()


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


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("block", [1, 40, 1 << 24])
def test_the_fingerprint_of_a_file_is_that_of_its_split(tmp_path: Path, monkeypatch, block: int, dtype: type, shape):
    monkeypatch.setattr(bank, "BLOCK", block)
    examples = np.random.RandomState(0).randint(0, 256, shape).astype(dtype)
    np.save(tmp_path / "a.npy", examples)
    blocks: list[np.ndarray] = []
    expected = fingerprint(Split(examples, [5], ["one"]))
    assert fingerprint_of_file(tmp_path / "a.npy", [5], ["one"], blocks.append) == expected
    assert np.array_equal(np.concatenate(blocks), examples)


def test_a_huge_bank_opens_without_being_read(tmp_path: Path):
    folder, rows = tmp_path / "bank", 2_400_000  # 16 GB, all of it a hole in the file
    write_banks(folder, {"train": Split(np.zeros((1, 3, 48, 48), np.uint8), [1], ["all"])}, {})
    np.lib.format.open_memmap(folder / "train.npy", mode="w+", dtype=np.uint8, shape=(rows, 3, 48, 48)).flush()
    rewrite(lambda it: it["splits"]["train"].update(counts=[rows], shape=[rows, 3, 48, 48]))(folder)
    start = time.perf_counter()
    opened = open_banks(folder)["train"]
    assert len(opened.examples) == rows and not opened.examples[rows // 2].any()
    assert time.perf_counter() - start < 2
    del opened
    (folder / "train.npy").unlink()


def cut(size: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "test.npy").write_bytes((folder / "test.npy").read_bytes()[:size])

    return apply


def save(array: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "test.npy", array)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no folder": lambda f: f.rename(f.with_name("elsewhere")),
    "no array": lambda f: (f / "test.npy").unlink(),
    "array cut short": cut(-1),
    "header cut short": cut(20),
    "empty array file": cut(0),
    "pickled array": save(np.array([{}], dtype=object)),
    "array of another shape": save(np.zeros((6, 1, 5, 4), np.uint8)),
    "array of another order": save(np.zeros((6, 1, 4, 4), np.uint8, order="F")),
    "array of another dtype": save(np.zeros((6, 1, 4, 4), np.int8)),
    "json cut short": lambda f: (f / "bank.json").write_text((f / "bank.json").read_text()[:50]),
    "binary json": lambda f: (f / "bank.json").write_bytes(b"\xff\xfe\x00"),
    "json list": lambda f: (f / "bank.json").write_text("[1, 2]"),
    "another format": rewrite(lambda it: it.update(format=99)),
    "count too large": rewrite(lambda it: it["splits"]["test"].update(counts=[2, 3, 2])),
    "class without examples": rewrite(lambda it: it["splits"]["test"].update(counts=[0, 5, 1])),
    "negative count": rewrite(lambda it: it["splits"]["test"].update(counts=[-1, 6, 1])),
    "name too few": rewrite(lambda it: it["splits"]["test"].update(names=["a", "b"])),
    "no counts": rewrite(lambda it: it["splits"]["test"].pop("counts")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_bank_is_refused_in_one_line(folder: Path, damage: str):
    DAMAGE[damage](folder)
    with pytest.raises(FewshotError) as caught:
        open_banks(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value) and "delete" in str(caught.value)


@pytest.mark.parametrize("name", ["images", "extractor"])
def test_metadata_that_say_something_else_by_a_name_of_ours_are_refused(tmp_path: Path, name: str):
    split = Split(np.zeros((2, 3), np.float32), [1, 1], ["a", "b"])
    with pytest.raises(FewshotError, match=f"^[^\n]*metadata: {name} must say"):
        write_banks(tmp_path / "bank", {"train": split}, {"dataset": "mine", name: 6000})
    assert not list(tmp_path.iterdir())


def test_a_split_whose_name_could_not_be_read_is_not_written(tmp_path: Path):
    for name in ("my train", "1", "../test", ""):
        with pytest.raises(FewshotError, match="choose a plain word"):
            write_banks(tmp_path / "bank", {name: split()}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("counts", "names"), [([2, 3], "ab"), ([2, 3, 1], "ab"), ([0, 5, 1], "abc"), ([], "")])
def test_a_split_that_does_not_fit_together_is_not_written(tmp_path: Path, counts: list[int], names: str):
    wrong = Split(split().examples[: 6 * len(counts)], counts, list(names))
    with pytest.raises(FewshotError, match="split train: (a class|counts)"):
        write_banks(tmp_path / "bank", {"train": wrong}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(errno.ENOSPC, "no space left"), FewshotError, r"cannot be written \(no space left\); make room"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_a_failed_write_leaves_nothing_and_keeps_the_earlier_bank(
    folder: Path, monkeypatch, error: BaseException, raised: type[BaseException], message: str
):
    before, true_save = files(folder.parent), np.save

    def fails_at_the_second(path, *args, **kwargs):
        if Path(path).name == "test.npy":
            Path(path).write_bytes(b"half")
            raise error
        true_save(path, *args, **kwargs)

    monkeypatch.setattr(bank.np, "save", fails_at_the_second)
    for target in (folder, folder.with_name("new")):
        with pytest.raises(raised, match=message):
            write_banks(target, {"train": split(2), "test": split(3)}, {})
        assert files(folder.parent) == before and list(folder.parent.iterdir()) == [folder]


def test_a_folder_that_cannot_be_replaced_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells which memory is shared")
def test_a_bank_is_mapped_without_a_copy(tmp_path: Path):
    write_banks(tmp_path / "bank", {"train": Split(np.ones((64, 1, 256, 256), np.uint8), [64], ["a"])}, {})
    opened = open_banks(tmp_path / "bank")["train"]
    assert int(opened.examples.sum()) == 64 << 16
    lines = Path("/proc/self/smaps").read_text().split(f"{tmp_path}/bank/train.npy")[1].split("VmFlags")[0].splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    assert sizes["Rss"] >= 4096 and sizes["Anonymous"] == 0  # KiB


def test_concatenated_banks_give_the_examples_of_both_and_copy_neither(tmp_path: Path):
    first = Split(np.arange(12, dtype=np.float32).reshape(6, 2), [2, 4], ["a", "b"])
    second = Split(np.arange(100, 106, dtype=np.float32).reshape(3, 2), [3], ["c"])
    write_banks(tmp_path / "bank", {"train": first, "val": second}, {})
    banks = open_banks(tmp_path / "bank")
    both = bank.concat_banks(banks["train"], banks["val"])
    assert (both.names, both.sizes.tolist(), both.split) == (("a", "b", "c"), [2, 4, 3], "train")
    assert both.rows(torch.tensor([8, 0, 6, 5])).tolist() == [[104, 105], [0, 1], [100, 101], [10, 11]]
    assert both.examples is banks["train"].examples
    assert both.image_names() == ["a/0", "a/1", "b/0", "b/1", "b/2", "b/3", "c/0", "c/1", "c/2"]
    (tmp_path / "bank/train.txt").write_text("".join(f"{i}.png\n" for i in range(6)))
    (tmp_path / "bank/val.txt").write_text("".join(f"{i}.jpg\n" for i in range(3)))
    assert both.image_names() == [f"{i}.png" for i in range(6)] + [f"{i}.jpg" for i in range(3)]
    assert both.fingerprint not in [each.fingerprint for each in banks.values()]


# A person's own arrays


@pytest.mark.parametrize("labels", [[5, 2, 5, 9, 2], ["e", "b", "e", "i", "b"], np.array([5, 2, 5, 9, 2])])
def test_tensors_in_any_order_are_sorted_by_class(labels: Any):
    x = torch.arange(5 * 16, dtype=torch.uint8).view(5, 1, 4, 4)
    made = Bank.from_tensors(x, labels, split="test", name="mine")
    assert made.names == tuple(str(label) for label in sorted(set(labels)))
    assert made.offsets.tolist() == [0, 2, 4, 5]
    assert torch.equal(made.examples, x[[1, 4, 0, 2, 3]])
    assert (made.split, made.metadata["dataset"]) == ("test", "mine")
    assert made.fingerprint == fingerprint(Split(made.examples.numpy(), [2, 2, 1], list(made.names)))


def test_the_bank_of_tensors_depends_on_their_content_and_not_on_their_kind():
    x, y = np.random.RandomState(0).rand(4, 7), [0, 1, 0, 1]
    made = Bank.from_tensors(x, y)
    assert made.examples.dtype == torch.float32
    for same in (torch.from_numpy(x).float(), list(x), torch.from_numpy(x).requires_grad_()):
        assert Bank.from_tensors(same, torch.tensor(y)).fingerprint == made.fingerprint
    assert Bank.from_tensors(x + 1, y).fingerprint != made.fingerprint
    assert Bank.from_tensors(x, [1, 0, 0, 1]).fingerprint != made.fingerprint


def test_labels_that_are_written_alike_stay_apart():
    assert Bank.from_tensors(torch.rand(2, 3), [1, "1"]).names == ("1", "'1'")


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (torch.rand(3, 4), [0, 1], "y: 2 labels for 3 examples"),
        (torch.rand(2, 4), [[0], [1]], r"y: \[0\] is no label"),
        (torch.rand(2, 4), torch.eye(2), "is no label; give one number or name"),
        (torch.rand(2), [0, 1], r"x: shape \[2\] holds no examples"),
        (torch.zeros(2, 4, dtype=torch.uint8), [0, 1], "uint8 of shape"),
        (torch.zeros(2, 8, 8, 3), [0, 1], "end in their channels"),
        (torch.tensor([[1.0], [float("inf")]]), [0, 1], "not finite"),
        ([torch.rand(2), torch.rand(3)], [0, 1], "all of one shape"),
    ],
)
def test_arrays_that_make_no_bank_are_refused_in_one_line(x: Any, y: Any, said: str):
    with pytest.raises(FewshotError, match=said):
        Bank.from_tensors(x, y)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"examples": np.zeros((4, 1, 5, 5), np.int64)}, "examples of int64; give uint8 images or float32 features"),
        ({"examples": np.zeros((4, 3))}, "examples of float64; give uint8"),
        ({"examples": np.full((4, 3), np.nan, np.float32)}, "holds values that are not finite"),
        ({"examples": np.zeros((4, 6, 6, 3), np.uint8)}, "end in their channels; give"),
        ({"names": ["a", "a"]}, "two classes have one name; give each its own"),
    ],
)
def test_a_reader_of_ones_own_is_told_what_a_bank_cannot_hold(tmp_path: Path, change: dict[str, Any], said: str):
    split = replace(Split(np.zeros((4, 1, 5, 5), np.uint8), [2, 2], ["a", "b"]), **change)
    with pytest.raises(FewshotError, match=said):
        write_banks(tmp_path / "bank", {"train": split}, {})
    assert not list(tmp_path.iterdir())


def test_counts_may_be_numbers_of_numpy(tmp_path: Path):
    split = Split(np.zeros((4, 1, 5, 5), np.uint8), list(np.bincount([0, 0, 1, 1])), ["a", "b"])
    write_banks(tmp_path / "bank", {"train": split}, {})
    assert open_banks(tmp_path / "bank")["train"].sizes.tolist() == [2, 2]


def test_an_array_in_columns_is_written_as_every_other(tmp_path: Path):
    columns = np.arange(12, dtype=np.float32).reshape(3, 4).T
    write_banks(tmp_path / "bank", {"train": Split(columns, [4], ["a"])}, {})
    opened = open_banks(tmp_path / "bank")["train"]
    assert torch.equal(opened.examples, torch.from_numpy(columns.copy()))
    assert opened.fingerprint == fingerprint(Split(columns, [4], ["a"]))


def test_a_bank_that_may_not_be_read_is_not_to_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_banks(tmp_path / "bank", {"train": Split(np.zeros((1, 4), np.float32), [1], ["a"])}, {})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "train.npy")

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(PermissionError, match=r"^\[Errno 13\] Permission denied: 'train.npy'$"):
        open_banks(tmp_path / "bank")
