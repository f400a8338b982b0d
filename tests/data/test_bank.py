"""Banks: what is written is what is opened, and nothing else is opened."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fewshot.data import bank
from fewshot.data.bank import Split, fingerprint, open_banks, write_banks
from fewshot.errors import FewshotError


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


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_and_keeps_the_earlier_bank(folder: Path, monkeypatch, error: BaseException):
    before, save = files(folder.parent), np.save

    def fails_at_the_second(path, *args, **kwargs):
        if Path(path).name == "test.npy":
            Path(path).write_bytes(b"half")
            raise error
        save(path, *args, **kwargs)

    monkeypatch.setattr(bank.np, "save", fails_at_the_second)
    for target in (folder, folder.with_name("new")):
        with pytest.raises(type(error)):
            write_banks(target, {"train": split(2), "test": split(3)}, {})
        assert files(folder.parent) == before and list(folder.parent.iterdir()) == [folder]


def test_a_new_bank_replaces_the_earlier_one(folder: Path):
    write_banks(folder, {"val": split(7)}, {})
    assert list(open_banks(folder)) == ["val"]
    assert {path.name for path in folder.iterdir()} == {"bank.json", "val.npy"}
    assert list(folder.parent.iterdir()) == [folder]
