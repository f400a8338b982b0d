"""Networks that a person brings: a head for features, replaced norms, frozen parameters, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fewshot.backbones.module import WithHead, feature_width, fit_network
from fewshot.core.errors import FewshotError

SHAPE = (1, 8, 8)


class Rows(nn.Module):
    """An LSTM over the rows of an image: features [B, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 6, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x[:, 0])[0][:, -1]


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return x, x


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())


@pytest.mark.parametrize(("model", "width"), [(Rows, 6), (convolution, 72), (nn.Identity, 64)])
def test_features_get_a_linear_head_of_their_width(model: Any, width: int) -> None:
    network, x = WithHead(model(), SHAPE, 3).eval(), torch.rand(4, *SHAPE)
    assert (network.head.in_features, network.embed(x).shape) == (width, (4, width))
    torch.testing.assert_close(network(x), network.head(network.embed(x)))


def test_a_head_lies_on_the_device_of_its_network() -> None:
    network = WithHead(nn.Linear(4, 3, device="meta"), (4,), 2)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


def test_to_find_the_width_leaves_the_network_as_it_was() -> None:
    model: Any = convolution()
    model[2].eval()
    state = torch.get_rng_state()
    assert feature_width(model, SHAPE) == 72
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.training, model[1].training, model[2].training) == (True, True, False)
    assert model[1].num_batches_tracked == 0


def test_a_network_that_fails_keeps_its_modes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 4))
    with pytest.raises(FewshotError):
        WithHead(model, (1, 4, 4), 3)
    assert model.training and all(part.training for part in model.modules())


def test_a_network_of_logits_stays_the_network_that_it_is() -> None:
    network = convolution()
    assert fit_network(network, SHAPE, 3) is network
    assert isinstance(network[1], nn.BatchNorm2d)


def test_norms_are_replaced_and_parameters_frozen_where_asked() -> None:
    network = fit_network(convolution(), SHAPE, 3, outputs="features", norm="batch", frozen=["model.0.*"])
    assert [name for name, value in network.named_parameters() if value.requires_grad] == [
        "model.1.scale", "model.1.offset", "head.weight", "head.bias",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "choices", "words"),
    [
        (convolution, {"outputs": "maps"}, "backbone.outputs=maps: choose one of logits, features"),
        (convolution, {"norm": "layer"}, "norm=layer: choose one of"),
        (convolution, {"frozen": ["body"]}, "frozen=body: no parameter has such a name; .* such as 0.weight"),
        (Pair, {"outputs": "features"}, r"2 examples give a tuple, and features \[2, D\] are wanted; let Pair return"),
        (lambda: nn.Flatten(0), {"outputs": "features"}, r"2 examples give \[128\], and features"),
        (lambda: nn.Linear(3, 2), {"outputs": "features"}, r"Linear fails on examples \[1, 8, 8\]"),
    ],
)
def test_mistakes_are_one_line(model: Any, choices: dict[str, Any], words: str) -> None:
    with pytest.raises(FewshotError, match=words) as caught:
        fit_network(model(), SHAPE, 3, **choices)
    assert "\n" not in str(caught.value)
