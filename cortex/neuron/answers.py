"""What the neuron's own routes take and answer, beside the classes of `cortex.fleet.node`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from cortex import logs
from cortex.api import Shape
from cortex.errors import InvalidRequest
from cortex.fleet.model import ModelSpec, SamplingDefault
from cortex.fleet.node import Discovery, Health, NodeModel
from cortex.openapi import STREAM, TEXT, Path, Program


class LoadBody(msgspec.Struct, forbid_unknown_fields=False):
    """``POST /models/load`` and ``POST /models/tokenizer``."""

    model_id: str
    harness: str | None = None
    quant: str | None = None
    tensor_parallel: int = 1
    devices: list[int] = []
    source: str | None = None
    context: Annotated[int, msgspec.Meta(ge=1)] | None = None
    vram_mb: int | None = None
    defaults: dict[SamplingDefault, float] = {}
    wait: bool = True

    def spec(self) -> ModelSpec:
        """
        Return the model it is about.

        Raises:
            InvalidRequest: A default is out of bounds.
        """
        try:
            return ModelSpec(
                id=self.model_id,
                harness=self.harness,
                quant=self.quant,
                source=self.source,
                context=self.context,
                vram_mb=self.vram_mb,
                min_devices=max(self.tensor_parallel, len(self.devices), 1),
                defaults=self.defaults,
            )
        except ValueError as error:
            raise InvalidRequest(str(error), param="defaults") from None


class UnloadBody(msgspec.Struct):
    """``POST /models/unload``."""

    model_id: str
    force: bool = False


class Loaded(msgspec.Struct):
    """``POST /models/load``."""

    status: str
    model_id: str
    load_s: float
    vram_used_mb: int


class Told(msgspec.Struct):
    """What has become of a model."""

    status: Literal["loading", "ready", "unloaded"]
    model_id: str


class Restarted(msgspec.Struct):
    """``POST /devices/{index}/restart``."""

    status: Literal["restarted"]
    device: int


class Place(msgspec.Struct):
    """``GET /models/{id}/endpoint``."""

    url: str
    dialects: list[str]


PATHS: Mapping[str, Path] = {
    "GET /": Path(summary="Show name and version", shape=Shape(answer=Program)),
    "GET /health": Path(summary="Tell how devices and models are", shape=Shape(answer=Health)),
    "GET /discovery": Path(summary="Tell what does not change", shape=Shape(answer=Discovery)),
    "GET /logs": logs.PATH,
    "GET /models": Path(summary="List models", shape=Shape(answer=list[NodeModel])),
    "POST /models/load": Path(
        summary="Load a model",
        shape=Shape(body=LoadBody, answer=Loaded),
        statuses={202: Told},
    ),
    "POST /models/tokenizer": Path(
        summary="Read a model's tokenizer", shape=Shape(body=LoadBody, answer=Told)
    ),
    "POST /models/unload": Path(
        summary="Unload a model", shape=Shape(body=UnloadBody, answer=Told)
    ),
    "GET /models/{id}/endpoint": Path(
        summary="Tell where a loaded model is asked", shape=Shape(answer=Place)
    ),
    "POST /devices/{index}/restart": Path(
        summary="Start a device's worker anew", shape=Shape(answer=Restarted)
    ),
    "GET /events": Path(summary="Tell what changes", shape=Shape(stream=STREAM)),
    "GET /metrics": Path(summary="Tell Prometheus", shape=Shape(answer=str), media=TEXT),
}
