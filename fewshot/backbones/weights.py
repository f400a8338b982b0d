"""Pretrained weights from a file, or from torchvision's own cache. Nothing is fetched, and no pickled code is run."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fewshot.core.checks import did_you_mean
from fewshot.core.errors import FewshotError, one_line
from fewshot.core.paths import expand_path

WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts save a state dict
# The names of a DenseNet's layers in torchvision's older files, such as `denselayer1.norm.1.weight`.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def find_weights(model: str, weights: str) -> Path:
    """The file of the weights of one of torchvision's models.

    Args:
        weights: a file; or torchvision's name of the weights, such as IMAGENET1K_V1 or DEFAULT, in its cache.

    Raises:
        FewshotError: there is no such file and no such name, or torchvision's cache does not hold them.
    """
    from torchvision.models import get_model_weights

    path = expand_path(weights)
    if path.is_file():
        return path
    names = get_model_weights(model).__members__
    if weights not in names:
        raise FewshotError(
            f"weights={weights}: no such file; give a state dict in a .pth or .safetensors file, or the name of "
            f"weights in torchvision's cache: {', '.join(names)}{did_you_mean(weights, names)}"
        )
    url = str(names[weights].url)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not cached.is_file():
        raise FewshotError(
            f"weights={weights}: {cached} is not there, and nothing is fetched; get it from {url}, or by "
            f"{cache_command(model, weights)}"
        )
    return cached


def cache_command(model: str, weights: str = "DEFAULT") -> str:
    """What to type, where there is a network, to have torchvision put weights into its cache; for messages."""
    return f"`python -c \"import torchvision; torchvision.models.get_model('{model}', weights='{weights}')\"`"


def hash_file(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors by name in a state dict: a .safetensors file, or one of torch, read without running pickled code.

    Raises:
        FewshotError: the file is damaged, or holds more than tensors, such as a whole module.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise FewshotError(
            f"{path}: damaged, or no state dict ({one_line(error)[:120]}); save it with "
            "torch.save(model.state_dict(), ...) or as .safetensors"
        ) from error
    for key in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise FewshotError(f"{path}: holds no state dict; save it with torch.save(model.state_dict(), ...)")
    return {str(name).removeprefix("module."): value for name, value in loaded.items()}


def load_weights(model: nn.Module, path: Path, without: str) -> None:
    """Load the weights of a file into a model.

    Args:
        without: name of the layer that keeps its own, the head; what the file has for it is not read.

    Raises:
        FewshotError: as `read_weights`, or the weights are of another model.
    """
    tensors = {OLD_DENSENET.sub(r"\1\2", name): value for name, value in read_weights(path).items()}
    wanted = {name: value for name, value in model.state_dict().items() if not name.startswith(f"{without}.")}
    for name, value in wanted.items():
        there = tensors.get(name)
        if there is None and name.endswith("num_batches_tracked"):
            tensors[name] = value  # a count that older files lack, and that no output depends on
        elif there is None or there.shape != value.shape:
            fault = "is absent" if there is None else f"has shape {tuple(there.shape)}"
            raise FewshotError(
                f"{path}: weights of another model: {name} {fault} there, and {tuple(value.shape)} is wanted; name the "
                "model that they are of"
            )
    model.load_state_dict({name: tensors[name] for name in wanted}, strict=False)
