"""Our topology job against the package `todacomm==0.1.0`: same model, texts, layers and number of points, CPU seconds.

    pip install --no-deps todacomm==0.1.0 && pip install seaborn tqdm
    python -m benchmarks.vs_todacomm                                  # built-in tiny-gpt, built-in texts
    python -m benchmarks.vs_todacomm --model path/to/model --samples 200

Every measurement runs in a fresh process with one thread, sides alternating; imports are not counted
(also not those that transformers makes when an architecture is first used). Two jobs:
`topology` is 13 layers x 500 points x 768 random features, PCA 50, H0 and H1; `analysis` is load, forward pass and
topology of every layer of a real model. Times are minima over the repeats. Agreement is the largest difference of
sorted births and deaths, relative to the layer's largest death.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Diagrams = dict[str, NDArray[np.float64]]
LAYERS, POINTS, WIDTH, COMPONENTS = 13, 500, 768, 50


def clouds() -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The random stand-in for a 12-block model: one stream, layer after layer."""
    stream = np.random.RandomState(0)
    for index in range(LAYERS):
        yield f"layer_{index}", stream.randn(POINTS, WIDTH).astype(np.float32)


def ours_topology(_: argparse.Namespace) -> Iterator[Any]:
    """Our persistence engine on the random layers."""
    from cohomcli.topology.analysis import analyze_layers
    from cohomcli.topology.results import TopologyOptions

    layers = dict(clouds())
    yield
    result = analyze_layers(layers, TopologyOptions(pca=COMPONENTS))
    yield
    yield _ours(result)


def theirs_topology(_: argparse.Namespace) -> Iterator[Any]:
    """The same with todacomm, whose default keeps all 500 points."""
    from todacomm.tda.persistence import TDAConfig, compute_persistence, summarize_diagrams

    layers = dict(clouds())
    yield
    found = {}
    for name, points in layers.items():
        found[name] = compute_persistence(points, TDAConfig(pca_components=COMPONENTS), seed=0)["dgms"]
        summarize_diagrams(found[name])
    yield
    yield _theirs(found)


def ours_analysis(arguments: argparse.Namespace) -> Iterator[Any]:
    """Load, forward and topology with our engines; no cache, no reports, no language metrics."""
    from cohomcli.models.activations import collect
    from cohomcli.models.load import load
    from cohomcli.models.resolve import resolve
    from cohomcli.models.spec import ActivationOptions, LoadOptions
    from cohomcli.topology.analysis import analyze_layers
    from cohomcli.topology.results import TopologyOptions

    texts = _texts(arguments)
    _import_architecture(_folder(arguments.model))
    yield
    loaded = load(resolve(arguments.model), LoadOptions())
    activations = collect(loaded, texts, ActivationOptions(max_length=arguments.max_length))
    blocks = {name: x for name, x in activations.layers.items() if name != "final_norm"}
    result = analyze_layers(blocks, TopologyOptions(pca=COMPONENTS))
    yield
    yield _ours(result) | {"pooling": activations.pooling}


def theirs_analysis(arguments: argparse.Namespace) -> Iterator[Any]:
    """The same with todacomm's own functions: padded batches of 8, LM head, ripser."""
    from todacomm.data.language_datasets import LanguageModelingDataset
    from todacomm.extract.transformer_activations import ActivationConfig, extract_transformer_activations
    from todacomm.models.transformer import load_pretrained_transformer
    from todacomm.tda.persistence import TDAConfig, compute_persistence, summarize_diagrams
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    texts, folder = _texts(arguments), _folder(arguments.model)
    _import_architecture(folder)
    yield
    model = load_pretrained_transformer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    data = LanguageModelingDataset(texts, tokenizer, max_length=arguments.max_length)
    names = [n for n in model.get_layer_names() if n == "embedding" or n.removeprefix("layer_").isdigit()]
    config = ActivationConfig(
        layers=names, max_samples=len(texts), pool_strategy=arguments.pooling, batch_size=8, show_progress=False
    )
    found = {}
    for name, features in extract_transformer_activations(model, DataLoader(data, batch_size=8), config).items():
        found[name] = compute_persistence(features["X"], TDAConfig(pca_components=COMPONENTS), seed=0)["dgms"]
        summarize_diagrams(found[name])
    yield
    yield _theirs(found)


