"""Which figures a precision analysis gets, with the words that go with each."""

from __future__ import annotations

from functools import partial

from cohomcli.precision.result import PrecisionResult, WeightsResult
from cohomcli.report.names import clean, count, listing, number, percent, size
from cohomcli.report.picture import Picture
from cohomcli.report.precision.digest import contributors, formats_of, of_kind
from cohomcli.report.precision.draw_bars import draw_bytes, draw_contributors, top_groups
from cohomcli.report.precision.draw_formats import draw_formats
from cohomcli.report.precision.draw_overview import draw_precision
from cohomcli.report.precision.draw_pareto import draw_pareto
from cohomcli.report.precision.draw_weights import draw_weights
from cohomcli.report.precision.look import counted, in_order, norm_name
from cohomcli.report.precision.words import verdict


def precision_pictures(result: PrecisionResult | WeightsResult, subject: str, prefix: str) -> list[Picture]:
    """The figures of one result, not yet drawn. `prefix` starts every file name."""
    if isinstance(result, WeightsResult):
        return [_weights(result, subject, prefix)] if result.weights else []
    pictures = [_overview(result, subject, prefix)]
    if result.plan:
        pictures.append(_formats(result, subject, prefix))
    if contributors(result.plan, 1):
        pictures.append(_contributors(result, subject, prefix))
    pictures.append(_bytes(result, subject, prefix))
    return [*pictures, _pareto(result, subject, prefix)] if result.pareto else pictures


def _overview(result: PrecisionResult, subject: str, prefix: str) -> Picture:
    lower = (
        " c: formats of the operations in every block, in forward order; white dots: the share where some format is "
        "inadmissible. d: where the predicted squared error comes from, repeated blocks summed."
    )
    return Picture(
        file=f"{prefix}precision.png",
        group="precision",
        title="Overview",
        alt=f"{'Four' if result.plan else 'Two'} panels on the formats of {subject}. {verdict(result)}",
        caption=(
            "a: measured error of the plan (star) and of the baselines (squares) on the held-out inputs; the pale band "
            "is the tolerance, the upright line the prediction. b: bytes of one forward pass with the share of fp32's."
            f"{lower if result.plan else ''}"
        ),
        draw=partial(draw_precision, subject, result),
    )


def _formats(result: PrecisionResult, subject: str, prefix: str) -> Picture:
    ops, weights = formats_of(of_kind(result.plan, "op")), formats_of(of_kind(result.plan, "weight"))
    parts = [f"{name}: {counted(counts)}" for name, counts in (("operations", ops), ("weights", weights)) if counts]
    return Picture(
        file=f"{prefix}formats.png",
        group="formats",
        title="The graph by format",
        alt=f"Every stored tensor of {subject} as a cell coloured by its format. {'; '.join(parts)}.",
        caption=(
            "A cell is a stored tensor. Every row is a block and every column the same position in all of them, in "
            "forward order, weights on the right; what all blocks have in common is a vertical line. White dots mark "
            "tensors for which some format is inadmissible. Arcs join results that are read again some columns later, "
            "from the left edge those of the block before: residual connections."
        ),
        draw=partial(draw_formats, subject, result),
    )


def _contributors(result: PrecisionResult, subject: str, prefix: str) -> Picture:
    groups = listing(
        f"{clean(g.key[1], 20)} in {clean(g.key[0], 40)} {percent(g.share)}" for g in top_groups(result, 5)
    )
    return Picture(
        file=f"{prefix}contributors.png",
        group="contributors",
        title="Error contributors",
        alt=f"Bars of the largest shares of the predicted squared error of {subject}: {groups}.",
        caption=(
            "Shares of the predicted squared error, estimated to first order; the colour is the format. By place: the "
            "same operation of all blocks summed. One by one: single stores."
        ),
        draw=partial(draw_contributors, subject, result),
    )


def _bytes(result: PrecisionResult, subject: str, prefix: str) -> Picture:
    plan = f"the plan {size(result.bytes_plan.total)}, " if result.bytes_plan else ""
    return Picture(
        file=f"{prefix}bytes.png",
        group="bytes",
        title="Bytes of one forward pass",
        alt=(
            f"Stacked bars of what one forward pass of {subject} moves: {plan}fp32 {size(result.bytes_fp32.total)}, "
            f"uniform fp16 {size(result.bytes_fp16.total)}, autocast fp16 {size(result.bytes_autocast.total)}."
        ),
        caption=(
            "Weights are read once, activations written once and read by each of their readers, casts read and write "
            "what they convert. Nothing is fused. Uniform formats are counted even where they overflow."
        ),
        draw=partial(draw_bytes, subject, result),
    )


def _pareto(result: PrecisionResult, subject: str, prefix: str) -> Picture:
    ends = [p for p in result.pareto if p.objective is not None]
    unit = size if result.objective in ("bytes", "weights") else number
    span = listing(f"{unit(p.objective or 0.0)} at {number(p.epsilon, 2)}" for p in (ends[:1] + ends[-1:]))
    return Picture(
        file=f"{prefix}pareto.png",
        group="pareto",
        title="Cost against tolerance",
        alt=f"Cost of the cheapest plan of {subject} for {count(len(result.pareto), 'tolerance')}: {span or 'none'}.",
        caption=(
            f"The curve is the cheapest plan found whose predicted {norm_name(result.norm)} is within a tolerance; "
            "dashed, what no plan can undercut in the model. The star is the plan at its measured error, squares are "
            "baselines at theirs, arrows at the right edge those whose output was not finite."
        ),
        draw=partial(draw_pareto, subject, result),
    )


def _weights(result: WeightsResult, subject: str, prefix: str) -> Picture:
    sizes = ", ".join(f"{clean(f, 12)} {size(result.bytes_by_format[f])}" for f in in_order(result.bytes_by_format))
    return Picture(
        file=f"{prefix}precision.png",
        group="precision",
        title="Weights by format",
        alt=f"Bytes of the weights of {subject} by format ({sizes}) and the rounding error of every tensor.",
        caption=(
            "Left: all weights, each in the format if it can be and as it is if not. Right: ||round(w) - w|| / ||w|| "
            "of every tensor. Nothing here is an error of an output."
        ),
        draw=partial(draw_weights, subject, result),
    )
