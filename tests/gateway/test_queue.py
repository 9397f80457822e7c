"""Who is next: everybody gets a fair share, and nobody waits for ever."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.errors import QueueFull
from cortex.fleet.model import ModelSpec
from cortex.gateway.queue import AGEING_S, Queue, Queues, Ticket

SPEC = ModelSpec(id="m")


def queue(*tickets: Ticket, max_depth: int = 10_000) -> Queue[Ticket]:
    made: Queue[Ticket] = Queue(SPEC, max_depth)
    for ticket in tickets:
        made.join(ticket)
    return made


def served(waiting: Queue[Ticket], count: int, now: float = 0.0) -> list[Ticket]:
    out = []
    for _ in range(count):
        ticket = waiting.next(now)
        assert ticket is not None
        waiting.take(ticket)
        out.append(ticket)
    return out


def test_one_principal_goes_first_come_first_served():
    tickets = [Ticket(since=float(number)) for number in range(5)]

    assert served(queue(*tickets), 5) == tickets


def test_a_thousand_requests_of_one_delay_another_by_one_turn():
    many = [Ticket(principal="batch", since=0.0) for _ in range(1000)]
    waiting = queue(*many)
    served(waiting, 10)
    one = Ticket(principal="person", since=1.0)
    waiting.join(one)

    assert one in served(waiting, 2)


def test_shares_follow_the_weights():
    heavy = [Ticket(principal="heavy", since=0.0, weight=3.0) for _ in range(300)]
    light = [Ticket(principal="light", since=0.0) for _ in range(300)]

    count = Counter(ticket.principal for ticket in served(queue(*heavy, *light), 100))

    assert count["heavy"] == pytest.approx(75, abs=1)


def test_a_dear_request_takes_more_of_its_principals_turn():
    dear = [Ticket(principal="dear", since=0.0, cost=10.0) for _ in range(50)]
    cheap = [Ticket(principal="cheap", since=0.0) for _ in range(50)]

    count = Counter(ticket.principal for ticket in served(queue(*dear, *cheap), 44))

    assert count["dear"] == pytest.approx(4, abs=1)


def test_a_higher_priority_goes_first_until_a_lower_one_has_waited():
    low = Ticket(principal="a", priority=0, since=0.0)
    early = Ticket(principal="b", priority=1, since=0.0)
    late = Ticket(principal="b", priority=1, since=2 * AGEING_S)

    assert served(queue(low, early), 1, now=AGEING_S / 2) == [early]
    assert served(queue(low, late), 1, now=2 * AGEING_S) == [low]


def test_a_position_counts_who_goes_first():
    waiting = queue(*(Ticket(principal="a", since=0.0) for _ in range(3)))
    late = Ticket(principal="b", since=1.0)
    waiting.join(late)

    assert waiting.position(late, 1.0) == 2


def test_a_full_queue_says_how_many_wait():
    waiting = queue(Ticket(since=0.0), Ticket(since=0.0), max_depth=2)

    with pytest.raises(QueueFull, match="2 requests wait for m already") as caught:
        waiting.join(Ticket(since=0.0))

    assert caught.value.details == {"position": 3}
    assert len(waiting) == 2


joins = st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.floats(0.1, 10))


@given(st.lists(st.one_of(joins, st.just("next"), st.integers(0, 20)), max_size=80))
def test_what_joins_leaves_once_and_the_length_is_true(steps):
    waiting, inside, now = queue(), [], 0.0
    for step in steps:
        now += 1.0
        match step:
            case (name, priority, cost):
                ticket = Ticket(principal=name, priority=priority, cost=cost, since=now)
                waiting.join(ticket)
                inside.append(ticket)
            case "next":
                ticket = waiting.next(now)
                assert (ticket is None) == (not inside)
                if ticket is not None:
                    waiting.take(ticket)
                    inside.remove(ticket)
            case number if number < len(inside):
                ticket = inside.pop(number)
                waiting.leave(ticket)
                waiting.leave(ticket)
        assert len(waiting) == len(inside)
        assert set(waiting) == set(inside)


def test_an_empty_queue_is_forgotten():
    queues: Queues[Ticket] = Queues(max_depth=3)
    ticket = Ticket(since=0.0)
    waiting = queues.join(SPEC, ticket)
    assert "m" in queues
    assert queues.length("m") == 1

    queues.leave(waiting, ticket)

    assert "m" not in queues
    assert queues.length("m") == 0
