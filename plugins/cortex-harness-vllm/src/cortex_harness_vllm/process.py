"""
A server's program under its guard: its log, read line by line, and its end.

The guard leads a session of its own.  Letting go of its standard input ends it, and with it all
the server started; so does the end of this process, however that comes.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cortex.wire import encode
from cortex_harness_vllm import guard

GUARD = Path(guard.__file__)
TAIL_LINES = 200
LINE_CHARS = 2000
READ_BYTES = 1 << 16
EOF_S = 2.0  # how long a log may go on behind its server
ENDS = re.compile(rb"[\r\n]+")
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
POLLS = re.compile(r'"GET /(?:health|metrics|v1/models)\b')  # ours, in a log of accesses


class Process:
    """
    A running server.

    Attributes:
        tail: The last lines of its log.
        code: How it ended: 128 and more is by a signal; None while it runs.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        log: asyncio.StreamReader,
        pipe: asyncio.ReadTransport,
        stop_s: float,
    ) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._process = process
        self._log = log
        self._pipe = pipe
        self._stop_s = stop_s
        self._ended = asyncio.Event()

    @classmethod
    async def start(
        cls, command: Sequence[str], env: Mapping[str, str], *, stop_s: float
    ) -> Process:
        """Start *command*, with *env* added to our own variables."""
        ours, theirs = os.pipe()  # a log may stay open behind the end of its process
        log = asyncio.StreamReader(limit=READ_BYTES)
        try:
            pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(log), os.fdopen(ours, "rb", 0)
            )
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", str(GUARD)),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=theirs,
                    stderr=theirs,
                    start_new_session=True,
                )
            except BaseException:
                pipe.close()
                raise
        finally:
            os.close(theirs)
        assert process.stdin is not None  # noqa: S101 - a pipe
        job = {"command": list(command), "env": dict(env), "stop_s": stop_s}
        process.stdin.write(encode(job) + b"\n")
        return cls(process, log, pipe, stop_s)

    @property
    def pid(self) -> int:
        """Of the guard, which is the id of the session, too."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        return self._process.returncode if self._ended.is_set() else None

    async def run(self, on_line: Callable[[str], None]) -> None:
        """Read the log; returns once the program has ended, and after it has said its last."""
        reading = asyncio.ensure_future(self._read(on_line))
        try:
            if await self._process.wait() < 0:  # whoever killed the guard left the others
                self._kill()
            await asyncio.wait({reading}, timeout=EOF_S)
        finally:
            reading.cancel()
            await asyncio.wait({reading})  # ends at once
            self._pipe.close()
            self.stop()
            self._ended.set()

    async def _read(self, on_line: Callable[[str], None]) -> None:
        rest = b""
        while data := await self._log.read(READ_BYTES):
            *lines, rest = ENDS.split(rest + data)
            rest = rest[-LINE_CHARS:]
            for line in lines:
                self._take(line, on_line)
        self._take(rest, on_line)

    def _take(self, line: bytes, on_line: Callable[[str], None]) -> None:
        text = COLOURS.sub("", line.decode("utf-8", "replace")).strip()[:LINE_CHARS]
        if text and not POLLS.search(text):
            self.tail.append(text)
            on_line(text)

    async def ended(self, timeout_s: float) -> bool:
        """Wait for its end, for so long; tell whether that came."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        return self._ended.is_set()

    def stop(self) -> None:
        """Let go of it: its guard ends it."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def end(self) -> None:
        """End it, and whatever it started; returns once all of that is gone."""
        self.stop()
        if not await self.ended(self._stop_s + EOF_S):
            self._kill()
            await self.ended(2 * EOF_S)

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
