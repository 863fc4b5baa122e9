"""The precision stage of a job: inputs for a loaded model, its analysis, and what goes into the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.config import Config
from cohomcli.config.precision import PrecisionConfig
from cohomcli.data.spec import DatasetSpec, TextSample
from cohomcli.errors import InputRefused, UsageError
from cohomcli.jobs.export import with_exports
from cohomcli.jobs.refute import with_certificates
from cohomcli.models.eager import eager_attention
from cohomcli.models.spec import LoadedModel, LoadedWeights
from cohomcli.progress import Progress
from cohomcli.results import Claim, Entry
from cohomcli.runs.entries import slug
from cohomcli.runs.folder import RunFolder

if TYPE_CHECKING:
    from cohomcli.precision.analysis import Analysis
    from cohomcli.precision.options import PrecisionOptions
    from cohomcli.precision.result import PrecisionResult, WeightsResult
    from cohomcli.precision.summary import Inputs

PROVED_GAP_NOTE = "checked in exact rationals"


@dataclass(frozen=True)
class PrecisionPart:
    """What the stage adds to an entry; `analysis` is there when a program was captured."""

    result: PrecisionResult | WeightsResult
    claims: tuple[Claim, ...]
    analysis: Analysis | None = None
    inputs: Inputs | None = None


@dataclass(frozen=True)
class Texts:
    """Calibration and held-out texts of a data set, which share none."""

    calibration: TextSample
    heldout: TextSample


def add_precision(
    run: RunFolder,
    begun: Entry,
    loaded: LoadedModel | LoadedWeights,
    spec: DatasetSpec,
    config: Config,
    progress: Progress,
) -> Entry:
    """`begun` with the precision analysis of its model; the plan is written beside the entry's artifacts.

    Raises:
        CohomError: as `analyse_precision`.
    """
    reads_texts = isinstance(loaded, LoadedModel) and loaded.tokenizer is not None and needs_texts(config)
    texts = draw_texts(spec, config) if reads_texts else None
    begun = replace(begun, dataset=begun.dataset if texts or begun.topology else "")
    part = with_certificates(run, begun, loaded, analyse_precision(loaded, texts, config, progress), config, progress)
    part = with_exports(run, begun, loaded, part, config, progress)
    entry = replace(
        begun,
        info=loaded.info,
        sample=begun.sample or (texts.calibration if texts else None),
        claims=(*begun.claims, *part.claims),
        notes=tuple(dict.fromkeys((*begun.notes, *loaded.notes, *part.result.notes))),
        precision=part.result,
    )
    if part.analysis is not None and isinstance(loaded, LoadedModel):
        _write_plan(run, entry, loaded, part.analysis, config)
    return entry


def _write_plan(run: RunFolder, entry: Entry, loaded: LoadedModel, analysis: Analysis, config: Config) -> None:
    """`plan.json`: the plan by names, for `apply` and for other tools; the model in its formats if wished for.

    Raises:
        UsageError: the model that should be saved is not transformers'.
    """
    from cohomcli.precision.mixed_folder import save_mixed
    from cohomcli.precision.planfile import dump_plan, plan_file

    planned = plan_file(analysis.captured, analysis.plan, config.precision.epsilon, config.precision.norm)
    base = f"artifacts/{slug(entry.model, entry.dataset)}"
    run.write(f"{base}/plan.json", dump_plan(planned))
    if config.precision.save_model:
        save_mixed(loaded.model, planned, run.path(f"{base}/model"), loaded.tokenizer)


def needs_texts(config: Config) -> bool:
    """Whether inputs come from the data set, not from files or a shape."""
    wanted = config.precision
    return not (wanted.inputs or wanted.input_shape)


def draw_texts(spec: DatasetSpec, config: Config) -> Texts:
    """Texts for the plan and for its measurement: the data set's own splits by work or by hash.

    If the user named a split, both are drawn from it, apart.

    Raises:
        CohomError: as `load_texts`.
    """
    from cohomcli.data.sample import load_texts

    seed, wanted = config.compute.seed, config.precision
    n_heldout = wanted.heldout * wanted.batch
    if spec.split is None:
        return Texts(
            _calibration_texts(replace(spec, split="calibration"), config, 0),
            load_texts(replace(spec, split="heldout"), n_heldout, seed),
        )
    both = _calibration_texts(spec, config, n_heldout)
    cut = len(both.texts) - n_heldout
    return Texts(_part(both, both.texts[:cut]), _part(both, both.texts[cut:]))


def _calibration_texts(spec: DatasetSpec, config: Config, n_more: int) -> TextSample:
    """Texts to plan on, and `n_more`; where the survey was left open, as many for it as there are, up to its most."""
    from cohomcli.data.sample import load_all_texts, load_texts
    from cohomcli.precision.forecast import MOST_SURVEYED

    wanted, seed = config.precision, config.compute.seed
    least = (wanted.calibration + (wanted.survey or 0)) * wanted.batch + n_more
    if wanted.survey is not None:
        return load_texts(spec, least, seed)
    drawn = load_all_texts(spec, least + MOST_SURVEYED * wanted.batch, seed)
    if len(drawn.texts) < least:
        return load_texts(spec, least, seed)  # says how many there are
    return _part(drawn, drawn.texts[: len(drawn.texts) - (len(drawn.texts) - n_more) % wanted.batch])


def _part(sample: TextSample, texts: tuple[str, ...]) -> TextSample:
    from cohomcli.data.draw import sha256_of

    return replace(sample, texts=texts, sha256=sha256_of(texts))


def analyse_precision(
    loaded: LoadedModel | LoadedWeights, texts: Texts | None, config: Config, progress: Progress
) -> PrecisionPart:
    """The analysis of a loaded model, or of the weights alone when their program is unknown.

    Raises:
        CohomError: inputs that do not fit, a model that cannot be captured, or wishes that cannot be met.
    """
    from cohomcli.precision.weights_only import analyse_weights

    options = precision_options(config)
    if isinstance(loaded, LoadedWeights):
        result = analyse_weights(loaded.tensors, options.formats, f"{loaded.why}; {loaded.hint}")
        return PrecisionPart(result, (Claim("storage and rounding of the weights alone", "measured"),))
    from cohomcli.precision.analysis import analyse

    inputs = _inputs(loaded, texts, config)
    with eager_attention(loaded.model):
        analysis = analyse(loaded.model, inputs, options, config.precision.outputs or None, progress)
    return PrecisionPart(analysis.result, _claims(analysis), analysis, inputs)


def precision_options(config: Config) -> PrecisionOptions:
    """The engine's options that a configuration asks for.

    Raises:
        UsageError: an unknown format, objective, keep rule or hardware.
        InputRefused: a cost or hardware table that cannot be read.
    """
    from cohomcli.precision.formats import get_format
    from cohomcli.precision.granularity import parse_keep
    from cohomcli.precision.options import PrecisionOptions

    wanted = config.precision
    return PrecisionOptions(
        epsilon=wanted.epsilon,
        norm=wanted.norm,
        formats=tuple(dict.fromkeys(get_format(name).name for name in wanted.formats)),
        objective=_objective(wanted),
        level=wanted.granularity,
        keep=tuple(parse_keep(rule) for rule in wanted.keep),
        target=_target(wanted),
        headroom=wanted.headroom,
        n_probes=wanted.probes,
        max_rounds=wanted.rounds,
        time_limit=wanted.time_limit,
        n_pareto=wanted.pareto,
        baselines=wanted.baselines,
        seed=config.compute.seed,
    )


def _objective(wanted: PrecisionConfig) -> Any:
    from cohomcli.precision.costs import parse_cost_table

    if wanted.objective in ("bytes", "weights"):
        return wanted.objective
    return parse_cost_table(_read(wanted.objective, "cost table", "use bytes, weights or a JSON file of costs"))


def _target(wanted: PrecisionConfig) -> Any:
    import json

    from cohomcli.precision.granularity import HARDWARE

    if wanted.hardware is None or wanted.hardware in HARDWARE:
        return wanted.hardware
    known = f"use {', '.join(HARDWARE)} or a JSON file"
    try:
        table = json.loads(_read(wanted.hardware, "hardware table", known))
    except json.JSONDecodeError as error:
        raise UsageError(f"the hardware table {wanted.hardware!r} is not JSON: {error}") from error
    if not isinstance(table, dict) or not all(isinstance(names, list) for names in table.values()):
        raise UsageError(f"the hardware table {wanted.hardware!r} does not map ops to lists of formats")
    return {str(op): tuple(str(name) for name in names) for op, names in table.items()}


def _read(path: str, what: str, hint: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputRefused(f"cannot read the {what} {path!r}", hint) from error


# --- inputs -----------------------------------------------------------------------------------------------------------


def _inputs(loaded: LoadedModel, texts: Texts | None, config: Config) -> Inputs:
    wanted = config.precision
    if wanted.inputs:
        return _from_files(wanted)
    if wanted.input_shape:
        return _from_shape(wanted, config.compute.seed)
    if loaded.tokenizer is not None and texts is not None:
        return _from_texts(loaded, texts, wanted)
    if loaded.samples:
        return _from_samples(loaded)
    raise UsageError(
        f"{loaded.info.name} reads no texts", "give --input FILE with tensors, or --input-shape such as 1x3x224x224"
    )


def _from_texts(loaded: LoadedModel, texts: Texts, wanted: PrecisionConfig) -> Inputs:
    from cohomcli.precision.inputs import TextOptions, text_inputs
    from cohomcli.precision.summary import Inputs

    # One call for both: a capture has one shape, so they are padded to a common length.
    chosen = [*texts.calibration.texts, *texts.heldout.texts]
    calls = text_inputs(loaded.model, loaded.tokenizer, chosen, TextOptions(wanted.length, wanted.batch))
    cut, surveyed = wanted.calibration, len(calls) - wanted.heldout
    described = (
        f"{len(texts.calibration.texts)} calibration and {len(texts.heldout.texts)} held-out texts drawn from "
        f"{texts.calibration.source} (splits {texts.calibration.split} and {texts.heldout.split}, sha256 "
        f"{texts.calibration.sha256[:12]} and {texts.heldout.sha256[:12]}), up to {wanted.length} tokens each"
    )
    thrifty = wanted.survey is None
    return Inputs(calls[:cut], calls[surveyed:], described, surveyed=calls[cut:surveyed], thrifty=thrifty)


def _from_files(wanted: PrecisionConfig) -> Inputs:
    from cohomcli.precision.inputs import file_inputs
    from cohomcli.precision.summary import Inputs

    calls = [file_inputs(Path(path)) for path in wanted.inputs]
    heldout: Sequence[Any] = [file_inputs(Path(path)) for path in wanted.heldout_inputs]
    if not heldout and len(calls) > 1:
        calls, heldout = calls[: (len(calls) + 1) // 2], calls[(len(calls) + 1) // 2 :]
    names = ", ".join(Path(path).name for path in (*wanted.inputs, *wanted.heldout_inputs))
    return Inputs(calls, heldout or calls, f"tensors from {names}")


def _from_shape(wanted: PrecisionConfig, seed: int) -> Inputs:
    from cohomcli.precision.forecast import MOST_SURVEYED
    from cohomcli.precision.inputs import shape_inputs
    from cohomcli.precision.summary import Inputs

    surveyed = wanted.calibration + (MOST_SURVEYED if wanted.survey is None else wanted.survey)
    calls = shape_inputs(wanted.input_shape or "", surveyed + wanted.heldout, seed)
    described = f"standard normal tensors of shape {wanted.input_shape}, seed {seed}: they are no data"
    cut, thrifty = wanted.calibration, wanted.survey is None
    return Inputs(calls[:cut], calls[surveyed:], described, surveyed=calls[cut:surveyed], thrifty=thrifty)


def _from_samples(loaded: LoadedModel) -> Inputs:
    from cohomcli.precision.capture import Example
    from cohomcli.precision.summary import Inputs

    calls = [Example(tuple(loaded.samples))]
    return Inputs(calls, calls, "the sample inputs that the exported program came with")


# --- claims -----------------------------------------------------------------------------------------------------------


def _claims(analysis: Analysis) -> tuple[Claim, ...]:
    result = analysis.result
    claims = []
    if result.measured_error is not None:
        where = f"{result.measured_on} under the semantics {result.semantics!r}"
        said = f"the plan's output error is {result.measured_error:.3g} ({result.norm}) on {where}"
        claims.append(Claim(said, "measured"))
    if result.predicted_error is not None:
        claims.append(
            Claim(
                f"its first-order prediction from {result.n_probes} random adjoints per input is "
                f"{result.predicted_error:.3g}",
                "estimated",
            )
        )
    claims += _bound_claims(analysis)
    for found in result.obstructions:
        if found.ops:
            said = (
                f"uniform {found.format} is impossible relative to the ranges seen in calibration: "
                f"{len(found.ops)} ops and weights refuse it"
            )
            claims.append(Claim(said, "measured"))
    sheaf = result.sheaf
    said = f"the label sheaf has h0 = {sheaf.h0}, h1 = {sheaf.h1}, chi = {sheaf.euler} for these admissible sets"
    return (*claims, Claim(f"{said}, by exact rank and by formula", "proved-in-model"))


def _bound_claims(analysis: Analysis) -> list[Claim]:
    """The lower bound or the infeasibility, claimed only after its certificate has been checked."""
    from cohomcli.precision.certificate import check

    result, solution = analysis.result, analysis.looped.solution
    if solution.certificate is None or not check(analysis.looped.problem, solution.certificate):
        return []
    if solution.infeasible:
        said = f"no assignment of {', '.join(result.formats)} has a predicted error within the budget"
        return [Claim(f"{said} ({PROVED_GAP_NOTE})", "proved-in-model")]
    if result.lower_bound is None or result.gap is None:
        return []
    said = (
        f"no plan within the same error budget costs less than {result.lower_bound:.6g} ({result.objective}); "
        f"this one is within {result.gap:.2%} of that ({PROVED_GAP_NOTE})"
    )
    return [Claim(said, "proved-in-model")]
