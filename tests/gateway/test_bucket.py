"""A bucket never gives more than its rate, whatever comes when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cortex.gateway.bucket import Bucket

RATES = st.integers(1, 100_000)
PAUSES = st.floats(0, 300)


@given(RATES, st.lists(PAUSES, max_size=60))
def test_no_stretch_of_time_sees_more_requests_than_the_rate_and_a_full_bucket(rate, pauses):
    bucket, now, let_in = Bucket.full(rate, 0.0), 0.0, []
    for pause in pauses:
        now += pause
        while len(let_in) < 200 and not bucket.wait_s(1, now):
            bucket.take(1, now)
            let_in.append(now)
    for first, since in enumerate(let_in):
        for last in range(first, len(let_in)):
            assert last - first + 1 <= rate + (let_in[last] - since) * rate / 60 + 1e-6


@given(RATES, st.lists(st.tuples(PAUSES, st.integers(0, 100_000)), max_size=40))
def test_what_is_used_is_over_the_rate_by_no_more_than_the_last_request(rate, uses):
    bucket, now, used, largest = Bucket.full(rate, 0.0), 0.0, 0, 0
    for pause, amount in uses:
        now += pause
        if not bucket.wait_s(1, now):
            bucket.take(amount, now)
            used, largest = used + amount, max(largest, amount)
            assert used <= rate + now * rate / 60 + largest + 1e-6


@given(RATES, st.integers(0, 1_000_000), PAUSES)
def test_after_the_wait_it_names_it_lets_in_and_not_before(rate, taken, pause):
    bucket = Bucket.full(rate, 0.0)
    bucket.take(taken, 0.0)
    wait_s = bucket.wait_s(1, pause)
    if wait_s > 1e-6:
        assert bucket.wait_s(1, pause + wait_s * 0.99) > 0
    assert bucket.wait_s(1, pause + wait_s) < 1e-6


@given(RATES, RATES, st.integers(0, 1_000_000))
def test_a_new_rate_gives_nothing_away_and_forgives_nothing(old, new, taken):
    bucket = Bucket.full(old, 0.0)
    bucket.take(taken, 0.0)
    resized = bucket.resized(new, 0.0)
    assert resized.level == min(old - taken, new)


def test_a_clock_that_stands_still_or_goes_back_gives_nothing():
    bucket = Bucket.full(60, 100.0)
    bucket.take(60, 100.0)
    assert bucket.wait_s(1, 100.0) == 1.0
    assert bucket.wait_s(1, 50.0) == 1.0
    assert bucket.wait_s(1, 101.0) == 0.0
