"""Matching networks: attention written out, torch's LSTMs, fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewshot.algorithms.full_context import embed_queries, embed_support
from fewshot.algorithms.matching_net import MatchingNet
from fewshot.core.errors import FewshotError

from .closed_form import assert_gradient

pytestmark = pytest.mark.usefixtures("float64")

Make = Callable[..., Any]


def test_without_context_it_equals_the_written_out_attention(make_conv4: Make, make_episodes: Make) -> None:
    task, network = make_episodes(1, shot=2)[0], make_conv4()
    learner = MatchingNet(network, scale=5.0)
    logits = learner.predict(learner.adapt(*learner.init(), task), task.query_x)
    support, query = network.embed(task.support_x), network.embed(task.query_x)
    shares = []
    for feature in query:
        weights = torch.stack([(5 * F.cosine_similarity(feature, one, 0)).exp() for one in support])
        shares += [weights[task.support_y == label].sum() / weights.sum() for label in range(3)]
    expected = (torch.stack(shares).view(-1, 3) + 1e-6).log()
    torch.testing.assert_close(logits, expected)
    assert_gradient(learner, network, task, expected)


def test_the_support_sets_lstms_are_torchs(make_conv4: Make, make_episodes: Make) -> None:
    task, network = make_episodes(1, shot=2)[0], make_conv4()
    params, _ = MatchingNet(network, context=True).init()
    features = network.embed(task.support_x)
    width = features.shape[1]
    lstm = nn.LSTM(width, width, bidirectional=True)
    for name, end in (("ahead", ""), ("back", "_reverse")):
        weight = params[f"{name}/weight"]
        values = {"weight_ih": weight[:, :width], "weight_hh": weight[:, width:], "bias_ih": params[f"{name}/bias"]}
        for part, value in (values | {"bias_hh": torch.zeros(4 * width)}).items():
            getattr(lstm, f"{part}_l0{end}").data.copy_(value)
    outputs, _ = lstm(features)
    torch.testing.assert_close(embed_support(params, features), features + outputs[:, :width] + outputs[:, width:])


def test_each_query_reads_the_support_set_by_itself(make_conv4: Make, make_episodes: Make) -> None:
    task, network = make_episodes(1, shot=2)[0], make_conv4()
    params, _ = MatchingNet(network, context=True).init()
    support, query = network.embed(task.support_x), network.embed(task.query_x)
    together = embed_queries(params, query, support, 3)
    torch.testing.assert_close(together[1:2], embed_queries(params, query[1:2], support, 3))
    h, c = query, torch.zeros_like(query)
    cell = nn.LSTMCell(3 * query.shape[1], query.shape[1])
    cell.weight_hh.data.zero_(), cell.bias_hh.data.zero_()
    cell.weight_ih.data.copy_(params["query/weight"]), cell.bias_ih.data.copy_(params["query/bias"])
    for _ in range(3):
        read = (h @ support.T).softmax(-1) @ support
        h, c = cell(torch.cat([query, h, read], 1), (torch.zeros_like(h), c))
        h = h + query
    torch.testing.assert_close(together, h)


def test_with_context_attention_is_over_the_features_of_both_lstms(make_conv4: Make, make_episodes: Make) -> None:
    task, network = make_episodes(1, shot=2)[0], make_conv4()
    learner = MatchingNet(network, context=True, context_steps=3, scale=5.0)
    params, state = learner.init()
    support = embed_support(params, network.embed(task.support_x))
    query = embed_queries(params, network.embed(task.query_x), support, 3)
    attention = (5 * F.cosine_similarity(query[:, None], support[None], -1)).softmax(-1)
    expected = (attention @ F.one_hot(task.support_y, 3).to(attention.dtype) + 1e-6).log()
    torch.testing.assert_close(learner.predict(learner.adapt(params, state, task), task.query_x), expected)


def test_fine_tuning_at_a_test_lowers_the_support_loss(make_conv4: Make, make_episodes: Make) -> None:
    task, losses = make_episodes(1, shot=2)[0], []
    for steps in (0, 3):
        learner = MatchingNet(make_conv4(), scale=5.0, test_steps=steps, finetune_lr=0.05)
        adapted = learner.adapt(*learner.init(), task)
        losses.append(float(F.cross_entropy(learner.predict(adapted, task.support_x), task.support_y)))
    assert losses[1] < losses[0]


def test_context_says_how_many_weights_it_adds(make_conv4: Make) -> None:
    learner = MatchingNet(make_conv4(), context=True)
    added = sum(value.numel() for value in learner.init()[0].values())
    added -= sum(value.numel() for value in MatchingNet(make_conv4()).init()[0].values())
    assert learner.notes == (f"full context has {added:,} weights of its own",)


def test_context_needs_the_number_of_features(make_conv4: Make) -> None:
    network = make_conv4()
    network.head = nn.Sequential(network.head)
    with pytest.raises(FewshotError, match="context=true: needs a backbone whose last layer is a linear `head`"):
        MatchingNet(network, context=True)
