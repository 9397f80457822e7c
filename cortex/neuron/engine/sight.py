"""What the files of a checkpoint say of how its model sees; reads no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import transformers
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from cortex.neuron.engine.pictures import Sight

LEAST_PIXELS = 56 * 56  # these are what transformers takes where the files do not say
MOST_PIXELS = 28 * 28 * 1280
FACTOR = 1 / 255
CUT = "Qwen2VLImageProcessor"  # what cuts pictures as we do, and is alone in that
FILES = ("preprocessor_config.json", "processor_config.json")


@attrs.frozen(kw_only=True)
class Shades:
    """
    What becomes of a byte of a picture: its part of *factor*, less *mean*, divided by *std*.

    Attributes:
        mean: Of red, green and blue, as is *std*.
    """

    factor: float = FACTOR
    mean: tuple[float, ...] = tuple(OPENAI_CLIP_MEAN)
    std: tuple[float, ...] = tuple(OPENAI_CLIP_STD)


def _sees(said: dict[str, Any], config: Any) -> bool:
    """
    Tell whether a checkpoint is a model for text and pictures we can run.

    Its pictures are cut into patches, squares of which are a token, and its tokens have places on
    three axes; and it says that it was saved with its vision tower.
    """
    if not said.get("image_processor_type", CUT).startswith(CUT):
        return False
    auto = transformers.models.auto.modeling_auto
    whole = auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    if whole is None or whole not in (getattr(config, "architectures", None) or ()):
        return False
    vision = getattr(config, "vision_config", None)
    traits = ("patch_size", "spatial_merge_size", "temporal_patch_size")
    turning = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return (
        getattr(config, "image_token_id", None) is not None
        and all(isinstance(getattr(vision, trait, None), int) for trait in traits)
        and "mrope_section" in turning
    )


def read(folder: Path, config: Any) -> Sight | None:
    """Return how the model of a checkpoint sees; None if it does not."""
    said = _said(folder)
    if not _sees(said, config):
        return None
    size = said.get("size") or {}
    least = said.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels")
    most = said.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels")
    return Sight(
        token=config.image_token_id,
        patch=config.vision_config.patch_size,
        merge=config.vision_config.spatial_merge_size,
        least_pixels=int(least or LEAST_PIXELS),
        most_pixels=int(most or MOST_PIXELS),
    )


def shades(folder: Path) -> Shades:
    """Return what becomes of the bytes of a picture."""
    said = _said(folder)
    return Shades(
        factor=float(said.get("rescale_factor") or FACTOR),
        mean=tuple(said.get("image_mean") or OPENAI_CLIP_MEAN),
        std=tuple(said.get("image_std") or OPENAI_CLIP_STD),
    )


def _said(folder: Path) -> dict[str, Any]:
    for name in FILES:
        if (folder / name).is_file():
            said: dict[str, Any] = json.loads((folder / name).read_text("utf-8"))
            own: dict[str, Any] = said.get("image_processor", said)
            return own
    return {}
