"""
Images by URL, fetched where the configuration allows it.

The address a connection goes to is checked itself, at every redirect: a name that stands for
another address the second time is of no use, and neither is an address spelt as a number.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from cortex.errors import InvalidImage
from cortex.neuron.images.data import too_large

AT_ONCE = 4
MAX_REDIRECTS = 3
MAX_TOTAL_BYTES = 64 << 20  # as much as the body of a request may have
PIECE = 1 << 16
UNICAST = ip_network("2000::/3")
NAT64 = ip_network("64:ff9b::/96")  # an IPv4 address as a network without any spells it
ALLOWED = "only images at public addresses are fetched"


def is_public(address: str) -> bool:
    """Tell whether an IP address is one that anybody may be sent to."""
    try:
        found = ip_address(address)
    except ValueError:  # a number, or octal: what it stands for is anybody's guess
        return False
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped or found in NAT64:
            return is_public(str(IPv4Address(int(found) & 0xFFFFFFFF)))
        if found not in UNICAST or found.sixtofour or found.teredo:  # the last two lead anywhere
            return False
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_private)


class Guard(AbstractResolver):
    """Resolves names that stand for allowed addresses, and no others."""

    def __init__(self, resolver: AbstractResolver, is_allowed: Callable[[str], bool]) -> None:
        self._resolver = resolver
        self._is_allowed = is_allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for result in found:
            self.check(result["host"])
        return found

    def check(self, address: str) -> None:
        """Raise PermissionError for an address that is not allowed."""
        if not self._is_allowed(address.partition("%")[0]):
            raise PermissionError(f"{address} is no public address")

    def socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """Return a socket for an address, checked again: not every host is asked of a resolver."""
        family, kind, protocol, _, address = info
        self.check(str(address[0]))
        return socket.socket(family, kind, protocol)

    async def close(self) -> None:
        await self._resolver.close()


class Fetcher:
    """
    Fetches images.

    Args:
        max_bytes: Of one.
        timeout_s: For all of a request.
        is_allowed: Tells of an address whether it may be asked.
        resolver: Of names; made anew for every request.
    """

    def __init__(
        self,
        max_bytes: int,
        timeout_s: float,
        is_allowed: Callable[[str], bool] = is_public,
        resolver: Callable[[], AbstractResolver] = aiohttp.ThreadedResolver,
    ) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._is_allowed = is_allowed
        self._resolver = resolver

    async def fetch(self, urls: Mapping[str, str]) -> dict[str, bytes]:
        """
        Return the images at some URLs.

        Args:
            urls: With where each is in the request.

        Raises:
            InvalidImage: One cannot be had; says why.
        """
        guard = Guard(self._resolver(), self._is_allowed)
        connector = aiohttp.TCPConnector(resolver=guard, socket_factory=guard.socket)
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"Accept": "image/*", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
        )
        places = asyncio.Semaphore(AT_ONCE)
        found: dict[str, bytes] = {}

        async def get(url: str, at: str) -> None:
            async with places:
                data = await self._get(session, url, at)
            found[url] = data
            if sum(map(len, found.values())) > MAX_TOTAL_BYTES:
                limit = f"{MAX_TOTAL_BYTES >> 20} MiB"
                raise InvalidImage(f"{at}: the images of the request are over {limit}", param=at)

        try:
            async with session, asyncio.timeout(self._timeout_s), asyncio.TaskGroup() as tasks:
                for url, at in urls.items():
                    tasks.create_task(get(url, at))
        except ExceptionGroup as group:
            raise first_of(group) from None
        except TimeoutError:
            at = next(where for url, where in urls.items() if url not in found)
            raise InvalidImage(self._slow(at), param=at) from None
        finally:
            await guard.close()
        return found

    def _slow(self, at: str) -> str:
        return f"{at}: the image did not come within {self._timeout_s:g} s"

    async def _get(self, session: aiohttp.ClientSession, url: str, at: str) -> bytes:
        try:
            async with session.get(url, max_redirects=MAX_REDIRECTS) as answer:
                return await self._read(answer, at)
        except TimeoutError:
            why = self._slow(at)
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, PermissionError):
                raise InvalidImage(f"{at}: {error.os_error}", hint=ALLOWED, param=at) from None
            why = f"{at}: the URL cannot be reached"
        except aiohttp.TooManyRedirects:
            why = f"{at}: the URL leads on more than {MAX_REDIRECTS} times"
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            why = f"{at}: no http(s) URL, or one that leads to none"
        except (aiohttp.ClientError, OSError, ValueError):
            why = f"{at}: the URL cannot be reached"
        raise InvalidImage(why, param=at)

    async def _read(self, answer: aiohttp.ClientResponse, at: str) -> bytes:
        if answer.status != HTTPStatus.OK:
            raise InvalidImage(f"{at}: the URL answers {answer.status}", param=at)
        if not (kind := answer.content_type).startswith("image/"):
            raise InvalidImage(f"{at}: the URL has {kind!r}, which is no type of image", param=at)
        if (answer.content_length or 0) > self._max_bytes:
            raise too_large(at, self._max_bytes)
        data = bytearray()
        async for piece in answer.content.iter_chunked(PIECE):
            data += piece
            if len(data) > self._max_bytes:
                raise too_large(at, self._max_bytes)
        return bytes(data)


def first_of(group: ExceptionGroup[Exception]) -> Exception:
    """Return an error of a group."""
    error = group.exceptions[0]
    return first_of(error) if isinstance(error, ExceptionGroup) else error
