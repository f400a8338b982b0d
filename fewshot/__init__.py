"""Few-shot meta-learning under one roof and one protocol. The public names, on one screen."""

from fewshot.algorithms.learner import Learner
from fewshot.algorithms.leo import Leo
from fewshot.algorithms.leo_regression import LeoRegression
from fewshot.algorithms.maml import Maml
from fewshot.algorithms.nearest import Nearest
from fewshot.algorithms.reptile import Reptile
from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank, Split, open_banks, write_banks
from fewshot.engine.engine import Engine
from fewshot.engine.evaluate import ci95, evaluate
from fewshot.engine.reduce import Outer
from fewshot.episodes import Episodes, Tasks
from fewshot.report.records import read_records
from fewshot.report.table import markdown
from fewshot.tasks.functions import Functions
from fewshot.tasks.regression import Regression
from fewshot.tasks.sampler import Sampler
from fewshot.training.loop import TrainSettings, selected, train

__all__ = [
    "Bank",
    "Engine",
    "Episodes",
    "FewshotError",
    "Functions",
    "Learner",
    "Leo",
    "LeoRegression",
    "Maml",
    "Nearest",
    "Outer",
    "Regression",
    "Reptile",
    "Sampler",
    "Split",
    "Tasks",
    "TrainSettings",
    "ci95",
    "evaluate",
    "markdown",
    "open_banks",
    "read_records",
    "selected",
    "train",
    "write_banks",
]
