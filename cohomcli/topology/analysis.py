"""From activations to the topology of every layer: cloud, diagrams, figures; several layers at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from joblib.parallel import get_active_backend
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.progress import Progress, silent
from cohomcli.topology import pointcloud
from cohomcli.topology.compat import TodacommOptions, todacomm_figures
from cohomcli.topology.engines import ENGINES, MAXDIM, choose_engine
from cohomcli.topology.notes import notes_of
from cohomcli.topology.persistence import check_memory, rips
from cohomcli.topology.results import LayerTopology, TopologyOptions, TopologyResult
from cohomcli.topology.stack import expansion_of
from cohomcli.topology.summaries import betti_curve, summarize

COMPAT_MODES = ("todacomm",)
STEP = "topology"

# Starting worker processes that import scipy and ripser costs 4 to 5 s of wall time.
PROCESSES_PAY_AFTER = 10.0


@dataclass(frozen=True)
class _Job:
    """One layer to analyse and its place in the result."""

    index: int
    name: str
    x: NDArray[Any]
    options: TopologyOptions


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

    Layers are analysed `options.workers` at a time: in threads under RedZeD, which releases the interpreter lock, and
    in processes under Ripser, which does not, when there is enough to do. An outer `joblib.parallel_config` (Dask, Ray)
    takes precedence over that choice. The result does not depend on it.

    Raises:
        UsageError: an unknown metric, engine or compat mode, or maxdim outside 0..2.
        AnalysisIncomplete: non-finite activations, an undefined metric, or too little memory; names the layer.
    """
    _check_options(options)
    for name, x in layers.items():
        pointcloud.validate(name, x)
    choice = choose_engine(options.engine, options.maxdim)
    jobs = [_Job(i, name, x, options) for i, (name, x) in enumerate(layers.items())]
    workers = _fitting_workers(jobs, options)
    results: list[LayerTopology | None] = [None] * len(jobs)
    progress(STEP, 0, len(jobs))
    with _one_blas_thread:
        for done, (index, result) in enumerate(_run(jobs, workers, choice.name), start=1):
            results[index] = result
            progress(STEP, done, len(jobs))
    finished = tuple(result for result in results if result is not None)
    notes = ([choice.note] if choice.note else []) + notes_of(finished, options)
    return TopologyResult(finished, expansion_of(finished), tuple(notes))


def analyze_layer(name: str, x: NDArray[Any], options: TopologyOptions) -> LayerTopology:
    """Persistent homology of one layer's cloud, `x` (n, d) finite."""
    cloud = pointcloud.make_cloud(x, options.pca, options.metric)
    distances = pointcloud.pairwise_distances(name, cloud.points, options.metric)
    scale = pointcloud.scale(distances, cloud.multiplicity)
    diagrams = rips(distances, options.maxdim, options.engine)
    source = TodacommOptions(options.pca, options.maxdim, options.metric)
    return LayerTopology(
        name=name,
        n_points=cloud.n_points,
        n_distinct=cloud.n_distinct,
        ambient_dim=cloud.ambient_dim,
        pca_dim=cloud.pca_dim,
        explained_variance=cloud.explained_variance,
        scale=scale,
        mean_norm=cloud.mean_norm,
        metric=options.metric,
        engine=choose_engine(options.engine, options.maxdim).name,
        diagrams=diagrams,
        summaries=tuple(summarize(diagram, scale) for diagram in diagrams),
        betti=betti_curve(diagrams),
        compat=todacomm_figures(x, source, name) if options.compat else None,
    )


def _check_options(options: TopologyOptions) -> None:
    pointcloud.METRICS.get(options.metric)
    if options.engine != "auto":
        ENGINES.get(options.engine)
    if options.compat is not None and options.compat not in COMPAT_MODES:
        raise UsageError(f"unknown compat mode {options.compat!r}", f"known: {', '.join(COMPAT_MODES)}")
    if not 0 <= options.maxdim <= MAXDIM:
        raise UsageError(f"maxdim {options.maxdim} is not supported", f"choose 0 to {MAXDIM}")
    if options.pca < 0 or options.workers < 1:
        raise UsageError(f"pca {options.pca} and workers {options.workers} must be at least 0 and 1")


def _fitting_workers(jobs: list[_Job], options: TopologyOptions) -> int:
    """As many of `options.workers` as the largest layer leaves memory for; refuses when there is none for one."""
    workers = min(options.workers, max(len(jobs), 1))
    if options.available_bytes is None or not jobs:
        return workers
    n, d = max((len(job.x), len(job.x[0])) for job in jobs)
    clouds = 16 * n * d + 16 * min(n, d) ** 2  # two float64 copies of the points, the Gram matrix and eigenvectors
    needed = clouds + check_memory(n, options.maxdim, options.engine, max(options.available_bytes - clouds, 0))
    return max(1, min(workers, options.available_bytes // needed))


def _run(jobs: list[_Job], workers: int, engine: str) -> Iterable[tuple[int, LayerTopology]]:
    """Results with their positions, as they get ready where the backend can hand them out one by one."""
    threads = engine != "ripser"
    if workers == 1 or not (threads or sum(map(_ripser_seconds, jobs)) > PROCESSES_PAY_AFTER):
        return map(_run_one, jobs)
    hint = "threads" if threads else "processes"
    backend, _ = get_active_backend(prefer=hint)
    return_as = "generator_unordered" if backend.supports_return_generator else "list"
    parallel = Parallel(n_jobs=workers, prefer=hint, return_as=return_as, batch_size=1)
    results: Iterable[tuple[int, LayerTopology]] = parallel(delayed(_run_one)(job) for job in jobs)
    return results


def _run_one(job: _Job) -> tuple[int, LayerTopology]:
    with _one_blas_thread:
        try:
            return job.index, analyze_layer(job.name, job.x, job.options)
        except MemoryError as error:
            raise AnalysisIncomplete(f"out of memory in layer {job.name!r}", "analyse fewer points") from error


def _ripser_seconds(job: _Job) -> float:
    """Measured on one core: 0.4 s at 500 points, 1.8 s at 1,000 (H1); 4 s at 300 points (H2)."""
    n = len(job.x)
    return 1.8e-6 * n**2 if job.options.maxdim == 1 else 1.5e-7 * n**3
