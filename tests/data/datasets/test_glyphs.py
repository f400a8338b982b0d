"""Glyphs: the same bit for bit each time, split by block, and neither trivial nor hopeless."""

import importlib.metadata
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank, Split, fingerprint
from fewshot.data.datasets import glyphs

EXAMPLES = 20  # the default
BLOCKS = glyphs._load_blocks()


@pytest.fixture(scope="module")
def banks(data_dir) -> dict[str, Bank]:
    return glyphs.read_glyphs(data_dir / "banks")


@pytest.fixture(scope="module")
def cache(tmp_path_factory, banks: dict[str, Bank]):
    """A cache that holds these banks alone."""
    folder, drawn = tmp_path_factory.mktemp("glyphs"), banks["train"].folder
    assert drawn is not None
    (folder / drawn.name).symlink_to(drawn)
    return folder


def code(name: str) -> int:
    return int(name.split("/U+")[1], 16)


def test_the_banks_hold_images_sorted_by_class(banks: dict[str, Bank]):
    assert list(banks) == ["train", "val", "test"]
    for split, bank in banks.items():
        classes = len(bank.names)
        assert bank.split == split
        assert bank.examples.dtype == torch.uint8 and bank.examples.shape == (classes * EXAMPLES, 1, 28, 28)
        assert bank.offsets.tolist() == list(range(0, classes * EXAMPLES + 1, EXAMPLES))


def test_every_example_shows_strokes_on_black(banks: dict[str, Bank]):
    for bank in banks.values():
        bright = bank.examples.flatten(1).float()
        assert (bright.amax(1) > 80).all()
        assert bright.mean() < 64 and (bank.examples[..., 0, 0] == 0).float().mean() > 0.99


def test_there_are_enough_classes_in_the_published_proportions(banks: dict[str, Bank]):
    sizes = {split: len(bank.names) for split, bank in banks.items()}
    total = sum(sizes.values())
    assert total >= 1500
    assert [round(100 * sizes[split] / total) for split in ("train", "val", "test")] == pytest.approx(
        [64, 12, 24], abs=2
    )


def test_no_class_is_in_two_splits_and_every_block_is_in_one(banks: dict[str, Bank]):
    names = [name for bank in banks.values() for name in bank.names]
    assert len(names) == len(set(names)) == len({code(name) for name in names})
    blocks = [{name.split("/")[0] for name in bank.names} for bank in banks.values()]
    assert sum(map(len, blocks)) == len(set().union(*blocks))
    for split, bank in banks.items():
        for name in bank.names:
            first, last = BLOCKS[split][name.split("/")[0]]
            assert first <= code(name) <= last


def test_the_blocks_do_not_overlap():
    ends = sorted(ends for blocks in BLOCKS.values() for ends in blocks.values())
    assert all(first <= last for first, last in ends)
    assert all(before[1] < after[0] for before, after in zip(ends, ends[1:], strict=False))


def test_look_alikes_are_one_class_across_the_splits(banks: dict[str, Bank]):
    kept = {chr(code(name)) for bank in banks.values() for name in bank.names}
    assert "A" in kept and not kept & set("ΑА")  # Greek, Cyrillic
    assert "o" in kept or "O" in kept
    assert not kept & set("οоο")
    assert {"Ω", "Ж", "Δ"} <= kept


def test_a_space_is_no_class(banks: dict[str, Bank]):
    kept = {code(name) for bank in banks.values() for name in bank.names}
    assert not kept & {0x20, 0xA0, 0x2003, 0x200B}


def test_two_builds_are_equal_and_a_third_call_opens_what_is_there(cache, monkeypatch):
    few = {split: dict(list(blocks.items())[:1]) for split, blocks in BLOCKS.items()}
    monkeypatch.setattr(glyphs, "_load_blocks", lambda: few)
    first = glyphs.read_glyphs(cache, examples=3)
    monkeypatch.setattr(glyphs, "write_banks", lambda folder, splits, _: drawn.update(splits))
    drawn: dict[str, Split] = {}
    glyphs.read_glyphs(cache, examples=3, overwrite=True)
    assert {split: fingerprint(part) for split, part in drawn.items()} == {s: b.fingerprint for s, b in first.items()}
    monkeypatch.setattr(glyphs, "_draw", lambda *_: pytest.fail("drawn again"))
    assert glyphs.read_glyphs(cache, examples=3)["val"].fingerprint == first["val"].fingerprint


@pytest.mark.parametrize("change", ["examples", "size", "seed", "matplotlib", "pillow", "recipe"])
def test_whatever_changes_the_pictures_changes_the_folder(cache, monkeypatch, change: str):
    arguments = {"examples": EXAMPLES, "size": 28, "seed": 0}
    if change in arguments:
        arguments[change] += 1
    elif change == "recipe":
        monkeypatch.setitem(glyphs.RECIPE, "shear", 0.3)
    else:
        true_version = importlib.metadata.version
        monkeypatch.setattr(
            glyphs.importlib.metadata, "version", lambda name: "0.0" if name == change else true_version(name)
        )
    drawn = []
    monkeypatch.setattr(glyphs, "_draw", lambda *_: ({}, {}))
    monkeypatch.setattr(glyphs, "write_banks", lambda folder, *_: drawn.append(folder))
    monkeypatch.setattr(glyphs, "open_banks", lambda folder: {})
    glyphs.read_glyphs(cache, **arguments)
    assert len(drawn) == 1 and not drawn[0].exists()


def test_the_metadata_say_what_made_the_pictures(banks: dict[str, Bank]):
    metadata = json.loads(json.dumps(dict(banks["test"].metadata)))
    assert metadata["seed"] == 0 and metadata["examples"] == EXAMPLES and metadata["size"] == 28
    assert metadata["matplotlib"] and metadata["pillow"] and metadata["freetype"]
    assert (
        metadata["characters"]["held"]
        > metadata["characters"]["not empty"]
        > metadata["characters"]["distinct"]
        >= 1500
    )


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_nearest_neighbours_on_pixels_neither_fail_nor_suffice(banks: dict[str, Bank], split: str):
    images = banks[split].examples.numpy().reshape(-1, EXAMPLES, 28 * 28)[:, :4].astype(np.float32)
    random, right = np.random.RandomState(0), []
    for _ in range(500):
        chosen = images[random.choice(len(images), 5, replace=False)]
        support, query = chosen[:, 0], chosen[:, 1:].reshape(-1, 28 * 28)
        distances = ((query[:, None] - support[None]) ** 2).sum(2)
        right.append((distances.argmin(1) == np.repeat(np.arange(5), 3)).mean())
    assert 0.48 < np.mean(right) < 0.68


@pytest.mark.parametrize("argument", [{"examples": 0}, {"size": 4}, {"seed": -1}])
def test_an_argument_out_of_range_is_refused_in_one_line(tmp_path, argument: dict[str, int]):
    with pytest.raises(FewshotError) as caught:
        glyphs.read_glyphs(tmp_path, **argument)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_missing_fonts_are_named(tmp_path, monkeypatch):
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(glyphs.importlib.util, "find_spec", lambda name: package)
    with pytest.raises(FewshotError, match="reinstall matplotlib"):
        glyphs.read_glyphs(tmp_path / "cache")
    assert not list(tmp_path.iterdir())
