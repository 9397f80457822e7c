"""
``/openapi.json``: what a program serves, told from its routes and the types that travel there.

Paths and methods are the application's own.  What goes in and out of a dialect's path its
`cortex.api.Endpoint` says, of the program's own paths a table beside their handlers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import msgspec
from aiohttp import web

from cortex import __version__
from cortex.api import Operation, Shape
from cortex.web import FALLBACK, ROUTES
from cortex.wire import encode

PATH = "/openapi.json"
STREAM = "text/event-stream"
TEXT = "text/plain"
SUMMARIES: Mapping[Operation, str] = {
    "chat": "Go on with a conversation or a text",
    "count": "Count the tokens of a prompt",
    "embed": "Turn texts into vectors",
    "list_models": "List the models that can be asked for",
    "list_loaded": "List the models that answer at once",
    "get_model": "Show one model",
    "get_reply": "Show a kept answer",
    "delete_reply": "Delete a kept answer",
    "cancel_reply": "Cancel an answer that is made in the background",
    "list_inputs": "List what a kept answer was asked with",
    "version": "Show the version",
}


class Program(msgspec.Struct):
    """``GET /``."""

    name: str
    version: str


@attrs.frozen(kw_only=True)
class Path:
    """
    One of the program's own method and path.

    Attributes:
        statuses: Answers with other statuses than 200, and what they are.
        media: The media type of its answer.
    """

    summary: str
    shape: Shape = attrs.field(factory=Shape)
    statuses: Mapping[int, Any] = attrs.field(factory=dict)
    media: str = "application/json"


@attrs.frozen(kw_only=True)
class Surface:
    """
    A program, for its document.

    Attributes:
        paths: Its own, by method and path, as in ``GET /health``.
        is_open: Those that want no key, by path.
        admin: What the paths of its admin API begin with.
        keys: The names of its security schemes.
    """

    title: str
    paths: Mapping[str, Path]
    is_open: Sequence[str]
    admin: str = ""
    keys: Sequence[str]


SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
DOCUMENT = Path(summary="Show this document", shape=Shape(answer=dict[str, Any]))


def add_document(app: web.Application, surface: Surface) -> None:
    """Serve the document of *app*; made when first asked for, where 70 ms hold up no stream."""
    made: list[bytes] = []

    async def handle(_: web.Request) -> web.Response:
        if not made:
            made.append(encode(await asyncio.to_thread(document, app, surface)))
        return web.Response(body=made[0], content_type="application/json")

    app.router.add_get(PATH, handle)


def document(app: web.Application, surface: Surface) -> dict[str, Any]:
    """
    Return the OpenAPI document of *app*.

    Raises:
        KeyError: One of its routes is in no table.
    """
    served = list(operations(app, surface))
    types = {repr(kind): kind for each in served for path in each.paths for kind in kinds(path)}
    schemas, components = msgspec.json.schema_components(
        types.values(), ref_template="#/components/schemas/{name}"
    )
    by_type = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for each in served:
        paths.setdefault(each.path, {})[each.method.lower()] = each.render(by_type, surface)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": surface.title,
            "version": __version__,
            "license": {"name": "GPL-3.0-or-later", "identifier": "GPL-3.0-or-later"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {name: SCHEMES[name] for name in surface.keys},
        },
    }


def kinds(path: Path) -> Iterator[Any]:
    """Yield every type that travels there."""
    shape = path.shape
    yield from (shape.body, shape.answer, shape.error, *shape.query.values())
    yield from path.statuses.values()


@attrs.frozen(kw_only=True)
class Served:
    """
    A method and path, and what it is: several where headers set dialects apart.

    Attributes:
        headers: Those, one for each of *paths* or None.
    """

    method: str
    path: str
    tag: str
    paths: Sequence[Path]
    headers: Sequence[str | None]

    def render(self, by_type: Mapping[str, Any], surface: Surface) -> dict[str, Any]:
        """Return the operation object."""
        shapes = [path.shape for path in self.paths]
        words = re.findall(r"\w+", self.path)
        said: dict[str, Any] = {
            "operationId": "_".join([self.method.lower(), *words]),
            "summary": self.paths[0].summary,
            "tags": [self.tag],
            "parameters": [*self._parameters(by_type)],
            "responses": self._responses(by_type),
        }
        bodies = [by_type[repr(shape.body)] for shape in shapes if shape.body is not None]
        if bodies:
            needed = [f.required for s in shapes if s.body for f in msgspec.structs.fields(s.body)]
            content = {"application/json": {"schema": either(bodies)}}
            said["requestBody"] = {"required": any(needed), "content": content}
        if self.path in surface.is_open:
            said["security"] = []
        else:  # without a key in the configuration none is asked for
            said["security"] = [*({name: []} for name in surface.keys), {}]
        return said

    def _parameters(self, by_type: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for name in re.findall(r"{(\w+)}", self.path):
            text = {"type": "string"}
            yield {"name": name, "in": "path", "required": True, "schema": text}
        for path in self.paths:
            for name, kind in path.shape.query.items():
                yield {"name": name, "in": "query", "schema": by_type[repr(kind)]}
        for name in filter(None, self.headers):
            required = None not in self.headers
            text = {"type": "string"}
            yield {"name": name, "in": "header", "required": required, "schema": text}

    def _responses(self, by_type: Mapping[str, Any]) -> dict[str, Any]:
        answers = [by_type[repr(path.shape.answer)] for path in self.paths]
        content: dict[str, Any] = {}
        if any(path.shape.answer is not None or not path.shape.stream for path in self.paths):
            content[self.paths[0].media] = {"schema": either(answers)}
        for path in self.paths:
            if path.shape.stream:
                content[path.shape.stream] = {"schema": {"type": "string"}}
        said = {"200": {"description": "the answer", "content": content}}
        for path in self.paths:
            for status, kind in path.statuses.items():
                content = {path.media: {"schema": by_type[repr(kind)]}}
                said[str(status)] = {"description": "another answer", "content": content}
        errors = either([by_type[repr(path.shape.error)] for path in self.paths])
        content = {"application/json": {"schema": errors}}
        return {**said, "default": {"description": "an error", "content": content}}


def either(schemas: Sequence[Any]) -> Any:
    """Return a schema for whatever one of *schemas* is for."""
    different = [one for n, one in enumerate(schemas) if one not in schemas[:n]]
    return different[0] if len(different) == 1 else {"anyOf": different}


def operations(app: web.Application, surface: Surface) -> Iterator[Served]:
    """Yield what *app* serves, as its router has it."""
    error = app[FALLBACK].endpoints[0].shape.error
    for found in app.router.routes():
        if found.method == "HEAD" or found.resource is None:
            continue
        method, path = found.method, found.resource.canonical
        routes = [r for r in app[ROUTES].get(path, ()) if r.endpoint.method == method]
        if routes:
            yield Served(
                method=method,
                path=path,
                tag="inference",
                headers=[route.endpoint.header for route in routes],
                paths=[
                    Path(summary=SUMMARIES[route.endpoint.operation], shape=route.endpoint.shape)
                    for route in routes
                ],
            )
            continue
        own = DOCUMENT if path == PATH else surface.paths[f"{method} {path}"]
        tag = "admin" if surface.admin and path.startswith(surface.admin) else "service"
        shaped = attrs.evolve(own, shape=attrs.evolve(own.shape, error=error))
        yield Served(method=method, path=path, tag=tag, headers=[None], paths=[shaped])
