"""Reference numbers of the original programs: their files, their weights in our layout, a table of deviations."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt, prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewshot.algorithms.learner import Tensors
from fewshot.backbones.conv4 import Conv4
from fewshot.episodes import Episodes
from fewshot.training.settings import TrainSettings

SMALL = Path(__file__).parent / "goldens"
# Beside the checkout, or another set that was made alike.
FULL = Path(os.environ.get("FEWSHOT_GOLDENS", Path(__file__).parents[3] / "shared/reference/goldens"))


def golden_files(*kinds: str) -> list[Any]:
    """The files whose names begin so: those in the repository, and as slow tests all of the full set."""
    small, full = ([path for kind in kinds for path in sorted(folder.glob(f"{kind}_*"))] for folder in (SMALL, FULL))
    slow = [pytest.param(path, id=f"full-{path.stem}", marks=pytest.mark.slow) for path in full or [FULL / kinds[0]]]
    return [*(pytest.param(path, id=path.stem) for path in small), *slow]


def outer_settings(outer_optimizer: str, outer_lr: float, **choices: Any) -> TrainSettings:
    """Settings of three outer steps."""
    settings: dict[str, Any] = {
        "steps": 3, "meta_batch": 4, "way": None, "shot": None, "query": None, "outer_lr_end": None, "clip": None,
        "clip_norm": None, "nan_guard": False, "train_on_val": False, "validate_every": 0, "select": "last",
        "checkpoint_every": 1, "log_every": 1,
    }  # fmt: skip
    return TrainSettings(outer_optimizer=outer_optimizer, outer_lr=outer_lr, **(settings | choices))


class Original:
    """One file: its configuration, and its arrays in our layout.

    TensorFlow's SAME pads an even side at its end where the stride is 2, and our convolutions pad it at its start. Both
    are the same network when images and kernels, and before a flatten the head's weights, are turned by 180 degrees.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            pytest.skip(f"no reference numbers at {path}; FEWSHOT_GOLDENS names their folder")
        with np.load(path) as file:
            self.config: dict[str, Any] = json.loads(str(file["config_json"]))
            self.arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "config_json"}
        self.dtype = torch.float64 if self.config["compute_dtype"] == "float64" else torch.float32
        self.names: dict[str, str] = {}  # our parameter names by the original's
        self.image: tuple[int, int, int] | None = None  # height, width, channels of what convolutions see
        self.strided, self.filters = False, 0

    def conv4(self, shape: tuple[int, ...], way: int, *, pool: str, readout: str, adapted_scale: bool) -> Conv4:
        """The Conv-4 of the file; `adapted_scale`: norms have a scale, and the inner loop adapts them."""
        return Conv4(
            shape, way, filters=self.filters, downsample="stride" if self.strided else "max_pool", pool=pool,
            readout=readout, norm="batch", norm_scale=adapted_scale, norm_eps=self.config["norm_epsilon"],
            adapt_norm=adapted_scale, conv_init="xavier", head_init="zeros",
        )  # fmt: skip

    def __getitem__(self, key: str) -> torch.Tensor:
        """An array as it is stored, in the compute dtype, or of integers."""
        value = self.arrays[key]
        return value.to(self.dtype) if value.is_floating_point() else value.long()

    def weights(self, prefix: str) -> Tensors:
        """A copy of the weights stored below a prefix, by our names; axes before a parameter's own stay.

        All must be stored, but for the offsets of norms below "adapted": cbfinn/maml does not adapt them.
        """
        fixed = "norm.offset" if prefix == "adapted" else None
        stored = {name: ours for name, ours in self.names.items() if not (fixed and ours.endswith(fixed))}
        missing = [name for name in stored if f"{prefix}/{name}" not in self.arrays]
        assert stored and not missing, f"below {prefix}/ the file has no {', '.join(missing)}"
        return {ours: self._in_our_layout(ours, self[f"{prefix}/{name}"]).clone() for name, ours in stored.items()}

    def x(self, key: str) -> torch.Tensor:
        """Examples for our networks: images [..., C, H, W] from [..., H, W(, C)] or [..., H*W*C], else unchanged."""
        x = self[key]
        if self.image is None:
            return x
        axes = next(i for i in range(x.dim()) if prod(x.shape[i:]) == prod(self.image))
        x = x.reshape(*x.shape[:axes], *self.image).movedim(-1, -3)
        return (x.flip(-1, -2) if self.strided else x).contiguous()

    def episodes(self, *keys: str) -> Episodes:
        """Tasks of four arrays: support_x, support_y, query_x, query_y [T, ...]. A task's key is its number."""
        x, y = [self.x(key) for key in keys[::2]], [self[key] for key in keys[1::2]]
        y = [value[..., 0] if value.is_floating_point() else value for value in y]
        return Episodes(x[0], y[0], x[1], y[1], torch.arange(len(y[0])))

    def _in_our_layout(self, ours: str, value: torch.Tensor) -> torch.Tensor:
        turn = (lambda kernel: kernel.flip(-1, -2)) if self.strided else (lambda kernel: kernel)
        if ours.endswith("conv.weight"):  # height, width, inputs, outputs
            return turn(value.movedim((-1, -2), (-4, -3)))
        if ours == "head.weight" and self.image is not None:  # height * width * channels, outputs
            side = isqrt(value.shape[-2] // self.filters)
            value = turn(value.unflatten(-2, (side, side, self.filters)).movedim((-1, -2), (-4, -3)))
            return value.flatten(-3)
        return value.mT if ours.endswith("weight") else value


class Deviations:
    """The largest deviation of each thing compared, and its tolerance."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[float, float]] = {}

    def compare(self, what: str, ours: Any, theirs: Any, tolerance: float, *, absolute: bool = False) -> None:
        """Keep the larger of this deviation and those seen under the same name.

        Args:
            ours, theirs: tensors of one shape, or Tensors of the same names; only the offsets of norms, which not every
                program adapts, and our count of steps may be missing in `theirs`.
            absolute: do not divide by the largest reference value of each tensor.
        """
        if not isinstance(theirs, torch.Tensor):
            # The bias before a norm changes no output: its gradient is 0, and Adam takes rounding for a gradient.
            norms = [name for name in ours if name.endswith("norm.offset")]
            idle = {name.replace("norm.offset", f"{layer}.bias") for name in norms for layer in ("conv", "linear")}
            absent = {
                name for name in ours if not name.endswith("norm.offset") and name != "inner_step"
            } - theirs.keys()
            compared = theirs.keys() - idle
            assert compared and not absent and theirs.keys() <= ours.keys(), f"{what}: not compared: {sorted(absent)}"
            for name in compared:
                self.compare(what, ours[name], theirs[name], tolerance, absolute=absolute)
            return
        assert ours.shape == theirs.shape and theirs.numel(), what
        deviation = (ours.double() - theirs.double()).abs().max()
        largest = theirs.double().abs().max()
        deviation = float(deviation if absolute or largest == 0 else deviation / largest)
        before = self.rows.get(what, (0.0, tolerance))[0]
        self.rows[what] = (before if deviation <= before else deviation, tolerance)  # a nan stays


@contextmanager
def deviations_of(path: Path) -> Iterator[Deviations]:
    """Compare one file: prints its rows of the table (`pytest -s` shows them), fails where a tolerance is passed."""
    table = Deviations()
    yield table
    assert table.rows
    for what, (deviation, tolerance) in table.rows.items():
        print(f"| {path.stem} | {what} | {deviation:.1e} | {tolerance:.0e} |")
    too_far = {what: row for what, row in table.rows.items() if not row[0] <= row[1]}
    assert not too_far, too_far
