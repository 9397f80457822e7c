"""``cortex doctor``: what is wrong, and what to do about it, whichever host it runs on."""

from __future__ import annotations

import argparse
import json
import socket
import sys

import pytest

from cortex import __version__
from cortex.__main__ import main
from cortex.cli.doctor import gpu, host
from cortex.cli.doctor.findings import Finding
from cortex.fleet.node import Discovery, Fleet, FleetNode, Health
from tests.cli.conftest import REPOSITORY, FakeGateway


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Return an empty working directory, on a host without a GPU."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(host, "DRIVER", ())
    monkeypatch.setattr(host.shutil, "which", lambda _: None)
    for name in ("CORTEX_URL", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return here


@pytest.fixture
def well(gateway) -> FakeGateway:
    """Return a gateway all is well with."""
    node = FleetNode(
        name="a",
        endpoint="http://a:1",
        healthy=True,
        health=Health(status="ok", version=__version__),
    )
    gateway.json("GET", "/health", {"status": "ok", "nodes": {"healthy": 1, "total": 1}})
    gateway.json("GET", "/v1/models", {"data": [{"id": "m"}]})
    gateway.json("GET", "/api/v1/fleet", Fleet(version=__version__, uptime_s=1, nodes=(node,)))
    return gateway


def examined(capsys, *args: str) -> tuple[int, dict[str, dict]]:
    """Return the exit status, and the findings by check: the worst of each."""
    status = main(["doctor", "--json", *args])
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] == (status == 0)
    order = ["skip", "ok", "warn", "fail"]
    ranked = sorted(said["findings"], key=lambda finding: order.index(finding["state"]))
    return status, {finding["check"]: finding for finding in ranked}


def test_a_laptop_with_a_gateway_it_reaches_is_fine(well, monkeypatch, capsys):
    monkeypatch.setenv("CORTEX_URL", well.url)

    assert main(["doctor"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert f"ok    versions: cortex {__version__}, Python" in lines[0]
    assert "skip  driver: no NVIDIA driver is loaded here" in lines
    assert "ok    models: names that can be asked for: 1" in lines
    assert "ok    node a: http://a:1 is in use, on its CPU" in lines


def test_json_has_every_finding_with_what_to_do(nowhere, capsys):
    status, found = examined(capsys, "--gateway", nowhere)

    assert status == 1
    assert found["gateway"] == {
        "check": "gateway",
        "state": "fail",
        "message": f"{nowhere}: nobody listens there",
        "do": "is its host up, the port open, the address right? see --gateway and CORTEX_URL",
    }


def test_what_is_no_gateway_is_said(gateway, capsys):
    status, found = examined(capsys, "--gateway", gateway.url)
    assert status == 1
    assert "is no gateway of ours (status 404)" in found["gateway"]["message"]


@pytest.mark.parametrize(
    ("ahead_s", "status", "state", "said"),
    [(30, 0, "warn", "30 s ahead of"), (-600, 1, "fail", "600 s behind")],
)
def test_a_clock_that_is_off_is_told(well, capsys, ahead_s, status, state, said):
    well.ahead_s = ahead_s + 0.001

    exited, found = examined(capsys, "--gateway", well.url)

    assert (exited, found["clock"]["state"]) == (status, state)
    seconds, _, way = said.partition(" s ")
    message = found["clock"]["message"].split()
    assert abs(int(message[message.index("s") - 1]) - int(seconds)) <= 1
    assert way in found["clock"]["message"]
    assert "timedatectl" in found["clock"]["do"]


def test_a_key_that_is_missing_is_asked_for(well, capsys):
    well.error("GET", "/v1/models", 401, "invalid_api_key", "a key is needed")
    status, found = examined(capsys, "--gateway", well.url)
    assert (status, found["key"]["message"]) == (1, "the gateway wants a key")


def test_a_key_that_is_no_admins_sees_no_nodes_and_that_is_no_failure(well, capsys):
    well.error("GET", "/api/v1/fleet", 403, "permission_denied", "no admin")
    status, found = examined(capsys, "--gateway", well.url, "--key", "k")
    assert (status, found["nodes"]["state"]) == (0, "skip")


def test_what_is_wrong_with_nodes_is_told(well, fleet, capsys):
    well.json("GET", "/api/v1/fleet", fleet)

    status, found = examined(capsys, "--gateway", well.url)

    assert status == 1
    assert found["node attic"]["message"] == "the gateway cannot use it: connection refused"
    assert "org/typo of [[default_models]] did not load" in found["node benjy"]["message"]


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("NVMLError_LibraryNotFound: no", "ok"),
        ("NVMLError_LibRmVersionMismatch: RM has detected a mismatch", "warn"),
    ],
)
def test_a_node_whose_gpu_is_lost_is_told_and_one_that_has_none_is_fine(
    well, capsys, reason, state
):
    found = Discovery(hostname="a", cuda_unavailable_reason=reason)
    health = Health(status="ok", version=__version__)
    node = FleetNode(name="a", endpoint="e", healthy=True, health=health, discovery=found)
    well.json("GET", "/api/v1/fleet", Fleet(version=__version__, uptime_s=1, nodes=(node,)))
    status, found = examined(capsys, "--gateway", well.url)
    assert (status, found["node a"]["state"]) == (0, state)


