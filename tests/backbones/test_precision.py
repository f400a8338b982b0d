"""Products in bfloat16: what is rounded and what is not, which engines take it, and which networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fewshot.algorithms.learner import Tensors
from fewshot.algorithms.protonet import ProtoNet
from fewshot.backbones import precision
from fewshot.backbones.identity import Identity
from fewshot.backbones.norm import BatchStatNorm
from fewshot.backbones.precision import check_bfloat16, has_bfloat16, products_in, uses_bfloat16
from fewshot.core.errors import FewshotError
from fewshot.engine.engine import Engine
from fewshot.engine.probe import check_bfloat16_training
from fewshot.episodes import Episodes

Make = Callable[..., Any]
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "name",
    ["maml", "anil", "reptile-sequential", "leo", "protonet", "r2d2", "matching_net", "matching_net-context"],
)
def test_rounded_products_leave_a_gradient_its_direction(
    name: str, make_learner: Make, make_conv4: Make, make_episodes: Make
) -> None:
    shape = (1, 28, 28)
    learner = make_learner(name, Identity(shape, 3) if name == "leo" else make_conv4(shape))
    (params, state), episodes = learner.init(), make_episodes(2, shape=shape)
    exact = Engine("loop").outer(learner, params, state, episodes)
    with products_in(learner.backbone, "bfloat16"):
        rounded = Engine().outer(learner, params, state, episodes)
    assert {value.dtype for value in (rounded.loss, *rounded.gradient.values())} == {torch.float32}
    # LEO learns on features as they are, without a product of a network.
    assert torch.equal(rounded.loss, exact.loss) == (name == "leo")
    assert torch.allclose(rounded.loss, exact.loss, rtol=0.1)
    one, other = (torch.cat([v.flatten() for v in found.gradient.values()]) for found in (exact, rounded))
    assert torch.cosine_similarity(one, other, 0) > 0.9


def test_the_statistics_of_norms_are_not_rounded() -> None:
    norm, x = BatchStatNorm(3), (5 + torch.randn(40, 3, 8, 8)).bfloat16()
    for rounded, exact in zip(norm.affine(x, norm.scale), norm.affine(x.float(), norm.scale), strict=True):
        assert torch.equal(rounded, exact)


def test_inner_steps_on_the_head_alone_are_rounded_too(
    make_learner: Make, make_conv4: Make, make_episodes: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, linear, used = make_learner("anil", make_conv4((1, 28, 28))), nn.functional.linear, []

    def noted(*args: torch.Tensor) -> torch.Tensor:
        used.append(linear(*args).dtype)
        return linear(*args)

    monkeypatch.setattr(nn.functional, "linear", noted)
    params, state = learner.init()
    with products_in(learner.backbone, "bfloat16"):
        Engine().outer(learner, params, state, make_episodes(1, shape=(1, 28, 28)))
    assert len(used) == learner.inner_steps + 1 and set(used) == {torch.bfloat16}


def test_blocks_can_hold_others(make_conv4: Make) -> None:
    network = make_conv4()
    with products_in(network, "bfloat16"):
        with products_in(network, "float32"):
            assert not uses_bfloat16(network)
        with products_in(network, "bfloat16"):
            assert uses_bfloat16(network)
        assert uses_bfloat16(network)
    assert not uses_bfloat16(network)


def test_float64_stays_as_it_is(float64: None, make_conv4: Make, make_episodes: Make) -> None:
    learner = ProtoNet(make_conv4())
    params, state = learner.init()
    found = []
    for which in ("float32", "bfloat16"):
        with products_in(learner.backbone, which):
            found.append(Engine("loop").outer(learner, params, state, make_episodes(1)).gradient)
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


@pytest.mark.parametrize("engine", ["vmap", "compiled", "learn2learn"])
def test_other_engines_refuse_it(make_learner: Make, make_episodes: Make, engine: str) -> None:
    learner = make_learner("maml")
    params, state = learner.init()
    with products_in(learner.backbone, "bfloat16"):
        assert Engine().method(make_episodes(1), learner) == "loop"
        with pytest.raises(FewshotError, match=f"engine={engine}: not with train.precision=bfloat16"):
            Engine(engine).outer(learner, params, state, make_episodes(1))


def test_networks_that_cannot_be_trained_so_are_refused(make_conv4: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    large, x = make_conv4((1, 28, 28), head_init="zeros"), torch.rand(5, 1, 28, 28)
    before = torch.get_rng_state()
    check_bfloat16(large, x, "train.precision")
    assert torch.equal(torch.get_rng_state(), before)
    check_bfloat16(nn.Linear(3, 2), torch.rand(5, 3), "train.precision")
    check_bfloat16(Identity((3,), 2), torch.rand(5, 3), "train.precision")
    small = make_conv4((1, 16, 16), head_init="zeros")  # whose last convolution sees 2 x 2 pixels, with a stride of 2
    stretching = nn.ConvTranspose1d(2, 2, 3, stride=2, padding=1)
    with pytest.raises(FewshotError, match=r"examples of 2 x 1 are too small for weight"):
        check_bfloat16(stretching, torch.rand(5, 2, 1), "train.precision")
    with pytest.raises(FewshotError, match=r"examples of 1 x 16 x 16 are too small for blocks\.3\.conv\.weight"):
        check_bfloat16(small, torch.rand(5, 1, 16, 16), "train.precision")


class Own(ProtoNet):
    """A learner that calls its network in a way of its own."""

    def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
        return params

    def predict(self, adapted: Tensors, x: torch.Tensor) -> torch.Tensor:
        return functional_call(self.backbone, adapted, (x,), strict=False)


class Filling(nn.Linear):
    """A network that writes its outputs into a tensor of float32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        outputs = torch.zeros(len(input), 3)
        outputs[torch.arange(len(input))] = super().forward(input.flatten(1))
        return outputs


def test_trainings_that_bfloat16_does_not_change_or_breaks_are_refused(
    make_learner: Make, make_conv4: Make, make_episodes: Make
) -> None:
    episodes = make_episodes(1, shape=(1, 28, 28))
    for learner in (make_learner("leo", Identity((1, 28, 28), 3)), Own(make_conv4((1, 28, 28)))):
        with pytest.raises(FewshotError, match=r"train\.precision=bfloat16: changes nothing"):
            check_bfloat16_training(learner, episodes)
    learner = make_learner("maml", Filling(28 * 28, 3))
    with pytest.raises(FewshotError, match=r"this network fails in it \(.*; set train\.precision=float32"):
        check_bfloat16_training(learner, episodes)
    check_bfloat16_training(make_learner("maml", make_conv4((1, 28, 28))), episodes)


def test_a_note_tells_of_a_processor_without_it(
    make_conv4: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert not has_bfloat16(CPU)
    check_bfloat16(make_conv4((1, 28, 28)), torch.rand(1, 1, 28, 28), "train.precision")
    assert "no instructions for bfloat16: train.precision=float32 is faster" in capsys.readouterr().err
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert has_bfloat16(CPU)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert has_bfloat16(CPU)  # a torch without these questions
