"""Products in bfloat16: what is rounded and what is not, which engines take it, and which networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fewshot.algorithms.protonet import ProtoNet
from fewshot.backbones import precision
from fewshot.backbones.identity import Identity
from fewshot.backbones.precision import check_bfloat16, has_bfloat16, products_in, uses_bfloat16
from fewshot.core.errors import FewshotError
from fewshot.engine.engine import Engine

Make = Callable[..., Any]
CPU = torch.device("cpu")


def test_every_algorithm_learns_with_rounded_products(
    trained_algorithm: str, make_learner: Make, make_conv4: Make, make_episodes: Make
) -> None:
    shape = (1, 28, 28)
    learner = make_learner(trained_algorithm, Identity(shape, 3) if trained_algorithm == "leo" else make_conv4(shape))
    (params, state), episodes = learner.init(), make_episodes(2, shape=shape)
    exact = Engine("loop").outer(learner, params, state, episodes)
    with products_in(learner.backbone, "bfloat16"):
        rounded = Engine().outer(learner, params, state, episodes)
    assert {value.dtype for value in (rounded.loss, *rounded.gradient.values())} == {torch.float32}
    assert all(bool(value.isfinite().all()) for value in rounded.gradient.values())
    # LEO learns on features as they are, without a product of a network.
    assert torch.equal(rounded.loss, exact.loss) == (trained_algorithm == "leo")
    assert torch.allclose(rounded.loss, exact.loss, rtol=0.1)


def test_outside_the_block_nothing_is_rounded(make_conv4: Make, make_episodes: Make) -> None:
    learner = ProtoNet(make_conv4())
    params, _ = learner.init()
    outputs = learner.predict(learner.adapt(params, {}, make_episodes(1)[0]), make_episodes(1)[0].query_x)
    with products_in(learner.backbone, "bfloat16"):
        assert uses_bfloat16(learner.backbone)
    assert not uses_bfloat16(learner.backbone)
    again = learner.predict(learner.adapt(params, {}, make_episodes(1)[0]), make_episodes(1)[0].query_x)
    assert torch.equal(outputs, again)


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
    with pytest.raises(FewshotError, match=r"train\.precision=bfloat16: this algorithm trains no network"):
        check_bfloat16(Identity((3,), 2), torch.rand(5, 3), "train.precision")
    small = make_conv4((1, 16, 16), head_init="zeros")  # whose last convolution sees 2 x 2 pixels, with a stride of 2
    with pytest.raises(FewshotError, match=r"images of 1 x 16 x 16 are too small for blocks\.3\.conv\.weight"):
        check_bfloat16(small, torch.rand(5, 1, 16, 16), "train.precision")


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
