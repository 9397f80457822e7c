"""The services, as systemd and firewalld read them, and a gateway run as its unit says."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from configparser import RawConfigParser
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cortex.__main__ import COMMANDS
from cortex.config.schema import GatewaySection, NeuronConfig

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"
ROLES = {"gateway": "serve", "neuron": "neuron"}
each_role = pytest.mark.parametrize("role", ROLES)


def unit(role: str) -> dict[str, str]:
    """Return the settings of ``[Service]``; what is set more than once is joined by blanks."""

    class Joined(dict[str, object]):
        def __setitem__(self, key, value):
            if isinstance(value, list) and key in self:
                value = [*self[key], *value]
            super().__setitem__(key, value)

    parser = RawConfigParser(strict=False, delimiters="=", dict_type=Joined, interpolation=None)
    parser.optionxform = str
    parser.read_string((PACKAGING / f"systemd/cortex-{role}.service").read_text("utf-8"))
    return {key: value.replace("\n", " ") for key, value in parser["Service"].items()}


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=25
    )


@each_role
def test_systemd_finds_nothing_wrong_with_a_unit(role, tmp_path):
    program = tmp_path / "cortex"
    program.symlink_to(sys.executable)
    text = (PACKAGING / f"systemd/cortex-{role}.service").read_text("utf-8")
    copy = tmp_path / f"cortex-{role}.service"
    copy.write_text(text.replace("/usr/bin/cortex ", f"{program} "))
    done = analyze("verify", "--man=no", str(copy))
    said = [line for line in done.stderr.splitlines() if f"cortex-{role}" in line]
    assert (done.returncode, said) == (0, [])


@pytest.mark.parametrize(("role", "most"), [("gateway", 1.5), ("neuron", 2.5)])
def test_a_service_is_not_exposed(role, most):
    path = PACKAGING / f"systemd/cortex-{role}.service"
    done = analyze("security", "--offline=yes", "--no-pager", str(path))
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert exposure, done.stderr
    assert float(exposure[1]) <= most


def test_the_neuron_is_left_what_cuda_needs():
    assert (
        not {
            "DeviceAllow",
            "DevicePolicy",
            "MemoryDenyWriteExecute",
            "PrivateDevices",
            "PrivateUsers",
            "ProcSubset",
            "ProtectClock",
        }
        & unit("neuron").keys()
    )


@each_role
def test_a_unit_starts_a_command_there_is_with_options_it_has(role):
    program, command, *options = unit(role)["ExecStart"].split()
    assert (program, command) == ("/usr/bin/cortex", ROLES[role])
    parser = argparse.ArgumentParser()
    import_module(COMMANDS[command][0]).add_arguments(parser)
    args = parser.parse_args(options)
    assert args.log_format == "json"
    assert args.config.parent == Path("/etc/cortex")


@each_role
def test_a_unit_keeps_all_it_writes_in_directories_of_its_own(role):
    settings = unit(role)
    name = f"cortex-{role}"
    assert {settings[key] for key in ("User", "StateDirectory", "CacheDirectory")} == {name}
    environment = dict(pair.split("=") for pair in settings["Environment"].split())
    assert {"XDG_STATE_HOME", "XDG_CACHE_HOME", "SHIV_ROOT"} <= environment.keys()
    assert all(value.startswith((f"%S/{name}", f"%C/{name}")) for value in environment.values())


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("gateway", GatewaySection().listen),
        ("gateway-metrics", GatewaySection().metrics_listen),
        ("neuron", NeuronConfig().listen),
    ],
)
def test_firewalld_opens_the_port_that_is_listened_on(name, address):
    service = ET.parse(PACKAGING / f"firewalld/cortex-{name}.xml").getroot()
    ports = [port.attrib for port in service.findall("port")]
    assert ports == [{"protocol": "tcp", "port": str(address.port)}]


async def test_a_gateway_run_as_its_unit_says_tells_systemd_and_logs_json(tmp_path):
    state, cache = tmp_path / "state", tmp_path / "cache"
    environment = {"CORTEX_PLUGINS": "", "PYTHONPATH": str(ROOT)}
    for pair in unit("gateway")["Environment"].split():
        name, value = pair.split("=")
        environment[name] = value.replace("%S", str(state)).replace("%C", str(cache))
    environment |= {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "30000000",
        "CORTEX_GATEWAY__LISTEN": "127.0.0.1:0",
        "CORTEX_GATEWAY__METRICS_LISTEN": "127.0.0.1:0",
        "PATH": os.defpath,
    }
    options = unit("gateway")["ExecStart"].split()[1:]
    command = [word.replace("/etc/cortex", str(ROOT / "examples")) for word in options]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(environment["NOTIFY_SOCKET"])
        manager.settimeout(20)

        async def until(word: str) -> str:
            while word not in (said := (await asyncio.to_thread(manager.recv, 4096)).decode()):
                pass
            return said

        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cortex", *command),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            assert "STATUS=serving on 127.0.0.1:" in await until("READY=1")
            await until("WATCHDOG=1")
            process.send_signal(signal.SIGHUP)
            await until("RELOADING=1")
            await until("READY=1")
            process.terminate()
            await until("STOPPING=1")
        except BaseException:
            process.kill()
            raise
        finally:
            async with asyncio.timeout(15):
                out, err = await process.communicate()
    lines = [json.loads(line) for line in err.decode().splitlines()]
    assert (process.returncode, out) == (0, b"")
    assert all({"time", "level", "module", "message"} <= line.keys() for line in lines)
    assert [line["module"] for line in lines if " listens on http" in line["message"]] == [
        "cortex.said"
    ]
    assert (state / "cortex-gateway/cortex").is_dir()
