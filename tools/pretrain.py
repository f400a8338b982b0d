"""Train a feature extractor on the meta-train classes: `python tools/pretrain.py dataset=omniglot backbone=conv4`.

Leaves the features of every split as a bank, which a training with the same `features` values finds by itself; killed
and started again, it continues. It knows no recipe. The network and its training are set under `features`.
"""

from pathlib import Path

from omegaconf import DictConfig

from fewshot.core.errors import FewshotError
from fewshot.experiment.cli import main
from fewshot.experiment.config import given_overrides, starts_from_extractor


def pretrain(cfg: DictConfig) -> None:
    from fewshot.data.datasets.leo_embeddings import find_free_target, write_originals  # here, since these import torch
    from fewshot.experiment.build import read_sources

    for override in given_overrides():
        if override.startswith("backbone."):
            raise FewshotError(f"{override}: of an extractor, write features.{override.removeprefix('backbone.')}")
    if starts_from_extractor(cfg):
        raise FewshotError("features.role=start: is of tools/train.py; leave it out")
    if "model" in cfg.features:
        raise FewshotError("features=torchvision: trains nothing; tools/train.py makes its features by itself")
    if "settings" not in cfg.features.get("reader", {}):
        raise FewshotError("features: there is no extractor to train; choose features=conv4, resnet12 or wrn28_10")
    if cfg.export_leo_format:
        find_free_target(Path(cfg.export_leo_format), cfg.dataset.name, "center")
    banks = read_sources(cfg)
    extractor = banks["test"].metadata["extractor"]
    sizes = ", ".join(f"{len(bank.names)} {split}" for split, bank in banks.items())
    print(
        f"{extractor['name']} on {cfg.dataset.name} ({sizes} classes), {banks['test'].shape[0]} values per image: "
        f"{100 * extractor['validation_accuracy']:.2f} % validation accuracy ({extractor['validation']}, epoch "
        f"{extractor['epoch']}), fingerprint {extractor['fingerprint'][:12]}  "
        f"{Path(cfg.features.reader.cache) / banks['test'].metadata['folder']}"
    )
    if cfg.export_leo_format:
        write_originals(Path(cfg.export_leo_format), banks, cfg.dataset.name, "center")


if __name__ == "__main__":
    main(pretrain, "pretrain")
