"""
The device worker process.

The device thread owns the device's context for the life of the process and is the only one to touch
tensors.  The main thread reads the job channel, compiles grammars and answers pings, whatever the
device does.  When the neuron is gone the channel closes and the process leaves.  A poisoned context
cannot be revived in place: the process says so and leaves, and the neuron starts another.  So does
a worker that is a rank of a group, when another rank is gone.
"""

from __future__ import annotations

import gc
import os
import queue
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from time import perf_counter
from typing import Any

import msgspec
import torch

from cortex.errors import (
    ContextLengthExceeded,
    CortexError,
    InsufficientVram,
    LoadFailed,
    RepoFetchFailed,
)
from cortex.neuron.engine import architecture, frames, jobs, plan, text_files, weights
from cortex.neuron.engine.grammar import Grammar
from cortex.neuron.engine.group import RankFailed, Ranks
from cortex.neuron.engine.leading import Follower
from cortex.neuron.engine.meter import INTERVAL_S, Meter
from cortex.neuron.engine.model import Model, build
from cortex.neuron.engine.places import flaw
from cortex.neuron.engine.poison import is_poison, lost

EXIT_POISONED = 70
FORESEEN = (CortexError, RankFailed, torch.OutOfMemoryError, MemoryError)  # of a load
SWITCH_S = 0.001  # the other thread waits that long; each step and each job is a matter of few ms