def test_a_wrong_configuration_is_told_with_its_line(folder, capsys):
    (folder / "neuron.toml").write_text("\nlisen = 1\n")
    status, found = examined(capsys)
    assert status == 1
    assert found["config"]["message"].startswith("neuron.toml:2: lisen: unknown key")


def gateway_file(folder, port: int, more: str = "") -> None:
    (folder / "models.toml").write_text("")
    (folder / "cortex.toml").write_text(
        f'[gateway]\nlisten = "127.0.0.1:{port}"\nmetrics_listen = "127.0.0.1:0"\n{more}'
    )


def port_of(server: FakeGateway) -> int:
    return int(server.url.rpartition(":")[2])


def test_a_port_of_ours_is_fine_and_a_strangers_is_not(folder, gateway, capsys):
    port = port_of(gateway)
    gateway_file(folder, port)

    status, found = examined(capsys, "--gateway", gateway.url)
    assert status == 1
    assert "is taken by something that is no gateway of ours" in found[f"port {port}"]["message"]
    assert f"ss -ltnp 'sport = :{port}'" in found[f"port {port}"]["do"]

    gateway.json("GET", "/health", {"status": "ok", "nodes": {"healthy": 0, "total": 0}})
    status, found = examined(capsys, "--gateway", gateway.url)
    assert found[f"port {port}"]["state"] == "ok"


def test_a_free_port_is_said_to_be_free(folder, capsys):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    gateway_file(folder, port)
    _, found = examined(capsys)
    assert "is free; no gateway is running here" in found[f"port {port}"]["message"]


def test_an_address_of_another_host_is_told(folder, capsys):
    (folder / "neuron.toml").write_text('listen = "203.0.113.7:13131"\n')
    status, found = examined(capsys)
    assert status == 1
    assert "Cannot assign requested address" in found["port 13131"]["message"]


def test_nodes_are_reached_from_the_gateways_host(folder, gateway, nowhere, capsys):
    there = FakeGateway()
    try:
        there.json("GET", "/discovery", {"hostname": "x"})
        tables = (
            f'[[neurons]]\nname = "{name}"\nendpoint = "{url}"\n'
            for name, url in (("here", there.url), ("gone", nowhere), ("other", gateway.url))
        )
        gateway_file(folder, 0, "".join(tables))

        status, found = examined(capsys)
    finally:
        there.close()

    assert status == 1
    assert found["reach here"]["state"] == "ok"
    assert "nobody listens there" in found["reach gone"]["message"]
    assert "is no neuron (status 404)" in found["reach other"]["message"]
    assert "[[upstreams]]" in found["reach other"]["do"]


def test_a_node_with_another_token_is_told(folder, gateway, capsys):
    gateway.error("GET", "/discovery", 401, "invalid_api_key", "no")
    gateway_file(folder, 0, f'[[neurons]]\nname = "a"\nendpoint = "{gateway.url}"\ntoken = "t"\n')
    status, found = examined(capsys)
    assert (status, gateway.calls[0].headers["authorization"]) == (1, "Bearer t")
    assert "refuses our token" in found["reach a"]["message"]


def test_a_disk_that_is_full_is_told(folder, monkeypatch, capsys):
    (folder / "neuron.toml").write_text('listen = "127.0.0.1:0"\n')
    usage = host.shutil.disk_usage(folder)

    for free, state, expected in ((5 << 30, "warn", 0), (1 << 20, "fail", 1), (1 << 40, "ok", 0)):
        told = usage._replace(free=free)
        monkeypatch.setattr(host.shutil, "disk_usage", lambda _, told=told: told)
        status, found = examined(capsys)
        assert (found["disk"]["state"], status) == (state, expected)


def test_an_engine_that_is_not_there_is_told_with_the_command_that_installs_it(
    folder, monkeypatch, capsys
):
    (folder / "neuron.toml").write_text('listen = "127.0.0.1:0"\n')
    monkeypatch.setattr(host, "ENGINE", ("torch", "no_such_package"))
    status, found = examined(capsys)
    assert status == 1
    assert found["engine"]["message"] == f"{sys.executable} has no no_such_package"
    assert found["engine"]["do"].startswith(f"{sys.executable} -m pip install 'torch>=2.11'")


