"""What kernels are compiled for: a GPU, and before the first request, not while others wait."""

from __future__ import annotations

import inspect
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from cortex.neuron.engine.jobs import Generate
from cortex.neuron.engine.kernels import fused
from cortex.neuron.engine.kernels.fused import overlap
from cortex.neuron.engine.stack import Stack
from tests.neuron.engine.engines import DEVICE, engine_of, model_of

pytestmark = pytest.mark.skipif(DEVICE.type == "cuda", reason="kernels are compiled there")


class Eager:
    """Graphs that are never captured."""

    def run(self, _, step):
        return step()


def engine_over(module):
    """Return an engine whose kernels are a GPU's."""
    engine = engine_of(module, body=Stack(module, fused), budget_tokens=2048, rows=256, blocks=4000)
    engine._runner._kernels, engine._runner._graphs = fused, Eager()
    return engine


def named(kernel, args, options):
    """Return what a kernel that is not run is called with, by name."""
    values = {**dict(zip(kernel.arg_names, args, strict=False)), **options}
    if "out" in values:
        values["out"].fill_(1)  # tokens and rows are to exist
    return values


def variant(kernel, values):
    """Return what Triton compiles *kernel* for: types, and what it knows of values."""
    given = kernel.kwargs
    fixed = {name for name, a in inspect.get_annotations(kernel.fn).items() if "constexpr" in a}
    found = []
    for name, value in values.items():
        if name in fixed or name not in kernel.arg_names:
            known = value
        elif isinstance(value, torch.Tensor):
            is_known = name not in (given["do_not_specialize_on_alignment"] or ())
            known = value.dtype, is_known and value.data_ptr() % 16 == 0
        elif isinstance(value, int) and name not in (given["do_not_specialize"] or ()):
            known = value == 1, value % 16 == 0
        else:
            known = type(value)
        found.append((name, known))
    return kernel.fn.__name__, *found


def crowd(engine, count):
    """Have *count* requests answered, of all lengths, that come in crowds."""
    made = random.Random(0)
    for number in range(count):
        prompt = [made.randrange(3, 300) for _ in range(made.choice((1, 5, 17, 40, 90)))]
        tokens = made.randrange(1, 12)
        engine.add(Generate(id=str(number), model="m", prompt=prompt, max_tokens=tokens))
        if made.random() < 0.1:
            engine.step()
    while engine.has_work:
        engine.step()


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5_text"])
def test_no_step_waits_for_a_compiler(monkeypatch, family):
    seen = set()

    def noted(kernel, *args, grid, warmup, **options):
        seen.add(variant(kernel, named(kernel, args, options)))

    engine = engine_over(model_of(family))
    monkeypatch.setattr(InterpretedFunction, "run", noted)
    with torch.inference_mode():
        engine._runner.warm_up()
        ready = set(seen)
        crowd(engine, 700)
    assert {found[0] for found in ready} >= {"attend_kernel", "linear_kernel", "pick_kernel"}
    assert sorted(map(str, seen - ready)) == []


@pytest.mark.parametrize(
    ("cuda", "capability", "driver", "can"),
    [
        ("13.0", (9, 0), 13000, True),
        ("12.8", (12, 0), 12040, True),
        ("12.8", (9, 0), 12020, False),
        ("12.8", (8, 9), 13000, False),
        ("12.8", (9, 0), None, False),
        (None, (9, 4), 13000, False),  # of another make
    ],
)
def test_kernels_overlap_where_gpu_and_driver_can(monkeypatch, cuda, capability, driver, can):
    def told():
        if driver is None:
            raise overlap.pynvml.NVMLError(1)
        return driver

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(overlap.pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(overlap.pynvml, "nvmlSystemGetCudaDriverVersion_v2", told)
    assert overlap.can_overlap() is can


@pytest.mark.timeout(200)
def test_kernels_compile_for_a_gpu_and_wait_for_what_they_read():
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.neuron.engine.compiling"]
    told = {"cwd": Path(__file__).parents[3], "env": env, "timeout": 180, "text": True}
    said = [line.split() for line in subprocess.check_output(command, **told).splitlines()]
    sums = [line[3:] for line in said if line[0] == "sum"]
    assert sums == [["ld.global.b64", "ld.volatile.global.b64", "st.global.b64"]] * 6  # whole
    found = {name: tuple(what) for name, *what in said if name != "sum"}
    assert len(found) > 12
    alone = {name for name, what in found.items() if what == ("reads",)}
    assert {name: what for name, what in found.items() if name not in alone} == {
        "attend_kernel": ("overlaps", "waits"),
        "combine_kernel": ("overlaps", "waits"),
        "convolve_kernel": ("overlaps", "waits"),
        "delta_kernel": ("overlaps", "waits"),
        "linear_kernel-1": ("overlaps", "waits", "reads"),  # its weight
        "rotate_kernel": ("overlaps", "waits"),
    }
