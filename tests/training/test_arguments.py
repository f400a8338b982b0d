"""Mistakes in a call of `train` or `evaluate` are one line that says what to do, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import fewshot as fs
from fewshot.core.errors import FewshotError
from fewshot.training.arguments import make_settings
from fewshot.training.trained import Trained

MakeBank = Callable[..., fs.Bank]


class Scored(fs.Sampler):
    """Tasks of a metric that is none."""

    metric = "rmse"


def maml() -> fs.MAML:
    return fs.MAML(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))


def functions_of(seed: int, split: str = "train") -> fs.Regression:
    source = fs.read_functions({"sine": {"amplitude": (1, 3), "phase": (0, 3)}}, (-2, 2), 0.1)[split]
    return fs.Regression(source, 4, 5, seed=seed)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": -1}, "steps=-1: must be a whole number >= 0"),
        ({"meta_batch": 0}, "meta_batch=0"),
        ({"outer_lr": float("nan")}, "outer_lr=nan"),
        ({"outer_lr": 1.0}, "outer_lr=1.0: with adam every weight moves by about as much at each step"),
        ({"outer_lr_end": "x"}, "outer_lr_end=x: must be a number >= 0"),
        ({"clip": "a"}, "clip=a: must be a number"),
        ({"clip_norm": 0}, "clip_norm=0: must be above 0"),
        ({"nan_guard": "yes"}, "nan_guard=yes: must be true or false"),
        ({"nan_guard": True, "outer_optimizer": "sgd"}, "nan_guard=true: at a NaN the parameters take the"),
        ({"log_every": 0}, "log_every=0: must be a whole number >= 1"),
        ({"checkpoint_every": 0}, "checkpoint_every=0: must be a whole number >= 1"),
        ({"outer_optimizer": "adamw"}, "outer_optimizer=adamw: choose one of"),
        ({"select": "first"}, "select=first: choose one of"),
        ({"engine": "fast"}, "engine=fast: choose one of"),
        ({"engine": 5}, "engine=5: choose one of"),
        ({"device": "abacus"}, "device=abacus: not available here"),
        ({"setting": "both"}, "setting=both: choose one of"),
        ({"setting": "transductive"}, "setting: is of the validation, and there is none"),
        ({"validate_every": 1}, "validate_every: is of the validation, and there is none"),
        ({"validation_episodes": 9}, "validation_episodes: is of the validation, and there is none"),
        ({"inner_lr": 0.1}, "inner_lr: no argument of train, but of MAML; set it there"),
        ({"way": 5}, "way: no argument of train, but of Sampler; set it there"),
        ({"meta_batch_size": 4}, r"meta_batch_size: no argument of train, did you mean meta_batch\?"),
        ({"train_on_val": True}, "train_on_val: no argument of train; .* it takes outer_lr_end, "),
        ({"validation": 42}, "validation: int is no tasks; give a Sampler"),
        ({"folder": 5}, "folder=5: must be a path"),
        ({"folder": ""}, "folder='': must be a path"),
    ],
)
def test_arguments_out_of_range_are_refused(
    make_bank: MakeBank, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    options = {"steps": 2, "progress": False, "device": "cpu", "folder": tmp_path / "run"} | options
    with pytest.raises(FewshotError, match=said) as caught:
        fs.train(maml(), fs.Sampler(make_bank(), way=3, shot=1, query=2), **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{"validate_every": 0}, {"validate_every": 1.5}, {"validation_episodes": 0}])
def test_a_validation_has_whole_numbers(make_bank: MakeBank, options: dict[str, Any]) -> None:
    train, val = (fs.Sampler(make_bank(seed=seed), way=3, shot=1, query=2) for seed in (0, 1))
    (name,) = options
    with pytest.raises(FewshotError, match=f"{name}=.*: must be a whole number >= 1"):
        fs.train(maml(), train, validation=val, **options)


def test_validation_tasks_are_checked_before_the_training(make_bank: MakeBank) -> None:
    train, val = make_bank(), make_bank(seed=1)
    tasks = fs.Sampler(train, way=3, shot=1, query=2)
    mistakes: list[tuple[Any, str]] = [
        (fs.Sampler(train, way=3, shot=1, query=2, seed=1), "has the very examples of the training"),
        (fs.Sampler(val, way=3, shot=1, query=0), "query=0: a score needs queries"),
        (fs.Sampler(val, way=2, shot=1, query=2), "made for 3 ways, the tasks have 2"),
        (val, "validation: a Bank holds examples"),
        (functions_of(1), "validation: is scored by mse, the training by accuracy"),
    ]
    for validation, said in mistakes:
        with pytest.raises(FewshotError, match=said):
            fs.train(maml(), tasks, steps=10**6, validation=validation, device="cpu")


def test_functions_of_the_training_are_no_validation() -> None:
    network = nn.Linear(1, 1)
    for seed, split in ((1, "train"), (0, "val")):
        trained = fs.train(
            fs.MAML(network), functions_of(0), steps=1, validation=functions_of(seed, split), progress=False
        )
        assert trained.validation is not None
    tasks = functions_of(0)
    for validation in (functions_of(0), tasks):
        with pytest.raises(FewshotError, match="has the very examples of the training, .* of another split or seed"):
            fs.train(fs.MAML(network), tasks, steps=1, validation=validation)


def test_a_training_in_several_processes_is_refused(make_bank: MakeBank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewshot.training.api.world", lambda: (0, 2))
    with pytest.raises(FewshotError, match="train: runs in one process; several are for tools/train.py by torchrun"):
        fs.train(maml(), fs.Sampler(make_bank(), way=3, shot=1, query=2))


def test_what_is_no_learner_is_refused(make_bank: MakeBank) -> None:
    tasks = fs.Sampler(make_bank(), way=3, shot=1, query=2)
    trained = Trained(maml(), {}, {}, None, "", 0, 0, 0.0)
    for learner, said in (
        (fs.MAML, r"learner=MAML: give it a network, as in MAML\(network\)"),
        (fs.FOMAML, r"learner=FOMAML: give it a network"),
        (nn.Linear(1, 1), "learner: Linear is a network"),
        (trained, "learner: this one is trained"),
        (None, "NoneType has no method init"),
    ):
        with pytest.raises(FewshotError, match=said):
            fs.train(learner, tasks)  # pyright: ignore[reportArgumentType]


def test_what_is_no_tasks_is_refused(make_bank: MakeBank) -> None:
    trained = Trained(maml(), {}, {}, None, "", 0, 0, 0.0)
    mistakes: list[tuple[Any, str]] = [
        (make_bank(), r"tasks: a Bank holds examples; give tasks of them, as in Sampler\(bank"),
        (fs.Sampler, "tasks: Sampler is no tasks"),
        ({}, "tasks: dict is no tasks"),
        (Scored(make_bank(), way=3, shot=1, query=2), "tasks.metric=rmse: choose one of accuracy, mse"),
    ]
    for tasks, said in mistakes:
        with pytest.raises(FewshotError, match=said):
            fs.train(maml(), tasks)
        with pytest.raises(FewshotError, match=said):
            fs.evaluate(trained, tasks)


def test_settings_of_a_learner_that_are_none_are_refused(make_bank: MakeBank) -> None:
    learner: Any = maml()
    for name in ("outer_learning_rate", "way", "shot", "steps", "validate_every", "train_on_val"):
        learner.outer_settings = {name: 1}
        with pytest.raises(FewshotError, match=rf"MAML.outer_settings: has no setting {name}"):
            fs.train(learner, fs.Sampler(make_bank(), way=3, shot=1, query=2))


def test_an_evaluation_takes_what_is_trained_and_tasks_with_queries(make_bank: MakeBank) -> None:
    learner, bank = maml(), make_bank()
    with pytest.raises(FewshotError, match="trained: MAML is not trained; give what train or load_run returns"):
        fs.evaluate(learner, fs.Sampler(bank, way=3, shot=1, query=2))  # pyright: ignore[reportArgumentType]
    trained = Trained(learner, *learner.init(), None, "", 0, 0, 0.0)
    with pytest.raises(FewshotError, match="query=0: a score needs queries"):
        fs.evaluate(trained, fs.Sampler(bank, way=3, shot=1, query=0))


def test_the_rate_of_the_learners_optimiser_is_not_taken_for_another(make_bank: Any) -> None:
    learner, tasks = fs.Reptile(nn.Linear(2, 3)), fs.Sampler(make_bank(), way=3, shot=1, query=2)
    none = {"meta_batch": None, "outer_lr": None, "outer_optimizer": None}
    assert make_settings(learner, tasks, none, {}).outer_lr == 1.0
    assert make_settings(learner, tasks, none | {"outer_optimizer": "adam"}, {}).outer_lr == 0.001
    with pytest.raises(FewshotError, match="outer_lr=inf: must be a number"):
        make_settings(learner, tasks, none | {"outer_lr": float("inf")}, {})
