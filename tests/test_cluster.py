"""Layers analysed on real clusters: a Dask scheduler with two workers as processes, one killed in a run; Ray alike."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cohomcli.__main__ import main
from cohomcli.config.running import ComputeConfig
from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.jobs.backend import parallel_backend
from cohomcli.topology import analysis

EVIDENCE = ["--replicates", "9", "--set", "evidence.subsamples=9"]
TDA = ["tda", "-m", "tiny-gpt", "-n", "40", "--quiet", "--no-plots", "--no-html", "--json", *EVIDENCE]


def results(capfd, folder: Path, *options: str) -> bytes:
    """`results.json` of a run with `options`; stdout is one JSON document and stderr is empty but for a cluster's."""
    capfd.readouterr()
    assert main([*TDA, "--output-dir", str(folder), *options]) == 0
    run = json.loads(capfd.readouterr().out)["run"]
    return (Path(run) / "results.json").read_bytes()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler's address and its two worker processes, on 127.0.0.1."""
    pytest.importorskip("distributed", reason="Dask is not installed: pip install 'cohom[dask]'")
    folder = tmp_path_factory.mktemp("dask")
    where = folder / "scheduler.json"
    common = ["--no-dashboard", "--host", "127.0.0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "60s"}

    def start(*arguments: str) -> subprocess.Popen:
        with (folder / "log.txt").open("ab") as log:
            command = [sys.executable, "-m", *arguments, *common, "--scheduler-file", str(where)]
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    processes = [start("distributed.cli.dask_scheduler", "--port", "0", "--no-show")]
    workers = [
        start("distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", "--local-directory", str(folder / name))
        for name in ("one", "two")
    ]
    try:
        yield _address(where), workers
    finally:
        for process in [*workers, *processes]:
            process.kill()
            process.wait()


def _address(where: Path) -> str:
    for _ in range(600):
        try:
            return str(json.loads(where.read_text())["address"])
        except (OSError, ValueError):
            time.sleep(0.1)
    raise TimeoutError("the scheduler did not start")


def test_kill_9_of_a_dask_worker_changes_nothing(cluster, capfd, tmp_path, monkeypatch):
    from distributed import Client

    address, workers = cluster
    local = results(capfd, tmp_path / "local")
    killed = []

    def kill_one_at_work() -> None:
        """Kill the first worker process that is computing a layer."""
        with Client(address, set_as_default=False) as client:
            pids = client.run(os.getpid)
            for _ in range(3000):
                busy = [worker for worker, tasks in client.processing().items() if tasks]
                if len(pids) == 2 and busy:
                    os.kill(pids[busy[0]], signal.SIGKILL)
                    killed.append(pids[busy[0]])
                    return
                time.sleep(0.01)
                pids = client.run(os.getpid) if len(pids) < 2 else pids

    assassin = threading.Thread(target=kill_one_at_work)
    assassin.start()
    remote = results(capfd, tmp_path / "dask", "--backend", "dask", "--scheduler", address)
    assassin.join()
    assert killed
    assert [worker.poll() for worker in workers if worker.pid == killed[0]] == [-signal.SIGKILL]
    assert remote == local
    again = results(capfd, tmp_path / "dask", "--backend", "dask", "--scheduler", address)  # on the one that is left
    assert again == local


def test_an_error_on_a_worker_arrives_as_itself(cluster):
    import numpy as np

    address, _ = cluster
    x = np.ones((5, 4), dtype=np.float32)
    options = analysis.TopologyOptions(metric="cosine", pca=0)
    layers = {"layer_0": x, "layer_1": np.zeros_like(x)}
    with (
        pytest.raises(AnalysisIncomplete, match=r"'layer_1'.*cosine.*--metric euclidean"),
        parallel_backend(ComputeConfig(backend="dask", scheduler=address), 2),
    ):
        analysis.analyze_layers(layers, options)


def test_layers_in_local_processes_give_the_same_results(capfd, tmp_path):
    local = results(capfd, tmp_path / "a")
    assert results(capfd, tmp_path / "b", "--backend", "loky", "--threads", "2") == local
    assert results(capfd, tmp_path / "c", "--backend", "threading", "--threads", "2") == local


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "dask"}, "needs a cluster.*--scheduler tcp://"),
        ({"backend": "dask", "scheduler": "tcp://127.0.0.1:9"}, "no Dask scheduler answers at 'tcp://127.0.0.1:9'"),
        ({"backend": "dask", "scheduler": "nonsense://x"}, "no Dask scheduler answers"),
        ({"scheduler": "tcp://127.0.0.1:9"}, "--scheduler is for --backend dask, not auto"),
        ({"backend": "loky", "address": "auto"}, "--address is for --backend ray, not loky"),
    ],
)
def test_what_cannot_be_reached_is_refused(settings, message, monkeypatch):
    if "scheduler" in settings and settings.get("backend") == "dask":
        pytest.importorskip("distributed", reason="Dask is not installed")
    monkeypatch.setattr("cohomcli.jobs.backend.CONNECT_SECONDS", 1)
    with pytest.raises(UsageError, match=message), parallel_backend(ComputeConfig(**settings), 2):
        pytest.fail("a cluster was found")


@pytest.mark.parametrize(("backend", "extra", "module"), [("dask", "dask", "distributed"), ("ray", "ray", "ray")])
def test_a_missing_library_is_named(monkeypatch, backend, extra, module):
    monkeypatch.setitem(sys.modules, module, None)
    settings = {"scheduler": "tcp://127.0.0.1:9"} if backend == "dask" else {}
    with (
        pytest.raises(UsageError, match=rf"is not installed; pip install 'cohom\[{extra}\]'"),
        parallel_backend(ComputeConfig(backend=backend, **settings), 2),
    ):
        pytest.fail("the library was found")


def test_a_few_coarse_tasks_on_ray_survive_the_loss_of_a_worker(capfd, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed or has no wheel here: pip install 'cohom[ray]'")
    local = results(capfd, tmp_path / "local", "--layers", "0-3")
    killed = threading.Event()

    def kill_one_at_work() -> None:
        """Kill the first of Ray's pool processes below this one that runs a task."""
        for _ in range(6000):
            for pid in _ray_workers():
                os.kill(pid, signal.SIGKILL)
                killed.set()
                return
            time.sleep(0.01)

    assassin = threading.Thread(target=kill_one_at_work, daemon=True)
    assassin.start()
    remote = results(capfd, tmp_path / "ray", "--layers", "0-3", "--backend", "ray", "--threads", "2")
    assert killed.wait(1)
    assert remote == local


def _ray_workers() -> list[int]:
    """Processes in this one's session that run a pool task, by the title that Ray gives them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            if title.startswith(b"ray::PoolActor.run_batch") and os.getsid(int(folder.name)) == os.getsid(0):
                found.append(int(folder.name))
        except OSError:
            continue
    return found
