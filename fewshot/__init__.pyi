"""The public names, for type checkers and editors; __init__.py imports them when they are first used."""

from fewshot.algorithms.baseline import Baseline
from fewshot.algorithms.learner import Learner
from fewshot.algorithms.leo import LEO
from fewshot.algorithms.leo_regression import LEORegression
from fewshot.algorithms.maml import FOMAML, MAML, MetaSGD
from fewshot.algorithms.maml_plus_plus import MAMLPlusPlus
from fewshot.algorithms.matching_net import MatchingNet
from fewshot.algorithms.nearest import Nearest
from fewshot.algorithms.protonet import ProtoNet
from fewshot.algorithms.r2d2 import R2D2
from fewshot.algorithms.reptile import Reptile
from fewshot.backbones.conv4 import Conv4
from fewshot.backbones.dragen import Dragen
from fewshot.backbones.identity import Identity
from fewshot.backbones.mlp import MLP
from fewshot.backbones.module import WithHead
from fewshot.backbones.norm import replace_batch_norms
from fewshot.backbones.resnet12 import ResNet12
from fewshot.backbones.torchvision import TorchVision
from fewshot.backbones.wrn import WRN
from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank, Split, open_banks, write_banks
from fewshot.data.datasets.cifar import read_cifar_fs, read_fc100
from fewshot.data.datasets.cub import read as read_cub
from fewshot.data.datasets.folder import read as read_folder
from fewshot.data.datasets.glyphs import read as read_glyphs
from fewshot.data.datasets.leo_embeddings import read as read_leo_embeddings
from fewshot.data.datasets.mini_imagenet import read as read_mini_imagenet
from fewshot.data.datasets.omniglot import read as read_omniglot
from fewshot.data.datasets.tables import read as read_tables
from fewshot.data.datasets.tiered_imagenet import read as read_tiered_imagenet
from fewshot.data.tables import Tables
from fewshot.engine.engine import Engine
from fewshot.engine.evaluate import ci95, score_episodes
from fewshot.engine.reduce import MetaGradient
from fewshot.episodes import Episodes, Tasks
from fewshot.experiment.load import load_run
from fewshot.report.frame import read_runs
from fewshot.report.records import read_records
from fewshot.report.table import markdown
from fewshot.tasks.functions import Functions
from fewshot.tasks.functions import read as read_functions
from fewshot.tasks.regression import Regression
from fewshot.tasks.sampler import Sampler
from fewshot.training.api import evaluate, train
from fewshot.training.classifier import Classifier
from fewshot.training.features import features as extract_features
from fewshot.training.features import open_features
from fewshot.training.pretrained import pretrained_features
from fewshot.training.settings import TrainSettings
from fewshot.training.trained import Trained

__all__ = [
    "FOMAML",
    "LEO",
    "MAML",
    "MLP",
    "R2D2",
    "WRN",
    "Bank",
    "Baseline",
    "Classifier",
    "Conv4",
    "Dragen",
    "Engine",
    "Episodes",
    "FewshotError",
    "Functions",
    "Identity",
    "LEORegression",
    "Learner",
    "MAMLPlusPlus",
    "MatchingNet",
    "MetaGradient",
    "MetaSGD",
    "Nearest",
    "ProtoNet",
    "Regression",
    "Reptile",
    "ResNet12",
    "Sampler",
    "Split",
    "Tables",
    "Tasks",
    "TorchVision",
    "TrainSettings",
    "Trained",
    "WithHead",
    "ci95",
    "evaluate",
    "extract_features",
    "load_run",
    "markdown",
    "open_banks",
    "open_features",
    "pretrained_features",
    "read_cifar_fs",
    "read_cub",
    "read_fc100",
    "read_folder",
    "read_functions",
    "read_glyphs",
    "read_leo_embeddings",
    "read_mini_imagenet",
    "read_omniglot",
    "read_records",
    "read_runs",
    "read_tables",
    "read_tiered_imagenet",
    "replace_batch_norms",
    "score_episodes",
    "train",
    "write_banks",
]
