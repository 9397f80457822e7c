"""What a model sees of an image, as transformers' own processor has it."""

from __future__ import annotations

import io
import re
import struct
import zlib

import pytest
from PIL import Image, ImageOps

from cortex.errors import InvalidImage
from cortex.neuron.engine.pictures import Sight
from cortex.neuron.images.picture import LOW_PIXELS, fitted, measured, seen
from tests.neuron.images.drawn import SIGHT, drawn, encoded

QWEN3 = Sight(token=1, patch=16, merge=2, least_pixels=65536, most_pixels=16777216)
BIG = Sight(token=1, patch=16, merge=2, least_pixels=65536, most_pixels=1 << 20)
RED, WHITE = (255, 0, 0), (255, 255, 255)


def look(data, sight=SIGHT, kind=None, detail=None, max_pixels=1_000_000):
    return seen(measured(data, "at", sight, kind=kind, detail=detail, max_pixels=max_pixels))


def refusal(data, **more):
    with pytest.raises(InvalidImage) as caught:
        look(data, **more)
    assert (caught.value.status, caught.value.param) == (400, "at")
    return str(caught.value)


def pixel(picture, row=0, column=0):
    start = 3 * (row * picture.width + column)
    return tuple(picture.rgb[start : start + 3])


def one_colour(colour, mode, size=(16, 16)):
    return Image.new(mode, size, colour)


@pytest.mark.timeout(120)  # torch is imported
@pytest.mark.xdist_group("torch")
@pytest.mark.parametrize("sight", [SIGHT, BIG, QWEN3])
@pytest.mark.parametrize(
    "size", [(1, 1), (16, 16), (24, 40), (31, 33), (200, 1), (640, 480), (1999, 701), (3000, 4000)]
)
def test_sizes_are_those_of_transformers(sight, size):
    qwen = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    side = sight.patch * sight.merge
    theirs = qwen.smart_resize(*size, side, sight.least_pixels, sight.most_pixels)
    assert fitted(*size, side, sight.least_pixels, sight.most_pixels) == theirs
    turned = fitted(*reversed(size), side, sight.least_pixels, sight.most_pixels)
    assert turned == tuple(reversed(theirs))


@pytest.mark.timeout(120)  # torch is imported
@pytest.mark.xdist_group("torch")
@pytest.mark.parametrize("size", [(40, 24), (100, 90), (9, 200), (300, 130)])
def test_pixels_are_those_of_transformers(size):
    import numpy as np

    qwen = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    processor = qwen.Qwen2VLImageProcessorPil(
        patch_size=SIGHT.patch,
        merge_size=SIGHT.merge,
        size={"shortest_edge": SIGHT.least_pixels, "longest_edge": SIGHT.most_pixels},
        do_normalize=False,
        do_rescale=False,
    )
    image = drawn(*size)
    theirs = processor(images=[image], return_tensors="np")
    _, rows, columns = theirs["image_grid_thw"][0]
    picture = look(encoded(image))
    assert (picture.height, picture.width) == (rows * SIGHT.patch, columns * SIGHT.patch)
    assert picture.tokens(SIGHT) == rows * columns // SIGHT.merge**2
    ours = np.frombuffer(picture.rgb, np.uint8).reshape(picture.height, picture.width, 3)
    patches = processor.patchify(
        ours.transpose(2, 0, 1), SIGHT.patch, SIGHT.merge, processor.temporal_patch_size
    )[0]
    assert np.abs(patches - theirs["pixel_values"]).max() <= 1


@pytest.mark.parametrize(
    ("kind", "media", "near"),
    [
        ("PNG", "image/png", 0),
        ("JPEG", "image/jpeg", 40),
        ("JPEG", "image/jpg", 40),
        ("WEBP", "image/webp", 60),
        ("GIF", "image/gif", 60),
    ],
)
def test_formats(kind, media, near):
    picture = look(encoded(one_colour((200, 100, 50), "RGB"), kind), kind=media)
    assert max(abs(a - b) for a, b in zip(pixel(picture), (200, 100, 50), strict=True)) <= near
    assert len(picture.rgb) == 3 * 16 * 16


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (one_colour((255, 0, 0, 0), "RGBA"), "PNG", WHITE),
        (one_colour((255, 0, 0, 255), "RGBA"), "PNG", RED),
        (one_colour((255, 0, 0, 128), "RGBA"), "PNG", (255, 127, 127)),
        (one_colour((0, 0), "LA"), "PNG", WHITE),
        (one_colour(51, "L"), "PNG", (51, 51, 51)),
        (one_colour(1, "1"), "PNG", WHITE),
        (one_colour(0x8000, "I;16"), "PNG", (127, 127, 127)),
        (one_colour((0, 255, 255, 0), "CMYK"), "JPEG", (254, 0, 0)),
    ],
)
def test_every_mode_is_rgb_on_white(image, kind, expected):
    assert (
        max(abs(a - b) for a, b in zip(pixel(look(encoded(image, kind))), expected, strict=True))
        <= 1
    )


