"""A program that loads a model, says so, and waits to be killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop
from harness_bench import bench


async def main() -> None:
    fake = {"orphan": True, "stubborn": True}
    async with bench(Path(sys.argv[1]), fake=fake, watchdog_s=60.0, stop_s=0.2) as made:
        await made.load()
        print("loaded", flush=True)
        await asyncio.sleep(600)


uvloop.run(main())  # as a neuron does
