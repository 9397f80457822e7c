"""
The images of requests as a model sees them: read, fetched, decoded, and the last ones kept.

Decoding is a matter of a few threads of its own; a conversation brings its images again with every
turn, and several answers to one request share them.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeVar

import attrs

from cortex.chat.request import Image, Message, ToolResult
from cortex.errors import InvalidImage
from cortex.neuron.engine.pictures import Picture, Sight
from cortex.neuron.images.data import read_data
from cortex.neuron.images.options import ImageOptions
from cortex.neuron.images.picture import Measured, measured, seen
from cortex.neuron.images.room import Room

if TYPE_CHECKING:
    from cortex.neuron.images.fetch import Fetcher

READERS = 4
KEPT_BYTES = 128 << 20
MOST_BYTES = 192 << 20  # of a request's pictures: they are one frame of the job channel
Pictures = Mapping[Image, Picture]
T = TypeVar("T")


@attrs.define
class Look:
    """
    The images of a request, on their way or there.

    Attributes:
        users: How many wait for them, or have them.
        size: Bytes they take of the room.
    """

    job: asyncio.Task[Pictures] | None = None
    users: int = 0
    size: int = 0


class Shown:
    """The pictures of a request; they take room until it is closed."""

    def __init__(self, pictures: Pictures, release: Callable[[], None] | None = None) -> None:
        self.pictures = pictures
        self._release = release

    def close(self) -> None:
        """Let go of them."""
        release, self._release, self.pictures = self._release, None, {}
        if release is not None:
            release()


class Gallery:
    """
    See the module.  Event loop only.

    Args:
        options: What images are taken.
        fetcher: Of those by URL, where that is allowed.
    """

    def __init__(self, options: ImageOptions, fetcher: Callable[[], Fetcher] | None = None) -> None:
        self._options = options
        self._fetcher = fetcher
        self._readers = ThreadPoolExecutor(READERS, "image")
        self._looks: dict[int, Look] = {}
        self._kept = Kept(KEPT_BYTES)
        self._room = Room(options.max_waiting_mb << 20)

    async def show(self, messages: Sequence[Message], sight: Sight) -> Shown:
        """
        Return what a model sees of the images in *messages*, to be closed.

        Raises:
            InvalidImage: One cannot be shown; says which, and why.
            QueueTimeout: Those of other requests leave no room for them.
        """
        placed = list(images_in(messages))
        if not placed:
            return Shown({})
        if len(placed) > (most := self._options.max_count):
            raise InvalidImage(
                f"the request has {len(placed)} images, over {most}", param=placed[most][0]
            )
        key = id(messages)  # the answers to one request share them, and hold on to them here
        if (look := self._looks.get(key)) is None:
            look = self._looks[key] = Look()
            look.job = asyncio.ensure_future(self._look(look, placed, sight))
        assert look.job is not None  # noqa: S101 - it has just been set
        look.users += 1
        try:
            # bounded: by the fetcher, by the wait for room, and by what was sent
            pictures = await asyncio.shield(look.job)
        except BaseException:
            self._leave(key, look)
            raise
        return Shown(pictures, partial(self._leave, key, look))

    def _leave(self, key: int, look: Look) -> None:
        look.users -= 1
        if not look.users and look.job is not None:
            look.job.cancel()
            del self._looks[key]
            size, look.size = look.size, 0
            self._room.give(size)

    async def _look(
        self, look: Look, placed: Sequence[tuple[str, Image]], sight: Sight
    ) -> Pictures:
        where = {image: at for at, image in reversed(placed)}
        urls = {i.url: at for i, at in where.items() if i.url[:5].lower() != "data:"}
        fetched: Mapping[str, bytes] = {}
        if urls:
            if self._fetcher is None:
                at = next(iter(urls.values()))
                raise InvalidImage(
                    f"{at}: this node fetches no images", hint="send it as a data: URI", param=at
                )
            fetched = await self._fetcher().fetch(urls)
        reads = [partial(self._read, i, at, fetched.get(i.url), sight) for i, at in where.items()]
        images = await self._all(reads)
        need = sum(3 * image.height * image.width for image in images)
        if need > MOST_BYTES:
            pixels = f"{MOST_BYTES // 3} pixels"
            raise InvalidImage(
                f"the images of the request have over {pixels} together", param=placed[0][0]
            )
        look.size = await self._room.take(need)
        pictures = await self._all([partial(self._seen, image) for image in images])
        return dict(zip(where, pictures, strict=True))

    async def _all(self, works: Sequence[Callable[[], T]]) -> list[T]:
        loop = asyncio.get_running_loop()
        futures = [loop.run_in_executor(self._readers, work) for work in works]
        try:
            return await asyncio.gather(*futures)
        except BaseException:
            for future in futures:
                future.cancel()  # those that have not begun
            raise

    def _read(self, image: Image, at: str, data: bytes | None, sight: Sight) -> Measured:
        kind, options = None, self._options
        if data is None:
            kind, data = read_data(image.url, at, options.max_mb << 20)
        return measured(
            *(data, at, sight), kind=kind, detail=image.detail, max_pixels=options.max_pixels
        )

    def _seen(self, image: Measured) -> Picture:
        key = (blake2b(image.data).digest(), image.height, image.width)
        if (picture := self._kept.get(key)) is None:
            self._kept.put(key, picture := seen(image))
        return picture


class Kept:
    """The pictures used last, up to so many bytes; any thread."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._pictures: OrderedDict[tuple[bytes, int, int], Picture] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[bytes, int, int]) -> Picture | None:
        """Return a picture that is kept, and keep it longer."""
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
            return self._pictures.get(key)

    def put(self, key: tuple[bytes, int, int], picture: Picture) -> None:
        """Keep a picture; others go for it."""
        with self._lock:
            if key in self._pictures:
                return
            self._pictures[key] = picture
            self._bytes += len(picture.rgb)
            while self._bytes > self._most_bytes:
                self._bytes -= len(self._pictures.popitem(last=False)[1].rgb)


def images_in(messages: Sequence[Message]) -> Iterator[tuple[str, Image]]:
    """
    Yield the images of a conversation, each with where it is.

    Raises:
        InvalidImage: One is where no template shows it.
    """
    for number, message in enumerate(messages):
        for place, part in enumerate(message.parts):
            inside = part.parts if isinstance(part, ToolResult) else (part,)
            at = f"messages[{number}].content[{place}]"
            for image in inside:
                if isinstance(image, Image):
                    if message.role not in ("user", "tool"):
                        raise InvalidImage(
                            f"{at}: an image may be in what the user says or a tool's result,"
                            f" not in what the {message.role} says",
                            param=at,
                        )
                    yield at, image
