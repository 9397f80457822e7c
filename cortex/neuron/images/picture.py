"""What a model sees of an image: its first frame, upright, on white, in a size models take."""

from __future__ import annotations

import io
import math
from hashlib import blake2b
from typing import Any

import attrs

from cortex.errors import InvalidImage
from cortex.neuron.engine.pictures import Picture, Sight

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF"}
SEVERAL = "MPO"  # a JPEG with more of them behind it
ALIASES = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}
KNOWN = "PNG, JPEG, WebP and GIF are"
LOW_PIXELS = 512 * 512  # of an image a client wants seen in low detail
MOST_LONGISH = 200  # times as long as it is wide
UPRIGHT = range(1, 5)  # values of EXIF's orientation that keep a side a side
ORIENTATION = 0x0112


@attrs.frozen(kw_only=True)
class Measured:
    """
    An image whose head was read, and the size a model sees it in.

    Attributes:
        at: Where it is in the request.
        turn: EXIF's orientation.
    """

    data: bytes
    at: str
    turn: int
    height: int
    width: int


def measured(
    data: bytes, at: str, sight: Sight, *, kind: str | None, detail: str | None, max_pixels: int
) -> Measured:
    """
    Look at the head of an image.

    Args:
        data: The image.
        at: Where it is in the request.
        sight: Of the model.
        kind: The media type it is said to have, if that has to be true.
        detail: ``low``, or anything else.
        max_pixels: Of the image.

    Raises:
        InvalidImage: It is no image we can read, or too big.
    """
    image = opened(data, at, kind)
    width, height = image.size
    if width * height > max_pixels:
        raise InvalidImage(
            f"{at}: the image has {width} x {height} pixels, over {max_pixels}", param=at
        )
    if (turn := orientation(image)) not in UPRIGHT:
        width, height = height, width
    most = sight.most_pixels
    if detail == "low":
        most = max(min(most, LOW_PIXELS), sight.least_pixels)
    if max(height, width) > MOST_LONGISH * min(height, width):
        raise InvalidImage(
            f"{at}: the image has {width} x {height} pixels: one side is over"
            f" {MOST_LONGISH} times the other",
            param=at,
        )
    height, width = fitted(height, width, sight.patch * sight.merge, sight.least_pixels, most)
    return Measured(data=data, at=at, turn=turn, height=height, width=width)


def fitted(height: int, width: int, side: int, least: int, most: int) -> tuple[int, int]:
    """Return the size in multiples of *side* that is nearest, of *least* to *most* pixels."""
    rows, columns = round(height / side), round(width / side)
    if rows * columns * side * side > most:
        scale = math.sqrt(height * width / most)
        rows, columns = (max(1, math.floor(n / scale / side)) for n in (height, width))
    elif rows * columns * side * side < least:
        scale = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(n * scale / side) for n in (height, width))
    return rows * side, columns * side


def seen(image: Measured) -> Picture:
    """
    Return what a model sees of an image, as if at the prompt's beginning.

    Raises:
        InvalidImage: It is broken.
    """
    from PIL import Image

    found = opened(image.data, image.at, None)
    try:
        found.load()
        flat = on_white(upright(found, image.turn))
        flat = flat.resize((image.width, image.height), Image.Resampling.BICUBIC)
    except Exception as error:  # noqa: BLE001 - decoders of broken images raise all there is
        raise broken(image.at, error) from None
    rgb = flat.tobytes()
    digest = blake2b(b"%d %d " % (image.height, image.width), digest_size=16)
    digest.update(rgb)
    return Picture(at=0, height=image.height, width=image.width, rgb=rgb, digest=digest.digest())


def opened(data: bytes, at: str, kind: str | None) -> Any:
    """Return an image of Pillow's of which the head was read, if it is of a format we take."""
    from PIL import Image, UnidentifiedImageError
    from PIL import WebPImagePlugin as _  # noqa: F401 - else all of Pillow is imported to find it

    kind = ALIASES.get(kind, kind) if kind else kind
    if kind is not None and kind not in FORMATS:
        raise InvalidImage(f"{at}: {kind} is not supported", hint=KNOWN, param=at)
    try:
        image = Image.open(io.BytesIO(data), formats=[*FORMATS.values()])
    except UnidentifiedImageError:
        what = "SVG is not supported" if b"<svg" in data[:4096] else "no image that can be read"
        raise InvalidImage(f"{at}: {what}", hint=KNOWN, param=at) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidImage(f"{at}: the image has too many pixels", param=at) from None
    except Exception as error:  # noqa: BLE001 - decoders of broken images raise all there is
        raise broken(at, error) from None
    found = "JPEG" if image.format == SEVERAL else image.format
    if kind is not None and found != FORMATS[kind]:
        raise InvalidImage(f"{at}: said to be {kind}, and is {found}", param=at)
    return image


def orientation(image: Any) -> int:
    """Return EXIF's orientation; 1 where there is none, or it cannot be read."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # else Pillow decodes all of it to see whether one comes at the end
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - as above; the pixels may be fine
        return 1
    return found if found in range(1, 9) else 1


def upright(image: Any, turn: int) -> Any:
    """Return an image as its camera was held, by EXIF's orientation."""
    from PIL import Image

    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(turn)
    return image if turned is None else image.transpose(turned)


def on_white(image: Any) -> Any:
    """Return an image in RGB, what shines through it white."""
    from PIL import Image

    if image.mode.startswith("I"):  # gray of 16 bits
        fine = image.convert("I").point(lambda value: value * (1 / 257))
        return fine.convert("L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.convert("RGBA")
    white = Image.new("RGBA", clear.size, "white")
    return Image.alpha_composite(white, clear).convert("RGB")


def broken(at: str, error: Exception) -> InvalidImage:
    """Return the error for an image that cannot be decoded."""
    return InvalidImage(f"{at}: the image is broken: {str(error).lower()}", param=at)
