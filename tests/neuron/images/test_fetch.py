"""Images by URL: over real sockets, and never from an address that is not public."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import attrs
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver

from cortex.errors import InvalidImage
from cortex.neuron.images.fetch import Fetcher, is_public
from tests.neuron.images.drawn import encoded

LOOPBACK = "127.0.0.1"
PICTURE = encoded()
MIB = 1 << 20


class Resolver(AbstractResolver):
    """Says of every name that it is at these addresses, in turn."""

    def __init__(self, *addresses):
        self.addresses = list(addresses)
        self.asked = []

    def __call__(self):
        return self

    async def resolve(self, host, port=0, family=socket.AF_INET):
        self.asked.append(host)
        address = self.addresses.pop(0) if len(self.addresses) > 1 else self.addresses[0]
        return [
            {
                "hostname": host,
                "host": one,
                "port": port,
                "family": socket.AF_INET6 if ":" in one else socket.AF_INET,
                "proto": 0,
                "flags": 0,
            }
            for one in address.split()
        ]

    async def close(self):
        pass


@attrs.define
class Site:
    """A web server with images, and what it was asked for."""

    port: int
    asked: list[str]
    go: asyncio.Event

    def url(self, path, host="a.example"):
        return f"http://{host}:{self.port}{path}"


@asynccontextmanager
async def serving_images():
    asked, go = [], asyncio.Event()

    async def answer(request):
        asked.append(request.path)
        match request.path.strip("/").split("/"):
            case ["image"]:
                return web.Response(body=PICTURE, content_type="image/png")
            case ["page"]:
                return web.Response(text="<html>", content_type="text/html")
            case ["large"]:
                return web.Response(body=bytes(MIB + 1), content_type="image/png")
            case ["endless"]:
                response = web.StreamResponse(headers={"Content-Type": "image/png"})
                response.enable_chunked_encoding()
                await response.prepare(request)
                for _ in range(1000):
                    await response.write(bytes(MIB // 4))
                return response
            case ["slow"]:
                await go.wait()
                return web.Response(body=PICTURE, content_type="image/png")
            case ["to", *where]:
                raise web.HTTPFound(request.query_string or "/" + "/".join(where))
            case ["round"]:
                raise web.HTTPFound("/round")
        raise web.HTTPNotFound

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, LOOPBACK, 0)
    await site.start()
    try:
        yield Site(site._server.sockets[0].getsockname()[1], asked, go)
    finally:
        go.set()
        await runner.cleanup()


def fetcher(*addresses, allowed=(LOOPBACK,), timeout_s=10):
    """Return one that finds every name at these addresses, and may go to those allowed."""
    return Fetcher(
        MIB,
        timeout_s,
        is_allowed=allowed.__contains__,
        resolver=Resolver(*addresses or (LOOPBACK,)),
    )


async def refusal(one, url):
    with pytest.raises(InvalidImage) as caught:
        await one.fetch({url: "messages[0].content[1]"})
    assert (caught.value.status, caught.value.param) == (400, "messages[0].content[1]")
    assert str(caught.value).startswith("messages[0].content[1]: ")
    return str(caught.value)


async def test_images_are_fetched_also_behind_a_redirect():
    async with serving_images() as site:
        urls = [site.url(path) for path in ("/image", "/to/image", "/to/to/image")]
        found = await fetcher().fetch(dict.fromkeys(urls, "at"))
    assert found == dict.fromkeys(urls, PICTURE)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/none", "the URL answers 404"),
        ("/page", "'text/html', which is no type of image"),
        ("/large", "over 1 MiB"),
        ("/endless", "over 1 MiB"),
        ("/round", "leads on more than 3 times"),
        ("/to/to/to/to/image", "leads on more than 3 times"),
        ("/to/x?file:///etc/passwd", "one that leads to none"),
        ("/to/x?ftp://a.example/b", "one that leads to none"),
    ],
)
async def test_what_is_no_image_is_refused_in_words(path, words):
    async with serving_images() as site:
        assert words in await refusal(fetcher(), site.url(path))


async def test_a_server_that_is_slow_is_given_up_and_one_that_is_not_there_too():
    async with serving_images() as site:
        slow = site.url("/slow")
        assert "did not come within 0.2 s" in await refusal(fetcher(timeout_s=0.2), slow)
    assert "cannot be reached" in await refusal(fetcher(), slow)


async def test_a_name_that_stands_for_nothing_cannot_be_reached():
    class Nowhere(Resolver):
        async def resolve(self, *_, **__):
            raise OSError("no such name")

    one = Fetcher(MIB, 10, resolver=Nowhere(""))
    assert "cannot be reached" in await refusal(one, "http://a.example/b")


@pytest.mark.parametrize("url", ["http:///x", "http://[::1", "http://a.example:99999/", "nothing"])
async def test_what_is_no_url_is_refused(url):
    assert "URL" in await refusal(fetcher(), url)


@pytest.mark.parametrize(
    "host",
    [
        LOOPBACK,
        "[::1]",
        "[::ffff:127.0.0.1]",
        "2130706433",
        "127.1",
        "0x7f.1",
        "0177.0.0.1",
        "localhost",
        "127.0.0.01",
    ],
)
async def test_by_default_this_host_is_not_asked_however_it_is_spelt(host):
    async with serving_images() as site:
        words = await refusal(Fetcher(MIB, 10), site.url("/image", host))
        assert not site.asked
    assert "public address" in words or "cannot be reached" in words or "no http(s) URL" in words


async def test_a_name_is_asked_for_only_where_all_its_addresses_are_public():
    async with serving_images() as site:
        for addresses in (LOOPBACK, f"{LOOPBACK} 10.0.0.1", f"10.0.0.1 {LOOPBACK}"):
            one = fetcher(addresses, allowed=() if addresses == LOOPBACK else (LOOPBACK,))
            assert "no public address" in await refusal(one, site.url("/image"))
        assert not site.asked


async def test_a_redirect_to_this_host_is_not_followed():
    async with serving_images() as site:
        inside = site.url("/image", "inside.example")
        one = fetcher(LOOPBACK, "10.0.0.1")
        assert "10.0.0.1 is no public address" in await refusal(one, site.url(f"/to/x?{inside}"))
        literal = site.url("/image", "127.0.0.2")
        words = await refusal(fetcher(), site.url(f"/to/x?{literal}"))
        assert "127.0.0.2 is no public address" in words
        assert site.asked == ["/to/x", "/to/x"]


async def test_the_address_that_was_checked_is_the_one_that_is_asked():
    resolver = Resolver(LOOPBACK, "10.0.0.1")  # what the name stands for the second time
    async with serving_images() as site:
        one = Fetcher(MIB, 10, is_allowed=(LOOPBACK,).__contains__, resolver=resolver)
        url = site.url("/image")
        assert await one.fetch({url: "at"}) == {url: PICTURE}
    assert resolver.asked == ["a.example"]


async def test_several_images_come_at_once_and_no_more_than_four():
    async with serving_images() as site:
        urls = [site.url(f"/slow?{number}") for number in range(6)]
        fetch = asyncio.ensure_future(fetcher().fetch(dict.fromkeys(urls, "at")))
        async with asyncio.timeout(5):
            while len(site.asked) < 4:
                await asyncio.sleep(0.005)
        assert len(site.asked) == 4
        site.go.set()
        assert len(await fetch) == 6


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("192.0.2.1", False),
        ("192.168.1.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:a00:1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:7f00:1::", False),
        ("fc00::1", False),
        ("fd00::1", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("2001:db8::1", False),
        ("2130706433", False),
        ("0177.0.0.1", False),
        ("a.example", False),
    ],
)
def test_addresses(address, public):
    assert is_public(address) is public
