"""The probe: every network that a person brings is right in both settings, or refused by its own name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from fewshot.algorithms.reptile import Reptile
from fewshot.backbones.conv4 import Conv4
from fewshot.backbones.mlp import MLP
from fewshot.backbones.second_derivatives import check_second_derivatives
from fewshot.core.errors import FewshotError
from fewshot.engine.engine import Engine
from fewshot.engine.evaluate import query_outputs, score_episodes
from fewshot.engine.probe import check_training, probe, why_not_batched
from fewshot.episodes import Episodes
from fewshot.report.statistics import ci95
from fewshot.tasks.sampler import Sampler

from .foreign_networks import INDEPENDENT, MIXING, REFUSED, Frozen, Own, plain

Make = Callable[..., Any]
ACCEPTED = INDEPENDENT | MIXING
# Without those that in eval(), in which a learner runs its network, are the same function as another one.
DIFFERENT = ACCEPTED.keys() - {"dropout", "dropout of rate 0", "noise in training only", "attention with dropout"}
WITHOUT_SECOND = {"weight norm", "a number asked of a tensor"}  # wrong in torch 2.15; constant where it should not be


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return ACCEPTED[name]()


class Tempered(Conv4):
    """Whose output is not its head on its features."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


@pytest.mark.parametrize(("kind", "expected"), [(Conv4, True), (Tempered, False)])
def test_features_are_calculated_once_only_where_the_output_is_the_head_on_them(
    make_conv4: Make, make_learner: Make, make_episodes: Make, kind: type[Conv4], expected: bool
):
    backbone = make_conv4()
    backbone.__class__ = kind
    learner = make_learner("anil", backbone)
    assert learner.features_once
    probe(learner, make_episodes(1)[0])
    assert learner.features_once == expected


@pytest.mark.parametrize("name", ACCEPTED)
def test_queries_that_depend_on_each_other_are_found_and_inductive_mode_never_leaks(
    make_learner: Make, make_episodes: Make, make_bank: Make, name: str
):
    learner, task = make_learner("fomaml", network(name)), make_episodes(1, query=3)[0]
    assert probe(learner, task).queries_independent == (name in INDEPENDENT)
    params, state = learner.init()
    for setting in ("inductive", "transductive"):
        outputs, order = query_outputs(learner, params, state, task, setting), torch.randperm(9)
        turned = query_outputs(learner, params, state, replace(task, query_x=task.query_x[order]), setting)
        leaks = [not torch.allclose(turned, outputs[order], rtol=1e-5, atol=1e-6)]  # a place tells the class
        for query in (0, 8):
            others = (torch.arange(9) != query).view(-1, 1, 1, 1)
            blank = replace(task, query_x=task.query_x.masked_fill(others, 0))
            beside = query_outputs(learner, params, state, blank, setting)
            leaks.append(not torch.allclose(beside[query], outputs[query], rtol=1e-5, atol=1e-6))
        assert any(leaks) == (setting == "transductive" and name in MIXING)
    # A test is the same on every engine.
    sampler = Sampler(make_bank(noise=200), 3, 2, 3, seed=0)
    auto, loop = (
        score_episodes(learner, params, state, sampler, 2, setting="transductive", engine=Engine(engine)).tolist()
        for engine in ("auto", "loop")
    )
    assert auto == pytest.approx(loop, abs=1e-6)


def test_a_test_repeats(make_learner: Make, make_bank: Make):
    learner = make_learner("fomaml", network("experts of a capacity"))
    sampler, start = Sampler(make_bank(noise=200), 3, 2, 3, seed=0), learner.init()
    first, again = (
        score_episodes(learner, *start, sampler, 2, setting="inductive", engine=Engine()).tolist() for _ in range(2)
    )
    assert first == again


