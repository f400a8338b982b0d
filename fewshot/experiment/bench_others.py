"""A meta-training step by other libraries, as their users would write it, to be timed beside ours.

`jax`: MAML by jax.vmap, jax.grad and jax.jit, on a CPU. `easyfsl`: prototypical networks, one episode after the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F

from fewshot.algorithms.embedding import Embedding
from fewshot.algorithms.learner import Learner, Tensors
from fewshot.algorithms.maml import MAML
from fewshot.algorithms.protonet import ProtoNet
from fewshot.backbones.checks import copy_network
from fewshot.backbones.conv4 import Block, Conv4
from fewshot.backbones.mlp import MLP
from fewshot.backbones.norm import BatchStatNorm
from fewshot.core.errors import FewshotError
from fewshot.episodes import Episodes


def easyfsl_gradient(learner: Learner, episodes: Episodes) -> Callable[[Tensors], Tensors]:
    """The gradient, by the parameters, of the mean loss of these episodes, by easyfsl's PrototypicalNetworks.

    Its scores are distances, not their squares as in the paper, so that the gradient is another one.

    Raises:
        FewshotError: easyfsl is not installed, or the learner is another.
    """
    try:
        from easyfsl.methods import PrototypicalNetworks
    except ImportError as error:
        raise FewshotError("engine=easyfsl: not installed; `uv sync --group bench`") from error
    if not isinstance(learner, ProtoNet):
        raise FewshotError("engine=easyfsl: only for protonet; choose network=protonet")
    backbone = copy_network(learner.backbone)
    model = PrototypicalNetworks(Embedding(backbone))
    trained = {name: value for name, value in backbone.named_parameters() if name in learner.init()[0]}

    def gradient(params: Tensors) -> Tensors:
        with torch.no_grad():
            for name, value in trained.items():
                value.copy_(params[name])
                value.grad = None
        for task in (episodes[i] for i in range(len(episodes))):
            model.process_support_set(task.support_x, task.support_y)
            (F.cross_entropy(model(task.query_x), task.query_y) / len(episodes)).backward()
        return {name: value.grad for name, value in trained.items() if value.grad is not None}

    return gradient


def jax_step(learner: Learner, episodes: Episodes, outer_lr: float) -> tuple[Callable[[], None], list[Any]]:
    """A full outer step of `jax_gradient` with Adam, all of it compiled, which waits for its end; and what it changes.

    That is a list of the parameters, by name, and Adam's moments and count.
    """
    gradient, params = jax_gradient(learner, episodes)
    jax, jnp = _jax()

    @jax.jit
    def step(params: Any, first: Any, second: Any, count: Any) -> Any:
        slope = gradient(params)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, slope)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, slope)
        rate = outer_lr * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        params = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-8), params, first, second)
        return params, first, second, count + 1

    zeros = jax.tree.map(jnp.zeros_like, params)
    state = [params, zeros, zeros, jnp.asarray(1.0)]

    def run() -> None:
        state[:] = jax.block_until_ready(step(*state))

    return run, state


def jax_gradient(learner: Learner, episodes: Episodes) -> tuple[Callable[[Any], Any], Any]:
    """MAML's mean outer gradient of these episodes in JAX: a function of the parameters; and the learner's own.

    Raises:
        FewshotError: jax is not installed, or the learner or its network is one that is not written here.
    """
    jax, jnp = _jax()
    if episodes.key.device.type != "cpu" or type(learner) is not MAML:
        raise FewshotError("engine=jax: only for MAML on a CPU; choose another engine")
    forward = _jax_network(learner.backbone)
    (way, adapted), regression = (episodes.way, set(learner.adapted)), episodes.support_y.is_floating_point()

    def loss(params: Any, x: Any, y: Any) -> Any:
        outputs = forward(params, x)
        if regression:
            return jnp.mean((outputs[:, 0] - y) ** 2)
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(outputs) * jax.nn.one_hot(y, way), -1))

    def outer_loss(params: Any, task: Any) -> Any:
        support_x, support_y, query_x, query_y = task
        inner = params
        for _ in range(learner.inner_steps):
            slope = jax.grad(loss)(inner, support_x, support_y)
            if learner.first_order:
                slope = jax.lax.stop_gradient(slope)
            inner = {n: p - learner.inner_lr * slope[n] if n in adapted else p for n, p in inner.items()}
        return loss(inner, query_x, query_y)

    def stored(x: torch.Tensor) -> Any:
        return jnp.asarray((x.movedim(2, -1) if x.dim() == 5 else x).contiguous().numpy())  # channels last

    tasks = tuple(stored(x) for x in (episodes.support_x, episodes.support_y, episodes.query_x, episodes.query_y))

    def mean_loss(params: Any) -> Any:
        return jnp.mean(jax.vmap(lambda task: outer_loss(params, task))(tasks))

    return jax.grad(mean_loss), {name: jnp.asarray(value.numpy()) for name, value in learner.init()[0].items()}


def _jax() -> tuple[Any, Any]:
    """The modules jax and jax.numpy, which are not installed where nobody asks for them."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # it reports every other kind of device that is not there
    try:
        return import_module("jax"), import_module("jax.numpy")
    except ImportError as error:
        raise FewshotError("engine=jax: not installed; `uv sync --group bench`") from error


def _jax_network(network: torch.nn.Module) -> Callable[[Any, Any], Any]:
    """Conv-4 with a norm scale, or an MLP without norms, in JAX: (parameters by name, examples [B, ...]) to outputs."""
    jax, jnp = _jax()

    def head(params: Any, x: Any) -> Any:
        return x @ params["head.weight"].T + params["head.bias"]

    if isinstance(network, MLP) and not network.has_norms:
        layers = [f"body.{number}.linear" for number in range(1, len(network.body))]

        def mlp(params: Any, x: Any) -> Any:
            for layer in layers:
                x = jax.nn.relu(x @ params[f"{layer}.weight"].T + params[f"{layer}.bias"])
            return head(params, x)

        return mlp
    first = network.blocks[0] if isinstance(network, Conv4) else None
    if not isinstance(first, Block) or not isinstance(first.norm, BatchStatNorm) or first.norm.scale is None:
        raise FewshotError("engine=jax: only for Conv4 with a norm scale and MLP without norms; choose another engine")
    stride, ceil, eps = first.stride, first.ceil, first.norm.eps

    def conv4(params: Any, x: Any) -> Any:
        for block in (f"blocks.{number}" for number in range(4)):
            weight, padding = params[f"{block}.conv.weight"], [(1, 1), (1, 1)]
            x = jax.lax.conv_general_dilated(
                x, weight, (stride, stride), padding, dimension_numbers=("NHWC", "OIHW", "NHWC")
            )
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            factor = params[f"{block}.norm.scale"] * jax.lax.rsqrt(variance + eps)
            x = (x - mean) * factor + params[f"{block}.norm.offset"]
            if stride == 1:
                window, pad = (1, 2, 2, 1), "SAME" if ceil else "VALID"
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, pad)
            x = jax.nn.relu(x)
        if network.readout == "mean":
            return head(params, x.mean((1, 2)))
        return head(params, jnp.moveaxis(x, -1, 1).reshape(len(x), -1))

    return conv4
