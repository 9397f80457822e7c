"""
For tests, a plugin's too: a neuron that does as it is told, and contracts to hold a plugin to.

No pytest is needed.
"""

from __future__ import annotations

from cortex.testing.dialects import dialect_contract, embedding_contract
from cortex.testing.expecting import expect, until
from cortex.testing.harnesses import FakeHost, harness_contract
from cortex.testing.neuron import FakeNeuron
from cortex.testing.virtual import VirtualLoop, VirtualNeuron

__all__ = [
    "FakeHost",
    "FakeNeuron",
    "VirtualLoop",
    "VirtualNeuron",
    "dialect_contract",
    "embedding_contract",
    "expect",
    "harness_contract",
    "until",
]
