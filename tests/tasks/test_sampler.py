"""Episodes: pure functions of (seed, split, number), evenly drawn, and refused where they cannot be."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank
from fewshot.episodes import Episodes
from fewshot.tasks.sampler import ROTATIONS, Sampler
from fewshot.tasks.transforms import ImageTransform

MakeBank = Callable[..., Bank]

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def assert_same(left: Episodes, right: Episodes) -> None:
    for mine, theirs in zip(left.tensors(), right.tensors(), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine.cpu(), theirs.cpu())


def all_differ(values: torch.Tensor) -> bool:
    """Whether no value occurs twice in a row of values [rows, columns]."""
    return bool((values.sort(dim=1).values.diff(dim=1) != 0).all())


def p_uniform(cells: torch.Tensor, count: int) -> float:
    assert int(cells.min()) >= 0 and int(cells.max()) < count
    return float(stats.chisquare(torch.bincount(cells.flatten(), minlength=count).numpy()).pvalue)


# The same episode, whatever is around it


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rotations", ROTATIONS)
def test_an_episode_is_the_same_in_any_batch_and_order_and_on_any_device(
    make_bank: MakeBank, rotations: str, device: str
):
    together = Sampler(make_bank(), 3, 2, 4, 11, rotations).episodes(0, 32)
    sampler = Sampler(make_bank().to(device), 3, 2, 4, 11, rotations)
    for number in (31, 4, 17, 0):
        assert_same(together[number : number + 1], sampler.episodes(number, 1))
    assert_same(together[7:20], sampler.episodes(7, 13))


def test_each_image_of_an_episode_is_changed_by_a_key_of_its_own(make_bank: MakeBank):
    keys = Sampler(make_bank(), 3, 2, 4, 11, view=ImageTransform(augment="gentle")).draw(0, 2).augment_keys
    assert keys is not None and keys.shape == (2, 3, 6) and len(keys.unique()) == keys.numel()


def test_an_episode_is_the_same_in_every_process_and_version():
    examples = torch.arange(27 * 36, dtype=torch.int64).mul(7919).remainder(256).to(torch.uint8).view(27, 1, 6, 6)
    bank = Bank(examples, torch.tensor([0, 6, 11, 20, 27]), tuple("abcd"), "test", "fingerprint", {})
    sampler = Sampler(bank, 3, 2, 3, 5, "per_class")
    digest = hashlib.sha256()
    for tensor in sampler.episodes(4, 9).tensors():
        digest.update(tensor.numpy().tobytes())
    assert (sampler.manifest(0, 40)[:16], digest.hexdigest()[:16]) == ("94682a7ae3be44aa", "ec631b9d45d9f118")


def test_another_seed_split_or_number_is_another_episode(make_bank: MakeBank):
    def drawn(seed: int = 0, split: str = "train", first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        draw = Sampler(make_bank(split=split), 3, 2, 3, seed).draw(first, 40)
        return draw.rows.flatten(1), draw.key

    rows, key = drawn()
    for other_rows, other_key in (drawn(seed=1), drawn(split="test"), drawn(first=40)):
        assert int((rows == other_rows).all(dim=1).sum()) == 0
        assert not set(key.tolist()) & set(other_key.tolist())
    assert len(rows.unique(dim=0)) == 40
    assert len(key.unique()) == 40


# The content of an episode


def test_rows_are_different_and_belong_to_different_classes_of_unequal_size(make_bank: MakeBank):
    bank = make_bank((3, 40, 5, 3, 17))
    draw = Sampler(bank, 4, 1, 2, 0).draw(0, 500)
    assert draw.rows.shape == (500, 4, 3)
    assert all_differ(draw.rows.flatten(1)) and all_differ(draw.classes)
    owner = torch.repeat_interleave(torch.arange(5), bank.sizes)
    assert torch.equal(owner[draw.rows], draw.classes[..., None].expand_as(draw.rows))
    assert len(draw.rows.unique()) == len(bank.examples)


def test_images_and_labels_are_those_of_the_draw_with_contiguous_classes(make_bank: MakeBank):
    bank = make_bank()
    sampler = Sampler(bank, 3, 2, 4, 0)
    draw, episodes = sampler.draw(5, 6), sampler.episodes(5, 6)
    assert episodes.support_x.shape == (6, 6, 1, 8, 8)
    assert episodes.query_x.shape == (6, 12, 1, 8, 8)
    assert episodes.support_x.dtype == torch.float32
    for task, label in itertools.product(range(6), range(3)):
        rows = draw.rows[task, label]
        support, query = slice(label * 2, label * 2 + 2), slice(label * 4, label * 4 + 4)
        assert torch.equal(episodes.support_x[task, support], bank.examples[rows[:2]].float() / 255)
        assert torch.equal(episodes.query_x[task, query], bank.examples[rows[2:]].float() / 255)
        assert episodes.support_y[task, support].tolist() == [label] * 2
        assert episodes.query_y[task, query].tolist() == [label] * 4
    assert torch.equal(episodes.key, draw.key)


def test_features_are_gathered_as_unit_vectors(make_bank: MakeBank):
    bank = make_bank((4, 4, 4))
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(Bank(features, bank.offsets, bank.names, "train", "f", {}), 3, 1, 2, 0)
    wanted = features / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(sampler.episodes(0, 2).support_x, wanted[sampler.draw(0, 2).rows[:, :, 0]])


@pytest.mark.parametrize("rotations", ROTATIONS)
def test_rotated_classes_hold_the_stored_images_turned(make_bank: MakeBank, rotations: str):
    bank = make_bank(shape=(3, 8, 8))
    sampler = Sampler(bank, 3, 2, 3, 0, rotations)
    draw, episodes = sampler.draw(0, 10), sampler.episodes(0, 10)
    items = torch.cat([episodes.support_x.unflatten(1, (3, 2)), episodes.query_x.unflatten(1, (3, 3))], dim=2)
    assert sorted(draw.quarter_turns.unique().tolist()) == ([0] if rotations == "none" else [0, 1, 2, 3])
    for task, label, item in itertools.product(range(10), range(3), range(5)):
        stored = bank.examples[draw.rows[task, label, item]].numpy()
        turned = np.rot90(stored, int(draw.quarter_turns[task, label]), axes=(1, 2)).copy()
        assert torch.equal(items[task, label, item], torch.from_numpy(turned).float() / 255)


def test_only_rotations_as_classes_let_two_rotations_of_a_class_meet(make_bank: MakeBank):
    assert all_differ(Sampler(make_bank(), 3, 2, 3, 0, "per_class").draw(0, 300).classes)
    as_classes = Sampler(make_bank(), 3, 2, 3, 0, "as_classes").draw(0, 300)
    assert not all_differ(as_classes.classes)
    assert all_differ(as_classes.classes * 4 + as_classes.quarter_turns)
    all_of_them = Sampler(make_bank((9, 9, 9)), 12, 1, 1, 0, "as_classes").draw(0, 5)
    turned = (all_of_them.classes * 4 + all_of_them.quarter_turns).sort(dim=1).values
    assert torch.equal(turned, torch.arange(12).expand(5, 12))


# Evenly drawn


def test_ordered_pairs_of_classes_are_uniform_and_independent_of_the_next_episode(make_bank: MakeBank):
    classes = Sampler(make_bank(), 2, 1, 1, 3).draw(0, 20_000).classes
    pairs = {pair: i for i, pair in enumerate(itertools.permutations(range(5), 2))}
    assert p_uniform(torch.tensor([pairs[tuple(pair)] for pair in classes.tolist()]), 20) > 1e-3
    first = classes[:, 0]
    assert p_uniform(first[::2] * 5 + first[1::2], 25) > 1e-3
    assert p_uniform(first[:10_000] * 5 + first[10_000:], 25) > 1e-3


@pytest.mark.parametrize("chosen", range(3))
def test_ordered_pairs_of_support_and_query_rows_are_uniform_in_classes_of_any_size(make_bank: MakeBank, chosen: int):
    bank = make_bank((4, 6, 9))
    draw = Sampler(bank, 2, 1, 2, 5).draw(0, 20_000)
    size = int(bank.sizes[chosen])
    rows = draw.rows[draw.classes == chosen] - bank.offsets[chosen]
    assert len(rows) > 10_000
    for support, query in ((0, 1), (0, 2), (1, 2)):
        off_diagonal = rows[:, support] * (size - 1) + rows[:, query] - (rows[:, query] > rows[:, support]).long()
        assert p_uniform(off_diagonal, size * (size - 1)) > 1e-3
    if size == 9:  # the test of uniformity sees a biased draw
        assert p_uniform(rows[:, 0] % 6, 6) < 1e-6
        rows[::12, 0] = 0
        assert p_uniform(rows[:, 0], 9) < 1e-3


def test_rows_of_two_classes_of_an_episode_are_independent(make_bank: MakeBank):
    bank = make_bank((5, 5, 5))
    draw = Sampler(bank, 2, 1, 1, 9).draw(0, 20_000)
    row = draw.rows[..., 0] - bank.offsets[draw.classes]
    assert p_uniform(row[:, 0] * 5 + row[:, 1], 25) > 1e-3


def test_rotations_are_uniform_and_independent_of_each_other_and_of_the_class(make_bank: MakeBank):
    draw = Sampler(make_bank(), 2, 1, 1, 4, "per_class").draw(0, 20_000)
    assert p_uniform(draw.quarter_turns[:, 0] * 4 + draw.quarter_turns[:, 1], 16) > 1e-3
    assert p_uniform(draw.classes[:, 0] * 4 + draw.quarter_turns[:, 0], 20) > 1e-3
    draw = Sampler(make_bank(), 2, 1, 1, 4, "as_classes").draw(0, 20_000)
    assert p_uniform(draw.classes[:, 0] * 4 + draw.quarter_turns[:, 0], 20) > 1e-3


# The manifest


def test_a_manifest_is_that_of_the_very_same_tasks(make_bank: MakeBank):
    def manifest(first: int = 0, count: int = 50, split: str = "train", bank_seed: int = 0, **choices: Any) -> str:
        settings: dict[str, Any] = {"way": 3, "shot": 2, "query": 3, "seed": 0} | choices
        return Sampler(make_bank(split=split, seed=bank_seed), **settings).manifest(first, count)

    others = [
        {"way": 2}, {"shot": 3}, {"query": 2}, {"shot": 3, "query": 2}, {"seed": 1}, {"rotations": "per_class"},
        {"rotations": "as_classes"}, {"first": 1}, {"count": 49}, {"split": "test"}, {"bank_seed": 1},
    ]  # fmt: skip
    assert len({manifest(), *(manifest(**other) for other in others)}) == 1 + len(others)
    assert manifest() == manifest()
    assert len(manifest()) == 64


def test_a_manifest_covers_episodes_beyond_the_first_thousand(make_bank: MakeBank):
    sampler = Sampler(make_bank(), 2, 1, 1, 0)
    assert len({sampler.manifest(0, count) for count in (999, 1000, 1001, 2001)}) == 4


# Refusals


@pytest.mark.parametrize(
    ("bank", "choices", "message"),
    [
        ({}, {"way": 6}, "way=6, .*only 5 classes"),
        ({}, {"way": 21, "rotations": "as_classes"}, "way=21, .*only 20 classes"),
        ({"counts": (9, 6, 8)}, {"shot": 3, "query": 4}, r"shot=3 plus query=4 .*class 1 has \(6 examples\)"),
        ({}, {"rotations": "some"}, "rotations=some: choose one of none, per_class, as_classes"),
        ({"shape": (1, 8, 6)}, {"rotations": "per_class"}, "rotations=per_class takes square images"),
        ({"shape": (5,)}, {"rotations": "as_classes"}, "rotations=as_classes takes square images"),
        ({}, {"rotations": "per_class", "view": ImageTransform(shape=(1, 8, 6))}, "rotations=per_class takes square"),
        ({}, {"way": 1}, "way=1: must be"),
        ({}, {"shot": 0}, "shot=0: must be"),
        ({}, {"query": -1}, "query=-1: must be"),
        *(({}, {"seed": seed}, f"seed={seed!r}: must be a whole number") for seed in (None, 0.0, True, "0", 2**63)),
    ],
)
def test_what_makes_no_tasks_is_refused_in_one_line(make_bank: MakeBank, bank: Any, choices: Any, message: str):
    with pytest.raises(FewshotError, match=message) as caught:
        Sampler(make_bank(**bank), **({"way": 3, "shot": 1, "query": 1, "seed": 0} | choices))
    assert "\n" not in str(caught.value)


def test_all_banks_in_place_of_one_are_refused(make_bank: MakeBank):
    banks: Any = {"train": make_bank()}
    with pytest.raises(FewshotError, match="bank is a dict, and a Bank is wanted: take one of its values"):
        Sampler(banks, 3, 1, 1)


def test_all_examples_of_the_smallest_class_may_be_drawn(make_bank: MakeBank):
    assert Sampler(make_bank((9, 6, 8)), 3, 3, 3, 0).draw(0, 1).rows.shape == (1, 3, 6)
    assert len(Sampler(make_bank(shape=(1, 8, 6)), 3, 1, 1, 0).episodes(0, 2)) == 2


def test_classes_with_too_few_examples_are_counted(make_bank: Callable[..., Bank]):
    with pytest.raises(FewshotError, match=r"more than class class 1 has \(3 examples\), and than 2 others have; all"):
        Sampler(make_bank((9, 3, 4, 4)), way=2, shot=2, query=3, seed=0)
    with pytest.raises(FewshotError, match=r"has \(3 examples\); all classes of a task have as many of each: lower"):
        Sampler(make_bank((9, 3, 8)), way=2, shot=2, query=3, seed=0)
