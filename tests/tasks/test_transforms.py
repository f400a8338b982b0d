"""How a learner sees an image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchvision.transforms import v2

from fewshot.core.errors import FewshotError
from fewshot.core.random import fold_in, split, uniform
from fewshot.tasks import transforms
from fewshot.tasks.sampler import Sampler
from fewshot.tasks.transforms import AUGMENTATIONS, ImageTransform, Strength, random_augment

NATURAL = AUGMENTATIONS["natural"]
assert NATURAL is not None
KEYS = fold_in(7, torch.arange(400))


def images(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_without_settings_an_image_is_itself_in_0_to_1():
    x = images(4, 3, 9, 9)
    assert torch.equal(ImageTransform()(x), x.to(torch.float32) / 255)


def test_a_list_is_as_good_as_a_tuple():
    assert ImageTransform(shape=[3, 8, 8], mean=[0.5] * 3, std=[0.2] * 3) == ImageTransform(
        shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.2,) * 3
    )


def test_normalisation_is_torchvisions():
    x, mean, std = images(4, 3, 9, 9), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = v2.Normalize(list(mean), list(std))(x.to(torch.float32) / 255)
    torch.testing.assert_close(ImageTransform(mean=mean, std=std)(x), expected)
    torch.testing.assert_close(ImageTransform(std=(1 / 255,) * 3)(x), x.to(torch.float32))


@pytest.mark.parametrize(
    ("shape", "wanted"), [((1, 28, 28), (3, 84, 84)), ((3, 84, 84), (1, 28, 28)), ((3, 9, 7), (3, 8, 8))]
)
def test_images_of_another_dataset_take_the_shape_that_the_learner_knows(shape, wanted):
    x = ImageTransform(shape=wanted)(images(2, 5, *shape))
    assert x.shape == (2, 5, *wanted) and x.dtype == torch.float32
    assert x.min() >= 0 and x.max() <= 1


@pytest.mark.parametrize("side", [8, 9, 84])
def test_crop_resize_and_grey_are_torchvisions(side: int):
    x = images(2, 3, 96, 90)
    scaled = x.to(torch.float32) / 255
    assert torch.equal(ImageTransform(crop=side)(x), v2.functional.center_crop(scaled, [side, side]))
    resized = v2.functional.resize(scaled, [side, side], antialias=True)
    torch.testing.assert_close(ImageTransform(shape=(3, side, side))(x), resized.clamp(0, 1))
    grey = v2.functional.rgb_to_grayscale(resized)
    torch.testing.assert_close(ImageTransform(shape=(1, side, side))(x), grey.clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_a_flat_image_keeps_its_value_through_every_change_of_shape():
    flat = torch.full((1, 1, 28, 28), 51, dtype=torch.uint8)
    torch.testing.assert_close(ImageTransform(shape=(3, 84, 84), crop=20)(flat), torch.full((1, 3, 84, 84), 0.2))


def test_floats_of_any_range_keep_it_when_they_are_resized():
    x = images(2, 3, 12, 12) / 255
    small = ImageTransform(shape=(1, 8, 8))
    torch.testing.assert_close(small(5 * x - 2), 5 * small(x) - 2, atol=1e-3, rtol=1e-3)


def test_augmentation_is_a_function_of_the_key_alone():
    x = torch.rand(1, 3, 16, 16).expand(6, -1, -1, -1)
    together = random_augment(x, KEYS[:6], (12, 12), NATURAL)
    apart = [random_augment(x[i : i + 1], KEYS[i : i + 1], (12, 12), NATURAL) for i in range(6)]
    assert together.shape == (6, 3, 12, 12)
    assert torch.equal(together, torch.cat(apart))
    assert all(not torch.equal(together[0], other) for other in together[1:])


def test_augmentation_stays_in_0_to_1_and_keeps_grey_grey():
    assert random_augment(torch.rand(400, 1, 8, 8), KEYS, (8, 8), NATURAL).min() >= 0
    x = torch.rand(400, 1, 8, 8).expand(-1, 3, -1, -1)
    changed = random_augment(x, KEYS, (8, 8), NATURAL)
    assert changed.max() <= 1
    torch.testing.assert_close(changed[:, 0], changed[:, 2])


def test_tasks_without_queries_are_augmented_too(make_bank):
    episodes = Sampler(make_bank(), 3, 2, 0, view=ImageTransform(augment="natural", crop=6)).episodes(0, 2)
    assert (episodes.support_x.shape, episodes.query_x.shape) == ((2, 6, 1, 6, 6), (2, 0, 1, 6, 6))


def test_half_of_the_images_are_mirrored_and_nothing_else_happens_without_crop_and_jitter(monkeypatch):
    monkeypatch.setattr(transforms, "RATIO", (1.0, 1.0))
    x = torch.rand(400, 3, 8, 8)
    changed = random_augment(x, KEYS, (8, 8), Strength(area=1.0, jitter=0.0))
    same = (changed - x).abs().amax((1, 2, 3)) < 1e-5
    mirrored = (changed - x.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
    assert torch.equal(same, ~mirrored)
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize(("strength", "least"), [(Strength(0.08, 0.0), (0.22, 0.4)), ("gentle", (0.61, 0.71))])
def test_a_crop_shows_a_part_of_the_image_of_the_wanted_size(strength: Strength | str, least: tuple[float, float]):
    # A ramp from left to right: the values of the crop's columns tell where it lies.
    ramp = ((torch.arange(64) + 0.5) / 64).expand(400, 1, 64, 64)
    if isinstance(strength, Strength):
        changed = random_augment(ramp, KEYS, (32, 32), strength)[:, 0, 0]
    else:
        changed = ImageTransform(augment=strength, shape=(1, 32, 32))(ramp, KEYS)[:, 0, 0]
    step = (changed[:, 1:] - changed[:, :-1])[:, 10:20].mean(1)
    width = step.abs() * 32  # as a share of the image
    assert least[0] < width.min() < least[1] and 0.9 < width.max() <= 1.001
    assert 0.4 < (step < 0).float().mean() < 0.6


def test_jitter_changes_brightness_by_up_to_four_tenths():
    level = random_augment(torch.full((400, 3, 4, 4), 0.5), KEYS, (4, 4), NATURAL).mean((1, 2, 3))
    assert 0.3 <= level.min() < 0.32 and 0.68 < level.max() <= 0.7001


def test_colours_are_jittered_as_torchvision_does_by_the_drawn_factors(monkeypatch):
    monkeypatch.setattr(transforms, "RATIO", (1.0, 1.0))
    x = torch.rand(50, 3, 8, 4)
    x = torch.cat([x, x.flip(-1)], -1)  # which a mirror leaves as it is
    changed = random_augment(x, KEYS[:50], (8, 8), Strength(area=1.0, jitter=0.4))
    factors = 1 + 0.4 * (2 * uniform(split(KEYS[:50], 8))[:, 5:] - 1)
    for image, own, (brightness, contrast, saturation) in zip(x, changed, factors.tolist(), strict=True):
        wanted = v2.functional.adjust_contrast(v2.functional.adjust_brightness(image, brightness), contrast)
        wanted = v2.functional.adjust_saturation(wanted, saturation)
        torch.testing.assert_close(own, wanted, atol=1e-5, rtol=0)


def test_examples_that_are_no_images_have_no_channels_to_normalise(make_bank):
    with pytest.raises(FewshotError, match=r"examples of shape \[8, 4\] have no channels: leave dataset.mean and dat"):
        Sampler(make_bank(shape=(8, 4)), 3, 1, 1, view=ImageTransform(mean=(0.5,) * 3))


def test_training_episodes_are_augmented_each_by_itself_and_test_episodes_are_not(make_bank):
    bank = make_bank(shape=(3, 16, 16))
    training = Sampler(bank, 3, 2, 4, 11, view=ImageTransform(crop=12, augment="natural"))
    testing = replace(training, view=ImageTransform(crop=12))
    one, other = training.episodes(0, 8), testing.episodes(0, 8)
    assert one.support_x.shape == other.support_x.shape == (8, 6, 3, 12, 12)
    assert not torch.equal(one.support_x, other.support_x)
    assert training.manifest(0, 8) == testing.manifest(0, 8)
    alone = training.episodes(5, 1)
    assert torch.equal(one.query_x[5], alone.query_x[0]) and torch.equal(one.support_x[5], alone.support_x[0])


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"augment": "wild"}, (3, 8, 8), "augment=wild: choose one of none, gentle, natural"),
        ({"std": (0.1, 0.0, 0.1)}, (3, 8, 8), "must be above 0"),
        ({"mean": (0.5,)}, (3, 8, 8), "mean has 1 values, the images 3 channels"),
        ({"std": (0.5, 0.5, 0.5)}, (1, 8, 8), "std has 3 values, the images 1 channels"),
        ({"mean": (127.0, 127.0, 127.0)}, (3, 8, 8), "is in units of 0..1; divide by 255"),
        ({"crop": 9}, (3, 8, 8), "crop=9: the images are 8x8"),
        ({"crop": 0}, (3, 8, 8), "crop=0: must be a whole number >= 1"),
        ({"crop": "abc"}, (3, 8, 8), "crop=abc: must be a whole number"),
        ({"crop": 20.5}, (3, 8, 8), "crop=20.5: must be a whole number"),
        ({"mean": 0.5}, (3, 8, 8), "mean=0.5: must be a list of numbers"),
        ({"mean": ("a", "b", "c")}, (3, 8, 8), "mean=.*: must be a list of numbers"),
        ({"mean": (None, 1, 1)}, (3, 8, 8), "mean=.*: must be a list of numbers"),
        ({"std": (float("nan"), 1, 1)}, (3, 8, 8), "std=.*: must be a list of numbers"),
        ({"shape": 28}, (3, 8, 8), r"shape=28: must be \[1 or 3"),
        ({"shape": (2, 28, 28)}, (3, 8, 8), r"must be \[1 or 3"),
        ({"crop": 4}, (640,), "features of 640 values cannot be cropped"),
        ({"shape": (3, 8, 8)}, (640,), "features of 640 values cannot be cropped, resized"),
        ({"shape": (3, 8, 8)}, (4, 8, 8), "shape: is for images of 1 or 3 channels, and these have 4"),
        (
            {"augment": "natural"},
            (2, 8, 8),
            "augment.episodes=natural: is for images of 1 or 3 channels, and these have 2",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, shape, message):
    with pytest.raises(FewshotError, match=message):
        ImageTransform(**settings).output_shape(shape)
