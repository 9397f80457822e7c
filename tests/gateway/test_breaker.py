"""A node that fails is left alone for longer each time, and let back in one request at a time."""

from __future__ import annotations

import pytest

from cortex.gateway.breaker import FAILURES, LONGEST_S, Breaker, RetryBudget


def opened(times: int = 1) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES - 1 + times):
        breaker.opens(0.0)
    return breaker


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
    breaker = opened(times)

    assert breaker.is_open(pause_s - 0.01)
    assert not breaker.is_open(pause_s)
    assert not breaker.is_closed  # one request at a time


def test_an_answer_forgets_it_all():
    breaker = opened(9)
    breaker.closes()

    assert breaker.is_closed
    assert not breaker.is_open(0.0)


def test_retries_are_a_fifth_of_the_traffic():
    budget = RetryBudget(reserve=0.0)
    budget._most = 10.0
    tries = 0
    for _ in range(1000):
        budget.request()
        tries += budget.take()

    assert tries == pytest.approx(200, abs=1)


def test_a_little_may_always_be_tried_again():
    budget = RetryBudget(reserve=3.0)

    assert [budget.take() for _ in range(5)] == [True, True, True, False, False]
