"""Which files a configuration is in, and what each of them is of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from cortex.config.load import default_file, read_table
from cortex.config.schema import Catalogue, GatewayConfig, NeuronConfig
from cortex.errors import ConfigError

KINDS: dict[str, type[Any]] = {
    "gateway": GatewayConfig,
    "neuron": NeuronConfig,
    "models": Catalogue,
}


@attrs.frozen
class Subject:
    """
    A file to look at.

    Attributes:
        kind: A key of `KINDS`.
        path: None is all defaults.
    """

    kind: str
    path: Path | None

    @property
    def name(self) -> str:
        """The file, as an error calls it."""
        default = "neuron.toml" if self.kind == "neuron" else "cortex.toml"
        return self.path.name if self.path else default


def found(files: Sequence[Path], role: str | None) -> list[Subject]:
    """
    Return what the command line means.

    Raises:
        ConfigError: It names nothing, and there is nothing here.
    """
    if files:
        return [Subject(role or kind_of(path), path) for path in files]
    here = {"gateway": default_file("cortex.toml"), "neuron": default_file("neuron.toml")}
    if role:
        return [Subject(role, here[role])]
    subjects = [Subject(kind, path) for kind, path in here.items() if path]
    if not subjects:
        raise ConfigError(
            "there is neither ./cortex.toml nor ./neuron.toml",
            hint="name a file, or see the defaults with --role gateway",
        )
    return subjects


def kind_of(path: Path) -> str:
    """Return what a file is of: by its tables, else by its name."""
    try:
        keys = read_table(path, Catalogue).keys()  # models.toml has no overrides: the file as it is
    except ConfigError:
        keys = {}.keys()

    def likeness(kind: str) -> tuple[int, bool]:
        fields = {field.name for field in attrs.fields(KINDS[kind])}
        return len(fields & keys), kind in path.name.lower()

    return max(KINDS, key=likeness)
