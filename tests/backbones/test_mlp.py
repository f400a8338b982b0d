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


def test_the_omniglot_network_has_its_layers_weights_biases_and_offsets(make_mlp: MakeMLP):
    sizes = [28 * 28, 256, 128, 64, 64, 5]
    linear = sum(inputs * outputs + outputs for inputs, outputs in pairwise(sizes))
    norms = sum(sizes[1:-1])
    for choices, parameters in (({"norm_scale": False}, linear + norms), ({}, linear + 2 * norms)):
        network = make_mlp((1, 28, 28), 5, widths=(256, 128, 64, 64), **choices)
        assert sum(value.numel() for value in network.parameters()) == parameters
    assert linear + norms == 247_109


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shape", [(1, 8, 8), (12,)])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_it_equals_a_plain_torch_network(make_mlp: MakeMLP, shape: tuple[int, ...], norm: str):
    network, x = make_mlp(shape, 3, norm=norm), torch.randn(9, *shape)
    assert all(layer.linear.bias.any() for layer in network.body[1:])
    layers: list[nn.Module] = [nn.Flatten()]
    for layer in network.body[1:]:
        layers.append(layer.linear)
        if norm == "batch":
            layers.append(nn.BatchNorm1d(len(layer.linear.bias), eps=1e-3, track_running_stats=False))
            layers[-1].load_state_dict({"weight": layer.norm.scale, "bias": layer.norm.offset})
        layers.append(nn.ReLU())
    reference = nn.Sequential(*layers, network.head)
    torch.testing.assert_close(network(x), reference(x), rtol=1e-10, atol=1e-10)


def test_start_values_are_those_of_init_and_head_init():
    settings = {"widths": (7, 6), "norm": "batch", "norm_scale": True, "norm_eps": 1e-3, "adapt_norm": True}
    network = MLP((1, 8, 8), 3, head_init="zeros", init="truncated_normal", **settings)  # type: ignore[arg-type]
    assert not network.head.weight.any()
    hidden = [part for part in network.body.modules() if isinstance(part, nn.Linear)]
    assert all(0 < float(part.weight.detach().abs().max()) <= 0.02 for part in hidden)
    assert not any(part.bias.any() for part in (*hidden, network.head))


@pytest.mark.parametrize(("name", "value"), [("norm", "layer"), ("head_init", "ones"), ("init", "ones")])
def test_unknown_choices_are_refused(make_mlp: MakeMLP, name: str, value: str):
    with pytest.raises(FewshotError, match=f"{name.removeprefix('head_')}={value}: choose one of"):
        make_mlp(**{name: value})
