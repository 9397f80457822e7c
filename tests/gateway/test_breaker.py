"""A node that fails is left alone for longer each time, and let back in one request at a time."""

from __future__ import annotations

import pytest

from cortex.gateway.breaker import FAILURES, LONGEST_S, Breaker, RetryBudget


def opened(times: int = 1) -> tuple[Breaker, float]:
    """Return a breaker that has opened so often, and when it did last."""
    breaker, now = Breaker(), 0.0
    for _ in range(FAILURES - 1):
        breaker.opens(now)
    for number in range(times):
        now += number * LONGEST_S
        assert breaker.opens(now)
    return breaker, now


def test_it_takes_five_failures_in_a_row():
    breaker = Breaker()
    assert [breaker.opens(0.0) for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]

    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.opens(0.0)
    breaker.closes()
    assert not breaker.opens(0.0)


@pytest.mark.parametrize(("times", "pause_s"), [(1, 1), (2, 2), (3, 4), (9, LONGEST_S)])
def test_each_failure_after_that_doubles_the_pause(times, pause_s):
    breaker, since = opened(times)

    assert breaker.is_open(since + pause_s - 0.01)
    assert not breaker.is_open(since + pause_s)
    assert not breaker.is_closed  # one request at a time


def test_what_was_under_way_when_it_opened_does_not_lengthen_the_pause():
    breaker, since = opened()

    assert not any(breaker.opens(since + 0.1) for _ in range(50))
    assert not breaker.is_open(since + 1)


def test_an_answer_forgets_it_all():
    breaker, _ = opened(9)
    breaker.closes()

    assert breaker.is_closed
    assert not breaker.is_open(0.0)


def test_retries_are_a_fifth_of_the_traffic_or_ten():
    budget = RetryBudget()
    retries = 0
    for requests in range(1, 1001):
        budget.request()
        retries += budget.take()
        assert retries <= max(10, 0.2 * requests)

    assert retries == pytest.approx(200, abs=2)


def test_a_little_may_always_be_tried_again():
    budget = RetryBudget(reserve=3.0)

    assert [budget.take() for _ in range(5)] == [True, True, True, False, False]


def test_what_is_not_used_is_saved_for_a_node_that_dies_with_all_it_had():
    budget = RetryBudget(most=30.0)
    for _ in range(10_000):
        budget.request()

    assert sum(budget.take() for _ in range(100)) == 30
