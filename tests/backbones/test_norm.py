"""BatchStatNorm: its two forms are one function, to the second derivative."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fewshot.backbones.norm import BatchStatNorm, prepare_for_second_order

pytestmark = pytest.mark.usefixtures("float64")

SHAPES = [(6, 3), (4, 3, 5), (4, 3, 5, 2)]


def norms(scale: bool) -> tuple[BatchStatNorm, BatchStatNorm]:
    """The fused and the written-out form of one norm, with parameters off their start values."""
    torch.manual_seed(0)
    fused, written = BatchStatNorm(3, scale=scale), BatchStatNorm(3, scale=scale)
    with torch.no_grad():
        for value in fused.parameters():
            value.add_(torch.randn_like(value))
    written.load_state_dict(fused.state_dict())
    prepare_for_second_order(written)
    assert fused.fused and not written.fused
    return fused, written


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_forms_agree_in_value_gradient_and_double_gradient(shape: tuple[int, ...], scale: bool):
    def derivatives(norm: BatchStatNorm) -> list[torch.Tensor]:
        torch.manual_seed(1)
        inputs = [(2 + 3 * torch.randn(shape)).requires_grad_(), *norm.parameters()]
        value = norm(inputs[0])
        weight = torch.randn(shape)
        first = torch.autograd.grad((weight * torch.tanh(value)).sum(), inputs, create_graph=True)
        mix = sum((torch.randn_like(g) * g).sum() for g in first)
        assert isinstance(mix, torch.Tensor)
        return [value, *first, *torch.autograd.grad(mix, inputs)]

    for fused, written in zip(*map(derivatives, norms(scale)), strict=True):
        torch.testing.assert_close(fused, written, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", [0, 1], ids=["fused", "written out"])
def test_each_channel_gets_mean_offset_and_deviation_scale(form: int):
    norm = norms(True)[form]
    assert norm.scale is not None
    y = norm(5 + 10 * torch.randn(50, 3, 4, 4))
    torch.testing.assert_close(y.mean((0, 2, 3)), norm.offset.detach(), rtol=1e-9, atol=1e-9)
    # eps is 1e-3 beside a variance of about 100
    torch.testing.assert_close(y.std((0, 2, 3), correction=0), norm.scale.detach().abs(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
@pytest.mark.parametrize("form", [0, 1], ids=["fused", "written out"])
def test_eps_is_added_to_the_biased_variance(form: int, eps: float):
    norm = BatchStatNorm(1, eps=eps)
    norm.fused = form == 0
    x = torch.tensor([[-0.01], [0.01], [0.03]])
    variance = ((x - 0.01) ** 2).mean()
    torch.testing.assert_close(norm(x).detach(), (x - 0.01) / (variance + eps).sqrt(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", [0, 1], ids=["fused", "written out"])
def test_train_and_eval_are_the_same_and_leave_nothing_behind(form: int):
    norm, x = norms(True)[form], torch.randn(4, 3, 5)
    assert list(norm.buffers()) == []
    before = norm.train()(x)
    norm(100 + x)
    assert torch.equal(norm.eval()(x), before)


def test_without_scale_there_is_only_the_offset():
    assert [name for name, _ in BatchStatNorm(3, scale=False).named_parameters()] == ["offset"]
    assert sorted(name for name, _ in BatchStatNorm(3).named_parameters()) == ["offset", "scale"]


def test_second_order_is_prepared_in_every_norm_of_a_network():
    network = nn.Sequential(BatchStatNorm(3), nn.Sequential(nn.ReLU(), BatchStatNorm(3)))
    x = torch.randn(4, 3)
    before = network(x)
    prepare_for_second_order(network)
    assert [part.fused for part in network.modules() if isinstance(part, BatchStatNorm)] == [False, False]
    torch.testing.assert_close(network(x), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", [0, 1], ids=["fused", "written out"])
def test_vmap_normalises_every_batch_by_itself(form: int):
    norm, x = norms(True)[form], torch.randn(5, 4, 3, 2, 2)
    params: dict[str, torch.Tensor] = dict(norm.named_parameters())
    lifted = torch.func.vmap(lambda x: functional_call(norm, params, (x,)))(x)
    torch.testing.assert_close(lifted, torch.stack([norm(one) for one in x]), rtol=1e-11, atol=1e-11)
