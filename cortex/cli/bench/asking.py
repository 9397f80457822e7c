"""
Puts a load on an endpoint: clients that ask one request after the other, or arrivals.

With a rate a request begins when it is due, not when we come to send it: what we are late counts.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count, takewhile
from secrets import token_hex
from time import perf_counter, process_time

import aiohttp
import attrs

from cortex.cli.bench.answer import OK, Answer, told
from cortex.cli.bench.figures import Report, Row, row_of
from cortex.cli.bench.progress import Bar, bars
from cortex.cli.bench.workload import Workload
from cortex.cli.client import MAX_ERROR_BYTES, SILENCE_S, UNAUTHORIZED, Gateway
from cortex.errors import CortexError

CONNECT_S = 30.0
PAUSE_S = 0.1  # of a client that was refused, which would do nothing else but ask
Ask = Callable[[int, float], Awaitable[Answer]]


@attrs.frozen(kw_only=True)
class Load:
    """What a row stands for: so many clients, or requests a second."""

    concurrency: int | None = None
    rate: float | None = None


@attrs.frozen(kw_only=True)
class Limits:
    """How long a row goes on, and what goes before it; at least one of the first two is set."""

    requests: int | None
    seconds: float | None
    warm_up: int

    def numbers(self, began_s: float) -> Iterator[int]:
        """Yield the numbers of the requests to begin, until it is enough."""
        numbers = count() if self.requests is None else iter(range(self.requests))
        if self.seconds is None:
            return numbers
        end_s = began_s + self.seconds
        return takewhile(lambda _: perf_counter() < end_s, numbers)


async def measure(
    gateway: Gateway, workload: Workload, loads: Sequence[Load], limits: Limits
) -> Report:
    """
    Measure each load, one after the other.

    Raises:
        CortexError: A warm-up failed; what comes later is counted.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    rows = []
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers={**gateway.headers, "Accept-Encoding": "identity"},
        timeout=timeout,
        trust_env=not gateway.is_loopback,
    ) as session:
        asking = Asking(session, gateway.url + workload.path, workload)
        with bars() as start:
            for load in loads:
                await asking.warm_up(limits.warm_up, load)
                rows.append(await asking.row(load, limits, start(load, limits)))
    return Report(endpoint=gateway.url, when=when, workload=workload, rows=tuple(rows))


class Asking:
    """Asks one endpoint."""

    def __init__(self, session: aiohttp.ClientSession, url: str, workload: Workload) -> None:
        self._session = session
        self._url = url
        self._workload = workload
        self._answers: list[Answer] = []

    async def warm_up(self, requests: int, load: Load) -> None:
        """Ask some that do not count, as many at once as will be."""
        self._answers = []
        await closed(self._ask, min(load.concurrency or 1, requests), iter(range(requests)))
        for answer in self._answers:
            if answer.error is not None:
                hint = "give a key with --key" if answer.error == f"http_{UNAUTHORIZED}" else ""
                what = f"the warm-up failed with {answer.error}: {answer.message}"
                raise CortexError(what, hint=hint)

    async def row(self, load: Load, limits: Limits, bar: Bar) -> Row:
        """Measure one load."""
        answers: list[Answer] = []
        self._answers = answers
        cpu_s, began_s = process_time(), perf_counter()
        numbers = limits.numbers(began_s)
        async with shown(bar, answers, began_s):
            if load.rate is not None:
                await arriving(self._ask, self._workload.arrivals().expovariate, load.rate, numbers)
            else:
                await closed(self._ask, load.concurrency or 1, numbers)
        took_s = perf_counter() - began_s
        return row_of(load.concurrency, load.rate, answers, took_s, process_time() - cpu_s)

    async def _ask(self, number: int, began_s: float) -> Answer:
        asked = self._workload.request(number, token_hex(4))
        answer = Answer(began_s=began_s, asked_tokens=asked.output_tokens)
        self._answers.append(answer)
        try:
            async with self._session.post(
                self._url, data=asked.body, allow_redirects=False
            ) as response:
                if response.status != OK:
                    said = await response.content.read(MAX_ERROR_BYTES)
                    answer.fail(*refusal(said, response.status), perf_counter())
                    return answer
                async for data in response.content.iter_any():
                    answer.feed(data, perf_counter())
            answer.finish(perf_counter())
        except TimeoutError:
            answer.fail("timeout", f"silent for {SILENCE_S:g} s", perf_counter())
        except aiohttp.ClientConnectorError as error:
            answer.fail("unreachable", str(error), perf_counter())
        except (aiohttp.ClientError, OSError) as error:
            answer.fail("cut_off", f"{type(error).__name__}: {error}", perf_counter())
        return answer


async def closed(ask: Ask, clients: int, numbers: Iterator[int]) -> None:
    """Have *clients* ask, each its next request when it has its answer."""

    async def client() -> None:
        for number in numbers:
            answer = await ask(number, perf_counter())
            if answer.error is not None:
                await asyncio.sleep(PAUSE_S)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(client())


async def arriving(
    ask: Ask, pause_s: Callable[[float], float], rate: float, numbers: Iterator[int]
) -> None:
    """Ask *rate* a second whatever comes back, after pauses that chance decides."""
    due_s = perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in numbers:
            await asyncio.sleep(max(0.0, due_s - perf_counter()))
            tasks.create_task(_asked(ask, number, due_s))
            due_s += pause_s(rate)


async def _asked(ask: Ask, number: int, due_s: float) -> None:
    await ask(number, due_s)


@asynccontextmanager
async def shown(bar: Bar, answers: list[Answer], began_s: float) -> AsyncIterator[None]:
    """Keep *bar* up to date while inside."""

    async def watch() -> None:
        while True:
            bar.show(answers, perf_counter() - began_s)
            await asyncio.sleep(bar.every_s)

    watching = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        watching.cancel()
        bar.show(answers, perf_counter() - began_s)


def refusal(body: bytes, status: int) -> tuple[str, str]:
    """Return the code and the message of an answer that is none."""
    try:
        said = json.loads(body)
    except ValueError:
        return f"http_{status}", body.decode("utf-8", "replace")[:200] or f"status {status}"
    return told(said.get("error", said) if isinstance(said, dict) else said, status)