def test_a_palette_may_have_a_colour_that_is_none():
    image = Image.new("P", (16, 16))
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert pixel(look(encoded(image, transparency=0))) == WHITE
    assert pixel(look(encoded(image, transparency=1))) == RED


def test_of_several_frames_the_first_is_seen():
    frames = [one_colour(c, "RGB") for c in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(look(data)) == RED


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_is_turned_as_its_camera_was_held(turn, kind):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(drawn(16, 24), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    picture = look(data)
    assert (picture.width, picture.height) == upright.size
    assert picture.rgb == upright.tobytes()


@pytest.mark.parametrize("turn", [0, 9, 77])
def test_a_turn_that_is_none_is_no_turn(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    assert look(encoded(drawn(16, 24), "PNG", exif=exif)) == look(encoded(drawn(16, 24)))


def test_low_detail_is_fewer_pixels_and_never_fewer_than_the_model_wants():
    data = encoded(drawn(1024, 1024))
    high, low = (look(data, BIG, detail=d, max_pixels=1 << 21) for d in ("high", "low"))
    assert (high.tokens(BIG), low.tokens(BIG)) == (1024, 256)
    assert low.height * low.width == LOW_PIXELS
    wanting = Sight(token=1, patch=16, merge=2, least_pixels=1 << 20, most_pixels=1 << 20)
    assert look(data, wanting, detail="low", max_pixels=1 << 21).tokens(wanting) == 1024
    assert look(encoded(drawn(16, 16)), detail="low") == look(encoded(drawn(16, 16)))


def test_equal_pictures_have_one_digest_and_others_another():
    one, again, other = (look(encoded(drawn(w))) for w in (40, 40, 41))
    assert (one.digest, len(one.digest)) == (again.digest, 16)
    assert one.digest != other.digest
    tall, wide = (look(encoded(one_colour("red", "RGB", size))) for size in ((16, 32), (32, 16)))
    assert tall.rgb == wide.rgb
    assert tall.digest != wide.digest


def test_a_jpeg_of_several_is_a_jpeg():
    red, blue = (one_colour(c, "RGB") for c in ("red", "blue"))
    data = encoded(red, "MPO", save_all=True, append_images=[blue])
    assert pixel(look(data, kind="image/jpeg"))[0] > 250


def bomb(width, height):
    """Return the head of a PNG that says it is large."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "more", "words"),
    [
        (bomb(1001, 1000), {}, "1001 x 1000 pixels, over 1000000"),
        (bomb(60_000, 60_000), {}, "too many pixels"),
        (bomb(10_000, 10_000), {}, "pixels"),
        (encoded(drawn(402, 2)), {}, "one side is over 200 times the other"),
        (encoded()[:60], {}, "broken"),
        (encoded(kind="JPEG")[:-200], {}, "broken"),
        (encoded()[:50] + bytes(20) + encoded()[70:], {}, "broken"),
        (b"", {}, "no image that can be read"),
        (b"<html>", {"kind": "image/png"}, "no image that can be read"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', {}, "SVG is not supported"),
        (b"<svg/>", {"kind": "image/svg+xml"}, "image/svg[+]xml is not supported"),
        (encoded(kind="BMP"), {}, "no image that can be read"),
        (encoded(kind="BMP"), {"kind": "image/bmp"}, "image/bmp is not supported"),
        (encoded(), {"kind": "image/jpeg"}, "said to be image/jpeg, and is PNG"),
        (encoded(kind="JPEG"), {"kind": "image/png"}, "said to be image/png, and is JPEG"),
    ],
    ids=range(15),
)
def test_what_cannot_be_shown_is_refused_in_words(data, more, words):
    assert re.search(words, refusal(data, **more))
