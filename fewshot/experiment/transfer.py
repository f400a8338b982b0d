"""Tests of a run on the classes of another dataset."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank
from fewshot.data.datasets.tiered_imagenet import WORDNET_ID
from fewshot.data.sources.split_csv import to_nfc
from fewshot.episodes import Source
from fewshot.experiment.config import is_on_features, is_regression
from fewshot.experiment.run_dir import EXTRACTOR, data_info_of

# Datasets with the same classes, which pickles number in each split.
OF_CIFAR100, NUMBERED = {"cifar_fs", "fc100"}, re.compile(r"(train|val|test) \d{3}")
OF_IMAGENET = {"mini", "tiered"}  # with classes in common, which pickles of tiered name by words
LIGHT_ON_DARK = ("fewshot.read_omniglot", "fewshot.read_glyphs")  # readers of light strokes on a dark ground


def with_dataset(cfg: DictConfig, run: Path, dataset: DictConfig) -> DictConfig:
    """The configuration of a run, to test it on another dataset, whose images are resized to what the learner knows.

    The images are normalised as in the run's training. The crop is that of the other dataset.

    Args:
        cfg: the configuration of the run in the folder `run`.
        dataset: `dataset` of the other dataset, without interpolations that lead out of it.

    Raises:
        FewshotError: the run learns on features or a regression, or a setting is given that the run has already.
    """
    if is_regression(cfg.dataset):
        raise FewshotError(f"dataset {dataset.name}: the run in {run} learns a regression; leave dataset out")
    if is_on_features(cfg):
        raise FewshotError(
            f"dataset {dataset.name}: the run in {run} learns on features, which only its own extractor can give of "
            "other images; a run on images can be tested there"
        )
    for key in ("mean", "std", "shape"):
        if dataset[key] is not None:
            raise FewshotError(f"dataset.{key}: is as in the run's training; leave it out")
    changed = cfg.copy()
    OmegaConf.update(changed, "dataset", dataset, merge=False)
    for key, value in (("shape", data_info_of(run)["shape"]), ("mean", cfg.dataset.mean), ("std", cfg.dataset.std)):
        OmegaConf.update(changed, f"dataset.{key}", value)
    return changed


def check_disjoint_classes(run: Path, trained: str, name: str, bank: Source, selection: str) -> None:
    """Check that a run on the dataset `trained` was neither trained nor selected on classes of this test.

    Args:
        name: the dataset of the test.
        selection: how the tested checkpoint was selected, as in its record.

    Raises:
        FewshotError: it was, or the data are the run's own; or they have no names to tell.
    """
    info = data_info_of(run)
    if bank.image_fingerprint == info.get(bank.split):
        raise FewshotError(f"dataset {name}: the data that the run began with; leave dataset out")
    unnamed = [each for each in (*bank.names, *info["classes"]) if NUMBERED.fullmatch(each)]
    if unnamed and {trained, name} == OF_CIFAR100:
        raise FewshotError(
            f"dataset {name}: the classes of pickles have no names, such as {unnamed[0]}, so that those that the run "
            "was trained on would not be found; read both datasets from cifar-100-python.tar.gz"
        )
    unnamed = [each for each in (*bank.names, *info["classes"]) if not WORDNET_ID.fullmatch(each)]
    if unnamed and {trained, name} == OF_IMAGENET:
        raise FewshotError(
            f"dataset {name}: a class is named {unnamed[0]}, and not by its WordNet id, so that those that the run was "
            "trained on would not be found; read both datasets from folders of such names"
        )
    uses = {"classes": "was trained on"}
    if selection.startswith("best") or EXTRACTOR in info:
        uses["validation_classes"] = "was selected on"
    for key, use in uses.items():
        known = set(map(to_nfc, info.get(key, ())))  # older runs lack the second
        if shared := sorted(known.intersection(map(to_nfc, bank.names))):
            raise FewshotError(
                f"dataset {name}: {len(shared)} of its {len(bank.names)} classes of {bank.split} are classes that the "
                f"run {use}, such as {shared[0]}, so that this would be no test; choose another dataset or split"
            )


def is_mostly_light(source: Source) -> bool:
    """Whether 8-bit images are lighter than half on average, of some 256 of them, such as ink on paper."""
    if not isinstance(source, Bank) or source.examples.dtype != torch.uint8:
        return False
    some = source.examples[:: max(1, len(source.examples) // 256)]
    return float(some.float().mean()) > 255 / 2


def train_fingerprint(run: Path, train_on_val: bool) -> str:
    """The fingerprint of the data that the run was trained on."""
    info = data_info_of(run)
    return "+".join(info[split] for split in (("train", "val") if train_on_val else ("train",)))