class Worker:
    """Owns one device: its models and the requests that run on them."""

    def __init__(self, channel: socket.socket, device: torch.device) -> None:
        self._channel = channel
        self._device = device
        self._jobs: queue.SimpleQueue[jobs.Job | plan.Told] = queue.SimpleQueue()
        self._groups: dict[str, Ranks] = {}  # by their folders
        self._models: dict[str, Model] = {}
        self._meters: dict[str, Meter] = {}
        self._owners: dict[str, Model] = {}  # of the requests under way
        self._grammars: dict[str, Grammar] = {}  # of the requests that wait
        self._unwanted: set[str] = set()  # models whose unload waits
        self._send_lock = threading.Lock()
        self._step_began = 0.0

    def serve(self) -> None:
        """Read jobs until the neuron leaves or says so; main thread."""
        name = f"{'cuda' if self._device.type == 'cuda' else 'cpu'}-dev-{self._device.index or 0}"
        threading.Thread(target=self._run, name=name, daemon=True).start()
        while (body := frames.receive(self._channel)) is not None:
            job = jobs.decode_job(body)
            match job:
                case jobs.Ping():
                    began = self._step_began
                    self._send(jobs.Pong(busy_s=perf_counter() - began if began else 0.0))
                case jobs.Shutdown():
                    return
                case jobs.Generate(grammar=str(source)) if known := self._models.get(job.model):
                    if self._compiled(job, source, known):
                        self._jobs.put(job)
                case jobs.Unload(model=model):
                    self._unwanted.add(model)
                    self._jobs.put(job)
                case jobs.ReadText() | jobs.Check():
                    threading.Thread(target=self._read_text, args=(job,), daemon=True).start()
                case _:
                    self._jobs.put(job)

    def _read_text(self, job: jobs.ReadText | jobs.Check) -> None:
        """Answer a job that needs no device; it has a thread of its own."""
        event: jobs.Event
        try:
            if isinstance(job, jobs.Check):
                architecture.check(job.path, job.ranks)
                event = jobs.Checked(id=job.id)
            else:
                event = jobs.TextRead(id=job.id, text=text_files.read(job.path))
        except BaseException as error:  # noqa: BLE001 - else who asked waits for ever
            event = jobs.TextFailed(id=job.id, **_reason(job.path, error))
        self._send(event)

    def _compiled(self, job: jobs.Generate, source: str, model: Model) -> bool:
        """Compile a request's grammar, which may take a second: no step waits for it."""
        try:
            self._grammars[job.id] = Grammar(source, model.weights.grammar_tokens)
        except Exception as error:  # noqa: BLE001 - of the library, and of no concern to others
            self._send(lost(job.id, error))
            return False
        return True

    # The rest runs on the device thread.

    def _run(self) -> None:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            torch.zeros(1, device=self._device)
            self._send(jobs.Ready(torch=str(torch.__version__), device=str(self._device)))
            with torch.inference_mode():
                while True:
                    for job in self._pending():
                        self._accept(job)
                    self._step()
                    self._tell()
        except BaseException as error:  # noqa: BLE001 - whatever it is, this context is done
            self._leave(f"{type(error).__name__}: {error}")

    def _leave(self, message: str) -> None:
        """End the process, since it can do nothing more; any thread."""
        self._send(jobs.Poisoned(message=message))
        os._exit(EXIT_POISONED)

    def _pending(self) -> Iterator[jobs.Job | plan.Told]:
        """Yield the jobs that wait; block for one only if there is nothing to do."""
        if not any(model.engine.has_work for model in self._models.values()):
            self._step_began = 0.0
            settled = all(meter.is_settled for meter in self._meters.values())
            with suppress(queue.Empty):
                yield self._jobs.get(timeout=None if settled else INTERVAL_S)
        self._step_began = perf_counter()
        while not self._jobs.empty():
            yield self._jobs.get()

    def _accept(self, job: jobs.Job | plan.Told) -> None:
        match job:
            case plan.Plan():
                self._step_began = perf_counter()
                follower = self._models[job.model].engine
                assert isinstance(follower, Follower)  # noqa: S101 - or nobody would tell it
                follower.follow(job)
            case plan.Over(model=model):
                self._unload(model)
            case jobs.Load():
                self._step_began = 0.0  # a load has its own deadline
                self._load(job)
            case jobs.Unload(model=model):
                self._unload(model)
            case jobs.Generate(id=request):
                self._begin(job, self._grammars.pop(request, None))
            case jobs.Embed():
                self._begin(job, None)
            case jobs.Cancel(id=request):
                owner = self._owners.pop(request, None)
                if owner is not None and (event := owner.engine.cancel(request)) is not None:
                    self._send(event)

    def _begin(self, job: jobs.Generate | jobs.Embed, grammar: Grammar | None) -> None:
        model = self._models.get(job.model)
        embeds = isinstance(job, jobs.Embed)
        if model is None or embeds != (model.weights.pooling is not None):
            self._send(jobs.Lost(id=job.id, message=f"model {job.model!r} is not loaded"))
        elif (most := _largest(job)) >= model.weights.known:
            self._send(jobs.Lost(id=job.id, message=f"the model has no token {most}"))
        elif isinstance(job, jobs.Generate) and job.tokens > model.context:
            # its reload found less memory than its load, and the neuron did not know yet
            said = f"it takes {job.tokens} tokens, the cache holds {model.context}"
            code = ContextLengthExceeded.code
            self._send(jobs.Lost(id=job.id, message=said, code=code))
        elif isinstance(job, jobs.Generate) and (bad := flaw(job, model.weights.text.sight)):
            self._send(jobs.Lost(id=job.id, message=bad))
        else:
            self._owners[job.id] = model
            model.engine.add(job, grammar)

    def _load(self, job: jobs.Load) -> None:
        def report(stage: str, done: int, total: int) -> None:
            if job.model in self._unwanted and job.place is None:  # ranks go on together
                raise LoadFailed(f"{job.model} is to be unloaded again")
            self._send(jobs.LoadProgress(model=job.model, stage=stage, done=done, total=total))

        group = self._joined(job)
        try:
            found = weights.load(job, self._device, report, group)
            if group is not None:
                group.meet("")  # what comes now waits for others on the device
            loaded = build(job, found, self._device)
            if group is not None:
                group.meet("")
        except BaseException as error:
            if not isinstance(error, FORESEEN) and is_poison(error):
                raise
            failed = jobs.LoadFailed(model=job.model, **_reason(job.path, error))
            self._fail(job, failed, None if isinstance(error, RankFailed) else group)
        else:
            self._models[job.model] = loaded
            if not isinstance(loaded.engine, Follower):
                self._meters[job.model] = Meter(job.model, loaded.engine)
            self._send(
                jobs.Loaded(
                    model=job.model,
                    used_bytes=loaded.used_bytes,
                    context=loaded.context,
                    text=loaded.weights.text,
                    dimensions=getattr(loaded.weights.pooling, "dimensions", None),
                    body=loaded.body,
                )
            )

    def _joined(self, job: jobs.Load) -> Ranks | None:
        """Return the group that is to run a model, if there is one, once all ranks are there."""
        if (place := job.place) is None:
            return None
        if (group := self._groups.get(place.folder)) is None:
            group = self._groups[place.folder] = Ranks(
                place,
                self._device,
                hear=lambda body: self._jobs.put(plan.decode(body)),
                lost=self._leave,
                shares=job.sums == "auto",
            )
        group.models.add(job.model)
        return group

    def _fail(self, job: jobs.Load, failed: jobs.LoadFailed, says: Ranks | None = None) -> None:
        """Tell that a load failed; the other ranks, if it was here alone and *says* is set."""
        is_heard = says is None or says.fail(failed.code, failed.message)
        self._send(failed)
        if not is_heard:
            self._leave(f"other ranks wait for {job.model}: {failed.message}")
        if job.place is not None:
            gc.collect()
            self._part(job.place.folder, job.model)

    def _part(self, folder: str, model: str) -> None:
        """Let go of a group that ran a model, if it was its last."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()  # peers do all they were told
        if self._groups[folder].leave(model):
            del self._groups[folder]

    def _unload(self, name: str) -> None:
        self._unwanted.discard(name)
        folder = None
        if (model := self._models.pop(name, None)) is not None:
            for request in model.engine.requests:
                del self._owners[request]
                self._send(jobs.Lost(id=request, message=f"model {name!r} was unloaded"))
            if (group := model.group) is not None:
                folder = next(place for place, other in self._groups.items() if other is group)
                if group.rank == 0:
                    group.tell(plan.encode(plan.Over(name)))
        del model
        self._meters.pop(name, None)
        gc.collect()  # graphs and modules know each other
        if folder is not None:
            self._part(folder, name)
        if self._device.type == "cuda":
            if not self._models:  # graphs of others would go on using them
                torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001 - it has no other name
            torch.cuda.empty_cache()
        self._send(jobs.Unloaded(model=name))

    def _step(self) -> None:
        """Advance every model by one step and send what came of it."""
        for name, model in list(self._models.items()):
            if not model.engine.has_work:
                continue
            tokens, ended = model.engine.step()
            if tokens:
                self._meters[name].count(len(tokens))
                self._send(jobs.Tokens(tokens=tokens))
            for event in ended:
                self._owners.pop(event.id, None)
                self._send(event)

    def _tell(self) -> None:
        now = perf_counter()
        for meter in self._meters.values():
            if (figures := meter.read(now)) is not None:
                self._send(figures)

    def _send(self, event: jobs.Event) -> None:
        try:
            with self._send_lock:
                self._channel.sendall(frames.framed(jobs.encode(event)))
        except OSError:
            os._exit(0)  # the neuron is gone


def _largest(job: jobs.Generate | jobs.Embed) -> int:
    """Return the largest token id a request has."""
    inputs = [job.prompt] if isinstance(job, jobs.Generate) else job.inputs
    return max(chain.from_iterable(inputs), default=-1)


def _reason(path: str, error: BaseException) -> dict[str, Any]:
    """
    Return code, message and details of what kept a checkpoint from being used.

    What nobody foresaw is blamed on its files, and may be a library's panic: those are no
    Exceptions.
    """
    match error:
        case CortexError():
            details = msgspec.convert(error.details, dict[str, str | int | list[str]])
            return {"code": error.code, "message": error.message, "details": details}
        case RankFailed():
            return {"code": error.code, "message": str(error)}
        case torch.OutOfMemoryError() | MemoryError():
            return {"code": InsufficientVram.code, "message": str(error)}
    said = f"cannot load {path}: {type(error).__name__}: {error}"
    return {"code": RepoFetchFailed.code, "message": said}


def main() -> None:
    """Run a worker: ``python -m cortex.neuron.engine CHANNEL_FD DEVICE THREADS``."""
    fd, device, threads = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if threads:
        torch.set_num_threads(threads)
    sys.setswitchinterval(SWITCH_S)
    Worker(socket.socket(fileno=fd), torch.device(device)).serve()
    os._exit(0)  # the device thread may be in a step; nothing is worth waiting for
