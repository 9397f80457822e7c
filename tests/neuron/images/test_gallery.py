"""Images of requests on their way to a model: how many, together how large, and once each."""

from __future__ import annotations

import asyncio
import random
from contextlib import closing

import pytest

from cortex.chat.request import Image, ToolResult
from cortex.errors import InvalidImage, QueueTimeout
from cortex.neuron.engine.pictures import Sight
from cortex.neuron.images import gallery as module
from cortex.neuron.images import room as room_module
from cortex.neuron.images.gallery import Gallery, Kept, images_in
from cortex.neuron.images.options import ImageOptions
from cortex.neuron.images.room import Room
from cortex.testing import until
from tests.chat.test_turns import assistant, system, turn, user
from tests.neuron.images.drawn import SIGHT, data_url, drawn, encoded

ONE, OTHER = Image(url=data_url()), Image(url=data_url(encoded(drawn(64, 64))))


def result(*parts):
    return turn("tool", ToolResult(call_id="1", parts=parts))


async def looked(gallery, messages, sight=SIGHT):
    with closing(await gallery.show(messages, sight)) as shown:
        return shown.pictures


async def refusal(messages, gallery=None, sight=SIGHT):
    with pytest.raises(InvalidImage) as caught:
        await looked(gallery or Gallery(ImageOptions()), messages, sight)
    return caught.value


async def test_every_image_is_seen_wherever_it_stands():
    seen = await looked(Gallery(ImageOptions()), [user("a", ONE), result(OTHER), user(ONE)])
    assert {image: (p.height, p.width) for image, p in seen.items()} == {
        ONE: (24, 40),
        OTHER: (64, 64),
    }
    assert await looked(Gallery(ImageOptions()), [user("a")]) == {}


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
    first, second = await asyncio.gather(*(looked(gallery, messages) for _ in range(2)))
    assert first is second
    longer = await looked(gallery, (*messages, user("more")))
    assert longer == first
    assert len(looks) == 1
    smaller = Sight(token=9, patch=4, merge=2, least_pixels=64, most_pixels=512)
    assert await looked(gallery, messages, smaller) != first
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
    waits = [asyncio.ensure_future(looked(gallery, messages)) for _ in range(2)]
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
    wait = asyncio.ensure_future(looked(gallery, (user(Image(url="http://a.example/b")),)))
    await began.wait()
    wait.cancel()
    await asyncio.wait({wait})
    async with asyncio.timeout(5):
        await ended.wait()


async def test_pictures_of_other_requests_leave_room_until_they_are_let_go(monkeypatch):
    gallery = Gallery(ImageOptions())
    size = 3 * 64 * 64
    gallery._room = Room(2 * size)
    alike = [(user(OTHER),) for _ in range(4)]  # four requests
    first, second = [await gallery.show(messages, SIGHT) for messages in alike[:2]]
    third, fourth = [asyncio.ensure_future(gallery.show(m, SIGHT)) for m in alike[2:]]
    again = await gallery.show(alike[0], SIGHT)  # another answer to the first takes none
    await until(lambda: len(gallery._room._line) == 2)

    first.close()
    first.close()
    assert gallery._room.free == 0  # the other answer has them
    fourth.cancel()
    await asyncio.wait({fourth})
    again.close()
    shown = await third
    assert [*shown.pictures] == [OTHER]
    second.close()
    shown.close()
    assert (gallery._room.free, gallery._looks) == (2 * size, {})

    monkeypatch.setattr(room_module, "WAIT_S", 0.05)
    shown = [await gallery.show(messages, SIGHT) for messages in alike[:2]]
    with pytest.raises(QueueTimeout, match="no room for 0 MiB of images") as caught:
        await gallery.show(alike[2], SIGHT)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 5.0)
    for each in shown:
        each.close()
    assert (gallery._room.free, gallery._looks) == (2 * size, {})


async def test_a_broken_image_takes_no_room():
    gallery = Gallery(ImageOptions())
    free = gallery._room.free
    cut = Image(url=data_url(encoded(drawn(64, 64))[:-40]))
    assert "broken" in str(await refusal([user(cut)], gallery))
    assert gallery._room.free == free


async def test_room_goes_to_who_came_first_whoever_leaves_and_never_more_than_there_is():
    dice, room, held = random.Random(7), Room(100), []

    async def want(size):
        taken = await room.take(size)
        assert taken == min(size, 100)
        held.append(taken)
        assert sum(held) + room.free <= 100  # what was given in this moment is neither
        await asyncio.sleep(0)
        held.remove(taken)
        room.give(taken)

    tasks = []
    for _ in range(500):
        tasks.append(asyncio.ensure_future(want(dice.choice((10, 40, 90, 300)))))
        if dice.random() < 0.3:
            dice.choice(tasks).cancel()
        if dice.random() < 0.3:
            await asyncio.sleep(0)
    done, left = await asyncio.wait(tasks, timeout=20)
    assert not left
    assert all(task.cancelled() or task.exception() is None for task in done)
    assert (room.free, len(room._line)) == (100, 0)


async def test_the_pictures_used_last_are_kept():
    seen = await looked(Gallery(ImageOptions()), [user(OTHER)])
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
