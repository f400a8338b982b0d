"""A step that was recorded on a GPU gives what the CPU gives, for new values, shapes and learners."""

from __future__ import annotations

import pytest
import torch

from fewshot.algorithms.learner import Tensors
from fewshot.algorithms.maml import MAML
from fewshot.algorithms.maml_plus_plus import MAMLPlusPlus
from fewshot.algorithms.matching_net import MatchingNet
from fewshot.algorithms.protonet import ProtoNet
from fewshot.algorithms.r2d2 import R2D2
from fewshot.algorithms.reptile import Reptile
from fewshot.backbones.conv4 import Conv4
from fewshot.engine.cuda_graph import RecordedStep
from fewshot.engine.engine import Engine
from fewshot.episodes import Episodes

pytestmark = pytest.mark.usefixtures("float64")

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

LEARNERS = {
    "maml": lambda network: MAML(network, inner_lr=0.1, inner_steps=2),
    "fomaml": lambda network: MAML(network, inner_lr=0.1, inner_steps=2, first_order=True),
    "anil": lambda network: MAML(network, inner_lr=0.1, inner_steps=2, adapted="head"),
    "maml_plus_plus": lambda network: MAMLPlusPlus(network, inner_steps=2),
    "protonet": ProtoNet,
    "r2d2": R2D2,
    "matching_net": MatchingNet,
    "reptile-shared": lambda network: Reptile(network, inner_steps=2, inner_batch=3, inner_optimizer="sgd"),
    "reptile-sequential": lambda network: Reptile(network, inner_steps=2, inner_batch=3, adam_state="sequential"),
}


def random_tasks(tasks: int, seed: int, way: int = 3, shot: int = 1) -> Episodes:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(way).repeat_interleave(shot).expand(tasks, -1)
    x = torch.randn(2, tasks, way * shot, 1, 20, 20, generator=generator)
    return Episodes(x[0], y, x[1], y, torch.arange(tasks), way=way)


def test_a_step_of_the_cpu_is_not_recorded():
    step = RecordedStep(lambda inputs: inputs["x"] + 1)
    for value in (1.0, 2.0):
        assert step({"x": torch.tensor(value)}) == value + 1


@on_a_gpu
@pytest.mark.parametrize("method", ["vmap", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", LEARNERS)
def test_a_recorded_step_is_that_of_the_cpu(name: str, method: str):
    torch.manual_seed(0)
    learner = LEARNERS[name](Conv4((1, 20, 20), 3, filters=4, head_init="xavier"))
    here, there = Engine("loop"), Engine(method)
    params, state = learner.init()
    for seed, tasks in ((0, 4), (1, 4), (2, 3)):
        episodes = random_tasks(tasks, seed)
        expected = here.outer(learner, params, state, episodes)
        learner.backbone.cuda()
        moved = ({name: value.cuda() for name, value in group.items()} for group in (params, state))
        found = there.outer(learner, *moved, episodes.to("cuda"))
        learner.backbone.cpu()
        assert found.loss.device.type == "cuda"
        for mine, theirs in ((found.gradient, expected.gradient), (found.state, expected.state)):
            torch.testing.assert_close({k: v.cpu() for k, v in mine.items()}, theirs, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(found.loss.cpu(), expected.loss, rtol=1e-8, atol=1e-10)
        assert there._recorded is not None and there._recorded[2].refused == ""
        state = expected.state


class CopiesFromMainMemory(MAML):
    def outer_loss(self, params: Tensors, task: Episodes) -> tuple[torch.Tensor, torch.Tensor]:
        loss, score = super().outer_loss(params, task)
        return loss * torch.full((1,), 2.0).to(loss.device).sum(), score


@on_a_gpu
def test_a_step_that_cannot_be_recorded_runs_as_it_is(capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(0)
    network = Conv4((1, 20, 20), 3, filters=4, head_init="xavier").cuda()
    learners = MAML(network, inner_steps=1), CopiesFromMainMemory(network, inner_steps=1)
    params, state = learners[0].init()
    engines = Engine("vmap"), Engine("vmap")
    for seed in (0, 1):
        episodes = random_tasks(4, seed).to("cuda")
        once, twice = (
            engine.outer(learner, params, state, episodes) for engine, learner in zip(engines, learners, strict=True)
        )
        torch.testing.assert_close(twice.loss, 2 * once.loss)
    refused = [engine._recorded[2].refused for engine in engines if engine._recorded is not None]
    assert refused[0] == "" and refused[1]
    assert refused[1] in capsys.readouterr().err


@on_a_gpu
@pytest.mark.parametrize(
    ("name", "setting", "ways"),
    [("maml", "inner_lr", (3, 3)), ("matching_net", "scale", (3, 3, 6))],  # the second takes any way
)
def test_a_changed_setting_and_another_way_are_recorded_anew(name: str, setting: str, ways: tuple[int, ...]):
    torch.manual_seed(0)
    learner = LEARNERS[name](Conv4((1, 20, 20), 3, filters=4, head_init="xavier").cuda())
    params, state = learner.init()
    engine, loop = Engine("vmap"), Engine("loop")
    for way, value in zip(ways, (0.1, 0.5, 0.5), strict=False):
        setattr(learner, setting, value)
        episodes = random_tasks(2, 0, way=way, shot=6 // way).to("cuda")
        expected = loop.outer(learner, params, state, episodes)
        torch.testing.assert_close(engine.outer(learner, params, state, episodes).loss, expected.loss)


@on_a_gpu
def test_a_result_stays_when_the_step_runs_again():
    torch.manual_seed(0)
    learner = LEARNERS["maml"](Conv4((1, 20, 20), 3, filters=4, head_init="xavier").cuda())
    params, state = learner.init()
    engine = Engine("vmap")
    first = engine.outer(learner, params, state, random_tasks(4, 0).to("cuda"))
    kept = first.loss.clone()
    second = engine.outer(learner, params, state, random_tasks(4, 1).to("cuda"))
    assert torch.equal(first.loss, kept) and not torch.equal(second.loss, kept)
