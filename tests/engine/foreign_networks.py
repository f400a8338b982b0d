"""Networks as people bring them, for images [B, 1, 8, 8] and 3 ways: the good, the mixing, and those to refuse."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

GENERATOR = torch.Generator()
Forward = Callable[[Any, torch.Tensor], Any]


class Own(nn.Module):
    """A convolution and a head, with the forward that a test gives, and further parts."""

    def __init__(self, forward: Forward, **parts: Any) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 3)
        self.how = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> Any:
        return self.how(self, x)


def plain(network: Any, x: torch.Tensor) -> torch.Tensor:
    return network.head(torch.tanh(network.body(x)).flatten(1))


def with_layer(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *layers, nn.Tanh(), nn.Flatten(), nn.Linear(256, 3))


def flat(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), layer)


class Recurrent(nn.Module):
    def __init__(self, kind: Any, rows_are_time: bool = False) -> None:
        super().__init__()
        self.rows_are_time = rows_are_time  # the mistake of a missing batch_first
        self.rnn, self.head = kind(64 if rows_are_time else 8, 6, batch_first=not rows_are_time), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rows_are_time:
            return self.head(self.rnn(x.flatten(1))[0])
        return self.head(self.rnn(x[:, 0])[0][:, -1])


class Attention(nn.Module):
    def __init__(self, dropout: float = 0.0, batch_first: bool = True) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=batch_first)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x[:, 0]).mean(1))


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 3)
        self.weights = [self.layer.weight]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.flatten(1), self.weights[0])


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3, padding=1).requires_grad_(False)
        self.head = nn.Linear(256, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).flatten(1))


def counting(network: Any, x: torch.Tensor) -> torch.Tensor:
    network.calls += 1
    return plain(network, x) * network.calls


def averaging(network: Any, x: torch.Tensor) -> torch.Tensor:
    """A norm of one's own with running averages in plain attributes, as textbooks write it."""
    if torch.is_grad_enabled():
        network.average = 0.9 * network.average + 0.1 * x.mean(0).detach()
    return plain(network, x - network.average)


def keeping(network: Any, x: torch.Tensor) -> torch.Tensor:
    network.features = torch.tanh(network.body(x))
    return network.head(network.features.flatten(1))


def making_a_table(network: Any, x: torch.Tensor) -> torch.Tensor:
    """Makes the table of positions at the first forward."""
    if network.table is None:
        network.table = torch.arange(64.0, dtype=x.dtype).view(8, 8) / 64
    return plain(network, x + network.table)


