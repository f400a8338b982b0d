"""The public names, on one screen: where each lives. `__init__.py` imports them from there when they are first used."""

# ruff: noqa: I001 (the names stand in groups)

from fewshot.episodes import Episodes as Episodes
from fewshot.episodes import Tasks as Tasks
from fewshot.core.errors import FewshotError as FewshotError

# data
from fewshot.data.bank import Bank as Bank
from fewshot.data.bank import Split as Split
from fewshot.data.tables import Tables as Tables
from fewshot.data.bank import open_banks as open_banks
from fewshot.data.bank import write_banks as write_banks
from fewshot.data.datasets.cifar import read_cifar_fs as read_cifar_fs
from fewshot.data.datasets.cub import read_cub as read_cub
from fewshot.data.datasets.cifar import read_fc100 as read_fc100
from fewshot.data.datasets.folder import read_folder as read_folder
from fewshot.data.datasets.glyphs import read_glyphs as read_glyphs
from fewshot.data.datasets.leo_embeddings import read_leo_embeddings as read_leo_embeddings
from fewshot.data.datasets.mini_imagenet import read_mini_imagenet as read_mini_imagenet
from fewshot.data.datasets.omniglot import read_omniglot as read_omniglot
from fewshot.data.datasets.tables import read_tables as read_tables
from fewshot.data.datasets.tiered_imagenet import read_tiered_imagenet as read_tiered_imagenet

# tasks
from fewshot.tasks.functions import Functions as Functions
from fewshot.tasks.functions import read_functions as read_functions
from fewshot.tasks.regression import Regression as Regression
from fewshot.tasks.sampler import Sampler as Sampler
from fewshot.tasks.transforms import ImageTransform as ImageTransform

# backbones
from fewshot.backbones.conv4 import Conv4 as Conv4
from fewshot.backbones.dragen import Dragen as Dragen
from fewshot.backbones.identity import Identity as Identity
from fewshot.backbones.mlp import MLP as MLP
from fewshot.backbones.resnet12 import ResNet12 as ResNet12
from fewshot.backbones.torchvision import TorchVision as TorchVision
from fewshot.backbones.wrn import WRN as WRN
from fewshot.backbones.module import WithHead as WithHead
from fewshot.backbones.norm import replace_batch_norms as replace_batch_norms

# algorithms
from fewshot.algorithms.baseline import Baseline as Baseline
from fewshot.algorithms.maml import FOMAML as FOMAML
from fewshot.algorithms.leo import LEO as LEO
from fewshot.algorithms.leo_regression import LEORegression as LEORegression
from fewshot.algorithms.learner import Learner as Learner
from fewshot.algorithms.maml import MAML as MAML
from fewshot.algorithms.maml_plus_plus import MAMLPlusPlus as MAMLPlusPlus
from fewshot.algorithms.matching_net import MatchingNet as MatchingNet
from fewshot.algorithms.maml import MetaSGD as MetaSGD
from fewshot.algorithms.nearest import Nearest as Nearest
from fewshot.algorithms.protonet import ProtoNet as ProtoNet
from fewshot.algorithms.r2d2 import R2D2 as R2D2
from fewshot.algorithms.reptile import Reptile as Reptile

# engine and evaluation
from fewshot.engine.engine import Engine as Engine
from fewshot.engine.reduce import MetaGradient as MetaGradient
from fewshot.report.statistics import ci95 as ci95
from fewshot.engine.evaluate import score_episodes as score_episodes
from fewshot.training.api import evaluate as evaluate

# training, and what it leaves
from fewshot.training.classifier import Classifier as Classifier
from fewshot.training.trained import Trained as Trained
from fewshot.training.settings import TrainSettings as TrainSettings
from fewshot.training.features import extract_features as extract_features
from fewshot.experiment.load import load_run as load_run
from fewshot.training.features import open_features as open_features
from fewshot.training.pretrained import pretrained_features as pretrained_features
from fewshot.training.api import train as train

# records and tables
from fewshot.report.table import markdown as markdown
from fewshot.report.records import read_records as read_records
from fewshot.report.frame import read_runs as read_runs
