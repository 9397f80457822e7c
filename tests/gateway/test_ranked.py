"""Things in the order of a number each has, against sorting them anew."""

from __future__ import annotations

import random

from cortex.gateway.ranked import Ranked


def test_it_is_what_sorting_everything_would_give():
    dice, ranked, numbers = random.Random(0), Ranked(), {}

    for _ in range(2_000):
        name, number = f"n{dice.randrange(50)}", dice.randrange(-5, 20)
        numbers[name] = number
        ranked.put(name, number, name.upper())
        least = dice.randrange(-6, 22)
        expected = sorted((n, name) for name, n in numbers.items() if n >= least)
        assert ranked.with_at_least(least) == [name.upper() for _, name in expected]