def with_experts(network: Any, x: torch.Tensor) -> torch.Tensor:
    """Two experts of a limited capacity: what comes too late to one is dropped."""
    x = x.flatten(1)
    choice = network.gate(x).argmax(-1)
    outputs = torch.zeros(len(x), 3, dtype=x.dtype)
    for number, expert in enumerate(network.experts):
        rows = (choice == number).nonzero()[: max(1, 3 * len(x) // 4), 0]
        outputs = outputs.index_add(0, rows, expert(x[rows]))
    return outputs


def residual(shape: tuple[int, ...] = (1, 8, 8), way: int = 3, **norm: Any) -> nn.Module:
    """torchvision's ResNet with one block a stage and an eighth of its channels."""
    from torchvision.models.resnet import BasicBlock, ResNet

    class Narrow(ResNet):
        def _make_layer(self, block: Any, planes: int, *args: Any, **choices: Any) -> nn.Sequential:
            return super()._make_layer(block, planes // 8, *args, **choices)

    layer = partial(nn.BatchNorm2d, **norm) if norm else None
    network = Narrow(BasicBlock, [1, 1, 1, 1], num_classes=way, norm_layer=layer)
    network.conv1, network.fc = nn.Conv2d(shape[0], 64, 3, 2, 1), nn.Linear(64, way)
    return network


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(flat(nn.Linear(64, 3)))


def with_old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return flat(nn.utils.weight_norm(nn.Linear(64, 3)))


INDEPENDENT: dict[str, Callable[[], nn.Module]] = {
    "no norm": lambda: Own(plain),
    "layer norm": lambda: with_layer(nn.LayerNorm((4, 8, 8))),
    "group norm": lambda: with_layer(nn.GroupNorm(2, 4)),
    "instance norm": lambda: with_layer(nn.InstanceNorm2d(4, affine=True)),
    "batch norm in eval": lambda: with_layer(nn.BatchNorm2d(4).eval()),
    "dropout": lambda: with_layer(nn.Dropout(0.5)),
    "dropout of rate 0": lambda: with_layer(nn.Dropout(0.0)),
    "noise in training only": lambda: Own(lambda n, x: plain(n, x + torch.randn_like(x) if n.training else x)),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "attention": Attention,
    "attention with dropout": lambda: Attention(0.1),
    "constant buffers": lambda: Own(lambda n, x: plain(n, x - n.mean), mean=nn.Buffer(torch.full((8, 8), 0.5))),
    "weight norm": lambda: flat(nn.utils.parametrizations.weight_norm(nn.Linear(64, 3))),
    "a number asked of a tensor": lambda: Own(lambda n, x: plain(n, x) * (1 + n.head.bias.sum().item())),
    "frozen body": Frozen,
    "gamma": lambda: Own(lambda n, x: plain(n, (x + 0.01) ** 0.45)),
    "table of the first forward": lambda: Own(making_a_table, table=None),
    "words of a vocabulary": lambda: Own(
        lambda n, x: n.head(n.words((x.flatten(1) * 16).long()).flatten(1)), words=nn.Embedding(17, 4)
    ),
}
MIXING: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: with_layer(nn.BatchNorm2d(4, track_running_stats=False)),
    "functional batch norm": lambda: Own(lambda n, x: plain(n, F.batch_norm(x, None, None, training=True))),
    "batch mean": lambda: Own(lambda n, x: plain(n, x - x.mean(0))),
    "batch mean without gradient": lambda: Own(lambda n, x: plain(n, x - x.mean(0).detach())),
    "sorted over the batch": lambda: Own(lambda n, x: plain(n, x).sort(0).values),
    "gate at zero": lambda: Own(lambda n, x: plain(n, x + n.gate * x.mean(0)), gate=nn.Parameter(torch.zeros(()))),
    "attention over the batch": lambda: Attention(batch_first=False),
    "recurrence over the batch": lambda: Recurrent(nn.LSTM, rows_are_time=True),
    "a branch on the batch": lambda: Own(lambda n, x: plain(n, x) if x.mean() > 0.4 else plain(n, 1 - x)),
    "positions along the batch": lambda: Own(  # the tutorial's encoding
        lambda n, x: plain(n, x + n.pe[: len(x), None, None, None]),
        pe=nn.Buffer(torch.sin(torch.arange(200.0)), persistent=False),
    ),
    "a number for each place": lambda: Own(lambda n, x: plain(n, x) + torch.arange(len(x), device=x.device)[:, None]),
    "batch mean of large batches": lambda: Own(lambda n, x: plain(n, x - x.mean(0) if len(x) > 7 else x)),
    "experts of a capacity": lambda: Own(
        with_experts, gate=nn.Linear(64, 2), experts=nn.ModuleList([nn.Linear(64, 3), nn.Linear(64, 3)])
    ),
    "torchvision": lambda: residual(track_running_stats=False),
}
# With what the refusal must say: the layer or the network by its name, and what to do.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "running averages": (
        lambda: with_layer(nn.BatchNorm2d(4)),
        r"layer 1 \(BatchNorm2d\) keeps running .*track_running_stats=False",
    ),
    "running averages of instances": (
        lambda: with_layer(nn.InstanceNorm2d(4, track_running_stats=True)),
        r"layer 1 \(InstanceNorm2d\) keeps running .*track_running_stats=False",
    ),
    "torchvision as it is": (residual, r"layer bn1 \(BatchNorm2d\) keeps running .*track_running_stats=False"),
    "spectral norm": (
        lambda: flat(nn.utils.parametrizations.spectral_norm(nn.Linear(64, 3))),
        r"layer 1\.parametrizations\.weight\.0 \(_SpectralNorm\) .*_u changes .*eval\(\)",
    ),
    "functional dropout": (lambda: Own(lambda n, x: plain(n, F.dropout(x, 0.5))), "Own draws at random"),
    "noise": (lambda: Own(lambda n, x: plain(n, x + torch.randn_like(x))), "Own draws at random"),
    "noise of Python": (lambda: Own(lambda n, x: plain(n, x * random.random())), "Own draws at random"),
    "noise of NumPy": (lambda: Own(lambda n, x: plain(n, x * float(np.random.rand()))), "Own draws at random"),
    "noise in a layer": (
        lambda: with_layer(nn.RReLU(), Own(lambda n, x: x + torch.randn_like(x))),
        r"layer 2 \(Own\) draws at random",
    ),
    "averages in attributes": (
        lambda: Own(averaging, average=torch.zeros(1, 8, 8)),
        r"Own keeps running .*its tensor average changes",
    ),
    "kept activations": (lambda: Own(keeping), r"Own keeps running .*its tensor features changes"),
    "old weight norm": (with_old_weight_norm, r"cannot be copied .*parametrizations\.weight_norm"),
    "scripted": (scripted, "RecursiveScriptModule is scripted"),
    "own generator": (
        lambda: Own(lambda n, x: plain(n, x + torch.rand((), generator=GENERATOR))),
        "^backbone: Own gives",
    ),
    "nothing finite": (lambda: Own(lambda n, x: plain(n, x) * torch.nan), "none of its outputs is finite"),
    "counter": (lambda: Own(counting, calls=0), "Own gives another output for the same input"),
    "pair": (lambda: Own(lambda n, x: (plain(n, x), x)), "give a tuple"),
    "dictionary": (lambda: Own(lambda n, x: {"logits": plain(n, x)}), "give a dict"),
    "nothing": (lambda: Own(lambda n, x: None), "give a NoneType"),
    "one value for each example": (lambda: Own(lambda n, x: plain(n, x)[:, 0]), r"give float32 \[6\].*logits \[6, 3\]"),
    "maps": (lambda: nn.Conv2d(1, 3, 3), r"give float32 \[6, 3, 6, 6\].*logits \[6, 3\]"),
    "whole numbers": (lambda: Own(lambda n, x: plain(n, x).long()), r"give int64 \[6, 3\]"),
    "too few outputs": (lambda: flat(nn.Linear(64, 2)), "made for 2 ways, the tasks have 3"),
    "too many outputs": (lambda: flat(nn.Linear(64, 1000)), "made for 1000 ways, the tasks have 3"),
    "wrong size": (lambda: flat(nn.Linear(10, 3)), r"layer 1 \(Linear\) fails on examples \[1, 8, 8\]"),
    "wrong channels": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), r"layer 0 \(Conv2d\) fails on examples \[1, 8, 8\]"),
    "no size yet": (lambda: flat(nn.LazyLinear(3)), "1.weight has no size"),
    "kept weights": (Cached, "Cached computes with tensors that it made of its parameters before"),
    "out of torch": (
        lambda: Own(lambda n, x: torch.from_numpy(plain(n, x).detach().numpy())),
        "Own fails on examples",
    ),
    "changes its input": (lambda: nn.Sequential(nn.ReLU(inplace=True), Own(plain)), "changes its input in place"),
}
