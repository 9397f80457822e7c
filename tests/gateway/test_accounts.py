"""Limits of a principal hold at any order of events, and nothing of a request is left behind."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cortex.errors import InsufficientQuota, RateLimited
from cortex.fleet.model import RequestRecord
from cortex.fleet.principal import Principal
from cortex.gateway.accounts import Accounts
from cortex.gateway.ledger import DAY_S, Ledger

DAY = 20_000  # since 1970


class Clock:
    def __init__(self) -> None:
        self.now, self.wall = 1000.0, DAY * DAY_S

    def goes_on(self, seconds: float) -> None:
        self.now, self.wall = self.now + seconds, self.wall + seconds


def accounts(clock: Clock) -> Accounts:
    return Accounts(Ledger(None), lambda: clock.now, lambda: clock.wall)


def record(tokens: int = 0, operation: str = "chat") -> RequestRecord:
    return RequestRecord(
        id="r",
        model="m",
        node="n",
        dialect="d",
        operation=operation,
        status=200,
        outcome="ok",
        ttft_s=None,
        duration_s=0.0,
        prompt_tokens=tokens // 2,
        completion_tokens=tokens - tokens // 2,
    )


def refusal(known: Accounts, principal: Principal) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        known.enter(principal)
    return caught.value


class Traffic(RuleBasedStateMachine):
    """Requests come, end and are refused while time goes by and limits change."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.accounts = accounts(self.clock)
        self.limits = Principal(name="zed", max_concurrency=3, requests_per_minute=5)
        self.open: list = []
        self.let_in: list[float] = []
        self.highest = 5

    @rule()
    def comes(self) -> None:
        full = len(self.open) >= self.limits.max_concurrency
        reached = None
        try:
            self.open.append(self.accounts.enter(self.limits))
            self.let_in.append(self.clock.now)
        except RateLimited as error:
            reached = error.details["limit"]
        assert full == (reached == "max_concurrency")

    @rule(tokens=st.integers(0, 100))
    def ends(self, tokens: int) -> None:
        if self.open:
            self.accounts.leave(self.open.pop(), record(tokens))

    @rule(seconds=st.floats(0.001, 40))
    def time_goes_by(self, seconds: float) -> None:
        self.clock.goes_on(seconds)

    @rule(concurrency=st.integers(1, 5), rate=st.integers(1, 9))
    def limits_change(self, concurrency: int, rate: int) -> None:
        self.limits = attrs.evolve(
            self.limits, max_concurrency=concurrency, requests_per_minute=rate
        )
        self.highest = max(self.highest, rate)

    @invariant()
    def what_is_open_is_counted(self) -> None:
        assert all(account.in_flight == len(self.open) for account in self.open)

    @invariant()
    def no_minute_sees_more_than_two_buckets(self) -> None:
        lately = [when for when in self.let_in if when > self.clock.now - 60]
        assert len(lately) <= 2 * self.highest


TestTraffic = Traffic.TestCase


def test_a_refused_request_costs_nothing():
    clock = Clock()
    known = accounts(clock)
    zed = Principal(name="zed", requests_per_minute=60, max_concurrency=1)
    account = known.enter(zed)
    for _ in range(100):
        refusal(known, zed)
    known.leave(account, record())
    assert (account.in_flight, account.requests.level) == (0, 59)


def test_tokens_are_charged_at_the_end_and_owed_ones_keep_the_next_out():
    clock = Clock()
    known = accounts(clock)
    zed = Principal(name="zed", tokens_per_minute=600)
    known.leave(known.enter(zed), record(1_199))
    error = refusal(known, zed)
    assert (error.details["limit"], round(error.retry_after_s)) == ("tokens_per_minute", 60)
    clock.goes_on(error.retry_after_s)
    known.enter(zed)


def test_to_count_a_prompt_costs_no_tokens():
    clock = Clock()
    known = accounts(clock)
    zed = Principal(name="zed", tokens_per_minute=1, budget_tokens=1)
    for _ in range(3):
        known.leave(known.enter(zed), record(1_000, "count"))


def test_a_spent_budget_opens_on_the_day_the_old_days_count_no_more():
    clock = Clock()
    known = accounts(clock)
    zed = Principal(name="zed", budget_tokens=100, budget_days=3)
    for tokens in (60, 30, 20):  # days 0, 1, 2
        known.leave(known.enter(zed), record(tokens))
        clock.goes_on(DAY_S)
    clock.goes_on(-DAY_S + 3_600)  # day 2, one o'clock
    with pytest.raises(InsufficientQuota, match="has used 110 of its 100 tokens of 3 days") as no:
        known.enter(zed)
    assert no.value.retry_after_s == DAY_S - 3_600
    clock.goes_on(no.value.retry_after_s)
    known.enter(zed)


@given(
    st.integers(1, 500),
    st.integers(1, 10),
    st.lists(st.integers(0, 300), min_size=1, max_size=15),
)
def test_the_day_a_budget_names_is_the_first_that_lets_in(budget, days, tokens):
    clock = Clock()
    known = accounts(clock)
    zed = Principal(name="zed", budget_days=days)
    for used in tokens:
        known.leave(known.enter(zed), record(used))
        clock.goes_on(DAY_S)
    limited = attrs.evolve(zed, budget_tokens=budget)
    try:
        known.enter(limited)
    except InsufficientQuota as error:
        wait_s = error.retry_after_s
        if wait_s > DAY_S:
            clock.goes_on(wait_s - DAY_S)
            assert refusal(known, limited).retry_after_s == DAY_S
            clock.goes_on(DAY_S)
        else:
            clock.goes_on(wait_s)
        known.enter(limited)


def test_principals_do_not_share_and_all_who_are_anonymous_do():
    known = accounts(Clock())
    one, two = Principal(name="a", max_concurrency=1), Principal(name="b", max_concurrency=1)
    known.enter(one)
    known.enter(two)
    refusal(known, attrs.evolve(one))
