"""Images of requests on their way to a model: how many, together how large, and once each."""

from __future__ import annotations

import asyncio

import pytest

from cortex.chat.request import Image, ToolResult
from cortex.errors import InvalidImage
from cortex.neuron.engine.pictures import Sight
from cortex.neuron.images import gallery as module
from cortex.neuron.images.gallery import Gallery, Kept, images_in
from cortex.neuron.images.options import ImageOptions
from tests.chat.test_turns import assistant, system, turn, user
from tests.neuron.images.drawn import SIGHT, data_url, drawn, encoded

ONE, OTHER = Image(url=data_url()), Image(url=data_url(encoded(drawn(64, 64))))


def result(*parts):
    return turn("tool", ToolResult(call_id="1", parts=parts))


async def refusal(messages, gallery=None, sight=SIGHT):
    with pytest.raises(InvalidImage) as caught:
        await (gallery or Gallery(ImageOptions())).look(messages, sight)
    return caught.value


async def test_every_image_is_seen_wherever_it_stands():
    seen = await Gallery(ImageOptions()).look([user("a", ONE), result(OTHER), user(ONE)], SIGHT)
    assert {image: (p.height, p.width) for image, p in seen.items()} == {
        ONE: (24, 40),
        OTHER: (64, 64),
    }
    assert await Gallery(ImageOptions()).look([user("a")], SIGHT) == {}


@pytest.mark.parametrize(
    ("messages", "options", "words", "param"),
    [
        ([user(ONE), user(OTHER)], {"max_count": 1}, "has 2 images, over 1", 1),
        ([user(Image(url="data:image/png;base64,A"))], {}, "malformed base64", 0),
        ([user("x"), user(Image(url="https://a.example/b"))], {}, "fetches no images", 1),
        ([user("x"), user(Image(url="ftp://a.example/b"))], {}, "fetches no images", 1),
        ([user(OTHER)], {"max_pixels": 4095}, "64 x 64 pixels, over 4095", 0),
        ([user(ONE), system(ONE)], {}, "not in what the system says", 1),
        ([assistant(ONE)], {}, "not in what the assistant says", 0),
    ],
)
async def test_what_cannot_be_shown_is_refused_by_its_place(messages, options, words, param):
    error = await refusal(messages, Gallery(ImageOptions(**options)))
    assert words in str(error)
    assert (error.status, error.code) == (400, "invalid_image")
    assert error.param == f"messages[{param}].content[0]"


async def test_what_is_over_the_limit_in_bytes_is_refused():
    large = Image(url=data_url(bytes(3 << 19)))
    assert "over 1 MiB" in str(await refusal([user(large)], Gallery(ImageOptions(max_mb=1))))


async def test_images_that_are_large_together_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 3 * (24 * 40 + 64 * 64) - 1)
    monkeypatch.setattr(module, "seen", None)
    assert "together" in str(await refusal([user(ONE, OTHER)]))


async def test_the_answers_to_one_request_share_its_images_and_a_conversation_brings_them_again(
    monkeypatch,
):
    looks, whole = [], module.seen

    def counted(image):
        looks.append(image)
        return whole(image)

    monkeypatch.setattr(module, "seen", counted)
    gallery, messages = Gallery(ImageOptions()), (user(ONE),)
    first, second = await asyncio.gather(*(gallery.look(messages, SIGHT) for _ in range(2)))
    assert first is second
    longer = await gallery.look((*messages, user("more")), SIGHT)
    assert longer == first
    assert len(looks) == 1
    smaller = Sight(token=9, patch=4, merge=2, least_pixels=64, most_pixels=512)
    assert await gallery.look(messages, smaller) != first
    assert len(looks) == 2


async def test_who_leaves_does_not_take_the_images_from_others(monkeypatch):
    began, go = asyncio.Event(), asyncio.Event()

    class Fetcher:
        async def fetch(self, urls):
            began.set()
            await go.wait()
            return dict.fromkeys(urls, encoded())

    gallery = Gallery(ImageOptions(urls=True), Fetcher)
    messages = (user(Image(url="http://a.example/b")),)
    waits = [asyncio.ensure_future(gallery.look(messages, SIGHT)) for _ in range(2)]
    await began.wait()
    waits[0].cancel()
    await asyncio.wait({waits[0]})
    go.set()
    (picture,) = (await waits[1]).values()
    assert (picture.height, picture.width) == (24, 40)


async def test_a_fetch_nobody_waits_for_ends():
    began, ended = asyncio.Event(), asyncio.Event()

    class Fetcher:
        async def fetch(self, _):
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    gallery = Gallery(ImageOptions(urls=True), Fetcher)
    wait = asyncio.ensure_future(gallery.look((user(Image(url="http://a.example/b")),), SIGHT))
    await began.wait()
    wait.cancel()
    await asyncio.wait({wait})
    async with asyncio.timeout(5):
        await ended.wait()


async def test_the_pictures_used_last_are_kept():
    seen = await Gallery(ImageOptions()).look([user(OTHER)], SIGHT)
    (picture,) = seen.values()
    kept, keys = Kept(2 * len(picture.rgb)), [(bytes([n]), 64, 64) for n in range(3)]
    for key in (keys[0], keys[1], keys[1]):
        kept.put(key, picture)
    assert kept.get(keys[0])
    kept.put(keys[2], picture)
    assert [kept.get(key) is not None for key in keys] == [True, False, True]


def test_images_are_found_by_where_they_are():
    talk = [user("a", ONE), result("b", OTHER, ONE)]
    at = ["messages[0].content[1]", "messages[1].content[0]", "messages[1].content[0]"]
    assert list(images_in(talk)) == list(zip(at, (ONE, OTHER, ONE), strict=True))
