"""How a plugin offers what it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T_contra = TypeVar("T_contra", contravariant=True)


class Register(Protocol[T_contra]):
    """Collects named factories during one ``cortex_register_*`` call."""

    def __call__(
        self,
        name: str,
        factory: Callable[..., T_contra],
        *,
        options: type[Any] | None = None,
        summary: str = "",
    ) -> None:
        """
        Offer *factory* under *name*.

        Args:
            name: Lower-case kebab, unique among offers of its kind.
            factory: Called with the options as its first argument, if *options* is given.
            options: An attrs class; the offer's table of the configuration is read into it.
            summary: One line for ``cortex plugins``.

        Raises:
            PluginError: The name is taken or malformed.
        """
        ...
