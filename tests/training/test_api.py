"""Training and testing in one call: defaults of each learner, folders that go on, validation, and what is refused."""

from __future__ import annotations

import json
import tempfile
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
from fewshot.tasks import functions
from fewshot.tasks.transforms import ImageTransform
from fewshot.training.folder import LISTED

MakeBank = Callable[..., fs.Bank]


def network(way: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, way))


def quick(learner: Any, tasks: fs.Tasks, **options: Any) -> fs.Trained:
    return fs.train(learner, tasks, **({"steps": 2, "meta_batch": 2, "progress": False, "device": "cpu"} | options))


def test_training_raises_the_accuracy_on_the_same_tasks(make_bank: MakeBank) -> None:
    tasks = fs.Sampler(make_bank(noise=150), way=3, shot=1, query=3)
    before = fs.evaluate(quick(fs.MAML(network()), tasks, steps=0), tasks, episodes=40)
    trained = quick(fs.MAML(network()), tasks, steps=60, meta_batch=8)
    after = fs.evaluate(trained, tasks, episodes=40)
    assert after.shape == (40,) and after.dtype == np.float64
    assert after.mean() > before.mean() + 0.1
    assert (trained.steps, trained.selection, trained.validation) == (60, "last", None)
    assert repr(trained) == "Trained(MAML, 1,091 parameters, 60 steps, last)"
    assert repr(tasks.bank) == "Bank(train, 5 classes, 41 examples of 1 x 8 x 8)"


ON_NETWORKS = [fs.MAML, fs.FOMAML, fs.MetaSGD, fs.MAMLPlusPlus, fs.Reptile, fs.ProtoNet, fs.MatchingNet, fs.R2D2]


@pytest.mark.parametrize("make", ON_NETWORKS)
def test_learners_need_a_network_alone(make: Callable[..., Any], make_bank: MakeBank) -> None:
    tasks = fs.Sampler(make_bank(), way=3, shot=2, query=2)
    trained = quick(make(fs.WithHead(network(4), (1, 8, 8), 3)), tasks)
    for setting in ("inductive", "transductive"):
        assert fs.evaluate(trained, tasks, episodes=2, setting=setting).shape == (2,)


@pytest.mark.parametrize(("make", "steps"), [(fs.LEO, 2), (fs.Nearest, 0), (fs.Baseline, 0)])
def test_learners_on_inputs_as_they_are_need_their_shape_alone(
    make: Callable[..., Any], steps: int, make_bank: MakeBank
) -> None:
    tasks = fs.Sampler(make_bank(), way=3, shot=2, query=2)
    trained = quick(make(fs.Identity((1, 8, 8), 3)), tasks)
    assert trained.steps == steps
    assert fs.evaluate(trained, tasks, episodes=2).shape == (2,)


def test_variants_of_maml_differ_in_one_setting_each() -> None:
    maml, first, sgd = fs.MAML(network()), fs.FOMAML(network(), inner_lr=0.3), fs.MetaSGD(network())
    assert (maml.first_order, first.first_order, first.inner_lr) == (False, True, 0.3)
    assert (maml.learn_inner_lr, sgd.learn_inner_lr, sgd.inner_steps) == (False, True, 1)


def test_the_outer_optimiser_is_the_learners_own_unless_it_is_given(make_bank: MakeBank, tmp_path: Path) -> None:
    tasks = fs.Sampler(make_bank(), way=3, shot=2, query=2)
    for name, options in {"own": {}, "given": {"outer_optimizer": "adam", "outer_lr": 0.01}}.items():
        fs.train(fs.Reptile(network()), tasks, steps=1, folder=tmp_path / name, progress=False, **options)
    own, given = (json.loads((tmp_path / name / LISTED).read_text())["settings"] for name in ("own", "given"))
    assert (own["outer_optimizer"], own["outer_lr"], own["meta_batch"]) == ("sgd", 1.0, 5)
    assert (given["outer_optimizer"], given["outer_lr"], given["meta_batch"]) == ("adam", 0.01, 5)


def test_a_training_leaves_the_learners_network_as_it_is(make_bank: MakeBank) -> None:
    class Live(fs.MAML):
        def init(self) -> Any:
            return dict(self.backbone.named_parameters()), {}

    learner = Live(fs.MLP((1, 8, 8), 3, widths=[4]))
    before = {name: value.clone() for name, value in learner.backbone.state_dict().items()}
    trained = fs.train(learner, fs.Sampler(make_bank(), 3, 1, 2), steps=2, progress=False)
    assert not torch.equal(trained.params["head.bias"], before["head.bias"])
    torch.testing.assert_close(dict(learner.backbone.state_dict()), before, rtol=0, atol=0)


