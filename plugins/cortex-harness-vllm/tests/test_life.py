"""A server's life: started, watched, replaced, ended, and nothing left of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from harness_bench import GIB, HERE, MODEL, WEIGHTS, bench, request

from cortex.chat.events import Failed, Finished, Started, TextDelta
from cortex.errors import (
    DeviceUnavailable,
    InsufficientVram,
    LoadFailed,
    ModelNotFound,
    UnsupportedArchitecture,
    UpstreamDied,
)
from cortex.fleet.model import ModelSpec
from cortex.fleet.node import Device
from cortex.testing import until

TRACE = '(EngineCore pid=9) ERROR 11-24 11:43:44 [core.py:515]   File "core.py", line 506, in run'
MEMORY = (
    "(EngineCore pid=9) ERROR 11-24 11:43:44 [core.py:515] ValueError: Free memory on device"
    " (31.5/47.38 GiB) on startup is less than desired GPU memory utilization (0.95, 45.0 GiB)."
)
CPU = Device(index=0, kind="cpu", vram_total_mb=8000, vram_free_mb=8000)


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended; one that nobody has reaped yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


async def is_closed(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionRefusedError:
        return True
    writer.close()
    await writer.wait_closed()
    return False


async def test_a_load_says_how_far_it_is_and_what_it_takes(tmp_path):
    async with bench(tmp_path) as made:
        running, seen = await made.load()
        assert (running.used_bytes, running.context) == (5.5 * GIB, 512)  # of its log
        assert running.capabilities == ("text",)
        assert [(p.stage, p.done, p.total) for p in seen] == [
            ("starting", 0, 0),
            ("reading weights", 0, 0),
            ("reading weights", 0, 4 * GIB),
            ("reading weights", 4 * GIB * 2 // 5, 4 * GIB),
            ("reading weights", 4 * GIB, 4 * GIB),
            ("measuring memory", 0, 0),
            ("compiling", 0, 0),
            ("making the cache", 0, 0),
            ("capturing graphs", 25, 50),
            ("starting", 0, 0),
        ]
        assert made.harness.stats(MODEL).body.startswith("vllm: http://127.0.0.1:")


async def test_sglang_says_so_too(tmp_path):
    async with bench(tmp_path, "sglang") as made:
        running, seen = await made.load()
        assert running.used_bytes == 5.5 * GIB
        assert ("capturing graphs", 52, 52) in [(p.stage, p.done, p.total) for p in seen]


@pytest.mark.parametrize(
    ("kind", "expected"), [("vllm", (3, 4, 25.0, 75.0)), ("sglang", (7, None, None, 50.0))]
)
async def test_what_its_metrics_say_is_what_the_model_does(tmp_path, kind, expected):
    async with bench(tmp_path, kind, watchdog_s=4.0) as made:
        await made.load()
        await until(lambda: made.harness.stats(MODEL).running, 15)
        stats = made.harness.stats(MODEL)
        assert (stats.running, stats.waiting, stats.kv_used_pct, stats.prefix_hit_pct) == expected


async def test_a_server_is_told_its_model_its_devices_and_its_share(tmp_path):
    more = {"args": ("--tool-call-parser", "hermes"), "env": {"COLOUR": "red"}}
    async with bench(tmp_path, **more) as made:
        spec = ModelSpec(id=MODEL, context=100, quant="fp8", vram_mb=40_000)
        running = await made.harness.split(spec, WEIGHTS, (0, 1), lambda _: None)
        (start,) = made.starts
        assert running.capabilities == ("text", "tools")
        assert start["env"] == {"CUDA_VISIBLE_DEVICES": "0,1", "COLOUR": "red"}
        assert start["argv"][:3] == ["/weights", "--host", "127.0.0.1"]
        assert " ".join(start["argv"][5:]) == (
            "--served-model-name org/model --tensor-parallel-size 2 --max-model-len 100"
            " --quantization fp8 --gpu-memory-utilization 0.25 --tool-call-parser hermes"
        )


async def test_without_a_gpu_none_is_seen_and_memory_is_the_hosts(tmp_path):
    async with bench(tmp_path, devices=(CPU,)) as made:
        running = await made.harness.load(ModelSpec(id=MODEL), WEIGHTS, 0, lambda _: None)
        assert made.starts[0]["env"]["CUDA_VISIBLE_DEVICES"] == ""
        assert "--gpu-memory-utilization" not in made.starts[0]["argv"]
        assert 10 << 20 < running.used_bytes < 1 << 30


@pytest.mark.parametrize(
    ("log", "error", "said", "details"),
    [
        ([MEMORY, TRACE], InsufficientVram, "31.5/47", {"needed_mb": 46080, "free_mb": 32256}),
        (
            ["ValueError: Model architectures ['Foo'] are not supported for now. Supported: x"],
            UnsupportedArchitecture,
            "'Foo'",
            {"model_type": "Foo"},
        ),
        ([TRACE, "RuntimeError: no such kernel"], LoadFailed, "code 3: RuntimeError: no such", {}),
    ],
)
async def test_a_server_that_does_not_come_up_says_why(tmp_path, log, error, said, details):
    async with bench(tmp_path, fake={"log": log, "exit": 3}) as made:
        with pytest.raises(error, match=said) as raised:
            await made.load()
        assert raised.value.details == details
        with pytest.raises(ModelNotFound):
            await made.say()


async def test_a_program_that_is_not_there_is_named(tmp_path):
    async with bench(tmp_path, command=("no-such-program",)) as made:
        with pytest.raises(LoadFailed, match=r"no program 'no-such-program' here \(install it"):
            await made.load()
        with pytest.raises(LoadFailed, match="no program"):  # before its weights are fetched
            await made.harness.check(ModelSpec(id=MODEL), WEIGHTS)


async def test_a_server_that_never_answers_is_ended(tmp_path):
    async with bench(tmp_path, fake={"silent": True}, start_s=1.0) as made:
        with pytest.raises(LoadFailed, match="no answer in 1 s: "):
            await made.load()
        assert all(map(is_gone, made.pids))


async def test_a_server_whose_engine_is_dead_is_not_waited_for(tmp_path):
    log = ["[2026] Scheduler hit an exception: RuntimeError: device-side assert"]
    async with bench(tmp_path, "sglang", fake={"silent": True, "log": log}) as made:
        with pytest.raises(LoadFailed, match="device-side assert"):
            await made.load()


async def test_unloading_leaves_nothing(tmp_path):
    async with bench(tmp_path, fake={"orphan": True, "stubborn": True}, stop_s=0.3) as made:
        await made.load()
        url = made.harness.stats(MODEL).body.partition(" ")[2]
        assert not any(map(is_gone, made.pids))
        assert not await is_closed(url)
        await made.harness.unload(MODEL)
        assert len(made.pids) == 2
        assert all(map(is_gone, made.pids))
        assert await is_closed(url)
        with pytest.raises(ModelNotFound):
            await made.say()
        await made.harness.unload(MODEL)  # of one that is not there there is nothing to do


async def test_unloading_in_the_middle_of_a_load_leaves_nothing(tmp_path):
    async with bench(tmp_path, fake={"silent": True}) as made:
        load = asyncio.create_task(made.load())
        await until(lambda: made.starts, 15)
        load.cancel()
        await asyncio.wait({load}, timeout=1)
        assert load.cancelled()
        await made.harness.unload(MODEL)
        assert all(map(is_gone, made.pids))


async def test_a_server_that_dies_in_an_answer_is_replaced(tmp_path):
    async with bench(tmp_path) as made:
        await made.load()
        said = await made.say("die now")
        assert isinstance(said[0], Started)
        assert said[1] == TextDelta("die")
        assert isinstance(said[-1], Failed)
        assert isinstance(said[-1].error, UpstreamDied)
        await until(lambda: (MODEL, "loaded", None) in made.host.changes, 15)
        assert made.host.changes == [(MODEL, "recovering", None), (MODEL, "loaded", None)]
        assert isinstance((await made.say())[-1], Finished)
        assert is_gone(made.pids[0])


async def test_a_server_that_falls_silent_is_replaced_and_its_requests_end(tmp_path):
    sick = tmp_path / "sick"
    async with bench(tmp_path, fake={"sick": str(sick)}, watchdog_s=1.0) as made:
        await made.load()
        served = made.harness._models[MODEL].served
        sick.touch()
        await until(lambda: served.asking is None, 15)
        assert made.host.changes[-1] == (MODEL, "recovering", None)
        with pytest.raises(DeviceUnavailable, match="started again"):
            await made.say()
        sick.unlink()
        await until(lambda: (MODEL, "loaded", None) in made.host.changes, 15)


async def test_a_server_that_says_tokens_is_not_silent(tmp_path):
    async with bench(tmp_path) as made:
        await made.load()
        saying = made.harness.generate(request("one two"))
        await anext(saying)
        served = made.harness._models[MODEL].served
        heard = served.heard
        assert isinstance(await anext(saying), TextDelta)
        assert served.heard > heard
        await saying.aclose()


async def test_a_server_that_does_not_come_back_has_failed(tmp_path):
    fake = {"short_lived": str(tmp_path / "short"), "log": [MEMORY], "exit": 1}
    async with bench(tmp_path, fake=fake) as made:
        await made.load()
        await made.say("die now")
        await until(lambda: len(made.host.changes) == 2, 15)
        (_, status, error) = made.host.changes[1]
        assert status == "failed"
        assert error.startswith("the server died: the server ended with code 1")
        assert "Free memory on device" in error
        assert all(map(is_gone, made.pids))
        with pytest.raises(DeviceUnavailable):
            await made.say()
        (tmp_path / "short").unlink()
        await made.load()  # as a neuron does when it is asked again
        assert isinstance((await made.say())[-1], Finished)


async def test_a_server_whose_guard_is_killed_is_replaced(tmp_path):
    async with bench(tmp_path, fake={"orphan": True}) as made:
        await made.load()
        os.kill(made.harness._models[MODEL].served._process.pid, signal.SIGKILL)
        await until(lambda: (MODEL, "loaded", None) in made.host.changes, 15)
        assert is_gone(made.pids[0])
        os.kill(made.pids[1], signal.SIGKILL)  # in a session of its own, it was nobody's any more


async def test_a_neuron_that_is_killed_leaves_nothing(tmp_path):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "holder.py"), str(tmp_path)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        assert await process.stdout.readline() == b"loaded\n"
    async with bench(tmp_path) as made:
        assert not any(map(is_gone, made.pids))
        process.kill()
        await process.communicate()
        await until(lambda: all(map(is_gone, made.pids)), 10)
        assert len(made.pids) == 2
