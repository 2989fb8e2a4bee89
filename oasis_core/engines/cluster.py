"""Ray: found or missed, started on this machine alone or joined, and how many workers it has room for."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

PIP = 'pip install "ray>=2.40"'
"""What gets it, in the environment that runs OASIS (the extra ``oasis[ray]`` says the same)."""
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Without the first Ray listens on all of a Linux machine's addresses (ray/_private/services.py, get_node_ip_address: on
Windows and macOS it is the default). It is read when Ray is imported."""
OBJECT_STORE = 256 << 20
"""Bytes of shared memory for a Ray of our own: segments go through files."""
REACHED = 10.0
"""Seconds in which an address must answer."""
CPUS_EACH = 4
"""Cores for a worker without a GPU, where their number is not given."""


def why_not() -> str | None:
    """None where Ray can be used; else one line that says how to get it."""
    if find_spec("ray") is None:
        return f"engine ray needs Ray, which is not installed: {PIP}"
    return None


@dataclass(frozen=True)
class Room:
    """Workers, and what each of them takes of the cluster."""

    workers: int
    cpus: float
    gpus: int

    @property
    def options(self) -> dict[str, Any]:
        """As an actor takes them."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}


@contextlib.contextmanager
def connected(address: str | None, workers: int | None) -> Iterator[ModuleType]:
    """Ray, joined at ``address`` ("auto", "host:port", "ray://host:port"); None: one of our own, on loopback.

    Args:
        workers: that a Ray of our own must have room for.

    Raises:
        ModuleNotFoundError: no Ray; it says how to get it. OSError: it cannot be reached or started. ValueError: this
            process uses Ray already.
    """
    if reason := why_not():
        raise ModuleNotFoundError(reason)
    if address is None:
        os.environ.update(LOOPBACK)
    import ray

    if ray.is_initialized():
        raise ValueError("this process uses Ray already: give it up first (ray.shutdown())")
    if address not in (None, "auto"):
        _check_reachable(address)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address is None:
            cpus = max(os.cpu_count() or 1, workers or 1)
            ray.init(address="local", num_cpus=cpus, object_store_memory=OBJECT_STORE, include_dashboard=None, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as e:
        where = "on this machine" if address is None else f"at {address}"
        token = "" if address is None else "; if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        raise OSError(f"no Ray {where} ({' '.join(str(e).split())[:300]}){token}") from None
    try:
        if address is None and not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
            raise OSError(
                "Ray was imported before and would listen on the network: start OASIS in a process of its own"
            )
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises ValueError or OSError where nobody listens: Ray itself tries for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"address is {address!r}; give auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED).close()
    except (OSError, OverflowError) as e:
        raise OSError(f"no Ray at {address} ({e}): start one there (ray start --head), or check the address") from None


def room(resources: dict[str, float], workers: int | None, device: str) -> Room:
    """How many workers, and what each takes.

    Args:
        resources: Ray's ``cluster_resources()``.
        workers: None: one for each GPU, or, without GPUs, for every ``CPUS_EACH`` cores.
        device: as the user names it.

    Raises:
        ValueError: more than there is room for, none, or a device that cannot be had.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    kind, _, number = device.partition(":")
    if number:
        raise ValueError(f"device is {device!r}, but Ray gives each worker a GPU of its own: use {kind} or auto")
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    if kind == "cuda" and not gpus:
        raise ValueError("device cuda was asked for, but Ray sees no GPU; use cpu or auto")
    on_gpu = kind == "cuda" or (kind == "auto" and gpus > 0)
    most = gpus if on_gpu else cpus
    count = workers if workers is not None else gpus if on_gpu else max(1, cpus // CPUS_EACH)
    if count > most:
        what = "GPUs" if on_gpu else "CPU cores"
        raise ValueError(f"{count} workers were asked for, but Ray has {most} {what}: give at most --workers {most}")
    return Room(count, 1 if on_gpu else max(1, cpus // count), int(on_gpu))
