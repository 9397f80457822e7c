"""Speculation by a model's own layer: what it is told, where its guesses are tried."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from cortex.neuron.engine.blocks import BLOCK_TOKENS
from cortex.neuron.engine.kernels import kernels_for
from cortex.neuron.engine.sampler import mix
from cortex.neuron.engine.stack import Stack
from tests.neuron.engine.engines import (
    DEVICE,
    ask,
    engine_of,
    greedy,
    model_of,
    prompts,
    run,
    stepped,
)

pytestmark = pytest.mark.usefixtures("one_thread", "without_gradients")


class Seer:
    """
    Stands for the layer: knows the answers, if it was told all that leads up to them.

    Its pages hold the token that follows each; so what it was told, and where, is seen by whether
    its guesses come true.  Like the layer it asks the host for nothing: a graph is made of it.
    """

    def __init__(self, stack, answers, blocks, rate=0.25):
        wholes = [torch.tensor([*prompt, *answer], device=DEVICE) for prompt, answer in answers]
        self.stack = stack
        self._wholes = pad_sequence(wholes, batch_first=True, padding_value=-2)
        self._lengths = torch.tensor([len(whole) for whole in wholes], device=DEVICE)
        self._pages = torch.full((blocks * BLOCK_TOKENS,), -1, device=DEVICE)
        self._rate = rate
        self._table = None

    def states(self, hidden, ids, step, cache, shown=None):
        assert hidden.shape == (len(ids), 64)
        assert len(step.slots) == len(ids)
        self._pages[step.slots] = ids
        self._table = step.table
        owners = torch.zeros_like(ids)
        owners[: step.decodes] = step.rows[: step.decodes]
        if step.tiles is not None:
            rows, firsts, counts, _ = step.tiles.T
            since = torch.arange(len(ids), device=DEVICE)[:, None] - firsts
            owners += ((since >= 0) & (since < counts)).mul(rows).sum(1)
        return torch.stack([owners, step.positions], 1).float().repeat(1, 32)

    def logits(self, states):
        rows, places = states[:, :2].long().T
        at = torch.arange(self._wholes.shape[1] - 1, device=DEVICE)
        blocks = self._table[rows][:, at // BLOCK_TOKENS].long()
        told = self._pages[blocks * BLOCK_TOKENS + at % BLOCK_TOKENS]
        out = torch.zeros(len(states), 300, device=DEVICE)
        return out.scatter_(1, (self._next(told, places) * (rows > 0))[:, None], 1.0)

    def _next(self, told, places):
        """Return what comes two after *places*; the last of a shared block is another's to know."""
        at = torch.arange(told.shape[1], device=DEVICE)
        is_open = (at >= places[:, None]) | (at % BLOCK_TOKENS == BLOCK_TOKENS - 1)
        is_known = (told[:, None] == self._wholes[:, 1:]) | is_open[:, None]
        fits = is_known.all(2) & (self._lengths > places[:, None] + 2)  # [places, answers]
        following = self._wholes[:, (places + 2).clamp(max=len(at))].T
        tokens = following.gather(1, fits.int().argmax(1, keepdim=True))[:, 0]
        is_wrong = mix(300 * places + tokens) < self._rate * 2**32
        return torch.where(fits.any(1), (tokens + is_wrong) % 300, 0)


@pytest.fixture(scope="module")
def hybrid():
    return model_of("qwen3_5_text")


def seeing(module, answers, *, blocks=200, rate=0.25, **more):
    stack = Stack(module, kernels_for(DEVICE))
    seer = Seer(stack, answers, blocks, rate)
    return engine_of(module, body=stack, mtp=seer, blocks=blocks, **more)


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "ahead"])
@pytest.mark.parametrize("blocks", [200, 22])
@pytest.mark.timeout(120)
def test_what_it_foresees_changes_no_answer(hybrid, runs_ahead, blocks):
    asked = prompts(6, seed=3, shared=20)
    answers = [(prompt, greedy(hybrid, prompt, 24 + n)) for n, prompt in enumerate(asked)]
    engine = seeing(hybrid, answers, blocks=blocks, budget_tokens=40, runs_ahead=runs_ahead)

    jobs = [ask(str(n), prompt, 24 + n) for n, prompt in enumerate(asked)]
    said, _ = run(engine, jobs)
    again, _ = run(engine, jobs)

    assert said == again == {str(n): answer for n, (_, answer) in enumerate(answers)}
    plan = engine.scheduler
    plan.check()
    assert bool(plan.preemptions) == (blocks == 22)
    assert plan.accepted_tokens > 0.3 * plan.drafted_tokens > 50
    graphs = engine._runner._graphs
    assert graphs is None or graphs._captures  # of what it foresees as well


@pytest.mark.parametrize("draft_tokens", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 40, 90])
def test_what_is_always_right_comes_true(hybrid, draft_tokens, length):
    prompt = [3 + (7 * n) % 290 for n in range(length)]
    answer = greedy(hybrid, prompt, 30)
    told = [(prompt, answer)]
    engine = seeing(hybrid, told, rate=0.0, draft_tokens=draft_tokens, budget_tokens=24)

    said, _ = run(engine, [ask("r", prompt, 30)])

    assert said["r"] == answer
    assert engine.scheduler.accepted_tokens == engine.scheduler.drafted_tokens
    steps = -(-29 // (1 + draft_tokens))  # and the last draft is not counted
    assert engine.scheduler.accepted_tokens >= 29 - steps - draft_tokens


def test_a_prompt_that_comes_by_one_token_beside_others_is_foreseen_when_it_is_through(hybrid):
    asked = [[5 + 7 * n % 290 for n in range(16)], [9 + 11 * n % 290 for n in range(30)]]
    answers = [(prompt, greedy(hybrid, prompt, 20)) for prompt in asked]
    engine = seeing(hybrid, answers, rate=0.0, budget_tokens=17)

    said, _ = run(engine, [ask(str(n), prompt, 20) for n, prompt in enumerate(asked)])

    assert said == {str(n): answer for n, (_, answer) in enumerate(answers)}
    assert engine.scheduler.accepted_tokens == engine.scheduler.drafted_tokens > 20


def test_what_comes_true_is_foreseen_on_from_there_beside_others(hybrid):
    asked = prompts(3, seed=8)
    answers = [(prompt, greedy(hybrid, prompt, 30)) for prompt in asked]
    engine = seeing(hybrid, answers, rate=0.25)
    jobs = [ask(str(n), prompt, 30) for n, prompt in enumerate(asked)]

    engine.add(jobs[0])
    said = {}
    for step in range(300):
        if step == 4:
            engine.add(jobs[1])
        if step == 6:  # one without drafts
            engine.add(ask("2", asked[2], 30, logit_bias={299: -1.0}))
        for token in stepped(engine)[0]:
            said.setdefault(token.request, []).append(token.id)
        if not engine.has_work and step > 6:
            break

    assert [said["0"], said["1"]] == [answer for _, answer in answers[:2]]
    assert len(said["2"]) == 30
    assert 0.2 < engine.scheduler.accepted_tokens / engine.scheduler.drafted_tokens < 0.7
