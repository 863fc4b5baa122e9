"""Certificates of a precision analysis: the plan's optimality, and with `--refute` what uniform formats cannot do."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli import __version__
from cohomcli.config import Config
from cohomcli.errors import CohomError, UsageError
from cohomcli.progress import Progress
from cohomcli.results import Claim, Entry
from cohomcli.runs.entries import slug
from cohomcli.runs.folder import RunFolder

if TYPE_CHECKING:
    from torch import nn

    from cohomcli.jobs.precision import PrecisionPart
    from cohomcli.precision.result import Refutation

logger = logging.getLogger(__name__)
_VERSIONS = ("torch", "transformers", "python-flint", "numpy")
_TRIES = ("e4m3", "e5m2", "fp16", "bf16", "fp32", "int8", "fp64")


@dataclass(frozen=True)
class _Place:
    """Where an entry's certificates go: the folder, its path inside the run folder, the model's name."""

    folder: Path
    relative: str
    model: str


def with_certificates(
    run: RunFolder, entry: Entry, loaded: Any, part: PrecisionPart, config: Config, progress: Progress
) -> PrecisionPart:
    """`part` with its proved claims certified in `artifacts/<entry>/certificates/`.

    The optimality of the plan is certified always; refutations and the box bound are tried when they are asked for.
    What has no rigorous mathematics here (an operation, too little memory) ends in a note, not in a failed analysis.

    Raises:
        UsageError: `--refute` or `--certify-box` for weights without a program.
    """
    asked = config.precision.refute or config.precision.box > 0
    if part.analysis is None:
        if asked:
            raise UsageError("--refute and --certify-box need a model's program, and only its weights are known")
        return part
    # The slug of the folder that the entry is saved in; without texts it has no data set.
    relative = f"artifacts/{slug(entry.model, entry.dataset)}/certificates"
    place = _Place(run.path(f"{relative}/x").parent, relative, entry.model)
    part = _with_optimality(place, part, config)
    if config.precision.refute:
        part = _noted(part, lambda: _with_refutations(place, loaded.model, part, config, progress))
    if config.precision.box > 0:
        part = _noted(part, lambda: _with_box(place, part, config))
    return part


def check_prover(config: Config) -> None:
    """Refuse proofs that cannot be made, before a model is loaded.

    Raises:
        UsageError: `--refute` or `--certify-box` without python-flint.
    """
    if (config.precision.refute or config.precision.box > 0) and find_spec("flint") is None:
        raise UsageError("--refute and --certify-box need python-flint", "install cohom[prove]")


def _noted(part: PrecisionPart, attempt: Callable[[], PrecisionPart]) -> PrecisionPart:
    """What an attempt adds, or a note that says why it could not be made."""
    try:
        return attempt()
    except CohomError as error:
        logger.warning("nothing proved: %s", error)
        notes = (*part.result.notes, f"nothing proved: {error}")
        return replace(part, result=replace(part.result, notes=notes))


def _provenance(extra: dict[str, Any]) -> dict[str, Any]:
    """What made a certificate: told, not proved."""
    versions = {"cohom": __version__, "python": platform.python_version()}
    for name in _VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "platform": platform.platform()} | extra


def _with_optimality(place: _Place, part: PrecisionPart, config: Config) -> PrecisionPart:
    from cohomcli.precision.prove.optimality import write_optimality
    from cohomcli.precision.prove.package import Package

    assert part.analysis is not None
    looped, bound = part.analysis.looped, [c for c in part.claims if c.status == "proved-in-model" and _is_bound(c)]
    if not bound:
        return part
    package = Package(place.folder, place.model, None, _provenance({}))
    formats = part.analysis.sensitivity.formats
    written = write_optimality(package, looped.problem, looped.solution, formats, config.precision.epsilon)
    if written is None:
        return part
    path = f"{place.relative}/{written.path.name}"
    claims = tuple(replace(c, certificate=path) if c in bound else c for c in part.claims)
    return replace(part, claims=claims)


def _is_bound(claim: Claim) -> bool:
    """Whether a claim is the lower bound or the infeasibility, which the assignment's certificate proves."""
    from cohomcli.jobs.precision import PROVED_GAP_NOTE

    return PROVED_GAP_NOTE in claim.text


def _with_refutations(
    place: _Place, model: nn.Module, part: PrecisionPart, config: Config, progress: Progress
) -> PrecisionPart:
    from cohomcli.precision.prove.package import Package
    from cohomcli.precision.prove.refute import RefuteOptions, refute
    from cohomcli.precision.result import PrecisionResult

    assert part.analysis is not None
    assert part.inputs is not None
    wanted, captured = config.precision, part.analysis.captured
    package = Package(place.folder, place.model, captured, _provenance({"seed": config.compute.seed}))
    formats = tuple(f for f in _TRIES if f in part.analysis.sensitivity.formats)
    options = RefuteOptions(wanted.epsilon, wanted.norm, formats, model)
    found = refute(captured, part.inputs.calibration, options, package, progress)
    rows = tuple(_placed(r, place.relative) for r in found)
    assert isinstance(part.result, PrecisionResult)
    result = replace(part.result, refutations=(*part.result.refutations, *rows))
    proved = tuple(Claim(row.text, "proved", row.certificate) for row in rows if row.certificate)
    return replace(part, result=result, claims=(*part.claims, *proved))


def _placed(refutation: Refutation, relative: str) -> Refutation:
    """With the certificate's path inside the run folder."""
    if refutation.certificate is None:
        return refutation
    return replace(refutation, certificate=f"{relative}/{refutation.certificate}")


def _with_box(place: _Place, part: PrecisionPart, config: Config) -> PrecisionPart:
    from cohomcli.precision.prove.box import N_SAMPLES, certify_box
    from cohomcli.precision.prove.package import Package
    from cohomcli.precision.result import PrecisionResult, Refutation

    assert part.analysis is not None
    assert part.inputs is not None
    assert isinstance(part.result, PrecisionResult)
    captured, radius = part.analysis.captured, config.precision.box
    package = Package(place.folder, place.model, captured, _provenance({"seed": config.compute.seed}))
    found = certify_box(captured, part.inputs.calibration[0], radius, part.analysis.plan, package)
    if found.certificate is None:
        return part
    path = f"{place.relative}/{found.certificate.path.name}"
    text = found.certificate.statement
    seen = (
        f"the largest absolute error of {found.plan} among {N_SAMPLES} inputs drawn from that box is "
        f"{found.sampled:.3g}: certified over sampled is {found.ratio:.3g}"
    )
    row = Refutation(found.plan, "box", text, config.precision.epsilon, "max-abs", found.certified, path)
    result = replace(part.result, refutations=(*part.result.refutations, row))
    return replace(part, result=result, claims=(*part.claims, Claim(text, "proved", path), Claim(seen, "measured")))
