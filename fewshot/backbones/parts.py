"""What several networks share: the check of an image's shape, and how layers begin."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fewshot.core.checks import check_choice
from fewshot.core.errors import FewshotError, ImageShapeError


def check_image(name: str, shape: tuple[int, ...], least: int) -> None:
    """Check that examples of this shape are images (C, H, W), whose sides have at least `least` pixels.

    Raises:
        ImageShapeError: they are no images.
        FewshotError: they are too small.
    """
    check_shape(shape)
    if len(shape) != 3:
        raise ImageShapeError(
            f"backbone {name} takes images (channels, height, width), not shape {tuple(shape)}; choose mlp or linear"
        )
    if min(shape[1:]) < least:
        raise FewshotError(
            f"backbone {name} takes images of at least {least}x{least} pixels; {shape[1]}x{shape[2]} is too small; "
            "choose another, such as mlp"
        )


def check_shape(shape: tuple[int, ...]) -> None:
    """Raises FewshotError where the shape of an example is no list of sizes, such as a number alone."""
    if not isinstance(shape, Sequence) or not all(isinstance(side, int) and side > 0 for side in shape):
        raise FewshotError(f"backbone: shape={shape!r} is no shape of an example; give a tuple such as (3, 84, 84)")


def initialise_convolutions(network: nn.Module, how: str) -> None:
    """Fill the weights of every convolution in place; biases become 0.

    Args:
        how: `xavier` uniform (the TensorFlow originals), or `kaiming` normal by fan-out (mmfewshot).
    """
    check_choice("backbone.network.conv_init", how, ("xavier", "kaiming"))
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            if how == "xavier":
                nn.init.xavier_uniform_(part.weight)
            else:
                # torch's "leaky_relu" of slope 0, as in mmfewshot: a deviation of sqrt(2 / fan-out)
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="leaky_relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def initialise_head(head: nn.Linear, how: str) -> None:
    """Fill the weights of a linear layer in place; its bias becomes 0, except with `uniform`.

    Args:
        how: `xavier` uniform (cbfinn/maml on miniImageNet, supervised-reptile); `normal` with deviation 1 (cbfinn/maml
            on Omniglot); `truncated_normal` with deviation 0.01 (cbfinn/maml without convolutions); `kaiming` normal by
            fan-in (dragen1860/MAML-Pytorch); `zeros`; or `uniform`, weight and bias within 1 / sqrt(inputs), torch's
            default (mmfewshot).

    Raises:
        FewshotError: an unknown choice.
    """
    fill = {
        "xavier": nn.init.xavier_uniform_,
        "kaiming": nn.init.kaiming_normal_,
        "normal": nn.init.normal_,
        "truncated_normal": lambda weight: nn.init.trunc_normal_(weight, std=0.01, a=-0.02, b=0.02),
        "zeros": nn.init.zeros_,
    }
    if check_choice("backbone.network.head_init", how, (*fill, "uniform")) == "uniform":
        head.reset_parameters()
        return
    fill[how](head.weight)
    nn.init.zeros_(head.bias)
