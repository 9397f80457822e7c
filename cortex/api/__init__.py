"""The protocols a plugin implements.  Stable: changing one is a breaking change."""

from __future__ import annotations

from cortex.api.dialect import (
    ChatClient,
    ChatDialect,
    CountDialect,
    Dialect,
    EmbeddingDialect,
    Endpoint,
    ModelsDialect,
    Operation,
    ReplyDecoder,
    ReplyDialect,
    ReplyEncoder,
    Shape,
    VersionDialect,
)
from cortex.api.harness import (
    CheckingHarness,
    Count,
    Harness,
    HarnessHost,
    Report,
    RestartableHarness,
    Source,
    SplittingHarness,
    SpreadingHarness,
)
from cortex.api.places import Places
from cortex.api.register import (
    Register,
)
from cortex.api.strategy import (
    Authenticator,
    EvictionPolicy,
    RoutingStrategy,
)

__all__ = [
    "Authenticator",
    "ChatClient",
    "ChatDialect",
    "CheckingHarness",
    "Count",
    "CountDialect",
    "Dialect",
    "EmbeddingDialect",
    "Endpoint",
    "EvictionPolicy",
    "Harness",
    "HarnessHost",
    "ModelsDialect",
    "Operation",
    "Places",
    "Register",
    "ReplyDecoder",
    "ReplyDialect",
    "ReplyEncoder",
    "Report",
    "RestartableHarness",
    "RoutingStrategy",
    "Shape",
    "Source",
    "SplittingHarness",
    "SpreadingHarness",
    "VersionDialect",
]
