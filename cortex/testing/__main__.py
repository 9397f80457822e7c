"""
``python -m cortex.testing``: a `FakeNeuron` as a program of its own, to be killed for instance.

It prints its endpoint and serves until it is told to stop.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from typing import get_args

from cortex.testing.neuron import Ending, FakeNeuron


def main() -> None:
    """Serve as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m cortex.testing", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 is any that is free")
    parser.add_argument("--loaded", action="append", default=[], help="a model it has; repeatable")
    parser.add_argument("--tokens", type=int, default=3, help="of each answer")
    parser.add_argument("--token-s", type=float, default=0.0, help="pause before each")
    parser.add_argument("--poll-s", type=float, default=0.0, help="pause before it says how it is")
    parser.add_argument("--ending", choices=get_args(Ending), default="whole", help="of an answer")
    parser.add_argument("--breaks-after", type=int, help="tokens before such an ending")
    parser.add_argument("--max-in-flight", type=int, default=0, help="requests a model takes")
    parser.add_argument("--vram-mb", type=int, default=24_000)
    args = parser.parse_args()
    node = FakeNeuron(args.loaded, vram_mb=args.vram_mb, port=args.port)
    node.answer, node.token_s = " ".join(["word"] * args.tokens), args.token_s
    node.ending, node.breaks_after = args.ending, args.breaks_after
    node.poll_s, node.max_in_flight = args.poll_s, args.max_in_flight
    asyncio.run(serve(node))


async def serve(node: FakeNeuron) -> None:
    """Serve until told to stop."""
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    async with node:
        print(node.endpoint, flush=True)
        await told.wait()


if __name__ == "__main__":
    main()
