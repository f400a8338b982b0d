"""A trained learner that has adapted to a person's support set, and labels new examples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fewshot.algorithms.learner import Learner, Tensors
from fewshot.core.checks import check_choice
from fewshot.core.errors import FewshotError
from fewshot.data.tensors import Examples, as_examples
from fewshot.engine.evaluate import SETTINGS, explain_nan, predict_queries
from fewshot.engine.probe import Behaviour
from fewshot.episodes import Episodes
from fewshot.training.inputs import Inputs

QUERIES_AT_ONCE = 256  # examples that are prepared and predicted together
EXAMPLES_AT_ONCE = 2000  # with the support set beside each query


@dataclass(frozen=True)
class Classifier:
    """A learner after its adaptation; `Trained.adapt` makes it."""

    labels: tuple[Any, ...]  # the N labels of the support set, in the order of the columns of `predict_proba`
    learner: Learner
    adapted: Tensors
    task: Episodes  # the support set as the learner saw it, without queries
    behaviour: Behaviour
    inputs: Inputs

    def predict(self, query_x: Examples, *, setting: str = "inductive") -> np.ndarray:
        """The label of each example, [B]; arguments as in `predict_proba`."""
        columns = self.predict_proba(query_x, setting=setting).argmax(1)
        kinds = {type(label) for label in self.labels}
        labels = np.empty(len(self.labels), object)
        labels[:] = self.labels
        if kinds in ({bool}, {int}, {float}, {str}):
            with suppress(OverflowError):  # numbers of more than 64 bits stay Python's
                labels = labels.astype(kinds.pop())
        return labels[columns]

    def predict_proba(self, query_x: Examples, *, setting: str = "inductive") -> np.ndarray:
        """The probability of each label for each example: [B, N] float32.

        The softmax of the learner's logits, or what the learner has as `probabilities`. A few examples say little of
        how sure one may be: take them as an order of the queries, and measure on labelled images where it matters.

        Args:
            query_x: examples [B, ...] of the kind of the support set: uint8 or float images [B, C, H, W] of any size,
                or features [B, D]. Large sets are predicted in batches.
            setting: `inductive`, each shares a batch with the support set alone; or `transductive`, all of them share
                one, so that batch norms let each depend on the others.

        Raises:
            FewshotError: they are no such examples; an output is NaN; what the learner returns as probabilities are
                not such; an unknown setting; or one example alone is to be predicted transductively where batch norms
                take their statistics from the queries.
        """
        check_choice("setting", setting, SETTINGS)
        x = as_examples("query_x", query_x)
        self.inputs.check("query_x", x)
        if setting == "transductive" and len(x) == 1 and not self.behaviour.queries_independent:
            raise FewshotError(
                "setting=transductive: one query alone has no others to share a batch with; give more, or choose "
                "setting=inductive"
            )
        with torch.no_grad():
            parts = [self._probabilities(part, setting).cpu() for part in self._batches(x, setting)]
        probabilities = torch.cat(parts)
        if diverged := int(probabilities.isnan().any(1).sum()):
            raise FewshotError(
                f"query_x: the outputs for {diverged} of {len(x)} examples are NaN; {explain_nan(self.learner)}"
            )
        return probabilities.numpy()

    def _batches(self, x: torch.Tensor, setting: str) -> Iterator[torch.Tensor]:
        """The examples in groups that can be predicted one after the other."""
        size = QUERIES_AT_ONCE
        if not self.behaviour.queries_independent:
            alone = max(1, EXAMPLES_AT_ONCE // (len(self.task.support_x) + 1))
            size = len(x) if setting == "transductive" else min(size, alone)
        yield from x.split(size)

    def _probabilities(self, x: torch.Tensor, setting: str) -> torch.Tensor:
        support_x, support_y, _, _, key = self.task.tensors()
        queries = self.inputs.prepare("query_x", x, support_x.device)
        task = self.task.with_tensors(support_x, support_y, queries, support_y[:0], key)
        logits = predict_queries(self.learner, self.adapted, task, self.behaviour, setting)
        to_probabilities = getattr(self.learner, "probabilities", None)
        if to_probabilities is None:
            return logits.float().softmax(-1)
        probabilities = to_probabilities(self.adapted, logits)
        _check_probabilities(f"{type(self.learner).__name__}.probabilities", probabilities, logits)
        return probabilities.float()


def _check_probabilities(name: str, returned: object, logits: torch.Tensor) -> None:
    """Raises FewshotError if what a learner returns as probabilities are not such. Those of NaN logits may be NaN."""
    if not isinstance(returned, torch.Tensor) or returned.shape != logits.shape:
        what = f"a tensor {list(returned.shape)}" if isinstance(returned, torch.Tensor) else type(returned).__name__
        raise FewshotError(f"{name} returned {what}; return a tensor {list(logits.shape)}, as the logits are")
    returned = returned[~returned.isnan().any(-1)]
    sums = returned.sum(-1)
    if (returned < 0).any() or ((sums - 1).abs() > 1e-3).any():
        raise FewshotError(
            f"{name} returned values from {returned.min():.3g} to {returned.max():.3g} with sums from "
            f"{sums.min():.3g} to {sums.max():.3g}; probabilities are 0 or more, and those of an example sum to 1"
        )


def balanced(numbers: torch.Tensor) -> torch.Tensor:
    """Rows of a support set sorted by class, those of smaller classes repeated in turn until all have as many.

    Learners adapt to N*K examples. A class with one example then counts as much as one with five.

    Args:
        numbers: [B] int64, the class of each example; each of 0..N-1 occurs.

    Returns:
        [N*K] int64, K the size of the largest class.
    """
    counts = torch.bincount(numbers)
    turn = torch.arange(int(counts.max()))
    starts = counts.cumsum(0) - counts
    rows = starts[:, None] + turn % counts[:, None]  # [N, K]
    return numbers.argsort(stable=True)[rows.flatten()]
