"""Two network namespaces joined by a wire that can be cut, lose and delay packets, and have little bandwidth.

The wire is this process: it passes packets between two TUN devices, one in each namespace. So it needs no module of the
kernel for that (`netem`), only root.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Self

INTERFACE = "wire0"
"""Name of the device in both namespaces."""
ADDRESSES = ("10.77.0.1", "10.77.0.2")
_MTU = 9000
_TUN, _NO_HEADER, _TUNSETIFF = 0x0001, 0x1000, 0x400454CA
_NEW_NETWORK = 0x40000000
_QUEUE_SECONDS = 2.0
"""Packets that a narrow wire would keep for longer are dropped, as routers do."""


@dataclass(frozen=True)
class Quality:
    """What a wire does to packets.

    Attributes:
        cut: Whether it drops all.
        loss: Share of the packets that it drops.
        delay: Seconds from one end to the other.
        bits_per_second: Its bandwidth; 0 for no limit.
    """

    cut: bool = False
    loss: float = 0.0
    delay: float = 0.0
    bits_per_second: float = 0.0


class Wire:
    """Two namespaces and the wire between them; a context manager.

    Args:
        seed: Seed of the losses.

    Attributes:
        quality: What it does to packets now.
        dropped: Number of packets that it has dropped.
        passed: Number of packets that it has passed on.
    """

    def __init__(self, seed: int) -> None:
        self.quality = Quality()
        self.dropped = self.passed = 0
        self.names = tuple(f"chaos{os.getpid()}{end}" for end in "ab")
        self._random = random.Random(seed)  # noqa: S311 # which packets are lost
        self._ended = threading.Event()
        self._devices: list[int] = []
        self._thread = threading.Thread(target=self._pass_on, daemon=True)

    def __enter__(self) -> Self:
        for name, address in zip(self.names, ADDRESSES, strict=True):
            _ip("netns", "add", name)
            self._devices.append(_open_device(name))
            for command in (
                ("link", "set", "lo", "up"),
                ("addr", "add", f"{address}/24", "dev", INTERFACE),
                ("link", "set", INTERFACE, "mtu", str(_MTU), "up"),
            ):
                _ip("-n", name, *command)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for device in self._devices:
            os.close(device)
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def inside(self, end: int, *command: str) -> list[str]:
        """Return a command that runs another in one of the namespaces.

        Args:
            end: 0 or 1.
            *command: The other command.
        """
        return ["ip", "netns", "exec", self.names[end], *command]

    def _pass_on(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []
        free_at = dict.fromkeys(self._devices, 0.0)
        number = count()
        a, b = self._devices
        while not self._ended.is_set():
            timeout = max(waiting[0][0] - time.monotonic(), 0) if waiting else 0.2
            for device in select.select(self._devices, [], [], timeout)[0]:
                packet = os.read(device, 65536)
                now, quality, target = time.monotonic(), self.quality, b if device == a else a
                begins = max(free_at[target], now)
                lost = quality.cut or self._random.random() < quality.loss
                if lost or begins - now > _QUEUE_SECONDS:
                    self.dropped += 1
                    continue
                if quality.bits_per_second:
                    begins += 8 * len(packet) / quality.bits_per_second
                    free_at[target] = begins
                heapq.heappush(waiting, (begins + quality.delay, next(number), target, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                *_, target, packet = heapq.heappop(waiting)
                os.write(target, packet)
                self.passed += 1


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _open_device(namespace: str) -> int:
    """Open a new TUN device in a namespace; the number of its file works in all of them."""
    found: list[int] = []

    def open_there() -> None:
        # A namespace is that of a thread, so this one ends afterwards.
        with Path("/run/netns", namespace).open() as there:
            if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), _NEW_NETWORK):
                return
        device = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), _TUN | _NO_HEADER))
        found.append(device)

    thread = threading.Thread(target=open_there)
    thread.start()
    thread.join()
    if not found:
        raise OSError(f"no TUN device can be made in network namespace {namespace}")
    return found[0]


def why_not() -> str:
    """Return why this machine cannot have such namespaces; "" if it can."""
    if os.getuid() != 0 or not os.path.exists("/dev/net/tun"):
        return "network namespaces need root and /dev/net/tun"
    try:
        with Wire(0):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"this machine does not allow network namespaces ({error})"
