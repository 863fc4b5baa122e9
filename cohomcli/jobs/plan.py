"""The job behind `--dry-run`: what a command would analyse, and the memory and time it would take."""

from __future__ import annotations

from typing import Any

from cohomcli.config import Config
from cohomcli.jobs.analyze import dataset_spec
from cohomcli.jobs.compute import available_cores, matmul_flops
from cohomcli.jobs.entry import activation_options
from cohomcli.models.spec import LoadOptions, ModelDescription
from cohomcli.results import SCHEMA


def plan(command: str, config: Config) -> dict[str, Any]:
    """Resolve models and data sets, forecast memory and time, and write nothing.

    Raises:
        CohomError: a model or data set would be refused.
    """
    from cohomcli.data.sample import load_texts

    samples = [
        load_texts(dataset_spec(config, reference), config.data.samples, config.compute.seed)
        for reference in config.datasets
    ]
    models = [describe_model(reference, config, len(samples) * config.data.samples) for reference in config.models]
    return {
        "schema": SCHEMA,
        "command": command,
        "status": "dry-run",
        "models": models,
        "datasets": [
            {"name": s.name, "source": s.source, "unit": s.unit, "n_texts": len(s.texts), "n_available": s.n_available}
            for s in samples
        ],
        "output_dir": config.output.dir,
        "config": config.model_dump(mode="json"),
    }


def describe_model(reference: str, config: Config, n_texts: int) -> dict[str, Any]:
    """One model's facts and forecasts for `n_texts` texts."""
    from cohomcli.models.inspect import describe
    from cohomcli.models.resolve import resolve
    from cohomcli.topology.persistence import forecast_bytes

    loading = LoadOptions(config.compute.device, config.loading.trust_remote_code, config.loading.revision)
    found = describe(resolve(reference), loading, activation_options(config))
    points = config.data.samples
    return model_facts(found) | {
        "forecast": {
            "load_bytes": found.load_bytes,
            "forward_bytes": found.forward_bytes,
            "topology_bytes": forecast_bytes(points, config.topology.maxdim, config.topology.engine),
            "available_bytes": found.available_bytes,
            "forward_seconds_at_most": _seconds(found, n_texts * config.activations.max_length),
            "threads": config.compute.threads or available_cores(),
        },
    }


def model_facts(found: ModelDescription) -> dict[str, Any]:
    """A model description as plain JSON values."""
    return {
        "model": found.source.name,
        "source": found.source.kind,
        "architecture": found.architecture,
        "kind_of_model": found.kind,
        "n_layer": found.n_layer,
        "hidden_size": found.hidden_size,
        "vocab_size": found.vocab_size,
        "n_parameters": found.n_parameters,
        "max_positions": found.max_positions,
        "dtypes": list(found.dtypes),
        "files": [{"name": name, "n_bytes": size} for name, size in found.files],
        "needs_remote_code": found.needs_remote_code,
        "notes": list(found.notes),
    }


def _seconds(found: ModelDescription, n_tokens: int) -> float:
    """An upper figure: all texts as long as allowed, 2 operations per parameter and token, a quarter of peak speed."""
    return round(2.0 * found.n_parameters * n_tokens / (0.25 * matmul_flops()), 1)
