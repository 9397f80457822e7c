"""The rules of the house, computed from the code: sizes, imports, and that all is documented."""

from __future__ import annotations

import argparse
import ast
import asyncio
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest

from cortex import errors
from cortex.__main__ import COMMANDS
from cortex.cli.bench.figures import Row
from cortex.config.schema import Catalogue, GatewayConfig, NeuronConfig, PluginSettings
from cortex.errors import CortexError, RemoteError
from cortex.events import Events
from cortex.fleet import node
from cortex.gateway.answers import ModelBody, PinBody
from cortex.gateway.app import Gateway
from cortex.neuron.answers import LoadBody, UnloadBody
from cortex.neuron.app import Neuron
from cortex.neuron.discovery import Host
from cortex.neuron.models import Models
from cortex.plugins import BUILTINS, Plugins
from tests.gateway.exported import exported

ROOT = Path(__file__).parents[1]
NAMES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "cortex").rglob("*.py"))
PLUGINS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("plugins/*/src/**/*.py"))
TREES = {name: ast.parse((ROOT / name).read_text("utf-8")) for name in (*NAMES, *PLUGINS)}
PUBLIC = (
    *("api", "chat", "errors", "fleet", "hookimpl", "wire"),
    *("dialects.openai_chat.chunk", "dialects.openai_chat.client", "dialects.sse"),
)
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
KERNEL = "# house: kernel"  # on the line of a Triton kernel's `def`
HEAVY = ("torch", "transformers", "aiohttp", "textual")
HERE = Plugins(PluginSettings(only=frozenset()))
each_module = pytest.mark.parametrize("name", [*NAMES, *PLUGINS])


def lines_of(name: str) -> list[str]:
    return (ROOT / name).read_text("utf-8").splitlines()


def functions(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for tree in ast.walk(TREES[name]):
        if isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef):
            yield tree