def test_a_training_without_a_folder_leaves_nothing(
    make_bank: MakeBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    quick(fs.MAML(network()), fs.Sampler(make_bank(), way=3, shot=1, query=2))
    assert not list(tmp_path.iterdir())


def test_a_training_in_a_folder_goes_on(make_bank: MakeBank, tmp_path: Path) -> None:
    tasks = fs.Sampler(make_bank(), way=3, shot=1, query=2)
    whole = quick(fs.MAML(network()), tasks, steps=4, folder=tmp_path / "whole")
    quick(fs.MAML(network()), tasks, folder=tmp_path / "parts")
    parts = quick(fs.MAML(network(), test_steps=3), tasks, steps=4, folder=tmp_path / "parts")
    assert all(torch.equal(value, parts.params[name]) for name, value in whole.params.items())
    assert len((tmp_path / "parts/metrics.jsonl").read_text().splitlines()) == 2


def test_validation_tasks_select_the_parameters(make_bank: MakeBank, make_conv4: Callable[..., Any]) -> None:
    tasks = fs.Sampler(make_bank(), way=3, shot=1, query=2)
    validation = fs.Sampler(make_bank(seed=1, split="val"), way=3, shot=1, query=2)
    options: dict[str, Any] = {"validation": validation, "validation_episodes": 3, "validate_every": 1, "outer_lr": 0.1}
    until = {step: quick(fs.MAML(make_conv4()), tasks, steps=step, outer_lr=0.1) for step in range(1, 5)}
    for setting in ("inductive", "transductive"):  # which differ, since the norms are of batches
        trained = quick(fs.MAML(make_conv4()), tasks, steps=4, setting=setting, **options)
        assert trained.selection == "best validation accuracy" and trained.validation is not None
        scores = [fs.evaluate(until[step], validation, episodes=3, setting=setting).mean() for step in until]
        best = scores.index(max(scores))
        assert (trained.validation["step"], trained.validation["accuracy"]) == (best + 1, pytest.approx(scores[best]))
        assert len(set(scores)) > 1


def test_progress_is_shown(make_bank: MakeBank, capsys: pytest.CaptureFixture[str]) -> None:
    quick(fs.MAML(network()), fs.Sampler(make_bank(), way=3, shot=1, query=2), progress=True)
    assert "MAML 3-way 1-shot: starts, 0 of 2" in capsys.readouterr().out


def test_functions_are_learned_too(make_mlp: Callable[..., Any]) -> None:
    source = functions.read_functions({"sine": {"amplitude": (1, 3), "phase": (0, 3)}}, (-2, 2), 0.1)["train"]
    tasks = fs.Regression(source, 4, 5, seed=0)
    trained = quick(fs.MAML(make_mlp((1,), 1, norm="none"), inner_loss="mean"), tasks)
    assert fs.evaluate(trained, tasks, episodes=3).shape == (3,)
    assert trained.inputs is None


def test_test_images_are_seen_as_in_the_training(make_bank: MakeBank) -> None:
    bank = make_bank()
    tasks = fs.Sampler(bank, way=3, shot=1, query=2, view=ImageTransform(mean=(0.5,), std=(0.2,)))
    trained = quick(fs.MAML(network()), tasks)
    expected = fs.evaluate(trained, tasks, episodes=10)
    np.testing.assert_array_equal(fs.evaluate(trained, fs.Sampler(bank, way=3, shot=1, query=2), episodes=10), expected)
    y = torch.arange(len(bank.names)).repeat_interleave(bank.sizes)
    large = fs.Bank.from_tensors(bank.examples.repeat_interleave(2, -1).repeat_interleave(2, -2), y)
    assert fs.evaluate(trained, fs.Sampler(large, way=3, shot=1, query=2), episodes=10).shape == (10,)


def test_what_is_scored_is_never_augmented(make_bank: MakeBank) -> None:
    plain = ImageTransform(crop=6)
    tasks = fs.Sampler(make_bank(), 3, 1, 3, view=plain)
    augmented = replace(tasks, view=replace(plain, augment="gentle"))
    trained = quick(fs.MAML(nn.Sequential(nn.Flatten(), nn.Linear(36, 3))), augmented)
    scores = [fs.evaluate(trained, each, episodes=20) for each in (tasks, augmented)]
    assert np.array_equal(*scores)


def test_images_of_other_channels_than_1_and_3_are_not_resized(make_bank: MakeBank) -> None:
    bank = make_bank(shape=(4, 8, 8))
    trained = quick(fs.MAML(nn.Sequential(nn.Flatten(), nn.Linear(256, 3))), fs.Sampler(bank, 3, 1, 2))
    with pytest.raises(FewshotError, match="^support_x: images of 10x10 and of 4 channels are not resized; give 8x8$"):
        trained.adapt(torch.zeros(3, 4, 10, 10), ["a", "b", "c"])


def test_a_network_of_other_ways_and_a_setting_that_is_none_are_refused(make_bank: MakeBank) -> None:
    tasks = fs.Sampler(make_bank(), way=3, shot=1, query=2)
    with pytest.raises(FewshotError, match="made for 4 ways, the tasks have 3"):
        quick(fs.MAML(network(way=4)), tasks)
    with pytest.raises(FewshotError, match="setting=both: choose one of"):
        fs.evaluate(quick(fs.MAML(network()), tasks), tasks, setting="both")


def test_numbers_of_numpy_are_numbers(make_bank: MakeBank, tmp_path: Path) -> None:
    count = np.array([1, 2, 3])
    tasks = fs.Sampler(make_bank(), way=count[2], shot=count[0], query=count[1])
    assert tasks.manifest(0, 3) == fs.Sampler(make_bank(), way=3, shot=1, query=2).manifest(0, 3)
    validation = fs.Sampler(make_bank(seed=1), way=3, shot=1, query=2)
    options = {"steps": count[1], "outer_lr": np.float32(0.01), "validation": validation}
    learner = fs.MAML(network(), test_steps=count[1])
    trained = quick(learner, tasks, folder=tmp_path, validation_episodes=count[1], **options)
    assert fs.evaluate(trained, validation, episodes=count[2]).shape == (3,)
    with pytest.raises(FewshotError, match="way=2.5: must be a whole number"):
        fs.Sampler(make_bank(), way=np.float64(2.5), shot=1)  # pyright: ignore[reportArgumentType]


def test_a_network_of_another_type_than_the_examples_is_refused(make_bank: MakeBank) -> None:
    with pytest.raises(FewshotError, match="its parameters are float64, and the examples float32; call network.to"):
        quick(fs.MAML(network().double()), fs.Sampler(make_bank(), way=3, shot=1, query=2))


def test_float_images_of_another_range_than_the_trainings_are_refused(make_bank: MakeBank) -> None:
    images = make_bank()
    x = images.examples.float()
    y = torch.arange(len(images.names)).repeat_interleave(images.sizes)
    unit, raw = (fs.Sampler(fs.Bank.from_tensors(x / scale, y), way=3, shot=1, query=2) for scale in (255, 1))
    beyond = fs.Sampler(fs.Bank.from_tensors(x / 230, y), way=3, shot=1, query=2)
    fs.evaluate(quick(fs.MAML(network()), unit), beyond, episodes=2)
    with pytest.raises(FewshotError, match="float images have values from 0 to 1 here; scale them as those of the"):
        fs.evaluate(quick(fs.MAML(network()), unit), raw, episodes=2)
    fs.evaluate(quick(fs.MAML(network()), raw), raw, episodes=2)
    view = ImageTransform(augment="natural")
    fs.Sampler(unit.bank, way=3, shot=1, query=2, view=view)
    with pytest.raises(FewshotError, match="augment=natural: changes colours from 0 to 1, and the images have others"):
        fs.Sampler(raw.bank, way=3, shot=1, query=2, view=view)


class Staged(fs.MAML):
    """Whose rate is set by how much of the training is done."""

    def begin_step(self, step: int, steps: int) -> None:
        self.inner_lr = 0.1 if step < steps / 2 else 0.2


@pytest.mark.parametrize("make", [lambda: fs.MAMLPlusPlus(network()), lambda: Staged(network())])
def test_a_training_in_stages_is_continued_by_its_own_number_of_steps_alone(
    make: Callable[[], Any], make_bank: MakeBank, tmp_path: Path
) -> None:
    learner, tasks = make(), fs.Sampler(make_bank(), way=3, shot=1, query=2)
    for _ in range(2):
        assert quick(learner, tasks, folder=tmp_path).steps == 2
    with pytest.raises(FewshotError, match=r"other steps\)"):
        quick(learner, tasks, folder=tmp_path, steps=3)


def test_a_folder_goes_on_to_more_steps_and_not_to_fewer_or_where_the_rate_falls(
    make_bank: MakeBank, tmp_path: Path
) -> None:
    tasks = fs.Sampler(make_bank(), way=3, shot=1, query=2)
    assert quick(fs.MAML(network()), tasks, folder=tmp_path / "maml").steps == 2
    assert quick(fs.MAML(network()), tasks, folder=tmp_path / "maml", steps=3).steps == 3
    with pytest.raises(FewshotError, match="steps=2: .* holds 3 already; give as many"):
        quick(fs.MAML(network()), tasks, folder=tmp_path / "maml")
    quick(fs.Reptile(network()), tasks, folder=tmp_path / "reptile")
    with pytest.raises(FewshotError, match=r"other steps\)"):
        quick(fs.Reptile(network()), tasks, folder=tmp_path / "reptile", steps=3)


class Weighted(fs.MAML):
    """With a tensor among its settings."""

    def __init__(self, weight: float) -> None:
        super().__init__(network())
        self.weight = torch.full((2,), weight)


def test_another_value_of_a_tensor_is_another_training(make_bank: MakeBank, tmp_path: Path) -> None:
    tasks = fs.Sampler(make_bank(), way=3, shot=1, query=2)
    quick(Weighted(1), tasks, folder=tmp_path)
    quick(Weighted(1), tasks, folder=tmp_path)
    listed = tmp_path / LISTED
    older = json.loads(listed.read_text())
    older["learner"]["weight"] = older["learner"]["weight"].rpartition(" ")[0]
    new = listed.read_text()
    listed.write_text(json.dumps(older))  # which says the shape alone
    quick(Weighted(1), tasks, folder=tmp_path)
    listed.write_text(new)
    with pytest.raises(FewshotError, match=r"other weight\)"):
        quick(Weighted(2), tasks, folder=tmp_path)
