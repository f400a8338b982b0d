"""BatchStatNorm: its two forms are one function, to the second derivative; running averages; the choice."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fewshot.backbones.norm import BatchStatNorm, RunningNorm, make_norm, replace_batch_norms
from fewshot.core.errors import FewshotError

pytestmark = pytest.mark.usefixtures("float64")

each_form = pytest.mark.parametrize("fused", [True, False], ids=["fused", "written out"])


def new_norm(fused: bool, **choices: float) -> BatchStatNorm:
    """A norm of 3 channels with parameters off their start values."""
    torch.manual_seed(0)
    norm = BatchStatNorm(3, **choices)  # type: ignore[arg-type]
    with torch.no_grad():
        for value in norm.parameters():
            value.add_(torch.randn_like(value))
    norm.fused = fused
    return norm


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (4, 3, 5, 2)])
def test_both_forms_agree_in_value_gradient_and_double_gradient(shape: tuple[int, ...], scale: bool):
    def derivatives(norm: BatchStatNorm) -> list[torch.Tensor]:
        torch.manual_seed(1)
        inputs = [(2 + 3 * torch.randn(shape)).requires_grad_(), *norm.parameters()]
        value = norm(inputs[0])
        weight = torch.randn(shape)
        first = torch.autograd.grad((weight * torch.tanh(value)).sum(), inputs, create_graph=True)
        mix = torch.stack([(torch.randn_like(g) * g).sum() for g in first]).sum()
        return [value, *first, *torch.autograd.grad(mix, inputs)]

    fused, written = (derivatives(new_norm(form, scale=scale)) for form in (True, False))
    for mine, theirs in zip(fused, written, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@each_form
@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_eps_is_added_to_the_biased_variance(fused: bool, eps: float):
    norm = BatchStatNorm(1, eps=eps)
    norm.fused = fused
    x = torch.tensor([[-0.01], [0.01], [0.03]])
    variance = ((x - 0.01) ** 2).mean()
    torch.testing.assert_close(norm(x).detach(), (x - 0.01) / (variance + eps).sqrt(), rtol=1e-12, atol=1e-12)


@each_form
def test_train_and_eval_are_the_same_and_keep_no_state(fused: bool):
    norm, x = new_norm(fused), torch.randn(4, 3, 5)
    assert list(norm.buffers()) == []
    before = norm.train()(x)
    norm(100 + x)
    assert torch.equal(norm.eval()(x), before)


@each_form
def test_vmap_normalises_every_batch_by_itself(fused: bool):
    norm, x = new_norm(fused), torch.randn(5, 4, 3, 2, 2)
    params: dict[str, torch.Tensor] = dict(norm.named_parameters())
    lifted = torch.func.vmap(lambda x: functional_call(norm, params, (x,)))(x)
    torch.testing.assert_close(lifted, torch.stack([norm(one) for one in x]), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("shape", "plain"), [((6, 3), nn.BatchNorm1d), ((4, 3, 5), nn.BatchNorm1d), ((4, 3, 5, 2), nn.BatchNorm2d)]
)
def test_running_is_the_batch_norm_of_torch_in_train_and_in_eval(shape: tuple[int, ...], plain: type[nn.Module]):
    torch.manual_seed(0)
    mine, theirs = make_norm("running", 3, scale=True, eps=1e-2), plain(3, eps=1e-2)
    with torch.no_grad():
        for value in mine.parameters():
            value.add_(torch.randn_like(value))
    theirs.load_state_dict(mine.state_dict())
    for _ in range(3):
        x = 2 + 3 * torch.randn(shape)
        assert torch.equal(mine(x), theirs(x))
    assert torch.equal(mine.eval()(x), theirs.eval()(x))
    for name, value in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[name], value), name


def test_each_kind_of_norm_is_made_with_its_settings():
    batch = make_norm("batch", 3, scale=False, eps=0.5)
    assert isinstance(batch, BatchStatNorm) and batch.eps == 0.5
    assert [name for name, _ in batch.named_parameters()] == ["offset"]
    running, scaled = (make_norm("running", 3, scale=scale, eps=0.5) for scale in (False, True))
    assert isinstance(running, RunningNorm) and running.eps == 0.5
    assert [name for name, _ in running.named_parameters()] == ["bias"]
    x = torch.randn(4, 3)
    assert torch.equal(running(x), scaled(x))
    assert make_norm("none", 3, scale=True, eps=0.5)(x) is x


def make_residual() -> nn.Module:
    """Batch norms at two depths, one without scale and offset; not at their start values."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-2), nn.ReLU(inplace=True))
    network = nn.Sequential(inner, nn.BatchNorm2d(4, affine=False), nn.Flatten())
    for _ in range(2):
        network(2 + torch.randn(8, 3, 2, 2))
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn_like(value))
    return network


