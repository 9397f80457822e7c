"""Images drawn for tests, and how a made-up model sees them."""

from __future__ import annotations

import base64
import io

from PIL import Image

from cortex.neuron.engine.pictures import Sight

SIGHT = Sight(token=9, patch=4, merge=2, least_pixels=256, most_pixels=4096)


def drawn(width=40, height=24, mode="RGB"):
    """Return an image that is different everywhere."""
    down = Image.linear_gradient("L")
    bands = [down.rotate(90), down, Image.radial_gradient("L")]
    return Image.merge("RGB", bands).resize((width, height)).convert(mode)


def encoded(image=None, kind="PNG", **more):
    """Return a file of an image."""
    file = io.BytesIO()
    (drawn() if image is None else image).save(file, kind, **more)
    return file.getvalue()


def data_url(data=None, kind="image/png"):
    """Return a file as a ``data:`` URI."""
    data = encoded() if data is None else data
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