@pytest.mark.parametrize("name", sorted(DIFFERENT - WITHOUT_SECOND - {"torchvision"}))
def test_the_meta_gradient_equals_finite_differences_whatever_the_network(
    make_learner: Make, make_episodes: Make, name: str
):
    learner, episodes = make_learner("maml", network(name).double()), make_episodes(2).to(torch.float64)
    params, state = learner.init()
    params = {key: value + 0.1 * torch.randn_like(value) for key, value in params.items()}
    along = {key: torch.randn_like(value) for key, value in params.items()}
    engine, width = Engine(), 1e-6
    gradient = engine.outer(learner, params, state, episodes).gradient

    def loss(step: float) -> float:
        moved = {key: value + step * along[key] for key, value in params.items()}
        return float(engine.outer(learner, moved, state, episodes).loss.mean())

    slope = (loss(width) - loss(-width)) / (2 * width)
    assert float(sum((gradient[key] * along[key]).sum() for key in along)) == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", sorted(WITHOUT_SECOND | {"lstm", "layer norm", "attention", "frozen body"}))
def test_second_derivatives_that_differ_from_finite_differences_are_noted(
    make_learner: Make, make_episodes: Make, name: str
):
    note = check_training(make_learner("maml", network(name)), make_episodes(1))
    assert ("second derivatives of" in note) == (name in WITHOUT_SECOND)
    if note:
        assert not check_training(make_learner("fomaml", network(name)), make_episodes(1))


def test_a_network_that_does_not_run_in_float64_is_noted(make_learner: Make, make_episodes: Make):
    float32 = Own(lambda n, x: plain(n, x.float())).float()
    learner, episodes = make_learner("maml", float32), make_episodes(1).to(torch.float32)
    assert "are not checked, since it does not run in float64" in check_training(learner, episodes)


