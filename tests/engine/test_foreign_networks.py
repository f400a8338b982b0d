"""Networks of strangers, trained and tested by each learner in both settings, or refused by a line with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from fewshot.algorithms.nearest import Nearest
from fewshot.backbones.identity import Identity
from fewshot.backbones.module import fit_network
from fewshot.core.errors import FewshotError
from fewshot.engine.engine import Engine
from fewshot.engine.evaluate import SETTINGS, evaluate_settings
from fewshot.engine.probe import probe
from fewshot.tasks.sampler import Sampler

Make = Callable[..., Any]
SHAPE, WAY = (3, 8, 8), 3
LEARNERS: dict[str, dict[str, Any]] = {
    "maml": {"inner_steps": 1, "test_steps": 1},
    "reptile-shared": {"inner_steps": 1, "test_steps": 1},
    "nearest_mean": {},
}


class LSTM(nn.Module):
    """The rows of an image one after the other."""

    def __init__(self, outputs: int | None) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3 * 8, 6, batch_first=True)
        self.head = nn.Identity() if outputs is None else nn.Linear(6, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x.transpose(1, 2).flatten(2))[0][:, -1])


class Narrow(models.ResNet):
    """torchvision's ResNet with an eighth of its channels, for speed."""

    def _make_layer(self, block: Any, planes: int, *args: Any, **choices: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, *args, **choices)


def narrow_resnet(outputs: int | None, **choices: Any) -> nn.Module:
    network: Any = Narrow(models.resnet.BasicBlock, [1, 1, 1, 1], **choices)
    network.fc = nn.Identity() if outputs is None else nn.Linear(64, outputs)
    return network


def resnet18(outputs: int | None, **choices: Any) -> nn.Module:
    network: Any = models.resnet18(num_classes=outputs or 1, **choices)
    if outputs is None:
        network.fc = nn.Identity()
    return network


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(4, channels)


def small_vit(outputs: int | None) -> nn.Module:
    network = models.VisionTransformer(8, 4, 1, 2, 8, 16, num_classes=outputs or 1)
    if outputs is None:
        network.heads = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    nn.init.normal_(network.class_token, std=0.1)
    return network


# Networks by their outputs, None being features; with the norm to take for theirs.
NETWORKS: dict[str, tuple[Callable[[int | None], nn.Module], str | None]] = {
    "narrow resnet, batch statistics": (narrow_resnet, "batch"),
    "narrow resnet without batch norm": (lambda n: narrow_resnet(n, norm_layer=group_norm), None),
    "lstm": (LSTM, None),
    "vit": (small_vit, None),
    "resnet18, batch statistics": (resnet18, "batch"),
    "resnet18 without batch norm": (lambda n: resnet18(n, norm_layer=group_norm), None),
}
SLOW = [name for name in NETWORKS if name.startswith("resnet18")]  # 11 million parameters
each_network = pytest.mark.parametrize(
    "network", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NETWORKS]
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make(build: Callable[[int | None], nn.Module], norm: str | None, name: str, make_learner: Make) -> Any:
    """A learner on a network with logits, or on one with features for nearest_mean."""
    if name == "nearest_mean":
        return Nearest(fit_network(build(None), SHAPE, WAY, outputs="features", norm=norm), reference="mean")
    return make_learner(name, fit_network(build(WAY), SHAPE, WAY, norm=norm), **LEARNERS[name])


@pytest.mark.parametrize("name", LEARNERS)
@each_network
def test_a_strangers_network_is_trained_and_tested_in_both_settings(
    make_bank: Make, make_learner: Make, network: str, name: str
) -> None:
    sampler, learner = Sampler(make_bank(shape=SHAPE), WAY, 1, 2, 0), make(*NETWORKS[network], name, make_learner)
    behaviour = probe(learner, sampler.episodes(0, 1)[0])
    params, state = learner.init()
    assert bool(params) == (name != "nearest_mean")  # which trains nothing
    if params:
        outer = Engine().outer(learner, params, state, sampler.episodes(0, 2))
        assert all(value.isfinite().all() for value in outer.gradient.values())
        assert any(value.any() for value in outer.gradient.values())
        params = {name: value - 0.01 * outer.gradient[name] for name, value in params.items()}
    scores = evaluate_settings(learner, params, state, sampler, 2, settings=SETTINGS, engine=Engine())
    assert behaviour.queries_independent == (NETWORKS[network][1] is None)
    assert all(len(scores[setting]) == 2 and (scores[setting] >= 0).all() for setting in SETTINGS)  # false of a NaN


@pytest.mark.parametrize("name", ["maml", "nearest_mean"])
def test_running_averages_are_refused_with_the_ways_to_replace_them(
    make_bank: Make, make_learner: Make, name: str
) -> None:
    sampler = Sampler(make_bank(shape=SHAPE), WAY, 1, 2, 0)
    with pytest.raises(
        FewshotError, match=r"layer (model\.)?bn1 \(BatchNorm2d\) .*backbone.norm=batch.*replace_batch_norms"
    ):
        probe(make(narrow_resnet, None, name, make_learner), sampler.episodes(0, 1)[0])


def test_a_network_without_features_is_refused_with_the_ways_to_give_them() -> None:
    with pytest.raises(FewshotError, match=r"LSTM has no method embed\(x\).*backbone.outputs=features.*WithHead"):
        Nearest(LSTM(WAY), reference="mean")


def test_a_network_of_features_is_refused_by_maml_with_the_way_to_a_head(make_bank: Make, make_learner: Make) -> None:
    sampler = Sampler(make_bank(shape=SHAPE), WAY, 1, 2, 0)
    with pytest.raises(FewshotError, match=r"made for 6 ways.*backbone.outputs=features.*WithHead"):
        probe(make_learner("maml", LSTM(None)), sampler.episodes(0, 1)[0])


def test_nearest_mean_on_a_network_is_nearest_mean_on_its_features(make_bank: Make) -> None:
    network: Any = fit_network(LSTM(None), SHAPE, WAY, outputs="features")
    learner, plain = Nearest(network, reference="mean"), Nearest(Identity((6,), WAY), reference="mean")
    task = Sampler(make_bank(shape=SHAPE), WAY, 2, 2, 0).episodes(0, 1)[0]
    features = replace(task, support_x=network.embed(task.support_x), query_x=network.embed(task.query_x))
    ours = learner.predict(learner.adapt({}, {}, task), task.query_x)
    theirs = plain.predict(plain.adapt({}, {}, features), features.query_x)
    torch.testing.assert_close(ours, theirs)
