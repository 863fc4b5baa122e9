"""The tables of a precision report: what runs where, why, at what price, and against what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cohomcli.precision.result import CurvatureRow, ObstructionSet, PlanRow, PrecisionResult, TradeOff
from cohomcli.report.document import Column, Table
from cohomcli.report.names import DASH, clean, count, number, percent
from cohomcli.report.precision.digest import (
    Group,
    Way,
    by_place,
    contributors,
    grouped,
    obstructed_places,
    short_op,
    shown_obstructions,
    ways,
)
from cohomcli.report.precision.look import in_order, norm_name

MOST_ROWS = 40
"""Rows shown of a table that grows with the model; the rest is in its CSV file."""
TOP = 15
"""Contributors shown in the table and the figure."""
MIB = 2.0**20


def place_table(result: PrecisionResult) -> Table:
    """Formats of the operations and weights of every module, repeated blocks taken together."""
    formats = in_order(row.format for row in result.plan)
    groups = by_place(result.plan)
    cells = [(clean(g.key[0], 60), str(len({row.module for row in g.rows})), *_per_format(g, formats)) for g in groups]
    columns = (
        Column("module", "numbered blocks taken together as *", numeric=False),
        Column("modules", "how many there are"),
        *(Column(f"{clean(f, 12)}", "operations + weights in this format") for f in formats),
        Column("share of error", "of the predicted squared error"),
    )
    note = "Operations + weights in each format, in forward order; * stands for the number of a block."
    return _capped("What runs where, by module", columns, cells, "tables/plan.csv", note)


def _per_format(group: Group, formats: Sequence[str]) -> list[str]:
    ops, weights = group.formats("op"), group.formats("weight")
    return [*(_sum(ops[f], weights[f]) for f in formats), percent_signed(group.share)]


def _sum(n_ops: int, n_weights: int) -> str:
    if not n_ops and not n_weights:
        return DASH
    return f"{n_ops:,} + {n_weights:,}"


def percent_signed(share: float) -> str:
    """A share that may be negative, in percent."""
    return f"-{percent(-share, zeros=True)}" if share < 0 else percent(share, zeros=True)


def op_table(result: PrecisionResult) -> Table:
    """Formats of every type of operation, and of the weights."""
    formats = in_order(row.format for row in result.plan)
    groups = grouped(result.plan, lambda row: (short_op(row.target, row.kind),))
    groups.sort(key=lambda g: (g.key == ("weight",), -len(g.rows)))
    refused = {f: _names(found) for found in result.obstructions if (f := found.format)}
    cells = [
        (
            clean(g.key[0], 40),
            f"{len(g.rows):,}",
            *(f"{n:,}" if (n := g.formats("op")[f] + g.formats("weight")[f]) else DASH for f in formats),
            percent_signed(g.share),
            _refusals(g, refused),
        )
        for g in groups
    ]
    columns = (
        Column("operation", numeric=False),
        Column("number"),
        *(Column(clean(f, 12)) for f in formats),
        Column("share of error", "of the predicted squared error"),
        Column("inadmissible", "formats, and at how many", numeric=False),
    )
    return _capped("What runs where, by operation", columns, cells, "tables/plan.csv")


def _names(found: ObstructionSet) -> set[tuple[str, str]]:
    return {(op.kind, op.op) for op in shown_obstructions(found)}


def _refusals(group: Group, refused: dict[str, set[tuple[str, str]]]) -> str:
    counts = {f: sum((row.kind, row.op) in names for row in group.rows) for f, names in refused.items()}
    return ", ".join(f"{clean(f, 12)} at {n:,}" for f, n in counts.items() if n) or DASH


def obstruction_tables(result: PrecisionResult) -> list[Table]:
    """For every format that is inadmissible somewhere: where, by place, and op by op with the reasons."""
    tables = []
    for found in result.obstructions:
        shown = shown_obstructions(found)
        if not shown:
            continue
        places = obstructed_places(found, result.plan)
        if len(places) < len(shown):
            tables.append(_place_obstructions(result, found))
        tables.append(_op_obstructions(found))
    return tables


def _place_obstructions(result: PrecisionResult, found: ObstructionSet) -> Table:
    cells = [
        (
            clean(p.place, 60),
            clean(p.op, 40),
            f"{len(p.ops):,}" + (f" of {p.n_all:,}" if p.n_all else ""),
            clean(p.ops[0].reason, 240),
        )
        for p in obstructed_places(found, result.plan)
    ]
    columns = (
        Column("module", "numbered blocks taken together as *", numeric=False),
        Column("operation", numeric=False),
        Column("obstructed"),
        Column("reason, at the first", numeric=False, prose=True),
    )
    title = f"Where {clean(found.format, 12)} is not admissible, by place"
    return _capped(title, columns, cells, "tables/obstructions.csv")


def _op_obstructions(found: ObstructionSet) -> Table:
    cells = [
        (clean(op.op, 60), short_op(op.target, op.kind), clean(op.module, 60) or DASH, clean(op.reason, 240))
        for op in shown_obstructions(found)
    ]
    columns = (
        Column("name", numeric=False),
        Column("operation", numeric=False),
        Column("module", numeric=False),
        Column("reason", numeric=False, prose=True),
    )
    title = f"Obstruction set of {clean(found.format, 12)}"
    return _capped(title, columns, [tuple(clean(c, 240) for c in row) for row in cells], "tables/obstructions.csv")


def contributor_table(result: PrecisionResult) -> Table:
    """The stores that make most of the predicted error, with the reason for their format."""
    cells = [
        (
            clean(row.op, 60),
            clean(short_op(row.target, row.kind), 40),
            clean(row.module, 60) or DASH,
            clean(row.format, 12),
            percent(row.share, zeros=True),
            number(row.largest, 3),
            clean(row.reason, 240),
        )
        for row in contributors(result.plan, TOP)
    ]
    columns = (
        Column("name", numeric=False),
        Column("operation", numeric=False),
        Column("module", numeric=False),
        Column("format", numeric=False),
        Column("share of error", "of the predicted squared error"),
        Column("largest", "magnitude seen in calibration"),
        Column("why this format", numeric=False, prose=True),
    )
    return Table("Top error contributors", columns, tuple(cells), _rest_of_error(result.plan))


def _rest_of_error(rows: Sequence[PlanRow]) -> str:
    top = contributors(rows, TOP)
    if not top:
        return ""
    share = percent(min(sum(row.share for row in top), 1.0))
    return f"These {len(top)} of {len(rows):,} make {share} of the predicted squared error."


def ways_table(result: PrecisionResult) -> Table:
    """The plan beside everything else that was run or counted."""
    found = ways(result)
    cells = [_way(result, way) for way in found]
    columns = (
        Column("way", numeric=False),
        Column("error", f"{norm_name(result.norm)}, held-out inputs"),
        Column("overflows", "values that left their format's range"),
        Column("MiB", "one forward pass: weights + activations + casts"),
        Column("of fp32", "bytes against fp32 everywhere"),
        Column("casts", "conversions"),
        Column("peak MiB", "weights and activations alive at once"),
        Column("semantics", "how it was run", numeric=False, prose=True),
    )
    note = f"Error: {norm_name(result.norm)} against float64 on the held-out inputs. MiB: what one forward pass moves."
    return Table("Plan against baselines", columns, tuple(cells), note)


def _way(result: PrecisionResult, way: Way) -> tuple[str, ...]:
    row = way.bytes
    whole = result.bytes_fp32.total
    return (
        clean(way.label, 60),
        number(way.error, 3) if way.error is not None else "not finite" if way.ran else "not run",
        DASH if way.n_overflows is None else f"{way.n_overflows:,}",
        DASH if row is None else mebibytes(row.total),
        DASH if row is None or not whole else percent(row.total / whole, zeros=True),
        DASH if row is None else f"{row.n_casts:,}",
        DASH if row is None else mebibytes(row.peak_memory),
        "; ".join(clean(text, 240) for text in (way.semantics, way.note) if text) or DASH,
    )


def mebibytes(n_bytes: float) -> str:
    """A number of bytes in MiB, for a column of them."""
    return number(n_bytes / MIB, 4, zeros=True)


def round_table(result: PrecisionResult) -> Table:
    """The closed loop, round by round."""
    cells = [
        (
            str(at) if step.solved else "widest format",
            number(step.target, 3),
            number(step.predicted, 3),
            "not finite" if step.measured is None else number(step.measured, 3),
            "not finite" if step.worst is None else number(step.worst, 3),
            DASH if step.bound is None else number(step.bound, 3),
            str(step.n_inputs),
            mebibytes(step.bytes),
        )
        for at, step in enumerate(result.rounds, start=1)
    ]
    columns = (
        Column("round", numeric=False),
        Column("target", "the error that the solver was given"),
        Column("predicted", "of the plan it found"),
        Column("measured", "over the inputs it ran on"),
        Column("worst input", "measured, the worst single one"),
        Column("unseen input", "what one in 1,000 is expected to exceed (estimated); held to epsilon"),
        Column("inputs", "calibration inputs that it ran on"),
        Column("MiB", "one forward pass"),
    )
    note = (
        "Each round solves for a target, emulates the plan on calibration inputs, judges unseen ones by how their "
        "errors vary, and corrects the target."
    )
    return Table("Closed loop", columns, tuple(cells), note)


def sheaf_table(result: PrecisionResult) -> Table:
    """The label sheaf, format by format and in all."""
    sheaf = result.sheaf
    cells = [
        (
            clean(f.format, 12),
            f"{f.h0:,}",
            f"{f.h1:,}",
            f"{f.n_admissible:,}",
            f"{f.n_inadmissible:,}",
            f"{f.n_islands:,}",
            f"{f.largest_island:,}",
            DASH if f.curvature_ratio is None else percent(f.curvature_ratio, zeros=True),
        )
        for f in sheaf.formats
    ]
    cells.append(("all", f"{sheaf.h0:,}", f"{sheaf.h1:,}", DASH, DASH, f"{sheaf.meet_h0:,}", DASH, DASH))
    columns = (
        Column("format", numeric=False),
        Column("h0", "components where it is admissible everywhere"),
        Column("h1", "loops, and obstructions beyond the first of a component"),
        Column("admissible", "vertices"),
        Column("|S_f|", "vertices where it is inadmissible"),
        Column("islands", "connected regions that admit it"),
        Column("largest island", "vertices"),
        Column("even / odd", "part of the response that first order leaves out, under the uniform format"),
    )
    graph = f"{count(sheaf.n_vertices, 'vertex', 'vertices')}, {count(sheaf.n_edges, 'edge')}"
    pieces = count(sheaf.n_components, "component")
    note = (
        f"Exact ranks, equal to the formula. chi = h0 - h1 = {sheaf.euler:,}. The graph has {graph}, "
        f"{pieces} and b1 = {sheaf.betti1:,} independent loops. In the meet variant h0 = {sheaf.meet_h0:,} counts all "
        f"islands and h1 = {sheaf.meet_h1:,} the loops inside them. h1 decides nothing about uniform formats; S_f does."
    )
    return Table("Label sheaf", columns, tuple(cells), note)


def pareto_table(result: PrecisionResult) -> Table:
    """The trade-off between tolerance and cost."""
    in_bytes = result.objective in ("bytes", "weights")
    unit = "MiB" if in_bytes else "cost"

    def cost(value: float | None) -> str:
        return DASH if value is None else mebibytes(value) if in_bytes else number(value, zeros=True)

    cells = [
        (
            number(point.epsilon, 3),
            number(point.predicted_error, 3),
            DASH if point.measured_error is None else number(point.measured_error, 3),
            cost(point.objective),
            cost(point.lower_bound),
            _gap(point),
        )
        for point in result.pareto
    ]
    columns = (
        Column("epsilon", numeric=False),
        Column("predicted error", "of the cheapest plan found"),
        Column("measured error", "over the calibration inputs, of the plans that were run"),
        Column(unit, f"objective: {clean(result.objective, 40)}"),
        Column(f"lower bound, {unit}", "no plan that is predicted to meet epsilon costs less; proved in the model"),
        Column("gap", "at most"),
    )
    note = "Predicted; a few are measured on the calibration inputs. A dash: not measured, or no plan meets epsilon."
    return Table("Cost of every tolerance", columns, tuple(cells), note)


def _gap(point: TradeOff) -> str:
    if not point.objective or point.lower_bound is None:
        return DASH
    return percent(max(point.objective - point.lower_bound, 0.0) / point.objective, zeros=True)


def curvature_table(result: PrecisionResult) -> Table:
    """Curvature and conditioning of single operations, with the closed form where there is one."""
    columns = (
        Column("name", numeric=False),
        Column("operation", numeric=False),
        Column("module", numeric=False),
        Column("conditioning", "relative error out per relative error in"),
        Column("curvature", "measured at the recorded operands: a lower bound there"),
        Column("bound", "by the closed form"),
        Column("closed form", numeric=False, prose=True),
        Column("reference", numeric=False, prose=True),
    )
    note = (
        "Curvature: sup ||D^2 f[h, h]|| over unit h, by autodiff at the recorded operands; bound: by the closed form."
    )
    return Table("Curvature and conditioning", columns, tuple(map(_curvature, result.curvature)), note)


def _curvature(row: CurvatureRow) -> tuple[str, ...]:
    return (
        clean(row.op, 60),
        clean(short_op(row.target, "op"), 40),
        clean(row.module, 60) or DASH,
        number(row.condition, 3),
        number(row.measured, 3),
        number(row.bound, 3),
        clean(row.formula, 120) or DASH,
        clean(row.reference, 160) or DASH,
    )


def _capped(
    title: str, columns: Sequence[Column], cells: Iterable[tuple[str, ...]], rest: str, note: str = ""
) -> Table:
    """A table of at most `MOST_ROWS` rows that says where the others are."""
    rows = list(cells)
    more = f"{MOST_ROWS} of {len(rows):,} rows; all are in {rest}." if len(rows) > MOST_ROWS else ""
    return Table(title, tuple(columns), tuple(rows[:MOST_ROWS]), " ".join(part for part in (more, note) if part))
