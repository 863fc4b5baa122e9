"""From activations to the topology of every layer: several layers at a time, here or on a cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import get_active_backend
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.models.memory import available_bytes
from cohomcli.progress import Progress, silent
from cohomcli.topology import pointcloud
from cohomcli.topology.engines import ENGINES, MAXDIM, choose_engine
from cohomcli.topology.evidence import check_evidence
from cohomcli.topology.forecast import check_memory, check_time, cloud_bytes, forecast
from cohomcli.topology.layer import analyze_layer
from cohomcli.topology.metrics import ANGULAR
from cohomcli.topology.notes import notes_of
from cohomcli.topology.results import LayerTopology, TopologyOptions, TopologyResult
from cohomcli.topology.significance import corrected
from cohomcli.topology.stack import expansion_of

COMPAT_MODES = ("todacomm",)
STEP = "topology"

# Starting worker processes that import scipy and ripser costs 4 to 5 s of wall time.
PROCESSES_PAY_AFTER = 10.0


@dataclass(frozen=True)
class _Job:
    """One layer to analyse and its place in the result. `elsewhere`: on a machine whose memory is unknown here."""

    index: int
    name: str
    x: NDArray[Any]
    options: TopologyOptions
    elsewhere: bool = False


class _OneBlasThread:
    """Holds BLAS at one thread while at least one caller is inside.

    Results then do not depend on the number of workers, and workers do not compete for cores. The limit belongs to
    the process, so with threads the first to enter sets it and the last to leave lifts it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limits: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._limits = threadpool_limits(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limits.restore_original_limits()


_one_blas_thread = _OneBlasThread()


def analyze_layers(
    layers: Mapping[str, NDArray[np.float32]], options: TopologyOptions, progress: Progress = silent
) -> TopologyResult:
    """Persistent homology of every layer, (n, d) float32 activations by name in forward order.

    Activations may be memory-mapped. Layers are analysed `options.workers` at a time: in threads under RedZeD, which
    releases the interpreter lock, and in processes under Ripser, which does not, when there is enough to do. An outer
    `joblib.parallel_config` (loky, Dask, Ray) takes precedence; a layer is then one task. The result does not depend
    on where it was computed.

    Raises:
        UsageError: an unknown metric, engine or compat mode, or maxdim outside 0..2.
        AnalysisIncomplete: non-finite activations, an undefined metric (names the layer), or a forecast that exceeds
            the free memory or the time limit.
    """
    _check_options(options)
    for name, x in layers.items():
        pointcloud.validate(name, x)
    choice = choose_engine(options.engine, options.maxdim)
    place = _place(options, choice.name)
    jobs = [_Job(i, name, x, options, place.elsewhere) for i, (name, x) in enumerate(layers.items())]
    _check_time(jobs, options)
    workers = place.workers if place.elsewhere else _fitting_workers(jobs, options, place.workers)
    results: list[LayerTopology | None] = [None] * len(jobs)
    progress(STEP, 0, len(jobs))
    with _one_blas_thread:
        for done, (index, result) in enumerate(_run(jobs, workers, place), start=1):
            results[index] = result
            progress(STEP, done, len(jobs))
    finished = corrected([result for result in results if result is not None])
    notes = ([choice.note] if choice.note else []) + notes_of(finished, options)
    return TopologyResult(finished, expansion_of(finished), tuple(notes))


def _check_options(options: TopologyOptions) -> None:
    if options.evidence is not None:
        check_evidence(options.evidence)
    pointcloud.METRICS.get(options.metric)
    if options.engine != "auto":
        ENGINES.get(options.engine)
    if options.compat is not None and options.compat not in COMPAT_MODES:
        raise UsageError(f"unknown compat mode {options.compat!r}", f"known: {', '.join(COMPAT_MODES)}")
    if not 0 <= options.maxdim <= MAXDIM:
        raise UsageError(f"maxdim {options.maxdim} is not supported", f"choose 0 to {MAXDIM}")
    if options.pca < 0 or options.workers < 1:
        raise UsageError(f"pca {options.pca} and workers {options.workers} must be at least 0 and 1")
    if options.landmarks < 0 or options.representatives < 0:
        raise UsageError(f"landmarks {options.landmarks} and representatives {options.representatives} must be >= 0")
    if options.threshold is not None and not options.threshold >= 0:
        raise UsageError(f"threshold {options.threshold} is not a length", "give a number >= 0")
    if options.representatives and options.maxdim == 0:
        raise UsageError("representatives are of loops, which --maxdim 0 leaves out", "use --maxdim 1")
    if options.landmarks and options.metric in ANGULAR:
        raise UsageError(
            f"landmarks have no guaranteed error under {options.metric}, which breaks the triangle inequality",
            "use --metric euclidean, manhattan or chebyshev",
        )


def _check_time(jobs: list[_Job], options: TopologyOptions) -> None:
    if options.time_limit is None or not jobs:
        return
    n, d = _largest(jobs)
    width = min(options.pca, d) if options.pca and options.metric == "euclidean" else d
    points = min(n, options.landmarks or n)
    check_time(points, len(jobs), options.maxdim, options.engine, options.time_limit, width)


def _largest(jobs: list[_Job]) -> tuple[int, int]:
    return max((len(job.x), job.x.shape[1]) for job in jobs)


def _fitting_workers(jobs: list[_Job], options: TopologyOptions, workers: int) -> int:
    """As many of `workers` as the largest layer leaves memory for; refuses when there is none for one."""
    workers = min(workers, max(len(jobs), 1))
    if options.available_bytes is None or not jobs:
        return workers
    return max(1, min(workers, options.available_bytes // _needed_bytes(*_largest(jobs), options)))


def _needed_bytes(n: int, d: int, options: TopologyOptions) -> int:
    """Peak memory of one layer of n points with d coordinates; AnalysisIncomplete when it is more than there is."""
    assert options.available_bytes is not None
    cloud = cloud_bytes(n, d, options.pca if options.metric == "euclidean" else 0)
    points, free = min(n, options.landmarks or n), max(options.available_bytes - cloud, 0)
    return cloud + check_memory(points, options.maxdim, options.engine, free)


@dataclass(frozen=True)
class _Place:
    """Where layers are analysed: `workers` at a time, in threads or processes here, or `elsewhere` on a cluster.

    `chosen`: an outer joblib configuration says so, and is obeyed however little there is to do.
    """

    workers: int
    hint: str
    elsewhere: bool
    chosen: bool


def _place(options: TopologyOptions, engine: str) -> _Place:
    hint = "processes" if engine == "ripser" else "threads"
    backend, n_jobs = get_active_backend(prefer="threads")
    elsewhere = not type(backend).__module__.startswith("joblib._parallel_backends")
    chosen = n_jobs != 1  # 1 stands for "nobody chose a backend", None for one that leaves the number of jobs to us
    workers = n_jobs if chosen and n_jobs is not None else options.workers
    if chosen and not elsewhere:
        workers = effective_n_jobs(workers)
    return _Place(workers, hint, elsewhere, chosen)


def _run(jobs: list[_Job], workers: int, place: _Place) -> Iterable[tuple[int, LayerTopology]]:
    """Results with their positions, as they get ready where the backend can hand them out one by one."""
    worthwhile = place.hint == "threads" or sum(map(_ripser_seconds, jobs)) > PROCESSES_PAY_AFTER
    if not place.chosen and (workers == 1 or not worthwhile):
        return map(_run_one, jobs)
    backend, _ = get_active_backend(prefer=place.hint)
    return_as = "generator_unordered" if backend.supports_return_generator else "list"
    parallel = Parallel(n_jobs=workers, prefer=place.hint, return_as=return_as, batch_size=1)
    results: Iterable[tuple[int, LayerTopology]] = parallel(delayed(_run_one)(job) for job in jobs)
    return results


def _run_one(job: _Job) -> tuple[int, LayerTopology]:
    with _one_blas_thread:
        try:
            if job.elsewhere:
                _needed_bytes(len(job.x), job.x.shape[1], replace(job.options, available_bytes=available_bytes()))
            return job.index, analyze_layer(job.name, job.x, job.options)
        except MemoryError as error:
            raise AnalysisIncomplete(f"out of memory in layer {job.name!r}", "analyse fewer points") from error


def _ripser_seconds(job: _Job) -> float:
    return forecast(len(job.x), job.options.maxdim, "ripser", job.x.shape[1]).seconds
