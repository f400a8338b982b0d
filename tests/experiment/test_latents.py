"""LEO's latent codes: what is written of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fewshot.engine.engine import Engine
from fewshot.experiment.latents import write_latents
from fewshot.tasks.sampler import Sampler

Make = Callable[..., Any]


def test_codes_of_one_number_are_drawn_too(make_bank: Make, make_learner: Make, tmp_path: Path):
    learner, sampler = make_learner("leo", latent=1), Sampler(make_bank(), 3, 2, 2, seed=0)
    write_latents(tmp_path, learner, learner.init()[0], sampler, 2, Engine("vmap"))
    assert (tmp_path / "latents.png").stat().st_size > 10_000


def test_codes_before_and_after_adaptation_and_a_picture_are_written(
    make_bank: Make, make_learner: Make, tmp_path: Path
):
    learner, sampler = make_learner("leo"), Sampler(make_bank(), 3, 2, 2, seed=0)
    params, _ = learner.init()
    write_latents(tmp_path, learner, params, sampler, 7, Engine("vmap"))
    with np.load(tmp_path / "latents.npz", allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    assert found["before"].shape == found["after"].shape == (7, 3, 2, 6)
    assert np.array_equal(found["classes"], sampler.draw(0, 7).classes.numpy())
    assert found["names"].tolist() == [f"class {i}" for i in range(5)]
    latents = learner.solve(params, sampler.episodes(0, 7)[4], None).latents
    torch.testing.assert_close(torch.from_numpy(found["before"][4]), latents[0])
    torch.testing.assert_close(torch.from_numpy(found["after"][4]), latents[-1])
    with Image.open(tmp_path / "latents.png") as picture:
        assert picture.width > picture.height > 300
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50  # more than an empty frame