SIDES = {
    ("topology", "ours"): ours_topology,
    ("topology", "theirs"): theirs_topology,
    ("analysis", "ours"): ours_analysis,
    ("analysis", "theirs"): theirs_analysis,
}


def _ours(result: Any) -> dict[str, Any]:
    return {layer.name: [d.pairs.tolist() for d in layer.diagrams] for layer in result.layers}


def _theirs(found: dict[str, list[NDArray[np.float64]]]) -> dict[str, Any]:
    return {
        name: [d[np.isfinite(d[:, 1]) & (d[:, 1] > d[:, 0])].tolist() for d in dgms] for name, dgms in found.items()
    }


def _texts(arguments: argparse.Namespace) -> list[str]:
    from cohomcli.data.sample import load_texts
    from cohomcli.data.spec import DatasetSpec

    return list(load_texts(DatasetSpec(arguments.dataset), arguments.samples, 0).texts)


def _import_architecture(folder: str) -> None:
    """Load the model once before the clock starts: transformers imports an architecture when it is first used."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(folder)


def _folder(reference: str) -> str:
    from cohomcli.models.resolve import resolve

    return resolve(reference).location


def child(arguments: argparse.Namespace) -> None:
    """Run one side once in this process: prepare, start the clock, work, stop the clock, write the diagrams."""
    steps = SIDES[arguments.job, arguments.side](arguments)
    next(steps)
    begun, wall = time.process_time(), time.perf_counter()
    next(steps)
    seconds = {"cpu": time.process_time() - begun, "wall": time.perf_counter() - wall}
    Path(arguments.out).write_text(json.dumps(seconds | {"diagrams": next(steps)}))


def measure(job: str, side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One side in a fresh single-threaded process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [
            sys.executable,
            "-m",
            "benchmarks.vs_todacomm",
            "--child",
            "--job",
            job,
            "--side",
            side,
            "--out",
            str(out),
        ]
        for name in ("model", "dataset", "samples", "max_length", "pooling"):
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL if arguments.quiet else None)
        result: dict[str, Any] = json.loads(out.read_text())
        return result


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Per layer: the largest difference of sorted births and deaths over the largest death; inf if counts differ."""
    found = {}
    for name in theirs.keys() & ours.keys():
        pairs = [
            (np.asarray(a).reshape(-1, 2), np.asarray(b).reshape(-1, 2))
            for a, b in zip(ours[name], theirs[name], strict=True)
        ]
        scale = max(float(b.max(initial=0.0)) for _, b in pairs) or 1.0
        found[name] = max(_gap(a, b) / scale for a, b in pairs)
    return found


def _gap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if a.shape != b.shape:
        return float("inf")
    return max((float(np.abs(np.sort(a[:, k]) - np.sort(b[:, k])).max(initial=0.0)) for k in (0, 1)), default=0.0)


def report(job: str, arguments: argparse.Namespace) -> None:
    """Measure both sides alternately and print minima, their ratio and the agreement of the diagrams."""
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    for _ in range(arguments.repeats):
        for side, done in runs.items():
            done.append(measure(job, side, arguments))
    best = {side: min(run["cpu"] for run in done) for side, done in runs.items()}
    ratio = best["theirs"] / best["ours"]
    print(f"{job}: ours {best['ours']:.2f} CPU s, todacomm {best['theirs']:.2f} CPU s, ratio {ratio:.1f}")
    gaps = difference(runs["ours"][0]["diagrams"], runs["theirs"][0]["diagrams"])
    worst = max(gaps, key=lambda name: gaps[name])
    print(f"  largest relative difference over {len(gaps)} layers: {gaps[worst]:.1e} ({worst})")
    if differing := sorted(name for name, gap in gaps.items() if gap > 1e-5):
        print(f"  layers that differ by more than 1e-5: {', '.join(differing)}")


def main() -> None:
    """Parse the command line; without `--child` measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-gpt", help="built-in model or local folder")
    parser.add_argument("--dataset", default="builtin", help="builtin or a text file")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--pooling", choices=["last", "mean"], default="last", help="todacomm's pooling; ours is auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--job", choices=["topology", "analysis", "all"], default="all")
    parser.add_argument("--quiet", action="store_true", help="hide what the measured processes print on stderr")
    for hidden in ("--side", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    for job in ("topology", "analysis") if arguments.job == "all" else (arguments.job,):
        report(job, arguments)


if __name__ == "__main__":
    main()
