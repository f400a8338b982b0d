"""What training leaves: a learner with the selected parameters, ready to adapt to new classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fewshot.algorithms.learner import Learner, Tensors
from fewshot.backbones.module import device_of
from fewshot.core.errors import FewshotError, one_line
from fewshot.core.paths import expand_path
from fewshot.core.random import stream
from fewshot.data.sources.images import decode_image
from fewshot.data.tensors import Examples, Labels, as_examples, number_labels
from fewshot.engine.probe import probe
from fewshot.episodes import Episodes
from fewshot.training.classifier import Classifier, balanced
from fewshot.training.inputs import Inputs


@dataclass(frozen=True)
class Trained:
    """A trained learner: the selected parameters, and what they cost."""

    learner: Learner
    params: Tensors  # by name; `network.load_state_dict(params, strict=False)` copies those of MAML into the network
    state: Tensors
    validation: dict[str, Any] | None = None  # {accuracy or mse, step} of the last one up to these parameters
    selection: str = "last"  # or "best validation accuracy" (or mse), whichever these parameters are
    steps: int = 0  # outer steps of the whole training
    nan_guarded: int = 0  # steps whose gradient held a NaN and was replaced, see `replace_nan`
    train_seconds: float = 0.0  # of these steps: sampling, adaptation and update, without validation
    inputs: Inputs | None = None  # the examples that it was trained on; None for functions
    devices: tuple[str, ...] = ()  # that it was trained on; empty where nothing was trained or no checkpoint says it
    processors: tuple[str, ...] = ()  # of process 0 of it; empty likewise
    software: tuple[str, ...] = ()  # torch, processes and threads of it; empty likewise
    code: tuple[dict[str, Any], ...] = ()  # versions that trained it, as records have them; empty likewise
    processes: int | None = None  # that trained it, when it went on last; None likewise
    peak_memory_bytes: int | None = None  # that process 0 took at most; None likewise

    def __repr__(self) -> str:
        count = sum(value.numel() for value in self.params.values())
        return f"Trained({type(self.learner).__name__}, {count:,} parameters, {self.steps:,} steps, {self.selection})"

    @property
    def device(self) -> torch.device:
        """The device of the parameters; without any, that of the extractor or of the network."""
        own = next((value.device for value in (*self.params.values(), *self.state.values())), None)
        extractor = None if self.inputs is None else self.inputs.extractor
        network = extractor or self.learner.backbone  # without parameters it runs where its features are made
        return own or (device_of(network) if isinstance(network, nn.Module) else torch.device("cpu"))

    def read_images(self, paths: Iterable[str | Path]) -> np.ndarray:
        """Image files as the training's reader made its examples, [B, C, S, S] uint8, for `adapt` and `predict`.

        Dark strokes on light ground are yours to invert for a learner of Omniglot or glyphs: `255 - images`.

        Raises:
            FewshotError: a file cannot be read, or the learner was trained on no 8-bit images of a known reader.
        """
        if self.inputs is None or self.inputs.spec is None or self.inputs.dtype != torch.uint8:
            raise FewshotError(
                "read_images: this learner was not trained on 8-bit images of a known reader; make examples yourself"
            )
        if isinstance(paths, str | PathLike):
            raise FewshotError(f"read_images: {str(paths)!r} is one path; give a list of files")
        images = []
        for path in map(expand_path, paths):
            try:
                images.append(decode_image(path.read_bytes(), self.inputs.spec))
            except (OSError, ValueError) as error:
                raise FewshotError(f"{path}: {one_line(error)}; give files of images") from error
        if not images:
            raise FewshotError("read_images: no file is named; give at least one")
        return np.stack(images)

    def adapt(self, support_x: Examples, support_y: Labels) -> Classifier:
        """Learn a person's support set, as at evaluation; the result predicts the labels of new examples.

        Args:
            support_x: [B, ...] examples of the kind that the learner was trained on: images [B, C, H, W], uint8 or
                floats, of any size, which are squashed to that of the training and normalised as there; or features
                [B, D]. `read_images` reads files.
            support_y: [B] labels of any kind that can be hashed, in any order. Classes may differ in size: for
                learners that need as many of each, examples of the smaller ones are repeated. Another number of classes
                than in training suits learners without a head, such as LEO and Nearest.

        Raises:
            FewshotError: shapes, types or numbers are not these, or the learner was trained on other tasks than a
                Sampler's, such as functions.
        """
        if self.inputs is None:
            raise FewshotError(
                "adapt: this learner was not trained on tasks of a Sampler, so that its labels are unknown; call "
                "learner.adapt with an episode of your own"
            )
        x = as_examples("support_x", support_x)
        labels, numbers = number_labels("support_y", support_y, len(x))
        if len(labels) == 1:
            raise FewshotError(f"support_y: all examples are {labels[0]!r}; give examples of two classes or more")
        x, device = self.inputs.prepare("support_x", x, self.device), self.device
        order = numbers.argsort(stable=True) if getattr(self.learner, "unequal_shots", False) else balanced(numbers)
        key = torch.tensor(stream("adapt"), device=device)
        x, y = x[order.to(device)], numbers[order].to(device)
        task = Episodes(x, y, x[:0], y[:0], key, way=len(labels))
        try:
            behaviour = probe(self.learner, task, self.params, self.state)
        except FewshotError as error:
            if len(labels) == self.inputs.way:
                raise
            raise FewshotError(
                f"support_y: {len(labels)} classes, and the learner was trained for {self.inputs.way}; give examples "
                f"of {self.inputs.way} classes, or train with way={len(labels)}, or nearest_mean, which takes any"
            ) from error
        with torch.no_grad():
            adapted = self.learner.adapt(self.params, self.state, task)
        return Classifier(labels, self.learner, adapted, task, behaviour, self.inputs)