# GPUs.

H200 = {"name": "NVIDIA H200", "capability": [9, 0]}
DRIVER = {"driver": "570.86", "cuda": [12, 8], "devices": [H200]}
TORCH = {"version": "2.11", "cuda": "12.8", "devices": 1, "architectures": ["sm_80", "sm_90"]}
WRONG = [
    ({}, "within 60 s", "driver", "it did not answer within 60 s", "wedged"),
    (
        {"nvml": {"error": "NVMLError_LibRmVersionMismatch: Driver/library version mismatch"}},
        "",
        "driver",
        "version mismatch",
        "reboot the host, or unload the modules",
    ),
    ({"nvml": {"error": "NVMLError_LibraryNotFound: no"}}, "", "driver", "no", "libnvidia-ml.so.1"),
    ({"nvml": DRIVER}, "within 60 s", "CUDA", "torch could not be asked within 60 s", "nvidia-smi"),
    (
        {"nvml": DRIVER, "torch": {"version": "2.11+cpu", "cuda": None}},
        "",
        "CUDA",
        "torch 2.11+cpu is built without CUDA",
        "install a torch built for CUDA 12",
    ),
    (
        {"nvml": DRIVER, "torch": {**TORCH, "cuda": "13.0"}},
        "",
        "CUDA",
        "is built for CUDA 13.0, and the driver ends at 12",
        "update the driver",
    ),
    (
        {"nvml": DRIVER, "torch": {**TORCH, "error": "CUDA unknown error"}},
        "",
        "CUDA",
        "cannot reach the GPUs: CUDA unknown error",
        "modprobe nvidia_uvm",
    ),
    (
        {"nvml": DRIVER, "torch": {**TORCH, "error": "No CUDA GPUs are available"}},
        "",
        "CUDA",
        "No CUDA GPUs are available",
        "--gpus all",
    ),
    (
        {
            "nvml": {**DRIVER, "devices": [{"name": "P40", "capability": [6, 1]}]},
            "torch": TORCH,
        },
        "",
        "CUDA",
        "has no kernels for P40 (compute capability 6.1)",
        "older torch",
    ),
]


@pytest.mark.parametrize(("said", "silent", "check", "message", "do"), WRONG)
def test_what_keeps_torch_from_a_gpu_is_told(said, silent, check, message, do):
    found = list(gpu.judge(said, silent))[-1]
    assert (found.check, found.state) == (check, "fail")
    assert message in found.message
    assert do in found.do


def test_a_driver_and_a_torch_that_fit_are_fine():
    assert list(gpu.judge({"nvml": DRIVER, "torch": TORCH}, "")) == [
        Finding(
            check="driver",
            state="ok",
            message="570.86, for CUDA up to 12.8, with NVIDIA H200",
        ),
        Finding(check="CUDA", state="ok", message="torch 2.11, built for CUDA 12.8, sees 1"),
    ]


def test_a_driver_that_hangs_does_not_hang_us():
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    assert gpu.probe(command, 0.2) == ({}, True)


def test_what_is_said_between_noise_is_read():
    program = 'print(\'noise\'); print(\'{"nvml": {"error": "x"}}\'); raise SystemExit(3)'
    assert gpu.probe([sys.executable, "-c", program], 25) == ({"nvml": {"error": "x"}}, False)


@pytest.mark.timeout(120)
def test_driver_and_torch_of_this_host_are_asked(monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it finds us as we are found
    monkeypatch.syspath_prepend(str(REPOSITORY))
    said, hung = gpu.probe(gpu.PROBE, 100)
    assert not hung
    assert "error" in said["nvml"] or said["nvml"]["driver"]
    assert said["torch"]["version"]


def test_a_neuron_that_wants_a_gpu_and_has_no_driver_fails(folder, capsys):
    (folder / "neuron.toml").write_text('listen = "a:0"\n[harness.torch]\ndevice = "cuda"\n')
    status, found = examined(capsys)
    assert (status, found["driver"]["state"]) == (1, "fail")


def test_a_host_with_a_gpu_has_its_driver_asked(folder, monkeypatch, tmp_path):
    node = tmp_path / "nvidiactl"
    node.touch()
    monkeypatch.setattr(host, "DRIVER", (node,))
    here = host.Host.of(argparse.Namespace(config=None, neuron_config=None))
    assert here.has_gpu
    program = f"print({json.dumps(json.dumps({'nvml': DRIVER, 'torch': TORCH}))})"
    found = list(gpu.gpus(here, [sys.executable, "-c", program], 25))
    assert [finding.state for finding in found] == ["ok", "ok"]
