"""Speculation by a model's own layer: what it is told, where its guesses are tried."""

from __future__ import annotations

import random

import pytest
import torch

from cortex.neuron.engine.blocks import BLOCK_TOKENS
from cortex.neuron.engine.kernels import kernels_for
from cortex.neuron.engine.stack import Stack
from tests.neuron.engine.engines import DEVICE, ask, engine_of, greedy, model_of, prompts, run

pytestmark = pytest.mark.usefixtures("one_thread", "without_gradients")


class Seer:
    """
    Stands for the layer: knows the answers, if it was told all that leads up to them.

    Its pages hold the token that follows each; so what it was told, and where, is seen by whether
    its guesses come true.
    """

    def __init__(self, stack, answers, blocks, rate=0.25):
        self.stack = stack
        self.asked = 0
        self._wholes = [[*prompt, *answer] for prompt, answer in answers]
        self._pages = [-1] * (blocks * BLOCK_TOKENS)
        self._rate = rate
        self._made = random.Random(0)
        self._table = None

    def states(self, hidden, ids, step, cache, shown=None):
        assert hidden.shape == (len(ids), 64)
        assert len(step.slots) == len(ids)
        for slot, token in zip(step.slots.tolist(), ids.tolist(), strict=True):
            self._pages[slot] = token
        self._table = step.table
        owners = torch.zeros_like(ids)
        start = 0
        for row, count in zip(step.rows.tolist(), step.counts, strict=True):
            owners[start : start + count] = row
            start += count
        return torch.stack([owners, step.positions], 1).float().repeat(1, 32)

    def logits(self, states):
        out = torch.zeros(len(states), 300)
        for line, (row, place) in enumerate(states[:, :2].long().tolist()):
            if row == 0:
                continue
            self.asked += 1
            table = self._table[row].tolist()
            slots = [
                table[n // BLOCK_TOKENS] * BLOCK_TOKENS + n % BLOCK_TOKENS for n in range(place)
            ]
            told = [self._pages[slot] for slot in slots]
            out[line, self._next(told, place)] = 1.0
        return out

    def _next(self, told, place):
        """Return what comes two after *place*; the last of a shared block is another's to know."""
        for whole in self._wholes:
            pairs = list(enumerate(zip(told, whole[1:], strict=False)))
            if len(whole) > place + 2 and all(
                a == b or n % BLOCK_TOKENS == BLOCK_TOKENS - 1 for n, (a, b) in pairs
            ):
                token = whole[place + 2]
                return token if self._made.random() > self._rate else (token + 1) % 300
        return 0


@pytest.fixture(scope="module")
def hybrid():
    return model_of("qwen3_5_text")


def seeing(module, answers, *, blocks=200, rate=0.25, **more):
    stack = Stack(module, kernels_for(DEVICE))
    seer = Seer(stack, answers, blocks, rate)
    return engine_of(module, body=stack, mtp=seer, blocks=blocks, **more), seer


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "ahead"])
@pytest.mark.parametrize("blocks", [200, 22])
@pytest.mark.timeout(120)
def test_what_it_foresees_changes_no_answer(hybrid, runs_ahead, blocks):
    asked = prompts(6, seed=3, shared=20)
    answers = [(prompt, greedy(hybrid, prompt, 24 + n)) for n, prompt in enumerate(asked)]
    engine, _ = seeing(hybrid, answers, blocks=blocks, budget_tokens=40, runs_ahead=runs_ahead)

    jobs = [ask(str(n), prompt, 24 + n) for n, prompt in enumerate(asked)]
    said, _ = run(engine, jobs)
    again, _ = run(engine, jobs)

    assert said == again == {str(n): answer for n, (_, answer) in enumerate(answers)}
    plan = engine.scheduler
    plan.check()
    assert bool(plan.preemptions) == (blocks == 22)
    assert plan.accepted_tokens > 0.3 * plan.drafted_tokens > 50


@pytest.mark.parametrize("draft_tokens", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 40, 90])
def test_what_is_always_right_comes_true(hybrid, draft_tokens, length):
    prompt = [3 + (7 * n) % 290 for n in range(length)]
    answer = greedy(hybrid, prompt, 30)
    engine, seer = seeing(
        hybrid, [(prompt, answer)], rate=0.0, draft_tokens=draft_tokens, budget_tokens=24
    )

    said, _ = run(engine, [ask("r", prompt, 30)])

    assert said["r"] == answer
    assert engine.scheduler.accepted_tokens == engine.scheduler.drafted_tokens
    steps = -(-29 // (1 + draft_tokens))  # and the last draft is not counted
    assert engine.scheduler.accepted_tokens >= 29 - steps - draft_tokens
    assert seer.asked


def test_what_comes_true_is_foreseen_on_from_there_beside_others(hybrid):
    asked = prompts(3, seed=8)
    answers = [(prompt, greedy(hybrid, prompt, 30)) for prompt in asked]
    engine, _ = seeing(hybrid, answers, rate=0.5)
    jobs = [ask(str(n), prompt, 30) for n, prompt in enumerate(asked)]

    engine.add(jobs[0])
    said = {}
    for step in range(300):
        if step == 4:
            engine.add(jobs[1])
        if step == 6:  # one without drafts
            engine.add(ask("2", asked[2], 30, logit_bias={299: -1.0}))
        for token in engine.step()[0]:
            said.setdefault(token.request, []).append(token.id)
        if not engine.has_work and step > 6:
            break

    assert [said["0"], said["1"]] == [answer for _, answer in answers[:2]]
    assert len(said["2"]) == 30
    assert 0.2 < engine.scheduler.accepted_tokens / engine.scheduler.drafted_tokens < 0.7
