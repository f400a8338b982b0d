"""torchvision's classifiers: heads, grey images, sizes, norms, and weights from files or the cache, never fetched."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from fewshot.backbones.torchvision import TorchVision
from fewshot.backbones.weights import read_weights
from fewshot.core.errors import FewshotError

SMALL = "shufflenet_v2_x0_5"  # 1.4 million parameters
GREY, COLOUR = (1, 32, 32), (3, 32, 32)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of torchvision, and a failure where something is fetched; the cache's folder."""
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: pytest.fail("fetches"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def trained(name: str = SMALL) -> nn.Module:
    """A model whose running averages are not at their start values."""
    torch.manual_seed(1)
    model = models.get_model(name, weights=None)
    model.train()(torch.rand(4, *COLOUR))
    return model.eval()


@pytest.mark.parametrize(
    "name", [SMALL, "resnet18", "mobilenet_v3_small", "squeezenet1_1", "googlenet", "densenet121", "efficientnet_b0"]
)
def test_the_last_layer_gives_way_to_a_head_of_n_ways(name: str) -> None:
    network, x = TorchVision(GREY, 5, model=name, head_init="xavier").eval(), torch.rand(2, *GREY)
    assert network(x).shape == (2, 5)
    assert network.embed(x).shape == (2, network.head.in_features)
    assert [name for name, _ in network.named_parameters()][-2:] == ["head.weight", "head.bias"]
    assert not list(network.buffers())


def test_grey_images_are_copied_to_three_channels_and_images_are_resized_where_asked() -> None:
    torch.manual_seed(0)
    network, x = TorchVision(GREY, 5, model=SMALL, size=32).eval(), torch.rand(3, *GREY)
    features = network.embed(x)
    torch.testing.assert_close(network.embed(x.expand(-1, 3, -1, -1)), features)
    large = torch.rand(3, 3, 48, 48)
    small = nn.functional.interpolate(large, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(network.embed(large), network.embed(small))
    assert not torch.allclose(network.embed(large), network.model(large).flatten(1))


def test_features_are_those_of_the_model_with_the_weights_of_a_file(tmp_path: Path) -> None:
    model, x = trained(), torch.rand(3, *COLOUR)
    model.fc = nn.Identity()
    torch.save(trained().state_dict(), tmp_path / "weights.pth")
    network = TorchVision(COLOUR, 5, model=SMALL, weights=str(tmp_path / "weights.pth"), norm="running")
    torch.testing.assert_close(network.embed(x), model(x))
    sha256 = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    assert network.weights == {"file": "weights.pth", "sha256": sha256}
    batch = TorchVision(COLOUR, 5, model=SMALL, weights=str(tmp_path / "weights.pth"))
    torch.testing.assert_close(batch.embed(x), model.train()(x))


def test_files_of_training_scripts_are_read_whatever_wraps_the_state_dict(tmp_path: Path) -> None:
    state = {"fc.weight": torch.rand(2, 3)}
    torch.save({"state_dict": {"module.fc.weight": state["fc.weight"]}, "epoch": 3}, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        assert torch.equal(read_weights(tmp_path / name)["fc.weight"], state["fc.weight"])


def test_weights_by_their_name_come_from_the_cache_and_are_not_fetched(no_network: Path) -> None:
    with pytest.raises(FewshotError, match=r"IMAGENET1K_V1: .* is not there, and nothing is fetched; get it from http"):
        TorchVision(COLOUR, 5, model=SMALL, weights="IMAGENET1K_V1")
    url: Any = models.get_model_weights(SMALL)["IMAGENET1K_V1"].url
    torch.save(trained().state_dict(), no_network / url.rpartition("/")[2])
    network = TorchVision(COLOUR, 5, model=SMALL, weights="DEFAULT")
    assert network.weights is not None and network.weights["file"] == url.rpartition("/")[2]


def test_frozen_parameters_are_not_trained() -> None:
    network = TorchVision(COLOUR, 5, model=SMALL, frozen=["model.*"])
    assert [name for name, value in network.named_parameters() if value.requires_grad] == ["head.weight", "head.bias"]


class Trap:
    """A pickle that would run code."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("ran code of a pickle",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Trap(), "damaged, or no state dict"),
        (nn.Linear(2, 2), "damaged, or no state dict"),
        ([1, 2], "holds no state dict"),
        ({"fc.weight": "words"}, "holds no state dict"),
        ({"fc.weight": torch.rand(2, 2)}, "weights of another model: .* is absent there"),
    ],
)
def test_other_files_are_refused_in_one_line_and_no_code_is_run(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(FewshotError, match=words) as caught:
        TorchVision(COLOUR, 5, model=SMALL, weights=str(tmp_path / "weights.pth"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "choices", "words"),
    [
        (COLOUR, {"model": "resnet81"}, "torchvision has no classifier resnet81, did you mean resnet18"),
        (COLOUR, {"weights": "nothing.pth"}, "weights=nothing.pth: no such file; give a state dict .* IMAGENET1K_V1"),
        (COLOUR, {"norm": "running"}, "norm=running: without weights there are no averages"),
        (COLOUR, {"norm": "layer"}, "norm=layer: choose one of batch, running, none"),
        (COLOUR, {"size": 0}, "backbone.network.size=0"),
        (COLOUR, {"frozen": ["layer1"]}, "frozen=layer1: no parameter has such a name"),
        ((3, 28, 28), {"model": "vit_b_32"}, "takes no images of 28x28 pixels .*set its size"),
        ((4, 32, 32), {}, "takes images of 1 or 3 channels, not shape"),
        ((640,), {}, r"takes images of 1 or 3 channels, not shape \(640,\)"),
    ],
)
def test_mistakes_are_one_line(no_network: Path, shape: tuple[int, ...], choices: dict[str, Any], words: str) -> None:
    with pytest.raises(FewshotError, match=words) as caught:
        TorchVision(shape, 5, **({"model": SMALL} | choices))
    assert "\n" not in str(caught.value)
