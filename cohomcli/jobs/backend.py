"""Where layers are analysed: on this machine, or on a Dask or Ray cluster that already runs. We write no scheduler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from typing import Any

from cohomcli.config.running import ComputeConfig
from cohomcli.errors import AnalysisIncomplete, UsageError

logger = logging.getLogger(__name__)
CONNECT_SECONDS = 20
# Ray's pool is made of actors: without this, the loss of one is the loss of its task.
RAY_RETRIES = {"max_restarts": 10, "max_task_retries": 10}
Backend = Callable[[ComputeConfig, int], AbstractContextManager[None]]


@contextmanager
def parallel_backend(config: ComputeConfig, workers: int) -> Iterator[None]:
    """Let joblib work inside this context as `config.backend` says, `workers` at a time on this machine.

    A task is a whole layer (or a batch of replicates) with its activations inside, so a worker that is lost takes no
    data with it: the scheduler gives its tasks to another one. Results do not depend on the place.

    Raises:
        UsageError: an address without its backend, a library that is not installed, or no cluster at the address.
        AnalysisIncomplete: the cluster was lost while it worked.
    """
    check_backend(config)
    with BACKENDS[config.backend](config, workers):
        yield


def check_backend(config: ComputeConfig) -> None:
    """Refuse what can be seen to be wrong without a connection.

    Raises:
        UsageError: an address without its backend, Dask without an address, or a library that is not installed.
    """
    for name, value, owner in (("scheduler", config.scheduler, "dask"), ("address", config.address, "ray")):
        if value and config.backend != owner:
            raise UsageError(f"--{name} is for --backend {owner}, not {config.backend}")
    if config.backend == "dask" and not config.scheduler:
        raise UsageError("--backend dask needs a cluster", "give its address with --scheduler tcp://host:8786")
    for backend, library in (("dask", "distributed"), ("ray", "ray")):
        if config.backend == backend and not _installed(library):
            raise UsageError(f"{backend.title()} is not installed", f"pip install 'cohom[{backend}]'")


def _installed(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except ValueError:  # its place among the modules is taken by None
        return False


def _auto(config: ComputeConfig, workers: int) -> AbstractContextManager[None]:
    return nullcontext()


@contextmanager
def _local(config: ComputeConfig, workers: int) -> Iterator[None]:
    from joblib import parallel_config

    with parallel_config(backend=config.backend, n_jobs=workers):
        yield


@contextmanager
def _dask(config: ComputeConfig, workers: int) -> Iterator[None]:
    """https://joblib.readthedocs.io/en/stable/auto_examples/parallel/distributed_backend_simple.html."""
    from distributed import CancelledError, Client, KilledWorker
    from joblib import parallel_config

    try:
        client = Client(config.scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(
            f"no Dask scheduler answers at {config.scheduler!r}", "check the address, and that it runs"
        ) from error
    with client:
        if not client.scheduler_info()["workers"]:
            logger.warning("the Dask cluster at %s has no workers yet: waiting for one", config.scheduler)
        try:
            with parallel_config(backend="dask", client=client, n_jobs=-1):
                yield
        except (CancelledError, KilledWorker, OSError) as error:
            raise AnalysisIncomplete(
                f"the Dask cluster at {config.scheduler!r} was lost: {error}", "go on with --resume"
            ) from error


@contextmanager
def _ray(config: ComputeConfig, workers: int) -> Iterator[None]:
    """https://docs.ray.io/en/latest/ray-more-libs/joblib.html."""
    import ray
    from joblib import parallel_config
    from ray.util.joblib import register_ray

    here: dict[str, Any] = {} if config.address else {"num_cpus": workers, "include_dashboard": False}
    ours = not ray.is_initialized()
    try:
        if ours:
            ray.init(address=config.address, log_to_driver=False, logging_level=logging.ERROR, **here)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"answers at {config.address!r}" if config.address else "could be started here"
        raise UsageError(f"no Ray cluster {where}: {error}", "check the address, and that it runs") from error
    register_ray()
    with redirect_stdout(_ToLog()), _shutting_down(ray if ours else None):
        try:
            with parallel_config(backend="ray", n_jobs=-1, ray_remote_args=RAY_RETRIES):
                yield
        except ray.exceptions.RayError as error:
            raise AnalysisIncomplete(f"the Ray cluster was lost: {error}", "go on with --resume") from error


@contextmanager
def _shutting_down(ray: Any | None) -> Iterator[None]:
    """Shut Ray down at the end, if it was started here."""
    try:
        yield
    finally:
        if ray is not None:
            ray.shutdown()


class _ToLog(StringIO):
    """A stdout for a library that talks on it: its lines go to the log, and results alone to the real one."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                logger.info("ray: %s", line.strip())
        return len(text)


BACKENDS: dict[str, Backend] = {"auto": _auto, "threading": _local, "loky": _local, "dask": _dask, "ray": _ray}