def is_kernel(name: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return KERNEL in lines_of(name)[function.lineno - 1]


def python(program: str, *arguments: str) -> str:
    """Run *program* in a process of its own, from the checkout; return what it printed."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=True, timeout=60
    ).stdout


# Size and shape.


@each_module
def test_a_module_fits_its_limit(name):
    assert len(lines_of(name)) <= MAX_MODULE_LINES


@each_module
def test_a_function_fits_its_limit(name):
    long = {
        function.name: length
        for function in functions(name)
        if (length := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
        and not is_kernel(name, function)
    }
    assert not long


@each_module
def test_only_triton_kernels_are_marked_as_kernels(name):
    for function in functions(name):
        if is_kernel(name, function):
            assert any("triton.jit" in ast.unparse(mark) for mark in function.decorator_list)


@each_module
def test_a_module_opens_with_what_it_is_for(name):
    assert ast.get_docstring(TREES[name])


@each_module
def test_no_module_has_an_except_star(name):
    """Before Python 3.11.4 what is raised in one comes out in a group."""
    assert not [tree.lineno for tree in ast.walk(TREES[name]) if isinstance(tree, ast.TryStar)]


@each_module
def test_a_module_is_named_after_what_it_is_about(name):
    assert not {"utils", "helpers", "common", "misc", "base", "manager"} & {
        *Path(name).with_suffix("").parts
    }


@each_module
def test_only_the_configuration_reads_the_environment(name):
    if name in ("cortex/__main__.py", "cortex/config/load.py"):  # a shell asks the former by it
        return
    for tree in ast.walk(TREES[name]):
        if isinstance(tree, ast.ImportFrom) and tree.module == "os":
            assert not {alias.name for alias in tree.names} & {"environ", "environb", "getenv"}
        if isinstance(tree, ast.Attribute):
            assert not re.fullmatch(r"os\.(environb?|getenv|putenv)", ast.unparse(tree))


# Imports.


def test_built_in_plugins_import_light():
    said = python(
        "from importlib import import_module\n"
        "heavy = sys.argv[1].split()\n"
        "for name in sys.argv[2:]:\n"
        "    import_module(name)\n"
        "    print(name, *(module for module in heavy if module in sys.modules))\n",
        " ".join(HEAVY),
        *BUILTINS,
    )
    assert said.splitlines() == list(BUILTINS)


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_imports_nothing_of_cortex_but_what_is_public(name):
    imported = set()
    for tree in ast.walk(TREES[name]):
        if isinstance(tree, ast.Import):
            imported |= {alias.name for alias in tree.names}
        elif isinstance(tree, ast.ImportFrom):
            imported |= {f"{tree.module}.{alias.name}" for alias in tree.names}
    inside = {name.partition(".")[2] for name in imported if name.split(".")[0] == "cortex"}
    assert not {
        name for name in inside if not f"{name}.".startswith(tuple(f"{p}." for p in PUBLIC))
    }


def test_help_imports_argparse_and_nothing_else():
    bare = python(
        "import argparse, contextlib, importlib, io\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_subparsers().add_parser('a', help='b')\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    parser.print_help()\n"
        "print(*sys.modules)\n"
    )
    ours = python(
        "from cortex.__main__ import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        "    print('imported:', *sys.modules)\n"
    ).partition("imported:")[2]
    assert set(ours.split()) - set(bare.split()) <= {
        "__future__",
        "collections.abc",
        "cortex",
        "cortex.__main__",
    }


# Documents.


def document(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def section(text: str, heading: str) -> str:
    """Return what stands under *heading*, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert found, f"no heading {heading!r}"
    rest = text[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> dict[str, list[str]]:
    """Return the rows of the tables in *text*: the names of each first cell, the other cells."""
    found = {}
    for line in re.findall(r"^\| (`.+) \|$", text, re.MULTILINE):
        first, *others = line.split("|")
        for name in re.findall(r"`([^`]+)`", first):
            assert name not in found, f"{name} has two rows"
            found[name] = [cell.strip() for cell in others]
    return found


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ `(.+)`$", text, re.MULTILINE)


# Configuration; its keys, and hooks, are written from the code: test_reference.py.


def test_every_variable_of_the_environment_that_is_read_is_documented():
    asked = re.compile(r'env(?:ironment\(\))?\.get\("([A-Z_]+)"')
    read = {variable for name in NAMES for variable in asked.findall(document(name))}
    assert {"CORTEX_CACHE", "CORTEX_URL", "CORTEX_KEY", "CORTEX_PLUGINS"} <= read
    documented = rows(section(document("docs/configuration.md"), "Environment"))
    assert read <= documented.keys()


# Commands.


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command and subcommand, with its parser."""
    for name, (module, _) in COMMANDS.items():
        parser = argparse.ArgumentParser()
        import_module(module).add_arguments(parser)
        yield name, parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for sub, subparser in action.choices.items():
                    yield f"{name} {sub}", subparser


PARSERS = dict(parsers())


@pytest.mark.parametrize("command", PARSERS)
def test_every_command_is_documented_with_its_options_and_no_other(command):
    text = section(document("docs/cli.md"), f"`cortex {command}`")
    actions = PARSERS[command]._actions
    options = {option for action in actions for option in action.option_strings}
    documented = {name.split()[0] for name in rows(text)}
    assert documented == options - {"-h", "--help"}
    for action in actions:
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction):
            assert f"`cortex {command} {action.metavar}`" in text


def test_every_command_is_in_the_readme_and_no_other():
    table = rows(section(document("README.md"), "Commands"))
    named = {name.split()[1] for name in table if name.startswith("cortex ")}
    assert named == {*COMMANDS, "--version"}


# HTTP.


def routes(app: Any) -> set[str]:
    return {
        f"{route.method} {route.resource.canonical}"
        for route in app.router.routes()
        if route.method != "HEAD"
    }


async def gateway_routes() -> set[str]:
    async with asyncio.TaskGroup() as tasks:
        gateway = Gateway(
            config=GatewayConfig(),
            catalogue=Catalogue(),
            plugins=HERE,
            where="cortex.toml",
            session=None,
            tasks=tasks,
        )
        return routes(gateway.application())


async def neuron_routes() -> set[str]:
    async with asyncio.TaskGroup() as tasks:
        events, host = Events(), Host(discovery=node.Discovery(hostname="here"), devices=())
        models = Models((), tasks, events.publish, lambda _: None)
        return routes(Neuron(NeuronConfig(), HERE, host, models, events).application())


@pytest.mark.parametrize(
    ("heading", "served"), [("Gateway", gateway_routes), ("Neuron", neuron_routes)]
)
async def test_every_route_is_documented_and_no_other(heading, served):
    documented = headings(section(document("docs/http-api.md"), heading))
    assert sorted(documented) == sorted(await served())


BODIES = {
    "`POST /api/v1/models/{id}/load`": ModelBody,
    "`POST /api/v1/models/{id}/unload`": ModelBody,
    "`POST /api/v1/models/{id}/pin`": PinBody,
    "`POST /api/v1/models/{id}/unpin`": PinBody,
    "`POST /models/load`": LoadBody,
    "`POST /models/unload`": UnloadBody,
}


@pytest.mark.parametrize("heading", BODIES)
def test_every_field_of_a_body_is_documented_with_its_default(heading):
    def default(field: msgspec.structs.FieldInfo) -> str:
        if field.required:
            return "required"
        value = (
            field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        )
        return f"`{msgspec.json.encode(value).decode()}`"

    documented = rows(section(document("docs/http-api.md"), heading))
    assert {name: cells[0] for name, cells in documented.items()} == {
        field.name: default(field) for field in msgspec.structs.fields(BODIES[heading])
    }


WIRE = {
    name: cls
    for name, cls in vars(node).items()
    if isinstance(cls, type) and attrs.has(cls) and cls.__module__ == node.__name__
}


@pytest.mark.parametrize("name", WIRE)
def test_every_field_on_the_wire_is_documented_and_no_other(name):
    documented = rows(section(document("docs/http-api.md"), f"`{name}`"))
    assert documented.keys() == {field.name for field in attrs.fields(WIRE[name])}


def test_every_figure_of_a_measured_row_is_documented_and_no_other():
    heading = "What `cortex bench --json` prints"
    documented = rows(section(document("docs/operations.md"), heading))
    assert documented.keys() == {field.name for field in attrs.fields(Row)}


def test_every_error_code_is_documented_as_it_is_and_no_other():
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type)]
    known = {
        cls.code: [
            str(cls.status),
            f"`{cls.type}`",
            "" if cls.retry_after_s is None else f"{cls.retry_after_s:g}",
        ]
        for cls in classes
        if issubclass(cls, CortexError) and cls is not RemoteError
    }
    documented = rows(section(document("docs/http-api.md"), "Errors"))
    assert {code: cells[:3] for code, cells in documented.items()} == known


# Metrics, modules, dependencies.


def test_every_metric_is_documented_with_its_labels_and_no_other():
    documented = rows(section(document("docs/operations.md"), "Metrics"))
    found = {name: tuple(re.findall(r"`(\w+)`", cells[0])) for name, cells in documented.items()}
    assert found == exported(HERE)


def test_the_tour_has_a_sentence_for_every_module_and_no_other():
    modules = {name.removesuffix(".py").replace("/", ".") for name in NAMES}
    told = {name for name in modules if not name.endswith(("__init__", "engine.__main__"))}
    assert rows(document("docs/tour.md")).keys() == told


def test_every_dependency_is_explained_with_its_pin_and_no_other():
    project = tomllib.loads(document("pyproject.toml"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    split = [re.fullmatch(r"([\w-]+)(.*)", need) for group in groups for need in group]
    pins = {match[1]: f"`{match[2]}`" for match in split if match}
    documented = rows(document("docs/design/dependencies.md"))
    assert {name: cells[0] for name, cells in documented.items()} == pins
