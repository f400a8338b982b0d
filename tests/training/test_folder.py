"""A folder goes on with the training that it holds, and with no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fewshot as fs
from fewshot.core.errors import FewshotError
from fewshot.tasks.transforms import ImageTransform
from fewshot.training.arguments import DEFAULTS
from fewshot.training.folder import LISTED, claim_folder, describe_tasks, describe_training

MakeBank = Callable[..., fs.Bank]


def network(*, width: int = 4, frozen: float | None = None, bias: float | None = None) -> nn.Module:
    """A network that is drawn anew in each call, but for what is given."""
    first, second = nn.Linear(64, width), nn.Linear(width, 3)
    if frozen is not None:
        nn.init.constant_(first.weight, frozen)
        first.weight.requires_grad_(False)
    if bias is not None:
        nn.init.constant_(second.bias, bias)
    return nn.Sequential(nn.Flatten(), first, second)


def with_tensor(value: float) -> nn.Module:
    """A network with a tensor that is neither a parameter nor a buffer."""
    made = network()
    made.table = torch.full((2,), value)
    return made


class OwnTasks(fs.Sampler):
    """A person's own, with a setting that no sampler has."""

    noise = torch.zeros(1)


@pytest.fixture
def describe(make_bank: MakeBank) -> Callable[..., dict[str, Any]]:
    """Describe a small training with changes."""
    bank, other = make_bank(), make_bank(seed=1)

    def describe(
        learner: fs.Learner | None = None, tasks: Any = None, validation: Any = None, **settings: Any
    ) -> dict[str, Any]:
        shape: dict[str, Any] = {"way": 3, "shot": 1, "query": 2}
        if validation is not None:
            sampler = fs.Sampler(other, **(shape | validation))
            validation = {"validation": "Sampler", **describe_tasks(sampler), "setting": "inductive"}
        learner = learner or fs.MAML(network())
        return describe_training(
            learner, fs.Sampler(bank, **(shape | (tasks or {}))), replace(DEFAULTS, **settings), validation
        )

    return describe