def test_replaced_batch_norms_compute_what_torchs_do_in_training_and_keep_no_state() -> None:
    x = torch.randn(5, 3, 2, 2)
    expected = make_residual().train()(x)
    network = replace_batch_norms(make_residual(), "batch")
    before = [name for name, value in network.named_parameters() if value.requires_grad]
    assert before == ["0.0.weight", "0.0.bias", "0.1.scale", "0.1.offset"]
    assert list(network.buffers()) == []
    for mode in (True, False):
        torch.testing.assert_close(network.train(mode)(x), expected)


def test_running_averages_become_constants_and_no_norm_is_no_norm() -> None:
    x = torch.randn(5, 3, 2, 2)
    network = replace_batch_norms(make_residual(), "running")
    assert network.state_dict().keys() == make_residual().state_dict().keys()
    for mode in (True, False):  # train() does not move them
        torch.testing.assert_close(network.train(mode)(x), make_residual().eval()(x))
    plain = replace_batch_norms(make_residual(), "none")
    torch.testing.assert_close(plain(x), torch.relu(make_residual()[0][0](x)).flatten(1))
    assert isinstance(replace_batch_norms(nn.BatchNorm1d(3), "batch"), BatchStatNorm)
    with pytest.raises(FewshotError, match="norm=layer: choose one of batch, running, none"):
        replace_batch_norms(make_residual(), "layer")


def test_a_norm_with_two_names_gets_one_replacement() -> None:
    shared = nn.BatchNorm2d(3)
    network = replace_batch_norms(nn.Sequential(shared, nn.ReLU(), nn.ModuleDict({"again": shared})), "batch")
    assert isinstance(network[0], BatchStatNorm) and network[2]["again"] is network[0]


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3, track_running_stats=False), BatchStatNorm(3)])
def test_a_norm_without_running_averages_is_replaced_or_refused(norm: nn.Module) -> None:
    network = nn.Sequential(nn.BatchNorm1d(3), norm)
    with pytest.raises(FewshotError, match=f"norm=running: {type(norm).__name__} 1 keeps no running averages; choose"):
        replace_batch_norms(network, "running")
    assert type(network[0]) is nn.BatchNorm1d and network[1] is norm
    kinds = [type(part) for part in replace_batch_norms(network, "none")]
    assert kinds == [nn.Identity, nn.Identity]


def test_images_far_from_zero_are_not_nan():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        norm = BatchStatNorm(3).to(dtype)
        norm.fused = False
        x = (1e4 + 0.1 * torch.randn(6, 3, 4, 4, dtype=torch.float64)).to(dtype)
        assert norm(x).isfinite().all()


@each_form
def test_vectors_far_from_zero_keep_their_digits(fused: bool):
    torch.manual_seed(0)
    x = 1.6e9 + 1e5 * torch.randn(10, 3)
    norm = BatchStatNorm(3).float()
    norm.fused = fused
    centred = x - x.mean(0)
    assert torch.allclose(norm(x.float()).double(), centred / centred.square().mean(0).sqrt(), atol=0.01)
