"""Who runs next: higher priorities first, principals in turn, nobody for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cortex.neuron.engine.blocks import BLOCK_TOKENS, Blocks
from cortex.neuron.engine.jobs import Generate
from cortex.neuron.engine.scheduler import Scheduler
from cortex.neuron.engine.sequence import Sequence
from cortex.neuron.engine.waiting import AGEING_S


def sequence(name, principal="", *, tokens=8, count=4, at=0.0, **more):
    """Return a sequence whose prompt is like no other's."""
    prompt = [1000 * (hash(name) % 100_000) + n for n in range(tokens)]
    job = Generate(id=name, model="m", prompt=prompt, max_tokens=count, principal=principal, **more)
    return Sequence(job, received=at)


def scheduler_of(*sequences, blocks=1000, rows=1, budget_tokens=10_000):
    scheduler = Scheduler(Blocks(blocks), rows=rows, budget_tokens=budget_tokens)
    for made in sequences:
        scheduler.add(made)
    return scheduler


def step(scheduler, now=0.0, *, whole=False):
    """Compute what is planned; returns who had a part. Answers end at once if *whole*."""
    chunks = scheduler.plan(now)
    samplers = [chunk.sequence for chunk in chunks if chunk.samples]
    scheduler.launched(chunks)
    for made in samplers:
        made.in_flight -= 1
        ended = made.take(7, frozenset()) and made.reason is not None
        if ended or whole:
            scheduler.remove(made)
        else:
            scheduler.keep(made)
    return [chunk.sequence.id for chunk in chunks]


def order(scheduler, now=0.0):
    """Return everybody, in the order they came to run; one row, answers of one token."""
    names = []
    while scheduler.waiting:
        names += (ran := step(scheduler, now, whole=True))
        assert ran
    return names


def test_a_higher_priority_goes_first_and_within_one_who_came_first():
    made = [sequence(str(n), at=n / 100, priority=p) for n, p in enumerate([0, 5, 0, -1, 5])]
    assert order(scheduler_of(*made)) == ["1", "4", "0", "2", "3"]


def test_a_hundred_prompts_of_one_delay_the_first_of_another_by_one():
    scheduler = scheduler_of(*(sequence(f"a{n}", "a") for n in range(100)))
    step(scheduler, whole=True)
    scheduler.add(sequence("b", "b"))
    scheduler.add(sequence("c", "c"))
    assert set(order(scheduler)[:3]) == {"a1", "b", "c"}


def test_who_gave_its_place_back_goes_before_new_ones_of_its_priority_and_not_before_higher():
    scheduler = scheduler_of(sequence("young", at=2.0), sequence("old", at=1.0), rows=2)
    step(scheduler)
    new, urgent = sequence("new", at=0.0), sequence("urgent", at=3.0, priority=1)
    scheduler.add(new)
    scheduler.add(urgent)
    for made in list(scheduler.running.values()):
        scheduler._preempt(made)
    scheduler._rows = [1]
    assert order(scheduler, now=4.0) == ["urgent", "old", "young", "new"]


def test_whoever_ranks_lowest_gives_its_blocks_and_of_those_the_youngest():
    ranks = {"low-old": 0, "high-old": 1, "low-young": 0, "high-young": 1}
    full = 2 * BLOCK_TOKENS  # its next token needs a block more
    made = [
        sequence(name, tokens=full, at=at, priority=rank)
        for at, (name, rank) in enumerate(ranks.items())
    ]
    scheduler = scheduler_of(*made, blocks=1 + 4 * 2 + 1, rows=4)
    assert len(step(scheduler)) == 4

    assert step(scheduler) == ["high-old", "high-young", "low-old"]
    assert [s.id for s in scheduler.waiting] == ["low-young"]


@given(
    st.lists(st.integers(1, 400), min_size=30, max_size=60),
    st.lists(st.integers(1, 400), min_size=30, max_size=60),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_two_that_have_much_to_ask_get_their_shares_to_within_a_prompt_of_each(one, other, weight):
    asked = {"one": one, "other": other}
    weights = {"one": 1.0, "other": weight}
    scheduler = scheduler_of(
        *(
            sequence(f"{name} {n}", name, tokens=tokens, weight=weights[name])
            for name, prompts in asked.items()
            for n, tokens in enumerate(prompts)
        )
    )
    got = dict.fromkeys(asked, 0.0)
    left = {name: len(prompts) for name, prompts in asked.items()}
    while all(left.values()):
        [served] = step(scheduler, whole=True)
        name, number = served.split()
        got[name] += asked[name][int(number)] / weights[name]
        left[name] -= 1
        bound = sum(max(prompts) / weights[name] for name, prompts in asked.items())
        assert abs(got["one"] - got["other"]) <= bound


@given(st.integers(1, 4), st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_nobody_starves_however_many_come_that_rank_higher(rank, principals):
    """Two of a higher rank come for each that can run, without end."""
    scheduler = scheduler_of(sequence("low", "low"))
    now, number = 0.0, 0
    while "low" in {s.id for s in scheduler.waiting}:
        for _ in range(2):
            who = f"p{principals[number % len(principals)]}"
            scheduler.add(sequence(str(number), who, at=now, priority=rank))
            number += 1
        step(scheduler, now, whole=True)
        now += 1.0
        # those that came before it ranked as high as they ever will, and no more than that
        assert now <= 2 * (rank + 1) * AGEING_S + 4


@given(
    st.lists(
        st.tuples(
            st.integers(1, 90), st.integers(1, 40), st.integers(0, 2), st.sampled_from("abc")
        ),
        min_size=1,
        max_size=25,
    ),
    st.integers(12, 40),
    st.integers(1, 6),
    st.integers(5, 100),
)
def test_everybody_ends_and_everything_is_given_back(asked, blocks, rows, budget_tokens):
    made = [
        sequence(str(n), who, tokens=tokens, count=count, at=n / 100, priority=rank)
        for n, (tokens, count, rank, who) in enumerate(asked)
    ]
    scheduler = scheduler_of(*made, blocks=blocks, rows=rows, budget_tokens=budget_tokens)
    now = 1.0
    while scheduler.waiting or scheduler.running:
        assert step(scheduler, now)
        scheduler.moved.clear()
        now += 0.01
    assert all(s.reason == "length" for s in made)
    assert not scheduler.blocks.used
    scheduler.check()
