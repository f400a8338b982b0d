"""The training of an extractor: its rates, its precision, small images first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fewshot.training.extractor as training
from fewshot.backbones.conv4 import Conv4
from fewshot.data.bank import Bank
from fewshot.tasks.transforms import ImageTransform

Make = Callable[..., Any]
NETWORK = partial(Conv4, filters=4, norm="running")


def test_rates_fall_as_their_schedule_says():
    assert [training._schedule("step", done) for done in (0, 0.49, 0.5, 0.75)] == pytest.approx([1, 1, 0.1, 0.01])
    assert [training._schedule("cosine", done) for done in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])


def test_a_last_batch_of_one_image_joins_the_one_before():
    assert [training._batch_sizes(images, 4) for images in (1, 4, 5, 9, 10)] == [[1], [4], [5], [4, 5], [4, 4, 2]]
    assert training._batch_sizes(3, 1) == [1, 1, 1]


def test_bfloat16_rounds_the_products_and_not_the_loss():
    network = NETWORK((1, 16, 16), 3)
    nn.init.normal_(network.head.weight)
    x, labels = torch.rand(8, 1, 16, 16), torch.arange(8) % 3
    exact, rounded = (training._loss(network, x, labels, which).detach() for which in ("float32", "bfloat16"))
    assert rounded.dtype == torch.float32
    assert 0 < abs(float(rounded) - float(exact)) < 0.05 * float(exact)


def test_each_image_has_its_class_a_new_look_in_each_epoch_and_the_rate_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen, rates, views, loss = [], [], [], training._loss

    class Recorded(torch.optim.SGD):
        def step(self, *args: Any) -> None:
            rates.append(self.param_groups[0]["lr"])
            super().step(*args)

    def record(extractor: nn.Module, x: torch.Tensor, labels: torch.Tensor, precision: str) -> torch.Tensor:
        seen.extend(zip(x, labels.tolist(), strict=True))
        return loss(extractor, x, labels, precision)

    monkeypatch.setattr(torch.optim, "SGD", Recorded)
    monkeypatch.setattr(training, "_loss", record)
    monkeypatch.setattr(training, "_validation", lambda network, bank, view, settings: views.append(view) or 0.5)
    sizes = (3, 5, 4)
    examples = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    examples[:, 0] = 20 * torch.arange(12)[:, None, None].to(torch.uint8)  # its number, which no crop changes
    bank = Bank(examples, torch.tensor([0, 3, 8, 12]), ("a", "b", "c"), "train", "f", {})
    settings = {
        "seed": 0, "epochs": 2, "batch": 5, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "schedule": "cosine",
        "augment": "gentle", "precision": "float32",
    }  # fmt: skip
    training._train(NETWORK((3, 16, 16), 3), {"train": bank, "val": bank}, ImageTransform(), settings, tmp_path, "")
    looks: list[dict[int, torch.Tensor]] = [{}, {}]
    classes = [number for number, size in enumerate(sizes) for _ in range(size)]
    for place, (x, label) in enumerate(seen):
        number = round(float(x[0].mean()) * 255 / 20)
        assert label == classes[number]
        looks[place // 12][number] = x
    assert [sorted(look) for look in looks] == [[*range(12)]] * 2
    plain = ImageTransform()(examples, None)
    for number in range(12):
        first, second = (look[number] for look in looks)
        assert not torch.equal(first, second) and not torch.equal(first, plain[number])
    assert rates == pytest.approx([0.1 * training._schedule("cosine", step / 6) for step in range(6)])
    assert [view.augment for view in views] == ["none"] * 2


def test_after_small_images_the_convolutions_go_on_and_the_head_begins_anew(
    make_bank: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = []

    def learn(extractor: nn.Module, images: Any, view: ImageTransform, settings: Any, *_: Any) -> dict[str, Any]:
        start = {name: value.clone() for name, value in extractor.state_dict().items()}
        seen.append((view.output_shape((1, 32, 32)), settings["epochs"], start))
        with torch.no_grad():
            for parameter in extractor.parameters():
                parameter.fill_(7.0)
        where: dict[str, Any] = {"devices": ["cpu"], "processors": ["one"], "software": ["torch"]}
        where["code"] = [{"version": str(settings["epochs"])}]
        return {"accuracy": 0.5, "epoch": settings["epochs"], "train_seconds": 1.0} | where

    monkeypatch.setattr(training, "_train", learn)
    images = {"train": make_bank(shape=(1, 32, 32))}
    settings = {"seed": 0, "epochs": 3, "small_epochs": 2, "small_size": 16, "augment": "none"}
    _, about = training.train_extractor(
        NETWORK, images, ImageTransform(), settings, tmp_path, device=torch.device("cpu"), title=""
    )
    (small, large) = seen
    assert [small[:2], large[:2]] == [((1, 16, 16), 2), ((1, 32, 32), 3)]
    assert all(bool((large[2][f"blocks.{block}.conv.weight"] == 7).all()) for block in range(4))
    assert large[2]["head.weight"].shape == (5, 16) != small[2]["head.weight"].shape
    assert not (large[2]["head.weight"] == 7).any()
    where = {
        "devices": ["cpu"],
        "processors": ["one"],
        "software": ["torch"],
        "code": [{"version": "2"}, {"version": "3"}],
    }
    assert about == {"accuracy": 0.5, "epoch": 3, "train_seconds": 2.0} | where
