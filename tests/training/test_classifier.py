"""A person's own support set: labels and sizes of any kind, what is predicted, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fewshot.algorithms.maml import MAML
from fewshot.algorithms.nearest import Nearest
from fewshot.backbones.identity import Identity
from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank
from fewshot.tasks.sampler import Sampler
from fewshot.tasks.transforms import ImageTransform
from fewshot.training.api import evaluate, train
from fewshot.training.classifier import balanced
from fewshot.training.inputs import Inputs, inputs_of
from fewshot.training.trained import Trained

UNEQUAL = [0, 1, 2, 9, 17, 18]  # rows of the bank of make_bank: three of class 0, one of class 1, two of class 2
LABELS = ["ape", "ape", "ape", "bee", "cat", "cat"]
QUERIES = [5, 12, 22, 23]
ANSWERS = ["ape", "bee", "cat", "cat"]
# Neighbours, a head that is adapted, means, and codes; all take a support set in any order.
some_algorithms = pytest.mark.parametrize("algorithm", ["nearest", "maml", "protonet", "leo"])


@pytest.fixture
def make_trained(make_learner: Callable[..., Any], make_bank: Callable[..., Bank]) -> Callable[..., Trained]:
    """A function that makes a learner with the parameters of its start."""

    def make(name: str, view: ImageTransform | None = None, **choices: Any) -> Trained:
        learner = make_learner(name, **choices)
        inputs = inputs_of(Sampler(make_bank(), 3, 1, 2, view=view or ImageTransform()))
        return Trained(learner, *learner.init(), None, "last", 0, 0, 0.0, inputs)

    return make


EQUAL = ("nearest", "maml", "leo", "reptile-shared")  # to these, examples of the smaller classes are repeated


@pytest.mark.parametrize(
    "algorithm",
    [*EQUAL, "matching_net-context", "protonet", "baseline", "r2d2", "matching_net"],
)
def test_unequal_classes_of_any_label_are_learned_and_predicted(
    algorithm: str, make_trained: Callable[..., Trained], make_bank: Callable[..., Bank]
) -> None:
    x = make_bank().examples
    classifier = make_trained(algorithm).adapt(x[UNEQUAL], LABELS)
    assert classifier.labels == ("ape", "bee", "cat")
    assert len(classifier.task.support_x) == (9 if algorithm in EQUAL else len(UNEQUAL))
    probabilities = classifier.predict_proba(x[QUERIES])
    assert probabilities.shape == (4, 3) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    labels = np.array(classifier.labels)
    np.testing.assert_array_equal(classifier.predict(x[QUERIES]), labels[probabilities.argmax(1)])
    if algorithm == "nearest":
        assert classifier.predict(x[QUERIES]).tolist() == ANSWERS


@pytest.mark.parametrize(
    "form",
    [
        np.asarray,
        lambda x: x.flip(-1).numpy()[..., ::-1],
        list,
        lambda x: x / 255,
        lambda x: (x / 255).double().numpy(),
    ],
)
def test_arrays_lists_and_floats_are_the_same_examples(
    make_trained: Callable[..., Trained], make_bank: Callable[..., Bank], form: Callable[..., Any]
) -> None:
    x, trained = make_bank().examples, make_trained("maml")
    expected = trained.adapt(x[UNEQUAL], LABELS).predict_proba(x[QUERIES])
    found = trained.adapt(form(x[UNEQUAL]), np.array(LABELS)).predict_proba(form(x[QUERIES]))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@some_algorithms
def test_the_order_of_classes_of_one_size_does_not_matter(
    algorithm: str, make_trained: Callable[..., Trained], make_bank: Callable[..., Bank]
) -> None:
    x, trained = make_bank().examples, make_trained(algorithm)
    rows, labels = [0, 1, 9, 10, 17, 18], ["ape", "ape", "bee", "bee", "cat", "cat"]
    expected = trained.adapt(x[rows], labels).predict_proba(x[QUERIES])
    found = trained.adapt(x[rows[::-1]], labels[::-1]).predict_proba(x[QUERIES])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@some_algorithms
def test_a_query_is_predicted_alone(
    algorithm: str, make_trained: Callable[..., Trained], make_bank: Callable[..., Bank]
) -> None:
    x = make_bank().examples
    classifier = make_trained(algorithm).adapt(x[UNEQUAL], LABELS)
    alone = np.concatenate([classifier.predict_proba(x[row : row + 1]) for row in QUERIES])
    np.testing.assert_allclose(classifier.predict_proba(x[QUERIES]), alone, atol=1e-5)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (lambda logits: logits - 9, "Nearest.probabilities returned values from -"),
        (lambda logits: 2 * logits.softmax(-1), "with sums from 2 to 2; probabilities are 0 or more, and those of an"),
        (lambda logits: logits.softmax(-1)[:, 0], r"returned a tensor \[4\]; return a tensor \[4, 3\], as the logits"),
        (lambda logits: logits.tolist(), "returned list; return a tensor"),
        (lambda logits: torch.full_like(logits, torch.nan), "the outputs for 4 of 4 examples are NaN"),
    ],
)
def test_what_a_learner_returns_as_probabilities_must_sum_to_one(
    make_trained: Callable[..., Trained], make_bank: Callable[..., Bank], own: Any, said: str
) -> None:
    x, trained = make_bank().examples, make_trained("nearest")
    trained.learner.probabilities = lambda adapted, logits: own(logits)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(FewshotError, match=said):
        trained.adapt(x[UNEQUAL], LABELS).predict_proba(x[QUERIES])


def test_a_network_of_bfloat16_gives_probabilities_of_float32(make_bank: Callable[..., Bank]) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1)).bfloat16()

    bank = make_bank()
    trained = train(MAML(Half()), Sampler(bank, way=3, shot=1, query=2), steps=1, progress=False)
    probabilities = trained.adapt(bank.examples[UNEQUAL], LABELS).predict_proba(bank.examples[QUERIES])
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)


def test_in_a_transductive_test_queries_share_a_batch(
    make_trained: Callable[..., Trained], make_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = make_bank().examples
    classifier = make_trained("maml").adapt(x[UNEQUAL], LABELS)  # a network with batch norms
    alone = np.concatenate([classifier.predict_proba(x[row : row + 1]) for row in QUERIES])
    together = classifier.predict_proba(x[QUERIES], setting="transductive")
    assert np.abs(together - alone).max() > 1e-4
    with pytest.raises(FewshotError, match="one query alone has no others to share a batch with; give more, or"):
        classifier.predict_proba(x[:1], setting="transductive")
    with pytest.raises(FewshotError, match="setting=both: choose one of transductive, inductive"):
        classifier.predict(x[QUERIES], setting="both")
    monkeypatch.setattr("fewshot.training.classifier.EXAMPLES_AT_ONCE", 20)  # two queries and their support set
    np.testing.assert_allclose(classifier.predict_proba(x[QUERIES], setting="transductive"), together)
    np.testing.assert_allclose(classifier.predict_proba(x[QUERIES]), alone, atol=1e-5)


def test_many_queries_are_prepared_in_batches(
    make_trained: Callable[..., Trained], make_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = make_bank().examples
    classifier = make_trained("nearest").adapt(x[UNEQUAL], LABELS)
    sizes, prepare = [], Inputs.prepare
    monkeypatch.setattr(Inputs, "prepare", lambda self, name, x, to: sizes.append(len(x)) or prepare(self, name, x, to))
    assert classifier.predict(x[torch.arange(600) % 41]).shape == (600,)
    assert sizes == [256, 256, 88]


def test_images_of_another_size_are_resized_and_normalised_as_in_training(
    make_trained: Callable[..., Trained], make_bank: Callable[..., Bank]
) -> None:
    trained = make_trained("nearest", ImageTransform(mean=(0.5,), std=(0.25,)))
    x = make_bank().examples
    classifier = trained.adapt(x[UNEQUAL], LABELS)
    torch.testing.assert_close(classifier.task.support_x[:1], (x[:1] / 255 - 0.5) / 0.25)
    large = x.repeat_interleave(3, -1).repeat_interleave(3, -2).expand(-1, 3, -1, -1)  # in colour
    assert classifier.predict(large[QUERIES]).tolist() == ANSWERS


def test_another_number_of_classes_suits_learners_without_a_head(
    make_trained: Callable[..., Trained], make_bank: Callable[..., Bank]
) -> None:
    x = make_bank().examples
    for name in ("nearest", "leo"):
        assert make_trained(name).adapt(x[[0, 9]], [7, 3]).predict_proba(x[QUERIES]).shape == (4, 2)
    with pytest.raises(FewshotError, match=r"support_y: 2 classes, and the learner was trained for 3; give examples"):
        make_trained("maml").adapt(x[[0, 9]], [7, 3])


def test_a_class_mean_counts_each_example_once(make_bank: Callable[..., Bank]) -> None:
    x = make_bank().examples
    learner = Nearest(Identity((1, 8, 8), 3), reference="mean")
    inputs = inputs_of(Sampler(make_bank(), 3, 1, 2))
    classifier = Trained(learner, {}, {}, None, "last", 0, 0, 0.0, inputs).adapt(x[[0, 1, 2, 9, 10]], [0, 0, 0, 1, 1])
    means = classifier.adapted["support"][:, 0].view(2, 1, 8, 8)
    torch.testing.assert_close(means[0], (x[:3] / 255).mean(0))
    torch.testing.assert_close(means[1], (x[9:11] / 255).mean(0))


def test_smaller_classes_are_repeated_in_turn() -> None:
    assert balanced(torch.tensor([1, 0, 1, 1, 2, 2])).tolist() == [1, 1, 1, 0, 2, 3, 4, 5, 4]


@pytest.mark.parametrize(
    "labels",
    [[3, 1, 1], ["b", "a", "a"], [(1, 2), (0, 1), (0, 1)], [1, "a", "a"], [True, False, False], [2**63, -1, -1]],
)
def test_predictions_are_the_labels_that_were_given(
    make_trained: Callable[..., Trained], make_bank: Callable[..., Bank], labels: list[Any]
) -> None:
    x = make_bank().examples
    assert list(make_trained("nearest").adapt(x[[0, 9, 10]], labels).predict(x[[0, 9]])) == labels[:2]


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (torch.zeros(2, 1, 8, 8), [1, 1], "support_y: all examples are 1; give examples of two classes"),
        (torch.zeros(2, 1, 8, 8), [1], "support_y: 1 labels for 2 examples"),
        (torch.zeros(2, 1, 8, 8), 5, "support_y: 5 is no list; give a label for each of the 2 examples"),
        (torch.zeros(2, 1, 8, 8), [float("nan"), 1.0], "support_y: NaN is no label"),
        (torch.zeros(2, 1, 8, 8), [[1], [2]], r"support_y: \[1\] is no label"),
        (torch.zeros(2, 7), [1, 2], r"support_x: examples of shape \[7\], and the learner knows images \[1, 8, 8\]"),
        (torch.zeros(2, 5, 8, 8), [1, 2], r"the learner knows images \[1, 8, 8\]; give images"),
        (torch.zeros(2, 8, 8, 3)[:, :, :7], [1, 2], "end in their channels"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), [1, 2], "without a channel axis"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int64), [1, 2], "int64 values; give uint8"),
        (torch.full((2, 1, 8, 8), 9.0), [1, 2], "values from 0 to 1 here; divide by 255"),
        (torch.full((2, 1, 8, 8), float("nan")), [1, 2], "not finite"),
        ([], [], "support_x: no array of examples"),
        (torch.zeros(0, 1, 8, 8), [], "holds no examples"),
    ],
)
def test_mistakes_are_one_line(make_trained: Callable[..., Trained], x: Any, y: Any, said: str) -> None:
    with pytest.raises(FewshotError, match=said) as caught:
        make_trained("nearest").adapt(x, y)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("scale", "shift", "fits"), [(1.0, 0.0, True), (255.0, 0.0, False), (1.0, -0.5, False)])
def test_uint8_images_suit_a_learner_of_floats_within_0_to_1_alone(
    make_bank: Callable[..., Bank], scale: float, shift: float, fits: bool
) -> None:
    bank = make_bank()
    floats = replace(bank, examples=bank.examples / 255 * scale + shift)
    trained = Trained(
        Nearest(Identity((1, 8, 8), 3)), {}, {}, None, "last", 0, 0, 0.0, inputs_of(Sampler(floats, 3, 1, 2))
    )
    assert trained.adapt(floats.examples[UNEQUAL], LABELS).predict(floats.examples[QUERIES]).tolist() == ANSWERS
    if fits:
        assert trained.adapt(bank.examples[UNEQUAL], LABELS).predict(bank.examples[QUERIES]).tolist() == ANSWERS
        return
    with pytest.raises(FewshotError, match="support_x: uint8 images, and the learner was trained on floats that are"):
        trained.adapt(bank.examples[UNEQUAL], LABELS)
    with pytest.raises(FewshotError, match="tasks: uint8 images"):
        evaluate(trained, Sampler(bank, 3, 1, 2), episodes=2)


def test_features_are_as_wide_as_those_of_the_extractor(make_conv4: Callable[..., Any]) -> None:
    inputs = Inputs((1, 8, 8), ImageTransform(), 3, torch.uint8, make_conv4(), 16)
    trained = Trained(Nearest(Identity((16,), 3)), {}, {}, None, "last", 0, 0, 0.0, inputs)
    assert trained.adapt(torch.eye(3, 16), [1, 2, 3]).predict(torch.eye(3, 16)).tolist() == [1, 2, 3]
    with pytest.raises(FewshotError, match=r"support_x: 7 features, and the learner knows 16; give images \[1, 8, 8\]"):
        trained.adapt(torch.eye(3, 7), [1, 2, 3])


def test_a_learner_of_functions_has_no_classes(make_trained: Callable[..., Trained]) -> None:
    with pytest.raises(FewshotError, match="not trained on tasks of a Sampler"):
        replace(make_trained("maml"), inputs=None).adapt(torch.zeros(2, 1), [0, 1])


def test_features_are_not_turned(make_bank: Callable[..., Bank]) -> None:
    inputs = Inputs((1, 8, 8), ImageTransform(), 3, torch.uint8, torch.nn.Flatten())
    wide = Inputs((1, 8, 16), ImageTransform(), 3, torch.uint8)
    turned = Sampler(make_bank(), 3, 1, 2, rotations="as_classes")
    for each, said in ((inputs, "features"), (wide, "images of 16x8")):
        with pytest.raises(
            FewshotError, match=f"rotations=as_classes: the learner sees {said}, which cannot be turned"
        ):
            each.sampler(turned)
    assert inputs.sampler(Sampler(make_bank(), 3, 1, 2)).rotations == "none"


def test_outputs_that_are_nan_are_no_prediction(make_trained: Callable[..., Trained], make_bank: Callable[..., Bank]):
    x = make_bank().examples
    trained = make_trained("maml")
    trained = replace(trained, params={name: value * torch.nan for name, value in trained.params.items()})
    with pytest.raises(
        FewshotError, match="the outputs for 4 of 4 examples are NaN; adaptation diverges: take fewer steps"
    ):
        trained.adapt(x[UNEQUAL], LABELS).predict(x[QUERIES])


def test_a_learner_without_parameters_is_where_its_features_are_made() -> None:
    inputs = Inputs((1, 2, 2), ImageTransform(), 2, torch.uint8, nn.Linear(4, 2, device="meta"), 2)
    assert Trained(Nearest(Identity((2,), 2), reference="mean"), {}, {}, inputs=inputs).device.type == "meta"
