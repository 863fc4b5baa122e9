"""The job behind `--dry-run`: what a command would analyse, and the memory and time it would take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.config import Config
from cohomcli.jobs.analyze import PRECISION_COMMAND, dataset_spec
from cohomcli.jobs.compute import available_cores, matmul_flops
from cohomcli.jobs.entry import activation_options, load_options
from cohomcli.models.spec import ModelDescription
from cohomcli.results import SCHEMA

if TYPE_CHECKING:
    from cohomcli.models.inspect import FileDescription


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
    # a plan of formats is made for any program; all other commands need a language model
    describe = describe_any_model if command == PRECISION_COMMAND else describe_model
    models = [describe(reference, config, len(samples) * config.data.samples) for reference in config.models]
    for model in models:
        if "forecast" in model:
            model["forecast"]["memory_bytes"] = _peak(command, model["forecast"], config)
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

    found = describe(resolve(reference), load_options(config), activation_options(config))
    return model_facts(found) | {"forecast": forecasts(found, config, n_texts)}


def describe_any_model(reference: str, config: Config, n_texts: int) -> dict[str, Any]:
    """The same, also for a single file that is no language model: what it holds, and why texts cannot be fed to it."""
    from cohomcli.models.fromfile import as_single_file
    from cohomcli.models.inspect import describe_file
    from cohomcli.models.resolve import resolve

    options = load_options(config)
    source = as_single_file(resolve(reference), options)
    if source.kind != "file":
        return describe_model(reference, config, n_texts)
    found = describe_file(source, options, activation_options(config))
    if found.model is None:
        return file_facts(found)
    return file_facts(found) | model_facts(found.model) | {"forecast": forecasts(found.model, config, n_texts)}


def forecasts(found: ModelDescription, config: Config, n_texts: int) -> dict[str, Any]:
    """Bytes and seconds an analysis of `n_texts` texts would take."""
    from cohomcli.topology.forecast import cloud_bytes, forecast

    wanted, layers = config.topology, found.n_layer + 2
    points = min(config.data.samples, wanted.landmarks or config.data.samples)
    topology = forecast(points, wanted.maxdim, wanted.engine, min(wanted.pca or found.hidden_size, found.hidden_size))
    cloud = cloud_bytes(config.data.samples, found.hidden_size, wanted.pca)
    return {
        "load_bytes": found.load_bytes,
        "forward_bytes": found.forward_bytes,
        "activation_bytes": 4 * layers * len(config.activations.sites) * config.data.samples * found.hidden_size,
        "topology_bytes": topology.n_bytes + cloud,
        "precision_bytes": _precision_bytes(found, config),
        "topology_seconds": round(layers * topology.seconds, 1),
        "available_bytes": found.available_bytes,
        "forward_seconds_at_most": _seconds(found, n_texts * config.activations.max_length),
        "threads": config.compute.threads or available_cores(),
    }


def _peak(command: str, needs: dict[str, Any], config: Config) -> int:
    """Bytes at the peak of a whole command, beside the loaded code: of its stages, the one that takes most."""
    held = int(needs["load_bytes"] + needs["activation_bytes"])
    topology = held + int(max(needs["forward_bytes"], needs["topology_bytes"]))
    if command == PRECISION_COMMAND:
        return int(max(needs["load_bytes"], needs["precision_bytes"]))
    if command == "run" and config.precision.enabled:
        return max(topology, int(needs["precision_bytes"]))
    return topology


def _precision_bytes(found: ModelDescription, config: Config) -> int:
    from cohomcli.precision.forecast import MOST_SURVEYED, Sizes, forecast_bytes

    wanted = config.precision
    return forecast_bytes(
        Sizes(
            n_parameters=found.n_parameters,
            n_blocks=found.n_layer,
            block_bytes=found.token_bytes,
            vocab_size=found.vocab_size,
            tokens=wanted.batch * wanted.length,
            n_calls=wanted.calibration + wanted.heldout + (MOST_SURVEYED if wanted.survey is None else wanted.survey),
            n_formats=len(wanted.formats),
            n_probes=wanted.probes,
        )
    )


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


def file_facts(found: FileDescription) -> dict[str, Any]:
    """A file's description as plain JSON values; what does not apply is left out."""
    facts = {
        "model": found.source.name,
        "source": found.source.kind,
        "format": found.format,
        "files": [{"name": Path(found.source.location).name, "n_bytes": found.n_bytes}],
        "n_tensors": found.n_tensors,
        "n_parameters": found.n_parameters,
        "dtypes": list(found.dtypes),
        "architecture": found.info.architecture,
        "kind_of_model": found.info.kind,
        "n_layer": found.info.n_layer,
        "hidden_size": found.info.hidden_size,
        "vocab_size": found.info.vocab_size,
        "built_from": found.built_from,
        "root_class": found.root_class,
        "weights_at": found.place,
        "also_holds": [{"place": place, "n_tensors": count} for place, count in found.others],
        "sample_inputs": [{"dtype": dtype, "shape": list(shape)} for dtype, shape in found.samples],
        "weights_sha256": found.info.weights_sha256,
        "weights_only": f"{found.why}; {found.hint}" if found.why else "",
        "no_texts": "" if found.why else found.refusal,
        "notes": list(found.notes),
    }
    return {key: value for key, value in facts.items() if value or key == "notes"}


def _seconds(found: ModelDescription, n_tokens: int) -> float:
    """An upper figure: all texts as long as allowed, 2 operations per parameter and token, a quarter of peak speed."""
    return round(2.0 * found.n_parameters * n_tokens / (0.25 * matmul_flops()), 1)
