"""
Hosts of their own on one machine, joined by a switch that loses and delays packets as it is told.

A host is a network namespace without a name: it is gone with the last process and file in it,
however this process ends.  Its one cable is a TUN device, whose other end is the switch, a thread
of this process.  Needs root; no queueing discipline or filter of the kernel's.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
TUN = Path("/dev/net/tun")
UP = (
    "ip link set lo up",
    "ip addr add {address}/24 dev cable",
    "ip link set cable up",
)
LONGEST_PACKET = 1 << 16
libc = ctypes.CDLL(None, use_errno=True)


def lacking():
    """Return what this machine lacks for hosts, or an empty text."""
    if os.geteuid():
        return "hosts of their own need root"
    if not TUN.exists():
        return f"hosts of their own need {TUN}"
    return ""


class Host:
    """One host: run commands behind `inside`, and threads that began with `enter`."""

    def __init__(self, address):
        self.address = address
        with ThreadPoolExecutor(1) as away:  # a thread of its own: it leaves our namespace
            away.submit(self._make).result(20)

    def _make(self):
        ours(libc.unshare(CLONE_NEWNET))
        self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self.cable = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.cable, TUNSETIFF, struct.pack("16sH14x", b"cable", IFF_TUN | IFF_NO_PI))
        for command in UP:
            subprocess.run(command.format(address=self.address).split(), check=True, timeout=10)

    @property
    def inside(self):
        """What a command begins with that is to run here."""
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._namespace}"]

    def enter(self):
        """Have this thread open its sockets here from now on."""
        ours(libc.setns(self._namespace, CLONE_NEWNET))

    def close(self):
        os.close(self.cable)
        os.close(self._namespace)


def ours(failed):
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Switch:
    """
    Carries packets between hosts until left.

    Attributes:
        delay_s: How long each packet takes.
        loss: The share of packets that is lost.
        pulled: Hosts whose cable is pulled: all of theirs are lost.
    """

    def __init__(self, hosts):
        self.delay_s, self.loss, self.pulled = 0.0, 0.0, frozenset()
        self.carried = self.lost = 0
        self._by_cable = {host.cable: host for host in hosts}
        self._by_address = {bytes(map(int, host.address.split("."))): host for host in hosts}
        self._under_way = []
        self._number = itertools.count()
        self._random = random.Random(1)
        self._thread = threading.Thread(target=self._run, name="switch")
        self._stop, self._stopped = os.pipe()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        os.close(self._stopped)  # a pipe whose other end is closed can be read
        self._thread.join(10)
        os.close(self._stop)

    def _run(self):
        poll = select.poll()
        for readable in (self._stop, *self._by_cable):
            poll.register(readable, select.POLLIN)
        while True:
            due_s = self._under_way[0][0] - time.monotonic() if self._under_way else 1.0
            ready = [number for number, _ in poll.poll(max(due_s, 0) * 1000)]
            if self._stop in ready:
                return
            for cable in ready:
                self._take(cable)
            while self._under_way and self._under_way[0][0] <= time.monotonic():
                _, _, host, packet = heapq.heappop(self._under_way)
                self._put(host, packet)

    def _take(self, cable):
        packet = os.read(cable, LONGEST_PACKET)
        to = self._by_address.get(packet[16:20]) if packet[0] >> 4 == 4 else None
        if to is None:
            return  # IPv6 looks for its neighbours
        if self.pulled & {to, self._by_cable[cable]} or self._random.random() < self.loss:
            self.lost += 1
        elif self.delay_s:
            due = time.monotonic() + self.delay_s
            heapq.heappush(self._under_way, (due, next(self._number), to, packet))
        else:
            self._put(to, packet)

    def _put(self, host, packet):
        self.carried += 1
        os.write(host.cable, packet)


@contextmanager
def switched(names):
    """Yield a host for each of *names*, by name, and the switch between them."""
    with ExitStack() as open_:
        hosts = {}
        for number, name in enumerate(names, 1):
            hosts[name] = Host(f"198.18.0.{number}")  # of the net for measuring networks
            open_.callback(hosts[name].close)
        yield hosts, open_.enter_context(Switch(hosts.values()))
