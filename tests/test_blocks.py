"""Every block of code, and every command, in the documents: what can run does, all else is read."""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import re
import shlex
import sys
import tomllib
from asyncio.subprocess import PIPE, STDOUT
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import attrs
import pytest

from cortex.__main__ import COMMANDS, main
from cortex.config.schema import Catalogue, GatewayConfig, NeuronConfig
from cortex.dialects.anthropic_messages import AnthropicMessages
from cortex.dialects.openai_chat import OpenAIChat
from cortex.fleet.model import ModelSpec
from cortex.testing import FakeNeuron
from tests.gateway.running import running

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("README.md", "docs/**/*.md", "plugins/*/README.md")
    for path in ROOT.glob(pattern)
    if not {"_build", "changelog"} & {*path.parts}
)
BLOCK = re.compile(r"^( *)```([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
GATEWAY, MODEL = "http://gateway:31313", "Qwen/Qwen3-8B"
FILES = (("cortex.toml", GatewayConfig), ("models.toml", Catalogue), ("neuron.toml", NeuronConfig))

# What is only shown, and why; all other kinds are in `test_a_block_does_what_it_says`.
SHOWN = {
    "": "a drawing, or what a program says",
    "js": "tests/clients has these lines in scripts for node",
    "pycon": "tests/test_docs.py runs it",
    "{toctree}": "sphinx follows it",
    "{literalinclude}": "sphinx reads it from the code",
}
# Commands that are not run, by their first word, and why; all others are in `COMMANDS_RUN`.
NOT_RUN = {
    **dict.fromkeys(
        ("aider", "claude", "ollama", "open-webui", "qwen"), "somebody else's, and not here"
    ),
    **dict.fromkeys(("apt", "pip", "systemctl"), "changes the machine"),
    **dict.fromkeys(("lint-imports", "mypy", "pytest", "ruff"), "tests/run.sh runs it"),
    **dict.fromkeys((".", "export"), "is for the shell alone"),
}


@attrs.frozen
class Block:
    """A block, as it is without the indentation of a list."""

    page: str
    line: int
    kind: str
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks():
    for path in PAGES:
        page = path.read_text("utf-8")
        for found in BLOCK.finditer(page):
            indent, kind, text = found.groups()
            text = "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))
            line = page.count("\n", 0, found.start()) + 1
            yield Block(str(path.relative_to(ROOT)), line, kind.split(" ")[0], text)


BLOCKS = [block for block in blocks() if block.kind not in SHOWN]


@pytest.fixture
async def gateway():
    """Yield the address of a gateway with a node that has `MODEL`."""
    dialects = {"openai-chat": OpenAIChat(), "anthropic-messages": AnthropicMessages()}
    async with FakeNeuron([MODEL], dialects=dialects) as node:
        async with running(node, models=[ModelSpec(id=MODEL)]) as live:
            yield live.url


async def program(*command):
    """Run a program; return what it said."""
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT)
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said.decode()
    return said.decode()


# Configuration.


def file_of(text):
    """Return the file a block is of: what its first line says, else whose keys it has."""
    if named := re.match(r"# (\S+\.toml)\n", text):
        return named[1]
    keys = tomllib.loads(text).keys()
    known = ((name, {field.name for field in attrs.fields(cls)}) for name, cls in FILES)
    return next((name for name, fields in known if keys <= fields), None)


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Return what writes the files a page has and has `cortex config check` look at them."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("CORTEX_PLUGINS", raising=False)

    def checked(block):
        name = file_of(block.text)
        if name is None:  # of a client
            return
        for other in BLOCKS:
            if other.kind == "toml" and other.page == block.page and (to := file_of(other.text)):
                (tmp_path / to).parent.mkdir(exist_ok=True)
                (tmp_path / to).write_text(other.text)
        path = tmp_path / name
        path.write_text(block.text)
        if path.name == "models.toml":
            path = path.with_name("cortex.toml")
            path.exists() or path.write_text("")
        elif path.name == "cortex.toml":
            models = path.with_name("models.toml")
            models.exists() or models.write_text("")
        status = main(["config", "check", str(path)])
        assert status == 0, capsys.readouterr()

    return checked


# Commands.


def commands(block):
    """Yield each command of a block as words: without output, comments, variables, redirections."""
    text = block.text
    if block.kind == "console":
        text = "".join(line[2:] for line in text.splitlines(keepends=True) if line[:2] == "$ ")
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&>|")
        lexer.commenters, lexer.whitespace_split = "#", True
        words = []
        for word in [*lexer, "&&"]:
            if set(word) <= set("&|>"):
                if words and words[0] != ">":
                    yield words
                words = [">"] if word == ">" else []
            elif words or not re.match(r"[A-Z_]+=", word):
                words.append(word)


def parse(module, words):
    parser = argparse.ArgumentParser(exit_on_error=False)
    import_module(module).add_arguments(parser)
    parser.parse_args(words)


async def run_cortex(words, gateway):
    parse(COMMANDS[words[1]][0], words[2:])


async def run_python(words, gateway):
    assert words[1:2] == ["-m"] or (ROOT / words[1]).exists()
    assert words[1:2] != ["-m"] or find_spec(words[2])


async def run_bash(words, gateway):
    await program("bash", "-n", str(ROOT / words[1]))


async def run_curl(words, gateway):
    said = await program(*(word.replace(GATEWAY, gateway) for word in words), "-sS", "--fail")
    assert "one two three" in said


COMMANDS_RUN = {"cortex": run_cortex, "python": run_python, "bash": run_bash, "curl": run_curl}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
async def test_a_block_does_what_it_says(block, gateway, check):
    match block.kind:
        case "toml":
            tomllib.loads(block.text)
            await asyncio.to_thread(check, block)
        case "json":
            json.loads(block.text)
        case "py":
            ast.parse(block.text)
        case "python":
            await program(sys.executable, "-c", block.text.replace(GATEWAY, gateway))
        case "sh" | "bash" | "console":
            for words in commands(block):
                if words[0] not in NOT_RUN:
                    await COMMANDS_RUN[words[0]](words, gateway)
        case kind:
            pytest.fail(f"no test runs a block of {kind!r}")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_in_a_sentence_is_one_that_there_is(path, capsys):
    """Named without its arguments it may be."""
    prose = BLOCK.sub("", path.read_text("utf-8"))
    for command in re.findall(r"`(cortex [a-z][^`]*)`", prose):
        words = shlex.split(command.replace("SHELL", "bash"))
        try:
            parse(COMMANDS[words[1]][0], words[2:])
        except SystemExit:
            assert "arguments are required" in capsys.readouterr().err, command


def test_there_are_blocks_of_each_kind_and_nothing_is_listed_in_vain():
    kinds = {block.kind for block in blocks()}
    assert kinds >= SHOWN.keys()
    shells = [block for block in BLOCKS if block.kind in ("sh", "bash", "console")]
    first = {words[0] for block in shells for words in commands(block)}
    assert first == {*NOT_RUN, *COMMANDS_RUN}
