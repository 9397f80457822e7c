"""Speculation: what is guessed, and that no guess, right or wrong, changes an answer."""

from __future__ import annotations

import random
from functools import partial

import pytest

from cortex.neuron.engine import drafts
from cortex.neuron.engine.blocks import Blocks
from cortex.neuron.engine.drafts import MOST_REST, Ngrams
from cortex.neuron.engine.kernels import kernels_for
from cortex.neuron.engine.scheduler import Scheduler
from cortex.neuron.engine.sequence import Sequence
from cortex.neuron.engine.snapshots import Snapshots
from cortex.neuron.engine.stack import Stack
from tests.neuron.engine.engines import (
    DEVICE,
    Oracle,
    ask,
    engine_of,
    greedy,
    model_of,
    prompts,
    run,
    stepped,
)

pytestmark = pytest.mark.usefixtures("one_thread", "without_gradients")


@pytest.fixture(scope="module", params=["llama", "qwen3_5_text", "mistral"])
def model(request):
    return model_of(request.param)


def counted(engine):
    """Count the steps an engine launches."""
    launched, own = [], engine._runner.launch

    def launch(chunks):
        launched.append(chunks)
        return own(chunks)

    engine._runner.launch = launch
    return launched


@pytest.mark.parametrize("tier", ["modules", "fused"])
@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "ahead"])
@pytest.mark.parametrize("blocks", [200, 24])
@pytest.mark.timeout(120)
def test_no_draft_changes_an_answer(model, tier, runs_ahead, blocks):
    asked = prompts(6, seed=3, shared=20)
    answers = [(prompt, greedy(model, prompt, 24 + n)) for n, prompt in enumerate(asked)]
    made = random.Random(1)
    body = Stack(model, kernels_for(DEVICE)) if tier == "fused" else None
    engine = engine_of(
        model,
        body=body,
        blocks=blocks,
        budget_tokens=40,
        runs_ahead=runs_ahead,
        guesser=lambda: Oracle(answers, made),
    )
    launched = counted(engine)

    jobs = [ask(str(n), prompt, 24 + n) for n, prompt in enumerate(asked)]
    said, ends = run(engine, jobs)
    again, _ = run(engine, jobs)

    assert said == again == {str(n): answer for n, (_, answer) in enumerate(answers)}
    assert {end.reason for end in ends.values()} == {"length"}
    plan = engine.scheduler
    plan.check()
    assert plan.drafted_tokens > plan.accepted_tokens > 50
    assert bool(plan.preemptions) == (blocks == 24)
    assert any(len(chunks) > 1 and any(c.draft for c in chunks) for chunks in launched)


def test_a_draft_that_comes_true_saves_steps(model):
    (prompt,) = prompts(1, shared=20)
    answer = greedy(model, prompt, 25)
    engine = engine_of(
        model, guesser=lambda: Oracle([(prompt, answer)], random.Random(0), most=4, rate=0.0)
    )
    launched, without = counted(engine), counted(plain := engine_of(model))

    said, _ = run(engine, [ask("r", prompt, 25)])
    run(plain, [ask("r", prompt, 25)])

    assert said["r"] == answer
    assert engine.scheduler.drafted_tokens == engine.scheduler.accepted_tokens > 10
    assert len(launched) == len(without) - engine.scheduler.accepted_tokens


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "ahead"])
def test_what_is_drawn_is_the_same_with_drafts_and_without(model, runs_ahead):
    asked = prompts(4, seed=5)
    jobs = [
        ask(str(n), prompt, 20, temperature=0.8, top_p=0.9, seed=n, logprobs=2)
        for n, prompt in enumerate(asked)
    ]
    plain, _ = run(engine_of(model), jobs)
    answers = [(prompt, plain[str(n)]) for n, prompt in enumerate(asked)]
    made = random.Random(2)
    engine = engine_of(model, runs_ahead=runs_ahead, guesser=lambda: Oracle(answers, made))

    said, _ = run(engine, jobs)

    assert said == plain
    assert engine.scheduler.accepted_tokens > 10


