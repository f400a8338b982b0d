"""A person's own learner that does not keep to the contract is refused, in one line with its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewshot.algorithms.learner import functional_forward, score
from fewshot.algorithms.maml import MAML
from fewshot.algorithms.reptile import Reptile
from fewshot.backbones.mlp import MLP
from fewshot.core.errors import FewshotError
from fewshot.engine.probe import check_training, probe
from fewshot.episodes import Episodes

Make = Callable[..., Any]


class Own:
    """The smallest learner: it never adapts."""

    def __init__(self) -> None:
        self.backbone = MLP((1, 8, 8), 3, widths=[4], head_init="xavier")
        self.calls = 0

    def init(self) -> Any:
        return {name: value.detach().clone() for name, value in self.backbone.named_parameters()}, {}

    def adapt(self, params: Any, state: Any, task: Episodes) -> Any:
        return params

    def predict(self, adapted: Any, x: torch.Tensor) -> torch.Tensor:
        return functional_forward(self.backbone, adapted, x)

    def outer_loss(self, params: Any, task: Episodes) -> Any:
        logits = self.predict(params, task.query_x)
        return F.cross_entropy(logits, task.query_y), score(logits.detach(), task.query_y)


class ParametersAlone(Own):
    def init(self) -> Any:
        return super().init()[0]


class WholeNumber(Own):
    def init(self) -> Any:
        return super().init()[0], {"count": torch.zeros((), dtype=torch.int64)}


class RandomPrediction(Own):
    def predict(self, adapted: Any, x: torch.Tensor) -> torch.Tensor:
        return super().predict(adapted, x) + 0.1 * torch.randn(len(x), 1)


class RandomLoss(Own):
    def outer_loss(self, params: Any, task: Episodes) -> Any:
        loss, accuracy = super().outer_loss(params, task)
        return loss * torch.rand(()), accuracy


class CountingAdapt(Own):
    def adapt(self, params: Any, state: Any, task: Episodes) -> Any:
        self.calls += 1
        return params


class CountingLoss(Own):
    def outer_loss(self, params: Any, task: Episodes) -> Any:
        self.calls += 1
        return super().outer_loss(params, task)


class LossAlone(Own):
    def outer_loss(self, params: Any, task: Episodes) -> Any:
        return super().outer_loss(params, task)[0]


class LossOfEachQuery(Own):
    def outer_loss(self, params: Any, task: Episodes) -> Any:
        loss, accuracy = super().outer_loss(params, task)
        return loss.expand(3), accuracy


class DetachedLoss(Own):
    def outer_loss(self, params: Any, task: Episodes) -> Any:
        loss, accuracy = super().outer_loss(params, task)
        return loss.detach(), accuracy


class WithoutParameters(Own):
    """Which calls its network and forgets the parameters."""

    def outer_loss(self, params: Any, task: Episodes) -> Any:
        logits = self.backbone(task.query_x)
        return F.cross_entropy(logits, task.query_y), score(logits.detach(), task.query_y)


class PartlyWithoutParameters(Own):
    def predict(self, adapted: Any, x: torch.Tensor) -> torch.Tensor:
        return super().predict(adapted, x) + self.backbone(x)


class SecondNetwork(Own):
    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.Linear(3, 3)

    def predict(self, adapted: Any, x: torch.Tensor) -> torch.Tensor:
        return self.mixer(super().predict(adapted, x))


class LooseWeight(Own):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def predict(self, adapted: Any, x: torch.Tensor) -> torch.Tensor:
        return self.scale * super().predict(adapted, x)


class ClassPrediction(Own):
    def predict(self, adapted: Any, x: torch.Tensor) -> torch.Tensor:
        return super().predict(adapted, x).argmax(-1)


class StepAlone(Own):
    def begin_step(self, step: int) -> None:
        pass


class NoLoss(Own):
    outer_loss: Any = None


class NoNetwork(Own):
    def __init__(self) -> None:
        super().__init__()
        self.backbone: Any = 5


class Module(nn.Module, Own):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.calls = MLP((1, 8, 8), 3, widths=[4], head_init="xavier"), 0
        self.mixer = nn.Linear(3, 3)

    def predict(self, adapted: Any, x: torch.Tensor) -> torch.Tensor:
        return self.mixer(super().predict(adapted, x))


class NoScalars(Own):
    def scalars(self, params: Any) -> Any:
        return None


class TensorScalars(Own):
    def scalars(self, params: Any) -> Any:
        return {"rate": torch.zeros(3)}


class TakenScalars(Own):
    def scalars(self, params: Any) -> Any:
        return {"loss": 99.0}


class OtherName(Own):
    def __init__(self) -> None:
        super().__init__()
        self.net = self.__dict__.pop("backbone")

    def init(self) -> Any:
        return dict(self.net.named_parameters()), {}


class ModuleOfOtherName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    init = Own.init
    adapt = Own.adapt
    predict = Own.predict


@dataclass(frozen=True)
class Unchangeable:
    backbone: nn.Module
    init = Own.init
    adapt = Own.adapt
    predict = Own.predict


REFUSED: dict[Callable[[], Any], str] = {
    ParametersAlone: r"ParametersAlone.init: must return \(params, state\)",
    WholeNumber: r"WholeNumber.init: count is torch.int64; params and state are tensors of floats",
    RandomPrediction: "RandomPrediction: draws from a global generator",
    RandomLoss: "RandomLoss: draws from a global generator",
    CountingAdapt: "CountingAdapt: changes its attribute calls while it learns",
    CountingLoss: "CountingLoss: changes its attribute calls while it learns",
    LossAlone: r"LossAlone.outer_loss: must return \(loss, score\), two tensors of shape \[\]",
    LossOfEachQuery: r"LossOfEachQuery.outer_loss: must return \(loss, score\), two tensors of shape \[\]",
    DetachedLoss: "DetachedLoss: its outer gradient is zero",
    WithoutParameters: r"WithoutParameters: its loss depends on self.backbone.\S+, which is not in params",
    PartlyWithoutParameters: r"PartlyWithoutParameters: its loss depends on self.backbone.\S+, which is not in params",
    SecondNetwork: "SecondNetwork: its loss depends on self.mixer.weight, which is not in params",
    LooseWeight: "LooseWeight: its loss depends on self.scale, which is not in params",
    Module: "Module: its loss depends on self.mixer.weight, which is not in params",
    ClassPrediction: r"ClassPrediction.predict: must return finite outputs .*, and returns int64 \[6\] of 6",
    StepAlone: r"StepAlone.begin_step\(step, steps\): TypeError: .* takes 2 positional arguments but 3 were given",
    NoLoss: "NoLoss.outer_loss is no method; see `Learner`",
    NoScalars: "NoScalars.scalars: must return a dict of Python's numbers",
    TensorScalars: "TensorScalars.scalars: must return a dict of Python's numbers",
    TakenScalars: "TakenScalars.scalars: the log has loss of its own; take another name",
    OtherName: "OtherName keeps its network as net, .* keep it as backbone",
    ModuleOfOtherName: "ModuleOfOtherName keeps its network as net, .* keep it as backbone",
    lambda: Unchangeable(nn.Identity()): "the attributes of Unchangeable cannot be set",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_what_breaks_the_contract_is_refused_before_the_training(make: Callable[[], Any], make_episodes: Make):
    with pytest.raises(FewshotError, match=f"^algorithm.learner: .*{REFUSED[make]}"):
        check_training(make(), make_episodes(1))


@pytest.mark.parametrize("make", [NoNetwork, lambda: MAML(5), lambda: Reptile(nn.Linear)])  # type: ignore[arg-type]
def test_a_network_that_is_none_is_refused(make: Callable[[], Any], make_episodes: Make):
    with pytest.raises(FewshotError, match=r"^backbone: must be an nn.Module, .*, and is (5|the class Linear)$"):
        check_training(make(), make_episodes(1))


def test_a_second_network_that_is_frozen_is_taken(make_episodes: Make):
    learner = SecondNetwork()
    learner.mixer.requires_grad_(False)
    check_training(learner, make_episodes(1))


def test_what_keeps_to_it_is_taken_and_one_note_is_one_line(make_episodes: Make):
    learner: Any = Own()
    learner.notes = "it never adapts"
    episodes = make_episodes(1)
    check_training(learner, episodes)
    assert probe(learner, episodes[0]).notes[-1] == "it never adapts"
