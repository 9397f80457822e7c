"""
The HTTP client of the commands: one gateway, plain requests, SSE.

Every wait is bounded, a proxy never gets between us and a loopback address, a redirect is an error
that says where to, and whatever goes wrong is a `CortexError` that says what to do.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from cortex.errors import CortexError, RemoteError

if TYPE_CHECKING:
    from http.client import HTTPResponse
    from urllib.error import HTTPError
    from urllib.request import OpenerDirector

T = TypeVar("T")
DEFAULT_URL = "http://127.0.0.1:31313"
ANSWER_S = 30.0
SILENCE_S = 700.0  # of a stream; longer than a gateway lets a request wait for a load
MAX_ERROR_BYTES = 65536
UNAUTHORIZED, FORBIDDEN = 401, 403
KEY_HINTS = {
    UNAUTHORIZED: "give a key with --key or CORTEX_KEY",
    FORBIDDEN: "give another key with --key or CORTEX_KEY",
}


class GatewayUnreachable(CortexError):
    """The gateway did not answer, or stopped in the middle."""

    code = "gateway_unreachable"


def add_arguments(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """
    Add the options that say which gateway, with which key.

    Args:
        parser: The command's.
        again: *parser* is a subcommand of one that has them; what stands there holds.
    """
    default = argparse.SUPPRESS if again else None
    parser.add_argument(
        "--gateway",
        metavar="URL",
        default=default,
        help=f"the gateway's address (default: $CORTEX_URL, else {DEFAULT_URL})",
    )
    parser.add_argument(
        "--key",
        default=default,
        help="API key (default: $CORTEX_KEY, which other users of this host cannot see)",
    )


def add_action(actions: Any, name: str, summary: str) -> argparse.ArgumentParser:
    """Add a subcommand with the options of `add_arguments` and ``--json``, and return it."""
    action: argparse.ArgumentParser = actions.add_parser(name, help=summary, description=summary)
    add_arguments(action, again=True)
    action.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print the gateway's answer, as JSON",
    )
    return action


def print_json(answer: dict[str, Any]) -> int:
    """Print what ``--json`` asks for; return the exit status."""
    print(json.dumps(answer, indent=2, ensure_ascii=False))
    return 0


class Gateway:
    """
    A gateway to talk to; safe to use from several threads.

    Attributes:
        headers: Sent with every request.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise CortexError(f"expected http://host:port as gateway, got {url!r}")
        self.url = url.rstrip("/")
        self._host = parts.hostname
        self.headers = {"Content-Type": "application/json", "User-Agent": "cortex"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"

    @classmethod
    def of(cls, args: argparse.Namespace) -> Gateway:
        """Return the gateway the command line names, else the environment, else this host's."""
        from cortex.config.load import environment

        env = environment()
        url = args.gateway or env.get("CORTEX_URL") or DEFAULT_URL
        return cls(url, args.key or env.get("CORTEX_KEY"))

    @property
    def is_loopback(self) -> bool:
        """Whether it is this host, so that no proxy stands between."""
        from cortex.config.schema import Address

        return Address(self._host, 0).is_loopback

    def get(self, path: str, *, timeout_s: float = ANSWER_S) -> bytes:
        """Return the body of a GET."""
        with self._open("GET", path, None, timeout_s) as response:
            return response.read()

    def get_as(self, cls: type[T], path: str, *, timeout_s: float = ANSWER_S) -> T:
        """Return the JSON body of a GET, read into *cls*."""
        return self.decode(cls, path, self.get(path, timeout_s=timeout_s))

    def post_as(
        self, cls: type[T], path: str, body: Mapping[str, object], *, timeout_s: float = ANSWER_S
    ) -> T:
        """Return the JSON body of a POST's answer, read into *cls*."""
        with self._open("POST", path, body, timeout_s) as response:
            answer = response.read()
        return self.decode(cls, path, answer)

    def delete_as(self, cls: type[T], path: str, *, timeout_s: float = ANSWER_S) -> T:
        """Return the JSON body of a DELETE's answer, read into *cls*."""
        with self._open("DELETE", path, None, timeout_s) as response:
            answer = response.read()
        return self.decode(cls, path, answer)

    def stream(
        self, path: str, body: Mapping[str, object] | None, *, timeout_s: float = SILENCE_S
    ) -> Generator[str, None, None]:
        """
        Yield the ``data:`` of each server-sent event; close the generator to hang up.

        Args:
            path: Where.
            body: What to POST; None is a GET.
            timeout_s: The longest silence.
        """
        with self._open("GET" if body is None else "POST", path, body, timeout_s) as response:
            data: list[str] = []
            for raw in response:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                if line.startswith("data:"):
                    data.append(line.removeprefix("data:").removeprefix(" "))
                elif not line and data:
                    yield "\n".join(data)
                    data = []

    def decode(self, cls: type[T], path: str, body: bytes) -> T:
        """Return *body*, which is JSON and came from *path*, read into *cls*."""
        import msgspec

        try:
            return msgspec.json.decode(body, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise CortexError(
                f"{self.url}{path} answered something else than expected: {error}",
                hint="is a cortex gateway at this address?",
            ) from None

    @contextmanager
    def _open(
        self, method: str, path: str, body: Mapping[str, object] | None, timeout_s: float
    ) -> Iterator[HTTPResponse]:
        from http.client import HTTPException
        from urllib.error import HTTPError, URLError
        from urllib.request import Request

        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data, self.headers, method=method)  # noqa: S310 - http
        try:
            with self._opener().open(request, timeout=timeout_s) as response:
                yield response
        except HTTPError as error:
            with error:
                raise self._refusal(method, path, error) from None
        except (OSError, HTTPException) as error:
            cause = error.reason if isinstance(error, URLError) else error
            raise self.unreachable(cause, timeout_s) from None

    def _opener(self) -> OpenerDirector:
        from urllib import request

        opener = request.OpenerDirector()
        for handler in (request.HTTPHandler, request.HTTPSHandler, request.HTTPErrorProcessor):
            opener.add_handler(handler())
        opener.add_handler(request.HTTPDefaultErrorHandler())
        if not self.is_loopback:
            opener.add_handler(request.ProxyHandler())
        return opener

    def _refusal(self, method: str, path: str, answer: HTTPError) -> CortexError:
        try:
            body = answer.read(MAX_ERROR_BYTES)
        except OSError:
            body = b""
        elsewhere = answer.headers.get("Location")
        return self.refusal(f"{method} {path}", answer.code, answer.reason, body, elsewhere)

    def refusal(
        self, asked: str, status: int, reason: str | None, body: bytes, elsewhere: str | None
    ) -> CortexError:
        """Return what an answer with an error's *status* means; *elsewhere* is its Location."""
        try:
            error = json.loads(body)["error"]
        except (ValueError, KeyError, TypeError):
            method, _, path = asked.partition(" ")
            message = f"{method} {self.url}{path} answered {status} {reason}"
            error = {"message": message, "hint": "is a cortex gateway at this address?"}
            if elsewhere:
                error["hint"] = f"it says to look at {elsewhere}"
        if isinstance(error, dict) and status in KEY_HINTS:
            error.setdefault("hint", KEY_HINTS[status])
        if isinstance(error, dict) and str(error.get("message")).startswith("no such path"):
            error.setdefault(
                "hint", "is a cortex gateway at this address, and none of its neurons?"
            )
        return remote_error(error, status)

    def unreachable(self, cause: object, timeout_s: float) -> GatewayUnreachable:
        """Return the exception for a gateway that could not be asked within *timeout_s*."""
        from socket import gaierror
        from ssl import SSLError

        hint = "start it with: cortex serve; name another one with --gateway or CORTEX_URL"
        if isinstance(cause, ConnectionRefusedError):
            return GatewayUnreachable(f"no gateway listens at {self.url}", hint=hint)
        if isinstance(cause, TimeoutError):
            return GatewayUnreachable(f"{self.url} was silent for {timeout_s:g} s")
        if isinstance(cause, SSLError):
            hint = "is it http there, or its authority one of SSL_CERT_FILE?"
        if isinstance(cause, gaierror):
            hint = "is the name right? see --gateway and CORTEX_URL"
        if isinstance(cause, ConnectionError):
            return GatewayUnreachable(f"{self.url} broke the connection")
        return GatewayUnreachable(f"cannot talk to {self.url}: {cause}", hint=hint)


def remote_error(error: Any, status: int) -> RemoteError:
    """Return the exception for an ``error`` object of the gateway's envelope, however odd."""
    if not isinstance(error, dict):
        error = {"message": str(error)}
    more = {k: v for k, v in error.items() if k not in {"message", "code", "hint", "status"}}
    remote = RemoteError(
        str(error.get("message") or "the gateway gave no reason"),
        code=str(error.get("code") or "unknown"),
        status=status,
        **more,
    )
    remote.hint = str(error.get("hint") or "")
    return remote