def test_log_probabilities_are_the_same_with_drafts_and_without(model):
    (prompt,) = prompts(1)
    job = ask("r", prompt, 12, logprobs=3)

    def told(engine):
        engine.add(job)
        heard = []
        while engine.has_work:
            heard += stepped(engine)[0]
        return heard

    plain = told(engine_of(model))
    answers = [(prompt, [token.id for token in plain])]
    drafted = told(engine_of(model, guesser=lambda: Oracle(answers, random.Random(0))))

    assert [token.id for token in drafted] == [token.id for token in plain]
    for one, other in zip(plain, drafted, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]


def test_an_end_token_in_a_draft_ends_the_answer(model):
    (prompt,) = prompts(1)
    answer = greedy(model, prompt, 12)
    end = answer[6]
    engine = engine_of(
        model,
        end_tokens=[end],
        guesser=lambda: Oracle([(prompt, answer)], random.Random(0), rate=0.0),
    )

    said, ends = run(engine, [ask("r", prompt, 12)])

    assert said["r"] == answer[: answer.index(end)]
    assert (ends["r"].reason, ends["r"].completion_tokens) == ("stop", answer.index(end) + 1)
    engine.scheduler.check()


class Knowing:
    """Guesses what will be said, whole."""

    def __init__(self, prompt, answer):
        self._prompt, self._answer = prompt, answer

    def drafts(self, tokens, foreseen):
        return self._answer[len(tokens) - len(self._prompt) :]

    def settle(self, drafted, accepted):
        raise AssertionError("its answer ends in the first draft")


@pytest.mark.parametrize(
    ("guess", "ends", "accepted"),
    [
        ("true", "stop", 6),
        ("true", "length", 10),
        ("wrong at the end token", "stop", 5),
        ("wrong behind it", "stop", 6),
    ],
)
def test_a_draft_an_answer_ends_in_is_counted(model, guess, ends, accepted):
    (prompt,) = prompts(1, seed=4)
    answer = greedy(model, prompt, 12)
    assert answer.index(answer[6]) == 6  # said for the first time
    guessed = list(answer)
    if guess != "true":
        guessed[6 if "at" in guess else 7] += 1
    engine = engine_of(
        model,
        end_tokens=[answer[6]] if ends == "stop" else [],
        guesser=lambda: Knowing(prompt, guessed),
    )

    _, ended = run(engine, [ask("r", prompt, 12)])

    assert ended["r"].reason == ends
    figures = engine.figures("m", 0.0)
    assert (figures.drafted_tokens, figures.accepted_tokens) == (10, accepted)
    engine.scheduler.check()


def test_a_draft_whose_client_left_is_not_counted(model):
    (prompt,) = prompts(1)
    answer = greedy(model, prompt, 12)
    engine = engine_of(model, runs_ahead=True, guesser=lambda: Knowing(prompt, answer))
    launched = counted(engine)
    engine.add(ask("r", prompt, 12))
    while not any(chunk.draft for chunks in launched for chunk in chunks):
        engine.step()

    engine.cancel("r")
    run(engine)

    assert engine.scheduler.drafted_tokens == 0
    engine.scheduler.check()


def test_who_is_adjusted_gets_no_draft_beside_one_who_does(model):
    asked = prompts(2)
    more = {"repetition_penalty": 1.3}
    plain, _ = run(engine_of(model), [ask("a", asked[0], 20, **more), ask("b", asked[1], 20)])
    answers = [(asked[0], plain["a"]), (asked[1], plain["b"])]
    engine = engine_of(model, guesser=lambda: Oracle(answers, random.Random(0)))

    said, _ = run(engine, [ask("a", asked[0], 20, **more), ask("b", asked[1], 20)])

    assert said == plain
    assert engine.scheduler.accepted_tokens > 5


