"""Few-shot meta-learning under one roof and one protocol. The public names, on one screen.

Each is imported when it is first used, so that `import fewshot` costs nothing. Configurations and saved runs name
classes and readers by these names, wherever in the package they live. `__init__.pyi` lists the same for type checkers.
"""

from importlib import import_module
from typing import Any

# Each public name, with its module and what it is called there if that differs.
_PLACES = {
    "Episodes": "episodes",
    "Tasks": "episodes",
    "FewshotError": "core.errors",
    # data
    "Bank": "data.bank",
    "Split": "data.bank",
    "Tables": "data.tables",
    "open_banks": "data.bank",
    "write_banks": "data.bank",
    "read_cifar_fs": "data.datasets.cifar:read_cifar_fs",
    "read_cub": "data.datasets.cub:read",
    "read_fc100": "data.datasets.cifar:read_fc100",
    "read_folder": "data.datasets.folder:read",
    "read_glyphs": "data.datasets.glyphs:read",
    "read_leo_embeddings": "data.datasets.leo_embeddings:read",
    "read_mini_imagenet": "data.datasets.mini_imagenet:read",
    "read_omniglot": "data.datasets.omniglot:read",
    "read_tables": "data.datasets.tables:read",
    "read_tiered_imagenet": "data.datasets.tiered_imagenet:read",
    # tasks
    "Functions": "tasks.functions",
    "read_functions": "tasks.functions:read",
    "Regression": "tasks.regression",
    "Sampler": "tasks.sampler",
    # backbones
    "Conv4": "backbones.conv4",
    "Dragen": "backbones.dragen",
    "Identity": "backbones.identity",
    "MLP": "backbones.mlp",
    "ResNet12": "backbones.resnet12",
    "TorchVision": "backbones.torchvision",
    "WRN": "backbones.wrn",
    "WithHead": "backbones.module",
    "replace_batch_norms": "backbones.norm",
    # algorithms
    "Baseline": "algorithms.baseline",
    "FOMAML": "algorithms.maml",
    "LEO": "algorithms.leo",
    "LEORegression": "algorithms.leo_regression",
    "Learner": "algorithms.learner",
    "MAML": "algorithms.maml",
    "MAMLPlusPlus": "algorithms.maml_plus_plus",
    "MatchingNet": "algorithms.matching_net",
    "MetaSGD": "algorithms.maml",
    "Nearest": "algorithms.nearest",
    "ProtoNet": "algorithms.protonet",
    "R2D2": "algorithms.r2d2",
    "Reptile": "algorithms.reptile",
    # engine and evaluation
    "Engine": "engine.engine",
    "MetaGradient": "engine.reduce",
    "ci95": "engine.evaluate",
    "score_episodes": "engine.evaluate",
    "evaluate": "training.api",
    # training, and what it leaves
    "Classifier": "training.classifier",
    "Trained": "training.trained",
    "TrainSettings": "training.settings",
    "extract_features": "training.features:features",
    "load_run": "experiment.load",
    "open_features": "training.features",
    "pretrained_features": "training.pretrained",
    "train": "training.api",
    # records and tables
    "markdown": "report.table",
    "read_records": "report.records",
    "read_runs": "report.frame",
}
# Names that runs were saved with before a class was renamed.
_FORMER = {"Leo": "LEO", "LeoRegression": "LEORegression", "Maml": "MAML"}
__all__ = sorted(_PLACES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    name = _FORMER.get(name, name)
    if name not in _PLACES:
        raise AttributeError(f"module 'fewshot' has no attribute {name!r}")
    module, _, there = _PLACES[name].partition(":")
    return getattr(import_module(f"fewshot.{module}"), there or name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
