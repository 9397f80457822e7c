"""
Finds plugins and asks them what they offer.

Order: built-ins, then the plugin directories, then the interpreter's own site-packages.  A
    third-party plugin that cannot be used is kept as a `Failure` and never takes the process down;
    a process stops only where its configuration names what is missing.
"""

from __future__ import annotations

import logging
import re
import site
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import attrs
import pluggy

from cortex import hookspecs
from cortex.api import Source
from cortex.config.schema import PluginSettings
from cortex.errors import ConfigError, CortexError, PluginError, RepoFetchFailed
from cortex.fleet.model import ModelSpec
from cortex.registry import Offer, Registry, did_you_mean

GROUP = "cortex"
BUILTINS = (
    "cortex.dialects.openai_chat",
    "cortex.dialects.openai_completions",
    "cortex.dialects.openai_embeddings",
    "cortex.dialects.anthropic_messages",
    "cortex.dialects.openai_responses",
    "cortex.routing.least_loaded",
    "cortex.routing.prefix_affinity",
    "cortex.routing.round_robin",
    "cortex.eviction.lru",
    "cortex.eviction.priority",
    "cortex.authenticators.keys",
    "cortex.sources.package",
    "cortex.sources.file",
    "cortex.sources.hf",
    "cortex.neuron.harnesses.torch",
    "cortex.neuron.harnesses.echo",
)
KINDS = {
    "dialect": "cortex_register_dialects",
    "routing strategy": "cortex_register_routing_strategies",
    "eviction policy": "cortex_register_eviction_policies",
    "authenticator": "cortex_register_authenticators",
    "source": "cortex_register_sources",
    "harness": "cortex_register_harnesses",
}
EXAMPLES = {  # of what each built-in source can be asked for
    "package": "cortex pull smollm2-135m",
    "file": "cortex pull my-model --source file:/srv/models/my-model.gguf",
    "hf": "cortex pull Qwen/Qwen3-0.6B",
}
log = logging.getLogger(__name__)


def at_fault(what: str, chosen: object, error: Exception) -> CortexError:
    """
    Log that *chosen*, the *what* of the configuration, failed; return what to tell who asked.

    A `CortexError` is meant for who asked, and told as it is.
    """
    if isinstance(error, CortexError):
        return error
    name = f"{what} {type(chosen).__module__}.{type(chosen).__qualname__}"
    log.error("%s failed", name, exc_info=error)
    return PluginError(
        f"{name} failed: {type(error).__name__}: {error}",
        hint="the log has the traceback; cortex.toml can choose another",
    )


@attrs.frozen
class Failure:
    """A plugin that was found and cannot be used, wholly or for one kind of offer."""

    plugin: str
    distribution: str
    cause: str

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} ({self.distribution}): {self.cause}"


def entry_points() -> Iterator[metadata.EntryPoint]:
    """
    Yield the entry points of our group, first on `sys.path` first.

    Archives are skipped: the zipapp itself is one, and reading its directory again costs more than
    all else here.
    """
    path = [part for part in sys.path if not part.endswith((".pyz", ".zip"))]
    for distribution in metadata.distributions(path=path):
        yield from (entry for entry in distribution.entry_points if entry.group == GROUP)