def test_a_client_may_leave_while_its_draft_is_tried(model):
    asked = prompts(2)
    answers = [(prompt, greedy(model, prompt, 30)) for prompt in asked]
    engine = engine_of(
        model, runs_ahead=True, guesser=lambda: Oracle(answers, random.Random(0), rate=0.5)
    )
    engine.add(ask("leaves", asked[0], 30))
    engine.add(ask("stays", asked[1], 30))
    said = {"stays": []}
    for step in range(200):
        if step == 6:
            assert engine.cancel("leaves").reason == "cancelled"
        for token in stepped(engine)[0]:
            said.setdefault(token.request, []).append(token.id)
        engine.scheduler.check()

    assert said["stays"] == answers[1][1]


def test_what_was_said_before_is_guessed_with_what_followed():
    said = [1, 2, 3, 4, 9, 5, 2, 3, 4]
    assert Ngrams(3).drafts(said) == [9, 5, 2]
    assert Ngrams(3).drafts([1, 2, 3]) == []
    assert Ngrams(3).drafts([7, 8, 5, 7, 8]) == [5, 7, 8]
    # of several places, the last one; of several lengths, the longest
    assert Ngrams(1).drafts([1, 2, 3, 1, 2, 4, 1, 2]) == [4]
    assert Ngrams(1).drafts([9, 1, 2, 3, 1, 2, 4, 9, 1, 2]) == [3]


@pytest.mark.parametrize("seed", range(5))
def test_a_guess_is_what_a_plain_search_finds(seed):
    made = random.Random(seed)
    tokens = [made.choice([0, 1, 256, 65536, 65537, 1 << 24]) for _ in range(200)]
    ngrams = Ngrams(4)
    for end in range(2, 200):
        found = []
        for size in (4, 3, 2):
            last = tokens[max(end - size, 0) : end]
            places = [n for n in range(size, end) if tokens[n - size : n] == last]
            if len(last) == size and places:
                found = (tokens[places[-1] : end] * 4)[:4]
                break
        assert ngrams.drafts(tokens[:end]) == found


def test_what_does_not_come_true_is_tried_less_and_less():
    ngrams, said = Ngrams(8), [1, 2] * 40
    assert len(ngrams.drafts(said)) == 8
    ngrams.settle(8, 2)
    assert len(ngrams.drafts(said)) == 3
    ngrams.settle(3, 3)
    assert len(ngrams.drafts(said)) == 6
    rests = []
    for _ in range(8):
        ngrams.settle(6, 0)
        rests.append(0)
        while not ngrams.drafts(said):
            rests[-1] += 1
    assert rests == [1, 3, 7, 15, 31, MOST_REST, MOST_REST, MOST_REST]
    ngrams.settle(1, 1)
    assert len(ngrams.drafts(said)) == 2


def test_ngrams_guess_while_a_model_answers_and_change_nothing(model, monkeypatch):
    monkeypatch.setattr(drafts, "GRAMS", (1,))  # a model of noise says nothing twice
    prompt = list(range(3, 300))
    engine = engine_of(model, guesser=partial(Ngrams, 4))

    said, _ = run(engine, [ask("r", prompt, 40)])

    assert said["r"] == greedy(model, prompt, 40)
    figures = engine.figures("m", 0.0)
    assert figures.drafted_tokens >= figures.accepted_tokens
    assert figures.drafted_tokens


def test_no_draft_gets_into_a_snapshot():
    plan = Scheduler(Blocks(50), rows=4, budget_tokens=64, snapshots=Snapshots(5, 5))
    sequence = Sequence(ask("r", range(32), 10))
    plan.add(sequence)
    for start, count in ((0, 16), (16, 16)):
        sequence.draft = [7, 8]
        [chunk] = plan.plan(0.0)
        assert (chunk.start, chunk.count, chunk.draft) == (start, count, ())
        plan.launched([chunk])
    assert [source for source, _ in plan.copies] == [0, sequence.row, sequence.row]
    sequence.in_flight = 0
    sequence.take(5, frozenset())

    sequence.draft = [7, 8]
    [chunk] = plan.plan(0.0)

    assert chunk.draft == (7, 8)
    assert plan.copies[-1] == (sequence.row, plan.snapshots.end + sequence.row - 1)
