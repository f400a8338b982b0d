"""LEO's latent codes of test episodes, before and after adaptation, as numbers and as a picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from fewshot.algorithms.learner import Tensors
from fewshot.algorithms.leo import LEO
from fewshot.core.files import write_atomically
from fewshot.engine.engine import Engine
from fewshot.episodes import Episodes
from fewshot.tasks.sampler import Sampler

COLOURED = 10  # classes that get a colour of their own: the most frequent ones


def write_latents(folder: Path, leo: LEO, params: Tensors, sampler: Sampler, tasks: int, engine: Engine) -> None:
    """Write `latents.npz` and `latents.png` of the sampler's first tasks.

    The arrays are `before` and `after` [tasks, N, K, L], the codes z before the first latent step and after the last,
    and `classes` [tasks, N], indices into `names`. The picture shows the two principal components of all codes.
    """

    def codes(leo: LEO, task: Episodes) -> torch.Tensor:
        latents = leo.solve(params, task, None).latents
        return torch.stack([latents[0], latents[-1]])

    all_codes = engine.map(codes, leo, sampler.episodes(0, tasks)).cpu()  # [tasks, 2, N, K, L]
    classes = sampler.draw(0, tasks).classes.cpu().numpy()
    before, after = all_codes[:, 0].numpy(), all_codes[:, 1].numpy()
    file = io.BytesIO()
    np.savez_compressed(file, before=before, after=after, classes=classes, names=np.array(sampler.bank.names))
    write_atomically(folder / "latents.npz", file.getvalue())
    write_atomically(folder / "latents.png", _picture(before, after, classes, sampler.bank.names))


def _picture(before: np.ndarray, after: np.ndarray, classes: np.ndarray, names: tuple[str, ...]) -> bytes:
    from matplotlib.figure import Figure

    points = torch.from_numpy(
        np.concatenate([before.reshape(-1, before.shape[-1]), after.reshape(-1, after.shape[-1])])
    )
    centred = points - points.mean(0)
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    planar = torch.nn.functional.pad(centred @ axes[:2].T, (0, 2 - len(axes[:2]))).numpy()  # a code may be one number
    share = (spread[:2].square().sum() / spread.square().sum().clamp_min(1e-30)).item()
    label = np.repeat(classes.flatten(), before.shape[2])
    often = np.argsort(-np.bincount(label, minlength=len(names)), kind="stable")[:COLOURED]
    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, part, title in zip(panels, np.split(planar, 2), ("before adaptation", "after adaptation"), strict=True):
        other = ~np.isin(label, often)
        panel.scatter(*part[other].T, s=4, color="0.85", label="other classes" if other.any() else None)
        for colour, name in enumerate(often):
            panel.scatter(*part[label == name].T, s=10, color=f"C{colour}", label=names[name])
        panel.set_title(f"latent codes {title}")
    panels[1].legend(fontsize=7, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.supxlabel(f"first two principal components: {share:.0%} of the variance", fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
