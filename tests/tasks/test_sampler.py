"""Episodes: pure functions of (seed, split, number), evenly drawn, and refused where they cannot be."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank, Split, open_banks, write_banks
from fewshot.episodes import Episodes
from fewshot.tasks.sampler import ROTATIONS, Sampler

MakeBank = Callable[..., Bank]

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def assert_same(left: Episodes, right: Episodes) -> None:
    for mine, theirs in zip(left.tensors(), right.tensors(), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine.cpu(), theirs.cpu())


def stacked(parts: Sequence[Episodes]) -> Episodes:
    return Episodes(*(torch.cat(values) for values in zip(*(part.tensors() for part in parts), strict=True)))


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
    one_by_one = {number: sampler.episodes(number, 1) for number in (*range(31, -1, -2), *range(0, 32, 2))}
    assert_same(together, stacked([one_by_one[number] for number in range(32)]))
    assert_same(together[7:20], sampler.episodes(7, 13))


def test_an_episode_is_the_same_in_another_process(tmp_path: Path):
    counts = [6, 5, 9, 7]
    examples = np.random.RandomState(3).randint(0, 256, size=(sum(counts), 1, 6, 6), dtype=np.uint8)
    write_banks(tmp_path / "bank", {"test": Split(examples, counts, list("abcd"))}, {})
    program = (
        "import hashlib, sys; from pathlib import Path; from fewshot.data.bank import open_banks;"
        "from fewshot.tasks.sampler import Sampler;"
        "sampler = Sampler(open_banks(Path(sys.argv[1]))['test'], 3, 2, 3, 5, 'per_class');"
        "tensors = sampler.episodes(4, 9).tensors();"
        "print(sampler.manifest(0, 40), *(hashlib.sha256(t.numpy().tobytes()).hexdigest() for t in tensors))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "bank")], capture_output=True, text=True, check=True, timeout=120
    )
    sampler = Sampler(open_banks(tmp_path / "bank")["test"], 3, 2, 3, 5, "per_class")
    tensors = sampler.episodes(4, 9).tensors()
    here = [sampler.manifest(0, 40), *(hashlib.sha256(t.numpy().tobytes()).hexdigest() for t in tensors)]
    assert done.stdout.split() == here


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


# What is in an episode


def test_support_and_query_hold_different_rows_of_different_classes(make_bank: MakeBank):
    bank = make_bank((9, 7, 30, 10, 7))
    draw = Sampler(bank, 4, 3, 4, 0).draw(0, 500)
    assert draw.rows.shape == (500, 4, 7)
    assert bool((draw.rows.flatten(1).sort(dim=1).values.diff(dim=1) > 0).all())
    assert bool((draw.classes.sort(dim=1).values.diff(dim=1) > 0).all())


def test_rows_belong_to_their_class_when_classes_are_of_unequal_size(make_bank: MakeBank):
    bank = make_bank((3, 40, 5, 3, 17))
    draw = Sampler(bank, 5, 1, 2, 0).draw(0, 500)
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


@pytest.mark.parametrize("rotations", ["per_class", "as_classes"])
def test_rotated_classes_hold_the_stored_images_turned(make_bank: MakeBank, rotations: str):
    bank = make_bank(shape=(3, 8, 8))
    sampler = Sampler(bank, 3, 2, 3, 0, rotations)
    draw, episodes = sampler.draw(0, 40), sampler.episodes(0, 40)
    items = torch.cat([episodes.support_x.unflatten(1, (3, 2)), episodes.query_x.unflatten(1, (3, 3))], dim=2)
    assert sorted(draw.quarter_turns.unique().tolist()) == [0, 1, 2, 3]
    for task, label, item in itertools.product(range(40), range(3), range(5)):
        stored = bank.examples[draw.rows[task, label, item]].numpy()
        turned = np.rot90(stored, int(draw.quarter_turns[task, label]), axes=(1, 2)).copy()
        assert torch.equal(items[task, label, item], torch.from_numpy(turned).float() / 255)


def test_without_rotations_nothing_is_turned(make_bank: MakeBank):
    assert not Sampler(make_bank(), 3, 2, 3, 0).draw(0, 50).quarter_turns.any()


def test_only_rotations_as_classes_let_two_rotations_of_a_class_meet(make_bank: MakeBank):
    per_class = Sampler(make_bank(), 3, 2, 3, 0, "per_class").draw(0, 300)
    as_classes = Sampler(make_bank(), 3, 2, 3, 0, "as_classes").draw(0, 300)
    assert bool((per_class.classes.sort(dim=1).values.diff(dim=1) > 0).all())
    assert bool((as_classes.classes.sort(dim=1).values.diff(dim=1) == 0).any())
    turned = as_classes.classes * 4 + as_classes.quarter_turns
    assert bool((turned.sort(dim=1).values.diff(dim=1) > 0).all())


def test_rotations_as_classes_make_four_times_the_classes(make_bank: MakeBank):
    draw = Sampler(make_bank((9, 9, 9)), 12, 1, 1, 0, "as_classes").draw(0, 5)
    turned = (draw.classes * 4 + draw.quarter_turns).sort(dim=1).values
    assert torch.equal(turned, torch.arange(12).expand(5, 12))


# Evenly drawn


def test_ordered_pairs_of_classes_are_uniform(make_bank: MakeBank):
    classes = Sampler(make_bank(), 2, 1, 1, 3).draw(0, 20_000).classes
    pairs = {pair: i for i, pair in enumerate(itertools.permutations(range(5), 2))}
    assert p_uniform(torch.tensor([pairs[tuple(pair)] for pair in classes.tolist()]), 20) > 1e-3


def test_classes_of_one_episode_say_nothing_about_the_next(make_bank: MakeBank):
    first = Sampler(make_bank(), 2, 1, 1, 3).draw(0, 20_000).classes[:, 0]
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


def test_rows_of_two_classes_of_an_episode_are_independent(make_bank: MakeBank):
    bank = make_bank((5, 5, 5))
    draw = Sampler(bank, 2, 1, 1, 9).draw(0, 20_000)
    place = draw.rows[..., 0] - bank.offsets[draw.classes]
    assert p_uniform(place[:, 0] * 5 + place[:, 1], 25) > 1e-3


def test_rotations_are_uniform_and_independent_of_each_other_and_of_the_class(make_bank: MakeBank):
    draw = Sampler(make_bank(), 2, 1, 1, 4, "per_class").draw(0, 20_000)
    assert p_uniform(draw.quarter_turns[:, 0] * 4 + draw.quarter_turns[:, 1], 16) > 1e-3
    assert p_uniform(draw.classes[:, 0] * 4 + draw.quarter_turns[:, 0], 20) > 1e-3
    draw = Sampler(make_bank(), 2, 1, 1, 4, "as_classes").draw(0, 20_000)
    assert p_uniform(draw.classes[:, 0] * 4 + draw.quarter_turns[:, 0], 20) > 1e-3


def test_the_test_of_uniformity_sees_a_biased_draw(make_bank: MakeBank):
    bank = make_bank((4, 6, 9))
    draw = Sampler(bank, 2, 1, 1, 5).draw(0, 20_000)
    of_the_largest_class = draw.rows[draw.classes == 2][:, 0] - bank.offsets[2]
    assert p_uniform(of_the_largest_class, 9) > 1e-3
    assert p_uniform(of_the_largest_class % 6, 6) < 1e-6
    slightly = of_the_largest_class.clone()
    slightly[::12] = 0
    assert p_uniform(slightly, 9) < 1e-3


# The manifest


def test_a_manifest_is_that_of_the_very_same_tasks(make_bank: MakeBank):
    def manifest(
        way: int = 3, shot: int = 2, query: int = 3, seed: int = 0, rotations: str = "none", first: int = 0,
        count: int = 50, **bank: object,
    ) -> str:  # fmt: skip
        return Sampler(make_bank(**bank), way, shot, query, seed, rotations).manifest(first, count)

    others = [
        manifest(way=2),
        manifest(shot=3),
        manifest(query=2),
        manifest(shot=3, query=2),
        manifest(seed=1),
        manifest(rotations="per_class"),
        manifest(rotations="as_classes"),
        manifest(first=1),
        manifest(count=49),
        manifest(split="test"),
    ]
    assert len({manifest(), *others}) == 1 + len(others)
    assert manifest() == manifest()
    assert len(manifest()) == 64


def test_a_manifest_depends_on_the_data_though_the_draws_do_not(make_bank: MakeBank):
    mine, theirs = (Sampler(make_bank(seed=seed), 3, 2, 3, 0) for seed in (0, 1))
    assert torch.equal(mine.draw(0, 20).rows, theirs.draw(0, 20).rows)
    assert mine.manifest(0, 20) != theirs.manifest(0, 20)


def test_a_manifest_covers_episodes_beyond_the_first_thousand(make_bank: MakeBank):
    sampler = Sampler(make_bank(), 2, 1, 1, 0)
    assert len({sampler.manifest(0, count) for count in (999, 1000, 1001, 2001)}) == 4


# Refusals


def refusal(bank: Bank, way: int = 3, shot: int = 1, query: int = 1, rotations: str = "none") -> str:
    with pytest.raises(FewshotError) as caught:
        Sampler(bank, way, shot, query, 0, rotations)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_more_ways_than_classes_are_refused(make_bank: MakeBank):
    assert "way=6" in (said := refusal(make_bank(), way=6)) and "5 classes" in said
    assert "way=21" in (said := refusal(make_bank(), way=21, rotations="as_classes")) and "20 classes" in said


def test_more_shots_and_queries_than_the_smallest_class_has_are_refused(make_bank: MakeBank):
    said = refusal(make_bank((9, 6, 8)), shot=3, query=4)
    assert "shot=3" in said and "query=4" in said and "class 1" in said and "6 examples" in said
    assert Sampler(make_bank((9, 6, 8)), 3, 3, 3, 0).draw(0, 1).rows.shape == (1, 3, 6)


def test_wrong_rotations_are_refused_with_the_choices(make_bank: MakeBank):
    said = refusal(make_bank(), rotations="some")
    assert "rotations=some" in said and all(choice in said for choice in ROTATIONS)


@pytest.mark.parametrize("rotations", ["per_class", "as_classes"])
@pytest.mark.parametrize("shape", [(1, 8, 6), (5,)])
def test_rotations_of_what_is_not_square_are_refused(make_bank: MakeBank, shape: tuple[int, ...], rotations: str):
    said = refusal(make_bank(shape=shape), rotations=rotations)
    assert "square" in said and f"rotations={rotations}" in said
    assert len(Sampler(make_bank(shape=shape), 3, 1, 1, 0).episodes(0, 2)) == 2


@pytest.mark.parametrize(("name", "value"), [("way", 1), ("shot", 0), ("query", -1)])
def test_numbers_that_make_no_task_are_refused(make_bank: MakeBank, name: str, value: int):
    numbers: dict[str, Any] = {name: value}
    assert f"{name}={value}" in refusal(make_bank(), **numbers)
