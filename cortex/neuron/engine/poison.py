"""What leaves a device's context beyond use."""

from __future__ import annotations

import torch


def is_poison(error: Exception) -> bool:
    """Tell whether *error* leaves the device's context beyond use."""
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
