"""Set the machine up for a job: threads, device, seeds, and the quiet of the libraries we load."""

from __future__ import annotations

import os

from cohomcli.config.running import ComputeConfig
from cohomcli.errors import UsageError


def available_cores() -> int:
    """The cores this process may use, which in containers is fewer than the machine has.

    `OMP_NUM_THREADS` says it, where someone has set it: two processes that both take all cores wait for each other.
    """
    wished = os.environ.get("OMP_NUM_THREADS", "")
    if wished.isdigit() and int(wished) > 0:
        return int(wished)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prepare(config: ComputeConfig) -> int:
    """Fix thread counts and seeds, check the device, and return the number of threads.

    Raises:
        UsageError: the device is unknown or not present on this machine.
    """
    import torch

    threads = config.threads or available_cores()
    torch.set_num_threads(threads)
    torch.manual_seed(config.seed)
    check_device(config.device)
    return threads


def check_device(name: str) -> None:
    """Refuse a device that torch does not know or this machine does not have."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}", "use cpu, cuda, cuda:N or mps") from error
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        raise UsageError(f"device {name!r} is not available on this machine", "use --device cpu")


def matmul_flops(size: int = 512, seconds: float = 0.1) -> float:
    """Float32 operations per second of this machine's matrix products, measured for about `seconds`."""
    import time

    import torch

    a = torch.ones(size, size)
    a @ a  # the first product also starts the thread pool
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        a @ a
        count += 1
    return 2.0 * size**3 * count / (time.perf_counter() - begun)
