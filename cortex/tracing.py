"""
Whether this process traces its requests.

It does where the configuration names a collector.  opentelemetry, an extra, is imported then and
only then; without a collector a request costs a comparison with None.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cortex.config.schema import TracingSection
from cortex.errors import ConfigError
from cortex.hookspecs import Role

if TYPE_CHECKING:
    from cortex.spans import Tracing

NEEDED = "'opentelemetry-exporter-otlp-proto-http>=1.36'"  # brings what else the extra names


def open_tracing(section: TracingSection, role: Role) -> Tracing | None:
    """
    Begin to trace, or return None where no collector is named.

    Raises:
        ConfigError: What is needed is not installed.
    """
    if section.endpoint is None:
        return None
    try:
        from cortex.spans import Tracing
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracing: {sys.executable} has no module {error.name!r}",
            hint=f"install with: {sys.executable} -m pip install {NEEDED}; or name no collector",
        ) from None
    return Tracing(section.endpoint, section.sample, section.service, role)
