"""What the bench times beside our engines does the same work."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fewshot.core.errors import FewshotError
from fewshot.engine.engine import Engine
from fewshot.experiment.bench_others import easyfsl_gradient, jax_gradient, jax_step

Make = Any


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("network", ["stride", "max_pool", "mlp"])
def test_jax_has_our_meta_gradient(
    make_conv4: Make, make_mlp: Make, make_learner: Make, make_episodes: Make, network: str, first_order: bool
):
    pytest.importorskip("jax")
    shape, way = ((6,), 3) if network == "mlp" else ((1, 18, 18), 3)
    if network == "mlp":
        backbone = make_mlp(shape, way, norm="none")
    else:
        backbone = make_conv4(shape, way, downsample=network, norm_scale=True)
    settings = {"inner_steps": 2, "inner_loss": "mean", "outer_loss": "mean", "first_order": first_order}
    learner = make_learner("maml", backbone, **settings)
    episodes = make_episodes(2, shape=shape)
    params, state = learner.init()
    ours = Engine("vmap").outer(learner, params, state, episodes).gradient
    gradient, theirs = jax_gradient(learner, episodes)
    found = {name: torch.tensor(value.tolist()) for name, value in gradient(theirs).items()}
    for name, value in ours.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_easyfsl_has_a_gradient_of_the_embedding_of_every_task(
    make_conv4: Make, make_learner: Make, make_episodes: Make
):
    pytest.importorskip("easyfsl")
    learner = make_learner("protonet", make_conv4())
    params, _ = learner.init()
    both = easyfsl_gradient(learner, make_episodes(2))(params)
    one, other = (easyfsl_gradient(learner, make_episodes(2)[i : i + 1])(params) for i in range(2))
    assert both.keys() == {name for name in params if not name.endswith("conv.bias")}  # which a norm follows
    for name, value in both.items():
        torch.testing.assert_close(value, (one[name] + other[name]) / 2)


def test_a_step_of_jax_is_a_step_of_adam(make_mlp: Make, make_learner: Make, make_episodes: Make):
    pytest.importorskip("jax")
    learner = make_learner("maml", make_mlp((6,), 3, norm="none"), inner_loss="mean", outer_loss="mean")
    episodes = make_episodes(2, shape=(6,))
    step, changed = jax_step(learner, episodes, 0.01)
    params, state = learner.init()
    optimizer = torch.optim.Adam(params.values(), lr=0.01)
    for _ in range(2):
        step()
        for name, value in Engine("vmap").outer(learner, params, state, episodes).gradient.items():
            params[name].grad = value
        optimizer.step()
    for name, value in params.items():
        torch.testing.assert_close(torch.tensor(changed[0][name].tolist()), value.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("library", "gradient", "learner"), [("easyfsl", easyfsl_gradient, "maml"), ("jax", jax_gradient, "protonet")]
)
def test_each_refuses_other_learners(
    make_conv4: Make, make_learner: Make, make_episodes: Make, library: str, gradient: Make, learner: str
):
    pytest.importorskip(library)
    with pytest.raises(FewshotError, match=f"engine={library}: only for"):
        gradient(make_learner(learner, make_conv4()), make_episodes(2))
