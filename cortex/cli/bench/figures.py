"""
What was measured: rows of figures, and the file they are kept in.

TTFT, ITL, TPOT and E2EL are what vLLM's ``bench serve`` calls by these names, but that an event
without text is no token; percentiles are interpolated between the two nearest values.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import msgspec

from cortex.cli.bench.answer import Answer
from cortex.cli.bench.workload import Workload
from cortex.config.mistakes import cause
from cortex.errors import CortexError

BUSY = 0.85  # of a core: above, what we measure may be ourselves


@attrs.frozen(kw_only=True)
class Spread:
    """Milliseconds; all are 0 if there were none."""

    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0


@attrs.frozen(kw_only=True)
class Row:
    """
    One load and what it showed.

    Attributes:
        concurrency: Clients that asked one request after the other; None with a rate.
        rate: Requests a second; None with a concurrency.
        requests: That were begun: `completed` and `failed`.
        errors: How many failed, by code.
        messages: What the first of each code said.
        ended_early: Answers shorter than asked.
        uncounted: Answers without usage; their pieces are taken for tokens.
        duration_s: From the first request to the end of the last.
        input_tokens: Of all completed, as the endpoint counted; so are the next two.
        cached_tokens: Of those, what it says it had already.
        client_cpu: Share of a core that this measuring took.
    """

    concurrency: int | None
    rate: float | None
    requests: int
    completed: int
    failed: int
    errors: dict[str, int]
    messages: dict[str, str]
    ended_early: int
    uncounted: int
    duration_s: float
    requests_per_s: float
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    ttft_ms: Spread
    itl_ms: Spread
    tpot_ms: Spread
    e2el_ms: Spread
    client_cpu: float

    @property
    def load(self) -> str:
        return f"{self.concurrency}" if self.rate is None else f"{self.rate:g}/s"


@attrs.frozen(kw_only=True)
class Report:
    """One run: what ``--json`` prints and ``--save`` writes."""

    endpoint: str
    when: str
    workload: Workload
    rows: tuple[Row, ...]

    def json(self) -> str:
        return json.dumps(attrs.asdict(self), indent=2, ensure_ascii=False)

    def remarks(self) -> Iterator[str]:
        """Yield what a reader of the figures should know."""
        for row in self.rows:
            for code, many in row.errors.items():
                said = f"failed with {code}: {row.messages[code]}"
                yield f"{row.load}: {many} of {row.requests} {said}"
            if row.ended_early:
                yield (
                    f"{row.load}: {row.ended_early} of {row.completed} answers ended before the"
                    " length they were asked for; a server that knows --ignore-eos goes on"
                )
            if row.uncounted:
                yield f"{row.load}: {row.uncounted} answers came without usage; pieces are counted"
            if row.client_cpu > BUSY:
                yield (
                    f"{row.load}: measuring took {row.client_cpu:.0%} of a core and may be what"
                    " limits the figures; share the load among several runs"
                )


def row_of(
    concurrency: int | None,
    rate: float | None,
    answers: Sequence[Answer],
    took_s: float,
    cpu_s: float,
) -> Row:
    """Return the figures of *answers*, which took so long all together."""
    whole = [answer for answer in answers if answer.error is None]
    failed = [answer for answer in answers if answer.error is not None]
    counted = [answer.usage for answer in whole if answer.usage is not None]
    details = [usage.prompt_tokens_details for usage in counted]
    output_tokens = sum(answer.output_tokens for answer in whole)
    spoken = [answer for answer in whole if answer.first_s is not None]
    return Row(
        concurrency=concurrency,
        rate=rate,
        requests=len(answers),
        completed=len(whole),
        failed=len(failed),
        errors=dict(Counter(answer.error or "" for answer in failed)),
        messages={answer.error or "": answer.message for answer in reversed(failed)},
        ended_early=sum(answer.is_early for answer in whole),
        uncounted=len(whole) - len(counted),
        duration_s=round(took_s, 3),
        requests_per_s=round(len(whole) / took_s, 3),
        input_tokens=sum(usage.prompt_tokens for usage in counted),
        cached_tokens=sum(each.cached_tokens or 0 for each in details if each),
        output_tokens=output_tokens,
        output_tokens_per_s=round(output_tokens / took_s, 2),
        ttft_ms=spread([(a.first_s or 0) - a.began_s for a in spoken]),
        itl_ms=spread([gap for answer in whole for gap in answer.gaps_s]),
        tpot_ms=spread(
            [
                (a.last_s - (a.first_s or 0)) / (a.output_tokens - 1)
                for a in spoken
                if a.output_tokens > 1
            ]
        ),
        e2el_ms=spread([(a.end_s or 0) - a.began_s for a in whole]),
        client_cpu=round(cpu_s / took_s, 3),
    )


def spread(seconds: list[float]) -> Spread:
    """Return mean and percentiles of *seconds*, in milliseconds."""
    if not seconds:
        return Spread()
    seconds.sort()
    mean = sum(seconds) / len(seconds)
    found = (mean, *(percentile(seconds, share) for share in (0.5, 0.9, 0.99)))
    mean, p50, p90, p99 = (round(1e3 * value, 3) for value in found)
    return Spread(mean=mean, p50=p50, p90=p90, p99=p99)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value that *share* of *ordered*, which is not empty, lies below."""
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def read(file: Path) -> Report:
    """
    Return a run that was saved.

    Raises:
        CortexError: There is no such file, or it holds something else.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Report)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CortexError(f"cannot compare with {file}: {cause(error, file)}") from None


def write(report: Report, file: Path) -> None:
    """
    Save a run.

    Raises:
        CortexError: The file cannot be written.
    """
    try:
        file.write_text(report.json() + "\n", "utf-8")
    except OSError as error:
        raise CortexError(f"cannot save to {file}: {cause(error, file)}") from None
