"""
For tests, a plugin's too: a neuron that does as it is told, and contracts to hold a plugin to.

No pytest is needed.
"""

from __future__ import annotations

from cortex.testing.contracts import FakeHost, dialect_contract, expect, harness_contract, until
from cortex.testing.neuron import FakeNeuron

__all__ = [
    "FakeHost",
    "FakeNeuron",
    "dialect_contract",
    "expect",
    "harness_contract",
    "until",
]
