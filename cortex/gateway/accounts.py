"""
What each principal has under way and has used, held against its limits.

Deciding is synchronous and does not wait.  A request's tokens are known at its end: it is let in
while its principal has any left, and what it took is charged then, so that a principal may owe
tokens, which keeps the next request out until they have come in.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, time

import attrs

from cortex.errors import InsufficientQuota, RateLimited
from cortex.fleet.model import RequestRecord
from cortex.fleet.principal import MAX_BUDGET_DAYS, Principal
from cortex.gateway.bucket import Bucket
from cortex.gateway.ledger import DAY_S, Ledger

SOON_S = 1.0  # when one of several requests under way may have ended


@attrs.define(eq=False)
class Account:
    """
    One principal's.

    Attributes:
        principal: As it was when it last asked: its limits may change.
        days: Tokens used, by day since 1970 in UTC.
        in_flight: Requests under way.
        window: The day up to which, and how many days, `spent` is about.
        spent: The tokens of those days.
    """

    principal: Principal
    days: dict[int, int]
    in_flight: int = 0
    requests: Bucket | None = None
    tokens: Bucket | None = None
    window: tuple[int, int] = (0, 0)
    spent: int = 0

    @classmethod
    def opened(cls, principal: Principal, days: dict[int, int], now: float) -> Account:
        account = cls(principal, days)
        account.adopt(principal, now)
        return account

    def adopt(self, principal: Principal, now: float) -> None:
        """Go by the limits of *principal* from now on."""
        self.principal = principal
        self.requests = _resized(self.requests, principal.requests_per_minute, now)
        self.tokens = _resized(self.tokens, principal.tokens_per_minute, now)

    def enter(self, now: float, wall: float) -> None:
        """
        Let a request in.

        Args:
            now: Monotonic seconds.
            wall: Unix seconds.

        Raises:
            RateLimited: Too many are under way, or came within a minute, or took many tokens.
            InsufficientQuota: The budget is spent.
        """
        limits = self.principal
        if limits.max_concurrency is not None and self.in_flight >= limits.max_concurrency:
            what = f"has {self.in_flight} requests under way, as many as it may"
            raise self._refusal("max_concurrency", what, SOON_S)
        if self.requests is not None and (wait_s := self.requests.wait_s(1, now)):
            what = f"may send {limits.requests_per_minute} requests a minute"
            raise self._refusal("requests_per_minute", what, wait_s)
        if self.tokens is not None and (wait_s := self.tokens.wait_s(1, now)):
            what = f"may use {limits.tokens_per_minute} tokens a minute"
            raise self._refusal("tokens_per_minute", what, wait_s)
        if limits.budget_tokens is not None:
            self._check_budget(limits.budget_tokens, limits.budget_days, wall)
        if self.requests is not None:
            self.requests.take(1, now)
        self.in_flight += 1

    def leave(self, tokens: int, now: float, wall: float) -> None:
        """Let a request go that was let in, and charge what it took."""
        self.in_flight -= 1
        if tokens:
            if self.tokens is not None:
                self.tokens.take(tokens, now)
            today = int(wall // DAY_S)
            self.days[today] = self.days.get(today, 0) + tokens
            if self.window[0] == today:
                self.spent += tokens
            if len(self.days) > MAX_BUDGET_DAYS:
                del self.days[min(self.days)]

    def _check_budget(self, budget: int, days: int, wall: float) -> None:
        today = int(wall // DAY_S)
        if self.window != (today, days):
            self.window, self.spent = (today, days), self._used_from(today - days + 1)
        if self.spent < budget:
            return
        opens = today + 1  # the day on which enough of the old days count no more
        while opens < today + days and self._used_from(opens - days + 1) >= budget:
            opens += 1
        raise InsufficientQuota(
            f"{self.principal.name} has used {self.spent} of its {budget} tokens of {days} days",
            retry_after_s=opens * DAY_S - wall,
            details={"limit": "budget_tokens", "used": self.spent},
        )

    def _used_from(self, first: int) -> int:
        return sum(tokens for day, tokens in self.days.items() if day >= first)

    def _refusal(self, limit: str, what: str, wait_s: float) -> RateLimited:
        return RateLimited(
            f"{self.principal.name} {what}", retry_after_s=wait_s, details={"limit": limit}
        )


def _resized(bucket: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
    if per_minute is None:
        return None
    return Bucket.full(per_minute, now) if bucket is None else bucket.resized(per_minute, now)


class Accounts:
    """The accounts of a gateway, by the name of their principal; *ledger* remembers them."""

    def __init__(
        self,
        ledger: Ledger,
        clock: Callable[[], float] = monotonic,
        wall: Callable[[], float] = time,
    ) -> None:
        self._ledger, self._clock, self._wall = ledger, clock, wall
        self._accounts: dict[str, Account] = {}

    def enter(self, principal: Principal) -> Account:
        """Let a request of *principal* in, or raise as `Account.enter`; `leave` has to follow."""
        now, wall = self._clock(), self._wall()
        account = self._accounts.get(principal.name)
        if account is None:
            days = self._ledger.days(principal.name, int(wall // DAY_S))
            account = self._accounts[principal.name] = Account.opened(principal, days, now)
        elif account.principal is not principal and account.principal != principal:
            account.adopt(principal, now)
        account.enter(now, wall)
        return account

    def leave(self, account: Account, record: RequestRecord) -> None:
        """Let a request go that `enter` let in."""
        if record.operation == "count":  # costs nothing
            record = attrs.evolve(record, prompt_tokens=0, completion_tokens=0)
        wall = self._wall()
        account.leave(record.prompt_tokens + record.completion_tokens, self._clock(), wall)
        self._ledger.add(record, int(wall // DAY_S))
