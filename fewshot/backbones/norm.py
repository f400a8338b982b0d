"""Batch normalisation: by the statistics of the batch at hand, or with running averages.

`batch`, as every MAML code base has it, keeps no averages: the output for a query depends on the batch that it is
forwarded in, so transduction is decided by which examples are forwarded together (see `engine.evaluate`), never by
train() or eval(). `running` is for networks trained as ordinary classifiers: after eval() an image's features depend on
that image alone.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import nn
from torch._C._functorch import is_functorch_wrapped_tensor  # torch has no public name for this question
from torch.nn.modules.batchnorm import _BatchNorm

from fewshot.core.checks import check_choice, check_number
from fewshot.core.errors import FewshotError


class BatchStatNorm(nn.Module):
    """Normalise each channel over batch and space with batch statistics; [B, C, ...] to [B, C, ...].

    Args:
        channels: C.
        scale: whether there is a learned scale (gamma) beside the learned offset (beta). cbfinn/maml has none
            (tf.contrib.layers.batch_norm's default), supervised-reptile and mmfewshot have one.
        eps: added to the variance; 1e-3 in the TensorFlow originals, 1e-5 in the PyTorch ones.
    """

    def __init__(self, channels: int, *, scale: bool = True, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(channels)) if scale else None
        self.offset = nn.Parameter(torch.zeros(channels))
        # The fused kernel is faster in first order. Its double backward is slow, and wrong inside torch.func.vmap
        # (torch 2.15), so a learner of second order asks for the written-out form of the same function.
        self.fused = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fused and not _fused_gathers(x):
            # Without a weight, torch cuts the offset's gradient off from a second differentiation.
            scale = torch.ones_like(self.offset) if self.scale is None else self.scale
            return F.batch_norm(x, None, None, scale, self.offset, training=True, eps=self.eps)
        factor, shift = self.affine(x, self.scale)
        per_channel = (-1, *(1,) * (x.dim() - 2))
        return x * factor.view(per_channel) + shift.view(per_channel)

    def affine(self, x: torch.Tensor, scale: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(factor [C], shift [C]): the norm of x with this scale is x * factor + shift."""
        axes, count = (0, *range(2, x.dim())), x.numel() // x.shape[1]
        x = x.float() if x.dtype == torch.bfloat16 else x  # its sums would have two digits
        mean = x.sum(axes) / count
        if x.dim() == 2:  # small, and maybe far from zero, as columns of a table are
            variance = (x - mean).square().mean(0)
        else:  # the form whose derivatives take the fewest passes over x
            # It loses digits where the mean is hundreds of deviations from zero, where it must not become negative.
            variance = ((x * x).sum(axes) / count - mean * mean).clamp_min(0)
        factor = torch.rsqrt(variance + self.eps)
        if scale is not None:
            factor = factor * scale
        return factor, self.offset - mean * factor


def _fused_gathers(x: torch.Tensor) -> bool:
    """Whether the fused kernel would first gather the channels of tasks, or queries, whose images run at once on a CPU.

    Not for vectors, which are small, and may be far from zero: the written-out variance loses digits there.
    """
    if torch.compiler.is_compiling() or x.dim() < 4:
        return False
    return x.device.type == "cpu" and is_functorch_wrapped_tensor(x)


def norm_names(network: nn.Module, kinds: tuple[type[nn.Module], ...] = (BatchStatNorm, _BatchNorm)) -> list[str]:
    """Names of the trained parameters of norms of these classes."""
    norms = [prefix for prefix, part in network.named_modules() if isinstance(part, kinds)]
    names = (name for name, value in network.named_parameters() if value.requires_grad)
    return [name for name in names if name.rpartition(".")[0] in norms]


class RunningNorm(nn.BatchNorm2d):
    """torch's BatchNorm (momentum 0.1) for [B, C] and [B, C, ...] alike: the batch in train(), averages in eval().

    train() changes the averages in place, which torch.func refuses: meta-learning needs `batch`, or eval().

    Args:
        channels: C.
        scale: whether there is a learned scale (`weight`) beside the learned offset (`bias`).
        eps: added to the variance.
    """

    def __init__(self, channels: int, *, scale: bool = True, eps: float = 1e-5) -> None:
        super().__init__(channels, eps=eps)
        if not scale:
            self.register_parameter("weight", None)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Accept any number of axes: this check is the only difference between torch's 1d, 2d and 3d."""


class ConstantNorm(RunningNorm):
    """The running averages of a batch norm as constants, in train() too, with its scale and offset.

    Args:
        norm: one of torch's batch norms with running averages.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, eps=norm.eps)
        self.affine, self.weight, self.bias = norm.affine, norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval(), where the averages do not move."""
        return super().train(False)


def make_norm(kind: str, channels: int, *, scale: bool, eps: float) -> nn.Module:
    """The norm of a backbone, [B, C, ...] to [B, C, ...].

    Args:
        kind: `batch` (BatchStatNorm), `running` (RunningNorm) or `none` (nn.Identity).
        channels: C.
        scale: whether there is a learned scale beside the learned offset.
        eps: added to the variance.

    Raises:
        FewshotError: an unknown kind, or an `eps` below 0.
    """
    check_choice("backbone.network.norm", kind, ("batch", "running", "none"))
    check_number("backbone.network.norm_eps", eps, float, 0)
    if kind == "none":
        return nn.Identity()
    return (BatchStatNorm if kind == "batch" else RunningNorm)(channels, scale=scale, eps=eps)


def prepare_for_second_order(module: nn.Module) -> None:
    """Choose the written-out form of every BatchStatNorm, which is the faster one to differentiate twice."""
    for part in module.modules():
        if isinstance(part, BatchStatNorm):
            part.fused = False


def replace_batch_norms(network: nn.Module, kind: str) -> nn.Module:
    """Give every batch norm of a network, such as one of torchvision's, another behaviour, in place.

    Args:
        kind: `batch`, the statistics of the batch at hand, with the scale and offset that the norm has (BatchStatNorm);
            `running`, the running averages that the norm has, as constants (ConstantNorm); or `none`, no norm.

    Returns:
        The network; its replacement where it is a norm itself.

    Raises:
        FewshotError: an unknown kind, or a norm without running averages for `running`; the network is unchanged.
    """
    check_choice("norm", kind, ("batch", "running", "none"))
    replacements: dict[nn.Module, nn.Module] = {}
    for name, part in network.named_modules():
        if isinstance(part, BatchStatNorm | _BatchNorm):
            replacements[part] = _replacement(name, part, kind)
    for name, part in [*network.named_modules(remove_duplicate=False)]:  # a norm may have several names
        if part in replacements:
            if not name:
                return replacements[part]
            network.set_submodule(name, replacements[part])
    return network


def _replacement(name: str, norm: BatchStatNorm | _BatchNorm, kind: str) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind == "running":
        if isinstance(norm, BatchStatNorm) or norm.running_mean is None:
            layer = f"{type(norm).__name__} {name}".strip()
            raise FewshotError(f"norm=running: {layer} keeps no running averages; choose batch or none")
        return ConstantNorm(norm)
    if isinstance(norm, BatchStatNorm):
        return norm
    replacement = BatchStatNorm(norm.num_features, scale=norm.affine, eps=norm.eps)
    if norm.affine:
        replacement.scale, replacement.offset = norm.weight, norm.bias
    else:
        replacement.offset.requires_grad_(False)  # always 0, as in the norm that it replaces
    return replacement
