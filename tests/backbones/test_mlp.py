"""The MLP of MAML's appendix A.1."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn

from fewshot.backbones.mlp import MLP
from fewshot.core.errors import FewshotError

MakeMLP = Callable[..., MLP]


def count(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def test_the_omniglot_network_has_its_layers_weights_biases_and_offsets(make_mlp: MakeMLP):
    sizes = [28 * 28, 256, 128, 64, 64, 5]
    linear = sum(inputs * outputs + outputs for inputs, outputs in pairwise(sizes))
    norms = sum(sizes[1:-1])
    network = make_mlp((1, 28, 28), 5, widths=(256, 128, 64, 64), norm_scale=False)
    assert count(network) == linear + norms == 247_109
    assert count(make_mlp((1, 28, 28), 5, widths=(256, 128, 64, 64))) == linear + 2 * norms
    assert count(make_mlp((1, 28, 28), 5, widths=(256, 128, 64, 64), norm="none")) == linear


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shape", [(1, 8, 8), (12,)])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_it_equals_a_plain_torch_network(make_mlp: MakeMLP, shape: tuple[int, ...], norm: str):
    network = make_mlp(shape, 3, norm=norm)
    inputs = torch.randn(9, *shape)
    layers: list[nn.Module] = [nn.Flatten()]
    width = inputs[0].numel()
    for units in (7, 6):
        layers += [nn.Linear(width, units)]
        layers += [nn.BatchNorm1d(units, eps=1e-3, track_running_stats=False)] if norm == "batch" else []
        layers += [nn.ReLU()]
        width = units
    reference = nn.Sequential(*layers, nn.Linear(width, 3))
    with torch.no_grad():
        for (_, theirs), (_, mine) in zip(_ordered(reference), _ordered(network), strict=True):
            assert theirs.shape == mine.shape
            theirs.copy_(mine)
    torch.testing.assert_close(network(inputs), reference(inputs), rtol=1e-10, atol=1e-10)


def _ordered(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters layer by layer; a norm's offset, like BatchNorm's bias, after its scale."""
    return [
        (name, value)
        for module in network.modules()
        for name, value in sorted(
            module.named_parameters(recurse=False), key=lambda item: item[0] in ("bias", "offset")
        )
    ]


def test_the_head_can_start_at_zero_and_biases_do(make_mlp: MakeMLP):
    settings = {"widths": (7, 6), "norm": "batch", "norm_scale": True, "norm_eps": 1e-3, "adapt_norm": True}
    network = MLP((1, 8, 8), 3, head_init="zeros", **settings)  # type: ignore[arg-type]
    assert not network.head.weight.any()
    linear = [part for part in network.modules() if isinstance(part, nn.Linear)]
    assert len(linear) == 3
    assert not any(part.bias.any() for part in linear)


def test_the_same_seed_gives_the_same_weights(make_mlp: MakeMLP):
    for mine, theirs in zip(make_mlp().parameters(), make_mlp().parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("name", "value"), [("norm", "layer"), ("head_init", "ones")])
def test_unknown_choices_are_refused(make_mlp: MakeMLP, name: str, value: str):
    with pytest.raises(FewshotError, match=f"{name}={value}"):
        make_mlp(**{name: value})