class Plugins:
    """The plugins of this process."""

    def __init__(self, settings: PluginSettings | None = None) -> None:
        settings = settings or PluginSettings()
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)
        self.failures: list[Failure] = []
        self._distributions: dict[str, str] = {}
        self._registries: dict[str, Registry[Any]] = {}
        for name in settings.block:
            self.manager.set_blocked(name)
        for module in BUILTINS:
            if not self.manager.is_blocked(module):
                self.manager.register(import_module(module), module)
        for directory in settings.directories:
            site.addsitedir(str(directory))
        self._load_entry_points(settings.only)
        for name in settings.require:
            self._require(name)

    def _load_entry_points(self, only: frozenset[str] | None) -> None:
        for entry in sorted(entry_points(), key=lambda entry: entry.name):
            name, distribution = entry.name, entry.dist.name if entry.dist else "?"
            if self.manager.is_blocked(name) or (only is not None and name not in only):
                continue
            if self.manager.has_plugin(name):
                if (taken_by := self.distribution(name)) != distribution:
                    taken = f"the name is taken by the plugin of {taken_by}"
                    self._fail(name, distribution, PluginError(taken))
                continue
            try:
                self.manager.register(entry.load(), name)
                self.manager.check_pending()
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's import
                if self.manager.has_plugin(name):
                    self.manager.unregister(name=name)
                self._fail(name, distribution, error)
            else:
                self._distributions[name] = distribution

    def _require(self, name: str) -> None:
        for kind in KINDS:
            self.offers(kind)
        for failure in self.failures:
            if failure.plugin == name:
                raise ConfigError(f"plugins.require: {failure}")
        if not self.manager.has_plugin(name):
            hint = did_you_mean(name, dict.fromkeys(self.loaded()))
            raise ConfigError(f"plugins.require: no plugin is called {name!r}", hint=hint)

    def _fail(self, name: str, distribution: str, error: BaseException) -> None:
        cause = f"{type(error).__name__}: {error}"
        if isinstance(error, pluggy.PluginValidationError):
            cause = self._invalid(str(error))
        elif isinstance(error, PluginError):
            cause = str(error)
        failure = Failure(name, distribution, cause)
        self.failures.append(failure)
        log.warning("%s", failure)

    def _invalid(self, said: str) -> str:
        """Say shortly what pluggy has against a plugin's hooks."""
        if unknown := re.match(r"unknown hook '(\w+)'", said):
            hooks = [name for name in vars(hookspecs) if name.startswith("cortex_")]
            near = get_close_matches(unknown[1], hooks, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            return f"unknown hook {unknown[1]!r}{hint}"
        hook = re.search(r"for hook '(\w+)'", said)
        return f"hook {hook[1] if hook else '?'}: {said.splitlines()[-1]}"

    def distribution(self, plugin: str) -> str:
        """Return the distribution a plugin came in."""
        return self._distributions.get(plugin, "cortex-fleet")

    def loaded(self) -> list[str]:
        """Return the names of the plugins in use, built-ins first."""
        return [
            name for name, _ in self.manager.list_name_plugin() if self.manager.has_plugin(name)
        ]

    def offers(self, kind: str) -> Registry[Any]:
        """
        Return every offer of one *kind* of `KINDS`, asking the plugins the first time.

        A plugin that breaks a rule loses its remaining offers of this kind; the others keep theirs.
        """
        if kind in self._registries:
            return self._registries[kind]
        registry = self._registries[kind] = Registry(kind)
        hook = KINDS[kind]
        implementations = getattr(self.manager.hook, hook).get_hookimpls()
        for implementation in sorted(implementations, key=lambda i: i.plugin_name not in BUILTINS):
            name = implementation.plugin_name
            others = [p for p in self.manager.get_plugins() if p is not implementation.plugin]
            ask = self.manager.subset_hook_caller(hook, others)
            try:
                ask(register=registry.registrar(name))
            except (Exception, SystemExit) as error:
                if name in BUILTINS:
                    raise
                self._fail(name, self.distribution(name), error)
        return registry

    def choose(self, kind: str, name: str, where: str) -> Any:
        """
        Return the offer called *name*.

        Raises:
            ConfigError: Nobody offers it; names the plugin that failed, if that may be why.
        """
        registry = self.offers(kind)
        if name in registry:
            return registry[name]
        for failure in self.failures:
            if name in failure.plugin or name in failure.distribution:
                raise ConfigError(f"{where}: {kind} {name!r} is not there, because {failure}")
        try:
            return registry[name]
        except ConfigError as error:
            hint = error.hint
            if self.failures:
                hint += "; see `cortex plugins` for plugins that failed"
            raise ConfigError(f"{where}: {error.message}", hint=hint) from None

    def source_of(
        self,
        spec: ModelSpec,
        tables: Mapping[str, Mapping[str, Any]],
        where: str,
        cache: Path,
    ) -> Source:
        """
        Return the source of a model's weights: the one *spec* names, else the first to know the id.

        Args:
            spec: What is wanted.
            tables: ``[sources]``, the options of each source.
            where: The file they stand in, for errors.
            cache: Where downloads are kept.

        Raises:
            ConfigError: The source, or one *tables* has options for, is not there.
            RepoFetchFailed: No source knows the id.
        """
        for name in tables:
            self.choose("source", name, f"{where}: sources")

        def build(offer: Offer[Source]) -> Source:
            table, at = tables.get(offer.name), f"{where}: sources.{offer.name}"
            return offer.build(cache, table=table, where=at)

        if spec.source is not None:
            scheme = spec.source.partition(":")[0]
            return build(self.choose("source", scheme, f"source of {spec.id}"))
        offers = self.offers("source")
        for source in map(build, offers):
            if source.knows(spec.id):
                return source
        asked = ", ".join(offer.name for offer in offers)
        examples = (EXAMPLES.get(o.name, f"cortex pull ID --source {o.name}:WHERE") for o in offers)
        raise RepoFetchFailed(
            f"no source knows the model {spec.id!r}, asked were {asked}",
            hint=f"name one, as source in models.toml, or for example: {'; '.join(examples)}",
        )

    def notify(self, hook: str, **arguments: object) -> None:
        """Call a ``cortex_on_*`` hook of every plugin; what one raises is logged and dropped."""
        self.gather(hook, **arguments)

    def gather(self, hook: str, **arguments: object) -> list[Any]:
        """Return what every plugin answers to a hook; what one raises is logged and dropped."""
        answers = []
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            try:
                wanted = {name: arguments[name] for name in implementation.argnames}
                answers.append(implementation.function(**wanted))
            except (Exception, SystemExit):
                log.exception("plugin %s: %s raised", implementation.plugin_name, hook)
        return [answer for answer in answers if answer is not None]
