"""What is picked from a row of logits."""

from __future__ import annotations

import pytest
import torch
import transformers

from cortex.neuron.engine.jobs import Generate
from cortex.neuron.engine.rows import Rows
from cortex.neuron.engine.sampler import LIKELIEST, adjusted, filtered, pick
from cortex.neuron.engine.sequence import Sequence
from cortex.neuron.engine.tallies import Tallies

LOGITS = torch.tensor([1.0, 4.0, 3.5, 0.0])

ROW = torch.zeros(1, dtype=torch.int64)


def rows_of(sequences):
    rows = Rows(len(sequences), 0, torch.device("cpu"))
    for row, sequence in enumerate(sequences):
        sequence.row, sequence.planned = row, len(sequence.tokens)
    rows.enter(dict(enumerate(sequences)))
    return rows


def picks(count, **more):
    """Pick one token after the other from the same logits."""
    job = Generate(id="r", model="m", **{"prompt": [0], "max_tokens": count, **more})
    sequence, tallies = Sequence(job, row=0), Tallies(torch.device("cpu"))
    for _ in range(count):
        lines = tallies.of([sequence], len(LOGITS))
        scores = adjusted(LOGITS[None], [sequence], lines)
        picked = pick(scores, rows_of([sequence]), ROW, torch.tensor([len(sequence.tokens)]))
        tallies.add([sequence], picked)
        sequence.take(int(picked), frozenset())
    return sequence.tokens[sequence.prompt_tokens :]


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
        ({"min_p": 1.0}, {1}),
        ({"min_p": 0.6}, {1, 2}),  # exp(3.5 - 4) is 0.607
        ({"min_p": 0.61}, {1}),
        ({"min_p": 0.001}, {0, 1, 2, 3}),
        ({"min_p": 0.6, "top_p": 0.5}, {1}),
    ],
)
def test_top_k_top_p_and_min_p_keep_the_likeliest(narrow, allowed):
    assert set(picks(300, seed=1, temperature=1.0, **narrow)) == allowed


def test_draws_follow_the_distribution():
    drawn = picks(4000, seed=5, temperature=2.0)
    expected = (LOGITS / 2.0).softmax(-1)
    for token, share in enumerate(expected.tolist()):
        assert abs(drawn.count(token) / len(drawn) - share) < 0.03


def test_min_p_counts_after_the_temperature():
    # at temperature 10 the four are 0.74, 1, 0.95 and 0.67 times as likely as the likeliest
    assert set(picks(300, seed=1, temperature=10.0, min_p=0.7)) == {0, 1, 2}


def test_a_repetition_penalty_knows_the_prompt_and_divides_only_once():
    # 4.0 and 3.5; 4.0 / 1.3 is 3.08, 3.5 / 1.3 is 2.69
    assert picks(4, temperature=0.0, repetition_penalty=1.3, prompt=[0]) == [1, 2, 1, 1]
    assert picks(3, temperature=0.0, repetition_penalty=1.3, prompt=[1, 1]) == [2, 1, 1]


WAYS = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.3},
    {"top_p": 0.9, "temperature": 1.7},
    {"top_p": 0.999, "temperature": 2.0},
    {"min_p": 0.2},
    {"min_p": 0.02, "temperature": 1.4},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.1, "temperature": 0.6},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "top_k": 3},
    {"repetition_penalty": 5.0, "min_p": 0.05, "temperature": 0.9},
    {"top_k": 9000, "top_p": 0.5, "repetition_penalty": 1.1},
]


def processors(job):
    """Return what transformers does for a job, in the order of its `generate`."""
    made = transformers.LogitsProcessorList()
    if job.repetition_penalty != 1:
        made.append(transformers.RepetitionPenaltyLogitsProcessor(job.repetition_penalty))
    made.append(transformers.TemperatureLogitsWarper(job.temperature))
    if job.top_k:
        made.append(transformers.TopKLogitsWarper(job.top_k))
    if job.top_p < 1:
        made.append(transformers.TopPLogitsWarper(job.top_p))
    if job.min_p:
        made.append(transformers.MinPLogitsWarper(job.min_p))
    return made


@pytest.mark.parametrize("vocabulary", [50, 3 * LIKELIEST])
@pytest.mark.parametrize("spread", [0.3, 4.0])
def test_what_may_come_in_a_batch_of_all_ways_is_what_transformers_lets_come(vocabulary, spread):
    torch.manual_seed(3)
    logits = torch.randn(len(WAYS), vocabulary) * spread
    jobs = [
        Generate(
            id=str(row),
            model="m",
            prompt=torch.randint(vocabulary, (20,)).tolist(),
            max_tokens=9,
            **way,
        )
        for row, way in enumerate(WAYS)
    ]
    sequences = [Sequence(job) for job in jobs]
    for sequence in sequences:  # an answer has begun
        sequence.tokens += torch.randint(vocabulary, (7,)).tolist()
    rows = rows_of(sequences)

    lines = Tallies(torch.device("cpu")).of(sequences, vocabulary)
    scores = adjusted(logits, sequences, lines) / rows.knobs[:, :1]
    scores = filtered(scores, rows.top_k, rows.knobs[:, 1], rows.knobs[:, 2])

    for row, job in enumerate(jobs):
        ids = torch.tensor([sequences[row].tokens])
        wanted = processors(job)(ids, logits[row : row + 1].clone())
        torch.testing.assert_close(scores[row : row + 1], wanted)