def refused(folder: Path, first: dict[str, Any], second: dict[str, Any]) -> str:
    """What differs, as the message lists it."""
    claim_folder(folder, first)
    before = (folder / LISTED).read_bytes()
    with pytest.raises(FewshotError, match=r"holds another training \(other .*\); choose another folder") as caught:
        claim_folder(folder, second)
    assert (folder / LISTED).read_bytes() == before
    return str(caught.value).split("(other ")[1].split(");")[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: fs.MAML(network(), adapted="head"),
        lambda: fs.LEO(fs.Identity((1, 8, 8), 3), latent=4),
        lambda: fs.Reptile(fs.Conv4((1, 8, 8), 3, filters=2)),
    ],
)
def test_the_same_training_with_other_start_values_goes_on(
    make: Callable[[], fs.Learner], describe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    claim_folder(tmp_path, describe(make(), {"view": ImageTransform(mean=(0.5,))}, steps=1))
    claim_folder(tmp_path, describe(make(), {"view": ImageTransform(mean=(0.5,))}, steps=2, log_every=1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learner": lambda: fs.Reptile(network())}, "learner, parameters"),
        ({"learner": lambda: fs.MAML(network(), inner_lr=0.2)}, "inner_lr"),
        ({"learner": lambda: fs.MAML(network(), adapted=["2.*"])}, "adapted"),
        ({"learner": lambda: fs.MAML(network(width=5))}, "network"),
        ({"learner": lambda: fs.MAML(network(bias=0))}, "parameters"),
        ({"learner": lambda: fs.MAML(network(frozen=1), adapted=["1.*", "2.*"])}, "adapted, parameters, frozen values"),
        ({"tasks": {"shot": 2, "seed": 1}}, "shot, seed"),
        ({"tasks": {"rotations": "per_class"}}, "rotations"),
        ({"tasks": {"view": ImageTransform(std=(0.1,))}}, "view"),
        ({"validation": {}}, "validation"),
        ({"outer_lr": 0.1, "steps": 3}, "outer_lr"),
    ],
)
def test_another_training_is_named_by_what_differs(
    change: dict[str, Any], said: str, describe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    if "learner" in change:
        change = {"learner": change["learner"]()}
    assert refused(tmp_path, describe(), describe(**change)) == said


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (lambda: fs.MAML(network(frozen=1)), lambda: fs.MAML(network(frozen=2)), "frozen values"),
        (
            lambda: fs.LEO(fs.Identity((1, 8, 8), 3)),
            lambda: fs.LEO(fs.Identity((1, 8, 8), 3), latent_lr=0.5),
            "parameters",
        ),
        (
            lambda: fs.LEO(fs.Identity((1, 8, 8), 3)),
            lambda: fs.LEO(fs.Identity((1, 8, 8), 3), finetune_steps=1),
            "adaptation_steps",
        ),
        (
            lambda: fs.Reptile(fs.Conv4((1, 8, 8), 3, filters=2)),
            lambda: fs.Reptile(fs.Conv4((1, 8, 8), 3, filters=2, norm_eps=0.1)),
            "network",
        ),
        (lambda: fs.MAML(with_tensor(1)), lambda: fs.MAML(with_tensor(2)), "tensor attributes"),
    ],
)
def test_what_no_name_of_a_parameter_tells_is_told_too(
    first: Any, second: Any, said: str, describe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    assert refused(tmp_path, describe(first()), describe(second())) == said


def test_a_list_of_a_networks_own_layers_is_no_difference(
    describe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    def listed() -> nn.Module:
        made = network()  # drawn anew
        made.parts = list(made)
        return made

    claim_folder(tmp_path, describe(fs.MAML(listed())))
    claim_folder(tmp_path, describe(fs.MAML(listed())))


def test_settings_of_ones_own_tasks_are_compared(make_bank: MakeBank) -> None:
    tasks, other = (OwnTasks(make_bank(), way=3, shot=1, query=2) for _ in range(2))
    tasks.episodes(0, 1)  # which computes properties of the sampler
    object.__setattr__(tasks, "noise", torch.zeros(1))
    object.__setattr__(other, "noise", torch.ones(1))
    one, two = describe_tasks(tasks), describe_tasks(other)
    assert {name for name in one if one[name] != two[name]} == {"attributes"}


def frozen_layer(value: float) -> nn.Module:
    layer = nn.Linear(1, 1, bias=False).requires_grad_(False)
    nn.init.constant_(layer.weight, value)
    return layer


def scale_by(factor: float) -> Any:
    def scale(d: float) -> float:
        return factor * d + offset

    if factor < 0:
        offset = 0.0  # else the function is given before this name has a value
    return scale


@pytest.mark.parametrize(
    "option",
    [
        [lambda d: d, lambda d: 0.5 * d],
        [lambda d, factor=factor: [factor * each for each in d] for factor in (1, 2)],
        [scale_by(1), scale_by(2)],
        [frozen_layer(1.0), frozen_layer(2.0)],
        [np.zeros(3000), np.eye(1, 3000, 1000)[0]],
        [torch.zeros(3000), torch.eye(3000)[1000]],
    ],
    ids=["function", "default of a function", "value around a function", "module", "array", "tensor"],
)
def test_options_of_every_kind_are_compared(option: list[Any], describe: Callable[..., dict[str, Any]], tmp_path: Path):
    first, second = fs.MAML(network()), fs.MAML(network())
    first.option, second.option = option  # pyright: ignore[reportAttributeAccessIssue]
    assert refused(tmp_path, describe(first), describe(second)) == "option"


def test_an_option_that_is_nan_is_the_same_the_next_time(describe: Callable[..., dict[str, Any]], tmp_path: Path):
    learner = fs.MAML(network())
    learner.option = float("nan")  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(2):
        claim_folder(tmp_path, describe(learner))


@pytest.mark.parametrize(
    ("make", "options", "later"),
    [
        (
            lambda: fs.MAML(network()),
            "inner_lr learn_inner_lr inner_steps first_order inner_reduction outer_reduction adapted",
            "",
        ),
        (lambda: fs.Nearest(fs.Identity((1, 8, 8), 3)), "on_features mean unequal_shots", "centre"),
    ],
)
def test_a_folder_of_an_older_version_is_continued(
    make: Callable[[], fs.Learner], options: str, later: str, describe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    described = describe(make())
    assert described["learner"].keys() == {"learner", *options.split(), *later.split()}
    older = json.loads(json.dumps(described))
    for name in ("outer_lr_schedule", "outer_lr_halve_every"):
        del older["settings"][name]
    for name in later.split():
        del older["learner"][name]
    del older["network"]["tensor attributes"]
    described["tasks"]["attributes"] = {"noise": 0.5}  # as a person's own tasks have them
    claim_folder(tmp_path, older)
    claim_folder(tmp_path, described)


def test_scores_of_two_validations_are_not_compared(describe: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    first, second = describe(validation={}), describe(validation={"shot": 5})
    assert refused(tmp_path, first, second) == "validation shot"
    few, many = (first | {"validation": first["validation"] | {"test_steps": steps}} for steps in (1, 3))
    claim_folder(tmp_path / "older", first)  # which does not say the steps
    claim_folder(tmp_path / "older", many)
    assert refused(tmp_path / "later", few, many) == "validation test_steps"


def test_frozen_values_of_the_caller_stay_as_they_are(make_bank: MakeBank, tmp_path: Path) -> None:
    tasks = fs.Sampler(make_bank(), way=3, shot=1, query=2)
    options: dict[str, Any] = {"steps": 1, "meta_batch": 1, "progress": False, "device": "cpu", "folder": tmp_path}
    fs.train(fs.FOMAML(network(frozen=1)), tasks, **options)
    second = network(frozen=2)
    with pytest.raises(FewshotError, match="other frozen values"):
        fs.train(fs.FOMAML(second), tasks, **options)
    assert torch.equal(second.get_parameter("1.weight"), torch.full((4, 64), 2.0))


@pytest.mark.parametrize("text", ["{", "[]", '{"learner": {}, "tasks": {}, "settings": {}}'])
def test_a_damaged_listing_is_refused(text: str, describe: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / LISTED).write_text(text)
    with pytest.raises(FewshotError, match=r"training.json: damaged, or of another version; choose another folder"):
        claim_folder(tmp_path, describe())


@pytest.mark.parametrize("name", ["config.yaml", "checkpoints", "metrics.jsonl", "photo.png"])
def test_what_a_run_of_the_tools_or_another_program_left_is_not_overwritten(
    name: str, describe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / name).write_text("theirs")
    with pytest.raises(FewshotError, match=f"holds {name}, but no training by fewshot.train; choose another folder"):
        claim_folder(tmp_path, describe())
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_listing_is_plain_json(describe: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    claim_folder(tmp_path, described := describe(validation={}))
    assert json.loads((tmp_path / LISTED).read_text()) == described
