"""What is picked from a row of logits."""

from __future__ import annotations

import pytest
import torch

from cortex.neuron.engine import sampler
from cortex.neuron.engine.jobs import Generate
from cortex.neuron.engine.rows import Rows
from cortex.neuron.engine.sequence import Sequence

LOGITS = torch.tensor([1.0, 4.0, 3.5, 0.0])


def pick(sequence, logits=LOGITS):
    """Pick the next token of a sequence."""
    rows = Rows(1, 0, logits.device)
    sequence.row, sequence.planned = 0, len(sequence.tokens)
    rows.enter([sequence])
    scores = sampler.adjusted(logits[None], [sequence])
    return int(sampler.pick(scores, rows, torch.zeros(1, dtype=torch.int64)))


def picks(count, **more):
    """Pick one token after the other from the same logits."""
    sequence = Sequence(Generate(id="r", model="m", prompt=[1], max_tokens=count, **more))
    for _ in range(count):
        sequence.take(pick(sequence), frozenset())
    return sequence.answer


def test_temperature_zero_is_the_largest():
    assert picks(3, temperature=0.0) == [1, 1, 1]


@pytest.mark.parametrize(
    ("bias", "picked"),
    [({1: -100}, 2), ({3: 100}, 3), ({1: -1.0}, 2), ({1: -0.4}, 1), ({99: 100}, 1)],
)
def test_a_bias_is_added_to_its_logit(bias, picked):
    assert picks(1, temperature=0.0, logit_bias=bias) == [picked]


def test_a_presence_penalty_is_taken_off_once():
    # 4.0 and 3.5 become 3.0 and 2.5 after their first time, and stay there
    assert picks(5, temperature=0.0, presence_penalty=1.0) == [1, 2, 1, 1, 1]


def test_a_frequency_penalty_grows_with_every_time():
    # 4.0, 3.5 | 3.0, 3.5 | 3.0, 2.5 | 2.0, 2.5 | 2.0, 1.5
    assert picks(5, temperature=0.0, frequency_penalty=1.0) == [1, 2, 1, 2, 1]


def test_a_negative_penalty_keeps_what_was_said():
    assert picks(4, temperature=0.0, frequency_penalty=-2.0) == [1, 1, 1, 1]


def test_the_logits_are_left_as_they_were():
    logits = LOGITS.clone()
    picks(1, temperature=1.0, logit_bias={0: 5})
    assert torch.equal(logits, LOGITS)


def test_the_same_seed_draws_the_same():
    assert picks(50, seed=3) == picks(50, seed=3)
    assert picks(50, seed=3) != picks(50, seed=4)


@pytest.mark.parametrize(
    ("narrow", "allowed"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 2}),
        ({"top_p": 0.5}, {1}),
        ({"top_p": 0.7}, {1, 2}),
        ({"top_k": 3, "top_p": 0.7}, {1, 2}),
    ],
)
def test_top_k_and_top_p_keep_the_likeliest(narrow, allowed):
    assert set(picks(300, seed=1, temperature=1.0, **narrow)) == allowed


def test_draws_follow_the_distribution():
    drawn = picks(4000, seed=5, temperature=2.0)
    expected = (LOGITS / 2.0).softmax(-1)
    for token, share in enumerate(expected.tolist()):
        assert abs(drawn.count(token) / len(drawn) - share) < 0.03
