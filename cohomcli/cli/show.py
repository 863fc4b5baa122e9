"""Results as tables on stdout, for people; every name is escaped, because model and layer names are hostile input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from cohomcli.cli.console import stdout_console
from cohomcli.cli.show_ablation import show_ablation
from cohomcli.cli.show_circuits import circuit_lines
from cohomcli.cli.show_drift import show_drift, show_permutations
from cohomcli.cli.show_geometry import show_geometry
from cohomcli.cli.show_precision import show_precision
from cohomcli.names import printable


def show_outcome(outcome: Any) -> None:
    """The layers of every entry, the comparison if there is one, and where the run folder is."""
    console = stdout_console()
    for entry in outcome.entries:
        if entry.error:
            console.print(f"{escape(entry.model)} on {escape(entry.dataset)}: failed: {escape(entry.error)}")
        elif outcome.document["command"] != "compare":
            if entry.topology:
                console.print(_layer_table(entry))
                console.print(_metrics_line(entry))
                show_geometry(console, entry)
            if entry.training:
                console.print(_training_line(entry))
            if entry.ablation:
                show_ablation(console, entry)
            if entry.pruning:
                for line in _pruning_lines(entry):
                    console.print(line)
            if entry.generation:
                for line in _generation_lines(entry):
                    console.print(line)
            if entry.circuits:
                for line in circuit_lines(entry):
                    console.print(line)
            if entry.precision:
                show_precision(console, entry)
    if outcome.comparison is not None:
        console.print(_comparison_table(outcome.entries))
        show_drift(console, outcome.comparison)
        show_permutations(console, outcome.comparison)
    report = outcome.folder / ("report.html" if (outcome.folder / "report.html").exists() else "report.md")
    console.print(f"run:    {escape(str(outcome.folder))}")
    console.print(f"report: {escape(str(report))}")


def _layer_table(entry: Any) -> Table:
    n_points = entry.topology.layers[0].n_points
    title = f"{escape(entry.model)} on {escape(entry.dataset)}: {n_points} points, pooling {entry.pooling}"
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("layer")
    dimensions = [summary.dimension for summary in entry.topology.layers[0].summaries]
    names = ["distinct", "scale", *(f"H{k} {what}" for k in dimensions for what in ("bars", "total", "total/scale"))]
    for name in names:
        table.add_column(name, justify="right")
    thinned = any(layer.diagram_error is not None for layer in entry.topology.layers)
    censored = any(summary.censored for layer in entry.topology.layers for summary in layer.summaries)
    for name in [*(["guaranteed error"] if thinned else []), *(["alive at threshold"] if censored else [])]:
        table.add_column(name, justify="right")
    tested = {s.dimension for layer in entry.topology.layers for s in layer.summaries if s.p_value is not None}
    for k in sorted(tested):
        table.add_column(f"H{k} p", justify="right")
        table.add_column(f"H{k} p corr.", justify="right")
    for layer in entry.topology.layers:
        cells = [str(layer.n_distinct), number(layer.scale)]
        for summary in layer.summaries:
            cells += [str(summary.count), number(summary.total_persistence), number(summary.total_over_scale)]
        cells += [number(layer.diagram_error)] if thinned else []
        cells += [str(sum(summary.censored for summary in layer.summaries))] if censored else []
        for summary in layer.summaries:
            corrected = summary.p_holm if summary.p_joint is None else summary.p_joint
            cells += [number(summary.p_value), number(corrected)] if summary.dimension in tested else []
        table.add_row(escape(layer.name), *cells)
    return table


def _metrics_line(entry: Any) -> str:
    expansion = entry.topology.expansion
    parts = [f"expansion: raw {number(expansion.raw)}, scale-free {number(expansion.scale_free)}"]
    if entry.metrics:
        spread = f" +- {entry.metrics.standard_error:.3f}" if entry.metrics.standard_error is not None else ""
        parts.append(
            f"{entry.metrics.kind} {entry.metrics.perplexity:.2f} (loss {entry.metrics.loss:.3f}{spread} nats/token), "
            f"accuracy {entry.metrics.accuracy:.3f}"
        )
    elif entry.metrics_reason:
        parts.append(f"perplexity: none ({escape(entry.metrics_reason)})")
    return "; ".join(parts)


def _training_line(entry: Any) -> str:
    result = entry.training
    return (
        f"{escape(entry.model)} on {escape(entry.dataset)}: held-out loss {number(result.initial_loss)} -> "
        f"{number(result.loss)} nats/token in {result.steps:,} steps; ended: {result.stopped}"
    )


def _pruning_lines(entry: Any) -> list[str]:
    from cohomcli.report.pruning.part import share_of

    result = entry.pruning
    (before, after), (kept_before, kept_after) = result.n_parameters, result.n_nonzero
    head = f"{escape(entry.model)}: {escape(result.method)} {result.pattern}, {result.sparsity:.1%} {share_of(result)}"
    if result.factored is not None:
        head += f"; {before:,} parameters in plain matrices, {result.factored.n_parameters:,} in factors"
    elif after < before:
        head += f" gone; parameters {before:,} -> {after:,}"
    else:
        head += f" zero; non-zero parameters {kept_before:,} -> {kept_after:,}"
    return [head, *(_perplexity_line(one) for one in result.perplexity)]


def _perplexity_line(one: Any) -> str:
    steps = [one.before, one.after] if one.pruned is None else [one.before, one.pruned, one.after]
    where = "in" if one.domain == "in" else "out of"
    recovered = "" if one.pruned is None else " (recovered)"
    return (
        f"perplexity on {escape(one.dataset)} ({where} domain): {' -> '.join(map('{:.2f}'.format, steps))}{recovered}"
    )


def _generation_lines(entry: Any) -> list[str]:
    """The first grid as text, and how many there are."""
    result = entry.generation
    first = result.grids[0]
    head = f"{escape(entry.model)}: {len(result.grids)} grids in {result.steps} passes; the first"
    label = f", class {escape(printable(first.label))}" if first.label else ""
    return [f"{head}{label}:", *(escape(row) for row in first.rows)]


def _comparison_table(entries: Sequence[Any]) -> Table:
    table = Table(title="comparison", title_justify="left")
    for name in ("model", "data set", "layers", "points", "expansion raw", "expansion scale-free", "perplexity"):
        table.add_column(name, justify="left" if name in ("model", "data set") else "right")
    for entry in entries:
        if entry.error:
            table.add_row(escape(entry.model), escape(entry.dataset), *["failed"] * 5)
            continue
        layers, expansion = entry.topology.layers, entry.topology.expansion
        perplexity = number(entry.metrics.perplexity) if entry.metrics else "-"
        table.add_row(
            escape(entry.model), escape(entry.dataset), str(len(layers)), str(layers[0].n_points),
            number(expansion.raw), number(expansion.scale_free), perplexity,
        )  # fmt: skip
    return table


def show_models(rows: Sequence[Mapping[str, Any]]) -> None:
    """The catalogue of built-in models and presets."""
    table = Table(title="models (--model also takes any hub id, local folder or .gguf file)", title_justify="left")
    for name in ("name", "kind", "blocks", "parameters", "source"):
        table.add_column(name, justify="right" if name in ("blocks", "parameters") else "left")
    for row in rows:
        table.add_row(row["name"], row["kind"], str(row["n_layer"]), f"{row['n_parameters']:,}", row["source"])
    stdout_console().print(table)


def show_plan(document: Mapping[str, Any]) -> None:
    """What --dry-run found."""
    show_inspection(document)


def show_inspection(document: Mapping[str, Any]) -> None:
    """Nested facts as indented `key: value` lines."""
    console = stdout_console()
    for line in _lines(document, ""):
        console.print(line, markup=False, highlight=False)


def _lines(value: Any, indent: str) -> list[str]:
    if isinstance(value, Mapping):
        lines = []
        for key, inner in value.items():
            if isinstance(inner, Mapping | list | tuple) and inner:
                lines += [f"{indent}{key}:", *_lines(inner, indent + "  ")]
            else:
                lines.append(f"{indent}{key}: {_plain(key, inner)}")
        return lines
    if isinstance(value, list | tuple):
        return [line for item in value for line in (_lines(item, indent) or [f"{indent}-"])]
    return [f"{indent}{_plain('', value)}"]


def _plain(key: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and key.endswith("bytes"):
        return f"{value:,} ({value / 2**20:,.1f} MiB)"
    if isinstance(value, float):
        return number(value)
    return "-" if value is None or value == [] or value == () else printable(value)


def number(value: float | None) -> str:
    """Four significant digits, or a dash for what was not computed."""
    return "-" if value is None else f"{value:.4g}"
