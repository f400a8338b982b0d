"""The settings of meta-training: the keys of `train` in a configuration."""

from __future__ import annotations

from dataclasses import dataclass

from fewshot.core.checks import check_bool, check_choice, check_number
from fewshot.core.errors import FewshotError

PRECISIONS = ("float32", "bfloat16")
OPTIMIZERS = ("adam", "adam_tf", "sgd")
# Settings that the first runs or extractors do not name, with what held for them.
LATER_OF_EXTRACTORS = {"precision": "float32", "small_epochs": 0, "small_size": None}
LATER_SETTINGS = LATER_OF_EXTRACTORS | {
    "outer_lr_halve_every": None,
    "outer_lr_schedule": "linear",
    "centre": False,
    "role": "input",
}


@dataclass
class TrainSettings:
    """How to train, as `train` in conf/train.yaml says it; the values stand there."""

    steps: int  # outer steps
    meta_batch: int  # tasks per outer step
    way: int | None  # N of training tasks; None: as in the test
    shot: int | None  # K of training tasks; None: as in the test
    query: int | None  # Q of training tasks; None: K
    outer_optimizer: str  # adam | adam_tf (epsilon beside the uncorrected root, as TensorFlow has it) | sgd
    outer_lr: float
    outer_lr_end: float | None  # the rate falls to this, as outer_lr_schedule says; None: constant
    clip: float | None  # each element of the outer gradient to [-clip, clip]
    clip_norm: float | None  # after that, the L2 norm of each tensor of it
    nan_guard: bool  # see `replace_nan`; False: a loss or gradient that is not finite ends the run
    train_on_val: bool  # validation classes join the training classes (train_on_val in deepmind/leo)
    validate_every: int  # outer steps between validations; 0: none
    select: str  # best (on validation) | last
    checkpoint_every: int  # outer steps
    log_every: int  # outer steps
    outer_lr_schedule: str = "linear"  # how the rate falls to outer_lr_end: linear | cosine (half a period)
    precision: str = "float32"  # of the network's convolutions and products in the training: float32 | bfloat16
    outer_lr_halve_every: int | None = None  # outer steps after which the rate is halved, again and again; None: never


def check_train_settings(settings: TrainSettings) -> None:
    """Raises FewshotError where a choice is unknown or a number is out of range."""
    for name, least in (
        ("steps", 0),
        ("meta_batch", 1),
        ("validate_every", 0),
        ("checkpoint_every", 1),
        ("log_every", 1),
    ):
        check_number(f"train.{name}", getattr(settings, name), int, least)
    if settings.outer_lr_halve_every is not None:
        check_number("train.outer_lr_halve_every", settings.outer_lr_halve_every, int, 1)
    for name in ("outer_lr", "outer_lr_end", "clip", "clip_norm"):
        value = getattr(settings, name)
        if value is None and name != "outer_lr":
            continue
        check_number(f"train.{name}", value, float, 0)
        if value == 0 and name.startswith("clip"):
            raise FewshotError(f"train.{name}={value}: must be above 0, or null")
    check_bool("train.nan_guard", settings.nan_guard)
    check_choice("train.outer_optimizer", settings.outer_optimizer, OPTIMIZERS)
    if settings.nan_guard and settings.outer_optimizer == "sgd":
        raise FewshotError(
            "train.nan_guard=true: at a NaN the parameters take the place of the gradient, and sgd would subtract them "
            "from themselves; set it to false, or train.outer_optimizer=adam"
        )
    check_choice("train.outer_lr_schedule", settings.outer_lr_schedule, ("linear", "cosine"))
    if settings.outer_lr_schedule == "cosine" and settings.outer_lr_end is None:
        raise FewshotError("train.outer_lr_schedule=cosine: needs the rate that it falls to; set train.outer_lr_end=0")
    check_choice("train.precision", settings.precision, PRECISIONS)
    check_choice("train.select", settings.select, ("best", "last"))


def check_new_rate(outer_optimizer: str, outer_lr: float) -> None:
    """Raises FewshotError where Adam would take a rate that is made for SGD; of new trainings, since older ones may."""
    if outer_optimizer != "sgd" and outer_lr >= 0.5:
        raise FewshotError(
            f"train.outer_lr={outer_lr}: with {outer_optimizer} every weight moves by about as much at each step; set "
            "train.outer_lr=0.001, or train.outer_optimizer=sgd"
        )
