"""What images a neuron takes."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class ImageOptions:
    """
    ``[harness.torch.images]``.

    Attributes:
        urls: Fetch images that are given by an ``http(s)`` URL, from public addresses only.
        max_count: Images of one request.
        max_mb: MiB of one image, as it is sent or fetched.
        max_pixels: Pixels of one image before it is resized; over 178 million none is read.
        max_waiting_mb: MiB of pictures, as models see them, of all requests whose answer has not
            begun; more wait for a minute, and are then refused.
        timeout_s: How long fetching all images of one request may take.
    """

    urls: bool = False
    max_count: int = 100
    max_mb: int = 20
    max_pixels: int = 64_000_000
    max_waiting_mb: int = 1024
    timeout_s: float = 10.0