def test_a_kink_beside_the_parameters_at_hand_is_no_wrong_second_derivative():
    class Kinked(nn.Module):
        """Its first parameters lie closer to a kink than any step of finite differences."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))
            self.kinks: list[torch.Tensor] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.kinks = self.kinks or [self.weight.detach().clone()]
            return x * ((self.weight - self.kinks[0]).relu() + self.weight.square())

    assert check_second_derivatives(Kinked(), torch.randn(3, 4)) == ""


@pytest.mark.parametrize("name", ["batch norm", "layer norm", "instance norm"])
def test_what_vmap_gets_wrong_is_not_batched(make_learner: Make, make_episodes: Make, name: str):
    second, first = (make_learner(algorithm, network(name)) for algorithm in ("maml", "fomaml"))
    assert "other results" in why_not_batched(second, make_episodes(2))
    assert Engine("auto").method(make_episodes(2), second) == "loop"
    with pytest.raises(FewshotError, match="engine=vmap: .*choose engine=loop"):
        Engine("vmap").outer(second, *second.init(), make_episodes(2))
    assert Engine("auto").method(make_episodes(2), first) == "vmap"


@pytest.mark.parametrize("name", ["lstm", "gru", "a branch on the batch", "a number asked of a tensor"])
def test_what_vmap_cannot_run_is_not_batched(make_learner: Make, make_episodes: Make, name: str):
    learner = make_learner("fomaml", network(name))
    assert "cannot batch" in why_not_batched(learner, make_episodes(2))
    assert Engine("auto").method(make_episodes(2), learner) == "loop"


# The forward pass of most is refused whatever the learner is; two are told by their gradients.
@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        *((name, "maml") for name in REFUSED),
        ("averages in attributes", "reptile-shared"),
        ("kept weights", "reptile-shared"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name_in_one_line(
    make_learner: Make, make_episodes: Make, name: str, algorithm: str
):
    make, words = REFUSED[name]
    episodes = make_episodes(2, query=3)

    def look() -> None:
        learner = make_learner(algorithm, make())
        probe(learner, episodes[0])
        check_training(learner, episodes[:1])

    with pytest.raises(FewshotError, match=words) as caught:
        look()
    assert "\n" not in str(caught.value)


def test_a_random_layer_that_is_off_is_noted(make_learner: Make, make_episodes: Make):
    (note,) = probe(make_learner("reptile-shared", network("dropout")), make_episodes(1)[0]).notes
    assert "layer 1 (Dropout) draws at random" in note
    assert probe(make_learner("maml", network("dropout of rate 0")), make_episodes(1)[0]).notes == ()


def test_the_probe_leaves_random_numbers_buffers_and_parameters_alone(make_learner: Make, make_episodes: Make):
    learner = make_learner("maml", network("constant buffers"))
    before = {name: value.clone() for name, value in learner.backbone.state_dict().items()}
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    probe(learner, make_episodes(1)[0])
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(value, before[name]) for name, value in learner.backbone.state_dict().items())


@pytest.mark.parametrize("name", ["fomaml", "maml", "meta_sgd", "reptile-sequential", "reptile-sgd"])
def test_what_a_person_froze_stays_in_both_loops(make_learner: Make, make_episodes: Make, name: str):
    learner, episodes = make_learner(name, Frozen()), make_episodes(2)
    params, state = learner.init()
    assert params.keys() - {key for key in params if key.startswith("inner_lr/")} == {"head.weight", "head.bias"}
    body = learner.backbone.body.weight.clone()
    outer = Engine().outer(learner, params, state, episodes)
    adapted = learner.adapt(params, state, episodes[0])
    for tensors in (params, outer.gradient, adapted):
        assert not [key for key in tensors if "body" in key]
    assert torch.equal(learner.backbone.body.weight, body)
    assert not torch.equal(adapted["head.weight"], params["head.weight"])


@pytest.mark.parametrize(
    ("adapted", "moved"),
    [
        ("all", {"body.weight", "body.bias", "head.weight", "head.bias"}),
        ("head", {"head.weight", "head.bias"}),
        ("body.*", {"body.weight", "body.bias"}),
        (["*.bias", "head.weight"], {"body.bias", "head.bias", "head.weight"}),
    ],
)
def test_the_inner_loop_moves_what_it_is_told_to_and_the_outer_loop_everything(
    make_learner: Make, make_episodes: Make, adapted: Any, moved: set[str]
):
    learner, episodes = make_learner("maml", Own(plain), adapted=adapted), make_episodes(2)
    params, state = learner.init()
    fast = learner.adapt(params, state, episodes[0])
    assert {name for name in params if not torch.equal(fast[name], params[name])} == moved
    gradient = Engine().outer(learner, params, state, episodes).gradient
    assert all(bool(value.any()) for value in gradient.values())


def test_a_network_that_a_person_puts_into_training_is_tested_in_eval_again(make_learner: Make, make_bank: Make):
    learner = make_learner("fomaml", Own(lambda n, x: torch.nn.functional.dropout(plain(n, x), training=n.training)))
    sampler, start = Sampler(make_bank(), 3, 2, 3, seed=0), learner.init()
    tests = []
    for _ in range(2):
        tests.append(score_episodes(learner, *start, sampler, 4, setting="transductive", engine=Engine()).tolist())
        learner.backbone.train()
    assert tests[0] == tests[1]


def test_examples_of_another_type_than_the_trained_parameters_are_refused(make_learner: Make, make_episodes: Make):
    learner, task = make_learner("fomaml", Own(plain)), make_episodes(1).to(torch.float64)[0]
    with pytest.raises(FewshotError, match="its parameters are float32, and the examples float64; call network.to"):
        probe(learner, task, *learner.init())


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 2]])
def test_a_support_set_that_is_not_sorted_by_class_is_refused(
    make_learner: Make, make_episodes: Make, labels: list[int]
):
    task = replace(make_episodes(1, query=3)[0], support_y=torch.tensor(labels))
    with pytest.raises(FewshotError, match="the labels of a support set are .*; sort its examples by class"):
        probe(make_learner("nearest"), task)


def test_a_mixing_that_training_brings_is_found_with_the_trained_parameters(make_learner: Make, make_bank: Make):
    def gated(n: Any, x: torch.Tensor) -> torch.Tensor:
        return plain(n, x) + torch.relu(n.body.bias.sum()) * plain(n, x).mean(0)

    learner, sampler = make_learner("fomaml", Own(gated), inner_lr=0.0), Sampler(make_bank(), 3, 2, 3, seed=0)
    params, state = learner.init()
    torch.nn.init.constant_(learner.backbone.body.bias, -1.0)
    params["body.bias"] = torch.full((4,), -1.0)
    score_episodes(learner, params, state, sampler, 2, setting="inductive", engine=Engine())
    task = sampler.episodes(0, 1)[0]
    assert probe(learner, task).queries_independent
    params["body.bias"] = torch.full((4,), 1.0)
    score_episodes(learner, params, state, sampler, 2, setting="inductive", engine=Engine())
    assert not probe(learner, task).queries_independent


@pytest.mark.parametrize(
    ("make", "adapted", "message"),
    [
        *(
            (lambda: Own(plain), adapted, "write all, head, body, or patterns of names")
            for adapted in ([], None, 3, {"head": 1})
        ),
        (lambda: Own(plain), "tail.*", r"adapted=tail\.\*: no parameter that is trained .*head\.bias"),
        (Frozen, "body.*", r"adapted=body\.\*: no parameter that is trained"),
        (lambda: nn.Linear(64, 3), "head", "belongs to no layer of its own"),
    ],
)
def test_patterns_that_name_no_parameter_are_refused(make_learner: Make, make: Any, adapted: Any, message: str):
    with pytest.raises(FewshotError, match=message):
        make_learner("maml", make(), adapted=adapted)


def test_the_head_is_a_layer_with_all_its_parameters(make_learner: Make):
    network = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 3)))
    assert len(make_learner("maml", network, adapted="head").adapted) == 3


# Tasks of another shape


@pytest.mark.parametrize(
    "name", ["nearest", "baseline", "leo", "protonet", "r2d2", "matching_net", "matching_net-context"]
)
def test_learners_without_a_head_take_any_number_of_ways(make_learner: Make, make_bank: Make, name: str):
    learner = make_learner(name, test_steps=30) if name == "baseline" else make_learner(name)
    for way in (2, 5):
        sampler = Sampler(make_bank(noise=30), way, 2, 2, seed=0)
        task, start = sampler.episodes(0, 1)[0], learner.init()
        assert learner.predict(learner.adapt(*start, task), task.query_x).shape == (way * 2, way)
        scores = score_episodes(learner, *start, sampler, 10, setting="inductive", engine=Engine())
        if name != "leo":  # untrained, its codes say little
            assert scores.mean() - ci95(scores) > 1 / way


@pytest.mark.parametrize(("name", "way"), [("maml", 2), ("reptile-shared", 5)])
def test_a_head_of_other_ways_is_refused(make_learner: Make, make_bank: Make, name: str, way: int):
    learner, sampler = make_learner(name), Sampler(make_bank(), way, 2, 2, seed=0)
    with pytest.raises(FewshotError, match=rf"made for 3 ways, the tasks have {way}"):
        score_episodes(learner, *learner.init(), sampler, 2, setting="transductive", engine=Engine())


def regression(width: int) -> Episodes:
    torch.manual_seed(0)
    x = torch.randn(4, 6, 2)
    y = torch.stack([x.sum(-1), x[..., 0] * 2, -x[..., 1]], -1)[..., :width]
    return Episodes(x, y, x, y, torch.arange(4))


@pytest.mark.parametrize("name", ["maml", "fomaml", "reptile-sgd", "nearest"])
def test_regression_counts_every_output(make_learner: Make, make_mlp: Make, name: str):
    tasks = regression(3)
    network = None if name == "nearest" else make_mlp((2,), 3, norm="none")
    learner = make_learner(name, network, test_steps=5)
    params, state = learner.init()
    outputs = query_outputs(learner, params, state, tasks[0], "transductive")
    assert outputs.shape == (6, 3)
    if name == "nearest":  # the queries are the support points
        assert torch.equal(outputs, tasks[0].query_y)
        return
    before, after = (
        float((learner.predict(weights, tasks[0].query_x) - tasks[0].query_y).square().mean(0)[2])
        for weights in (params, learner.adapt(params, state, tasks[0]))
    )
    assert after < before  # the last output is learned too
    vmapped, looped = (Engine(engine).outer(learner, params, state, tasks) for engine in ("vmap", "loop"))
    torch.testing.assert_close(vmapped.loss, looped.loss)
    if "maml" in name:
        end = learner.inner_loop(params, tasks[0], 2)
        wanted = (learner.predict(end, tasks[0].query_x) - tasks[0].query_y).square()
        assert float(vmapped.score[0]) == pytest.approx(float(wanted.mean()), rel=1e-5)


@pytest.mark.parametrize(("outputs", "targets"), [(1, 2), (2, 1), (3, 2)])
def test_a_regression_network_whose_outputs_do_not_fit_is_refused(
    make_learner: Make, make_mlp: Make, outputs: int, targets: int
):
    learner = make_learner("maml", make_mlp((2,), outputs, norm="none"))
    with pytest.raises(FewshotError, match=rf"give float32 \[6, {outputs}\], and outputs \[6, {targets}\]"):
        probe(learner, regression(targets)[0])


@pytest.mark.parametrize(
    ("images", "said"), [(True, "conv4$"), (False, "linear for features, or mlp_40 for functions$")]
)
def test_a_network_without_parameters_names_one_that_suits_the_input(
    make_learner: Make, make_episodes: Make, images: bool, said: str
):
    task = make_episodes(1)[0] if images else regression(1)[0]
    with pytest.raises(FewshotError, match=f"no parameters to train; choose another, such as backbone={said}"):
        probe(make_learner("maml", nn.Identity()), task)


def test_a_regression_network_that_drops_its_last_axis_is_refused(make_learner: Make):
    class Squeezed(MLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, 0]

    choices: dict[str, Any] = {"widths": [4], "norm": "none", "norm_scale": False, "norm_eps": 0.0}
    learner = make_learner("maml", Squeezed((2,), 1, **choices, adapt_norm=False, head_init="xavier"))
    with pytest.raises(FewshotError, match="without squeeze"):
        probe(learner, regression(1)[0])


class Wrong(Reptile):
    """Whose outer gradient or state is not as `init` has it."""

    def __init__(self, backbone: nn.Module, change: Callable[[Any, Any], None]) -> None:
        super().__init__(backbone, inner_steps=1)
        self.change = change

    def outer_gradient(self, params: Any, state: Any, task: Episodes) -> Any:
        gradient, state, *scores = super().outer_gradient(params, state, task)
        self.change(gradient := dict(gradient), state := dict(state))
        return gradient, state, *scores


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda gradient, state: gradient.pop("head.bias"),
            r"the gradient .* has head.bias absent, and init has \(3,\)",
        ),
        (lambda gradient, state: gradient.update(new=gradient["head.bias"]), r"gradient .* new \(3,\), .* absent"),
        (lambda gradient, state: gradient.update({"head.bias": torch.zeros(2)}), r"gradient .* \(2,\), .* \(3,\)"),
        (lambda gradient, state: state.update(new=torch.zeros(1)), r"the state .* new \(1,\), .* absent"),
    ],
)
def test_an_outer_gradient_of_other_names_or_shapes_is_refused_before_the_training(
    make_episodes: Make, change: Any, said: str
):
    with pytest.raises(FewshotError, match=said):
        check_training(Wrong(MLP((1, 8, 8), 3, widths=[4]), change), make_episodes(1))


def test_what_a_learner_holds_is_not_the_networks_fault(make_learner: Make, make_episodes: Make):
    learner = make_learner("maml")
    learner.lock = threading.Lock()
    with pytest.raises(FewshotError, match=r"algorithm.learner: MAML cannot be copied"):
        probe(learner, make_episodes(1)[0])
