"""What clients may ask for: models.toml, aliases, and whatever a node has loaded besides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import attrs

from cortex.config.schema import Catalogue
from cortex.errors import InvalidRequest, ModelNotFound, NoNodeAvailable
from cortex.fleet.model import ModelCard, ModelSpec
from cortex.fleet.node import NodeModel
from cortex.fleet.principal import Principal
from cortex.gateway.node import Node
from cortex.gateway.nodes import Nodes
from cortex.gateway.placement import feasible_on
from cortex.plugins import Plugins
from cortex.registry import did_you_mean


class Names:
    """
    Turns a client's model name into a `ModelSpec`.

    Attributes:
        specs: The catalogue by id, with what is pinned at run time; replaced whenever it changes.
        aliases: The names that stand for another.
        abilities: What models can do that were loaded somewhere since the start.
        by_hand: What is pinned at run time, and on which nodes.
    """

    specs: Mapping[str, ModelSpec]
    aliases: Mapping[str, str]

    def __init__(self, catalogue: Catalogue, nodes: Nodes, plugins: Plugins) -> None:
        self._nodes = nodes
        self._plugins = plugins
        self.by_hand: dict[str, tuple[str, ...]] = {}
        self.abilities: dict[str, tuple[str, ...]] = {}
        self.adopt(catalogue)

    def adopt(self, catalogue: Catalogue) -> None:
        """Go by *catalogue* from now on; what was pinned at run time stays so, where it can."""
        self._listed = {spec.id: spec for spec in catalogue.models}
        self.aliases = catalogue.aliases
        self.restore(self.by_hand)

    def restore(self, pins: Mapping[str, tuple[str, ...]]) -> None:
        """Let *pins* be what is pinned at run time, where the nodes are part of the fleet."""
        left = {
            model: tuple(name for name in nodes if self._nodes.get(name) is not None)
            for model, nodes in pins.items()
        }
        self.by_hand = {model: nodes for model, nodes in left.items() if nodes}
        self._put_pins()

    def pin(self, spec: ModelSpec, nodes: Iterable[str]) -> None:
        """Let *spec* run on *nodes*, besides those it is pinned on, and never evict it there."""
        self.by_hand[spec.id] = tuple(dict.fromkeys((*self.by_hand.get(spec.id, ()), *nodes)))
        self._put_pins()

    def unpin(self, spec: ModelSpec, node: str | None) -> None:
        """
        Undo `pin`, on every node if none is named.

        Raises:
            InvalidRequest: It is the catalogue that pins it there.
        """
        listed = self._listed.get(spec.id, ModelSpec(id=spec.id)).pinned_on
        if listed and node in (None, *listed):
            raise InvalidRequest(f"models.toml pins {spec.id} on {', '.join(listed)}")
        left = tuple(name for name in self.by_hand.pop(spec.id, ()) if node not in (None, name))
        if left:
            self.by_hand[spec.id] = left
        self._put_pins()

    def pins(self) -> dict[str, tuple[str, ...]]:
        """Return the nodes of every model that is pinned."""
        return {spec.id: spec.pinned_on for spec in self.specs.values() if spec.pinned_on}

    def _put_pins(self) -> None:
        pinned = {
            model: attrs.evolve(spec, pinned_on=tuple(dict.fromkeys((*spec.pinned_on, *nodes))))
            for model, nodes in self.by_hand.items()
            for spec in [self._listed.get(model, ModelSpec(id=model))]
        }
        self.specs = {**self._listed, **pinned}

    def resolve(self, name: str) -> ModelSpec:
        """
        Return the spec of a model, by id or alias, else by what a plugin makes of the name.

        Raises:
            ModelNotFound: With the nearest name there is.
            NoNodeAvailable: A node may have it that has not said yet what it has.
        """
        if (found := self._find(name)) is not None:
            return found
        known = self._known()
        chosen = self._plugins.manager.hook.cortex_choose_model(name=name, known=sorted(known))
        if chosen is not None and (found := self._find(chosen)) is not None:
            return found
        if new := [node.name for node in self._nodes if node.is_new]:
            raise NoNodeAvailable(
                f"no model is called {name!r} so far; {', '.join(new)} has not answered yet",
                param="model",
            )
        raise ModelNotFound(
            f"no model is called {name!r}", hint=did_you_mean(name, known), param="model"
        )

    def _find(self, name: str) -> ModelSpec | None:
        name = self._target(name)
        if (spec := self.specs.get(name)) is not None:
            return spec
        here = any(name in node.models or name in node.promised for node in self._nodes)
        return ModelSpec(id=name) if here else None

    def _target(self, name: str) -> str:
        """Return what an alias stands for; of several patterns that match, the longest counts."""
        if name in self.aliases or name in self.specs:
            return self.aliases.get(name, name)
        patterns = (p for p in self.aliases if "*" in p and fnmatchcase(name, p))
        return self.aliases.get(max(patterns, key=len, default=""), name)

    def _known(self) -> dict[str, object]:
        there = (model for node in self._nodes for model in (*node.models, *node.promised))
        return dict.fromkeys([*self.specs, *self.aliases, *there])

    def seeing(self, principal: Principal) -> list[str]:
        """Return the models loaded anywhere that see images, and that *principal* may use."""
        found = {model for node in self._nodes for model in node.seeing if node.in_service}
        return sorted(model for model in found if principal.allows(model, model))

    def learn(self) -> None:
        """Take note of what models can do, for when they are nowhere."""
        found: dict[str, set[str]] = {}
        for node in self._nodes:
            for model in node.models.values():
                if model.routable and model.capabilities:
                    found.setdefault(model.id, set()).update(model.capabilities)
        self.abilities.update((model, tuple(sorted(can))) for model, can in found.items())

    def is_blind(self, model: str) -> bool:
        """Tell whether *model* is known to see no images, and no node says otherwise now."""
        if "vision" in self.abilities.get(model, ("vision",)):
            return False
        return not any(node.serves(model) for node in self._nodes.having(model))

    def cards(self) -> list[ModelCard]:
        """Return the rows of ``/v1/models``: catalogue, what nodes have besides, aliases."""
        specs = dict(self.specs)
        for node in self._nodes:
            there = (model.id for model in node.models.values() if model.routable)
            for name in (*there, *node.promised):
                specs.setdefault(name, ModelSpec(id=name))
        cards = {model_id: self._card(spec) for model_id, spec in specs.items()}
        for alias, target in self.aliases.items():
            if target in cards and "*" not in alias:
                extra = {**cards[target].extra, "alias_of": target}
                cards[alias] = attrs.evolve(cards[target], id=alias, extra=extra)
        return list(cards.values())

    def _card(self, spec: ModelSpec) -> ModelCard:
        here = [(node, node.models[spec.id]) for node in self._nodes if spec.id in node.models]
        limit = tightest(model for _, model in here if model.routable)
        context = limit["context"] or spec.context
        loaded = any(node.healthy and model.routable for node, model in here)
        shown = {c for _, model in here for c in model.capabilities}
        capabilities = tuple(sorted(shown)) or self.abilities.get(spec.id, ())
        return ModelCard(
            id=spec.id,
            context=context,
            output=limit["output"] or None,
            loaded=loaded,
            capabilities=capabilities,
            used_bytes=max((model.vram_used_mb << 20 for _, model in here), default=0),
            extra={
                "loaded": loaded,
                "feasible_on": [
                    node.name for node in self._nodes if feasible_on(spec, node) is None
                ],
                "locations": [location(node, model) for node, model in here],
                "capabilities": capabilities,
                "limit": limit,
            },
        )


def tightest(models: Iterable[NodeModel]) -> dict[str, int]:
    """Return the smallest limits among replicas; 0 is unknown."""
    limits = [model.limit for model in models]
    context = min((limit.context for limit in limits if limit.context), default=0)
    output = min((limit.output for limit in limits if limit.output), default=0)
    return {"context": context, "output": output}


def location(node: Node, model: NodeModel) -> dict[str, Any]:
    """Return where a model is and how far."""
    status = model.status if node.healthy else "unreachable"
    row = {"node": node.name, "status": status, "vram_estimate_mb": model.vram_used_mb}
    return row if model.progress is None else {**row, "progress": model.progress}
