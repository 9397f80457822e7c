"""Asks a server one thing, within a bound, and says what its clock showed."""

from __future__ import annotations

import json
import ssl
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import attrs

WITHIN_S = 5.0
MAX_BYTES = 8 << 20


@attrs.frozen(kw_only=True)
class Answer:
    """
    What came, or why nothing did.

    Attributes:
        status: 0 if there was no answer; `error` then says why.
        body: Read as JSON, or the text if it is none.
        took_s: To the end of the answer.
        ahead_s: By how much its clock goes before ours, to about a second; None if it says no time.
    """

    status: int = 0
    body: Any = None
    took_s: float = 0.0
    ahead_s: float | None = None
    error: str = ""


def ask(
    url: str,
    headers: dict[str, str],
    context: ssl.SSLContext | None = None,
    *,
    within_s: float = WITHIN_S,
) -> Answer:
    """Return the answer to a GET; never raises for what the network does."""
    parts = urlsplit(url)
    began, wall = time.monotonic(), time.time()
    connection: HTTPConnection
    if parts.scheme == "https":
        connection = HTTPSConnection(
            parts.hostname or "", parts.port, timeout=within_s, context=context
        )
    else:
        connection = HTTPConnection(parts.hostname or "", parts.port, timeout=within_s)
    try:
        connection.request("GET", parts.path or "/", headers=headers)
        response = connection.getresponse()
        raw = b""
        while (piece := response.read1(1 << 16)) and len(raw) < MAX_BYTES:
            raw += piece
            if time.monotonic() - began > within_s:
                raise TimeoutError  # noqa: TRY301 - as if the socket had said so
    except TimeoutError:
        return Answer(error=f"no answer within {within_s:g} s")
    except ConnectionRefusedError:
        return Answer(error="nobody listens there")
    except (OSError, HTTPException) as error:
        return Answer(error=str(error) or type(error).__name__)
    finally:
        connection.close()
    took = time.monotonic() - began
    return Answer(
        status=response.status,
        body=_decoded(raw),
        took_s=took,
        ahead_s=_ahead(response.headers.get("Date"), wall + took / 2),
    )


def _decoded(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode("utf-8", "replace")


def _ahead(date: str | None, ours: float) -> float | None:
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp() + 0.5 - ours
    except ValueError:
        return None
