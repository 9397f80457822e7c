"""
Makes one vector of a text out of the states of its tokens.

A checkpoint for sentence-transformers lists in modules.json what follows the transformer, each with
a folder of its own; one without that file gets the mean of its states, of length one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load_file

from cortex.errors import UnsupportedArchitecture

Layer = Callable[[torch.Tensor], torch.Tensor]
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")


@attrs.frozen(kw_only=True)
class Pooling:
    """
    What follows the transformer.

    Attributes:
        mode: ``mean``, ``cls`` or ``lasttoken``.
        layers: What a pooled vector goes through.
        dimensions: Components of what comes out.
    """

    mode: str
    layers: tuple[Layer, ...]
    dimensions: int

    def __call__(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """
        Return a vector for each text: [texts, dimensions] float32..

        Args:
            states: # [texts, tokens, width], any float type
            mask: # [texts, tokens] int64, 1 for the tokens of a text, which come first
        """
        states = states.float()
        match self.mode:
            case "cls":
                vectors = states[:, 0]
            case "lasttoken":
                vectors = states[torch.arange(len(states)), mask.sum(1) - 1]
            case _:
                weights = mask.unsqueeze(-1).float()
                vectors = (states * weights).sum(1) / weights.sum(1)
        for layer in self.layers:
            vectors = layer(vectors)
        return vectors


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Return the vectors with length one."""
    return torch.nn.functional.normalize(vectors, dim=-1)


def read(folder: Path, width: int, device: torch.device) -> Pooling:
    """
    Read what follows the transformer in *folder*, which has states of *width* components.

    Raises:
        UnsupportedArchitecture: It is something we do not know.
    """
    modules = folder / "modules.json"
    if not modules.is_file():
        return Pooling(mode="mean", layers=(unit,), dimensions=width)
    mode = "mean"
    layers: list[Layer] = []
    for module in json.loads(modules.read_text("utf-8")):
        kind, place = module["type"].rpartition(".")[2], folder / module["path"]
        match kind:
            case "Transformer":
                pass
            case "Pooling":
                mode = _mode(_config(place))
            case "Dense":
                config = _config(place)
                layers.append(_dense(place, config).to(device))
                width = int(config["out_features"])
            case "Normalize":
                layers.append(unit)
            case _:
                raise UnsupportedArchitecture(f"the engine has no module {kind!r} for embeddings")
    return Pooling(mode=mode, layers=tuple(layers), dimensions=width)


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return config


def _mode(config: Mapping[str, Any]) -> str:
    """Return how to pool; a file has its name, or a flag for each way."""
    flags = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_lasttoken": "lasttoken",
    }
    if (named := config.get("pooling_mode")) is not None:
        modes = [named] if isinstance(named, str) else list(named)
    else:
        on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        modes = [flags.get(key, key) for key in on] or ["mean"]
    if len(modes) != 1 or modes[0] not in flags.values():
        raise UnsupportedArchitecture(f"the engine cannot pool by {', '.join(modes)}")
    return str(modes[0])


def _dense(folder: Path, config: Mapping[str, Any]) -> torch.nn.Sequential:
    path, _, activation = str(config["activation_function"]).rpartition(".")
    if not path.startswith("torch.nn.modules.") or activation not in ACTIVATIONS:
        raise UnsupportedArchitecture(f"the engine has no activation {activation!r}")
    if config.get("use_residual"):
        raise UnsupportedArchitecture("the engine has no dense layer with a residual")
    linear = torch.nn.Linear(config["in_features"], config["out_features"], config["bias"])
    weights = load_file(folder / "model.safetensors")
    linear.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
    return torch.nn.Sequential(linear, getattr(torch.nn, activation)())
