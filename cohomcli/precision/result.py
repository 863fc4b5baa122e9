"""What a precision analysis found, as plain numbers and names: what results, reports and the API are made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from cohomcli.precision.spec import ErrorNorm, VertexKind


@dataclass(frozen=True)
class PlanRow:
    """One stored tensor whose format was chosen: an op's result or a weight.

    `share` is its part of the plan's predicted squared error (the rows' shares sum to one; single ones may be
    negative), `largest` the largest magnitude seen in calibration, `reason` one sentence on why it has this format.
    """

    op: str
    target: str
    module: str
    kind: VertexKind
    shape: tuple[int, ...]
    format: str
    reason: str
    share: float
    largest: float
    bytes: int


@dataclass(frozen=True)
class ObstructedOp:
    """An op or weight where a format is inadmissible, and why."""

    op: str
    target: str
    module: str
    kind: VertexKind
    reason: str


@dataclass(frozen=True)
class ObstructionSet:
    """S_f: where `format` is inadmissible. Uniform `format` is possible, relative to the sets, only if it is empty."""

    format: str
    ops: tuple[ObstructedOp, ...]


@dataclass(frozen=True)
class FormatSummary:
    """One format's part in the label sheaf: dimensions of its summand, islands, the validity of first order.

    `n_admissible` counts the vertices that admit it; an island is a connected region of those, `largest_island` its
    most vertices. `curvature_ratio` is even/odd of the antithetic test (`precision.validity`), None if not measured.
    """

    format: str
    h0: int
    h1: int
    n_admissible: int
    n_inadmissible: int
    n_islands: int
    largest_island: int
    curvature_ratio: float | None = None


@dataclass(frozen=True)
class SheafSummary:
    """The label sheaf's cohomology by exact rank (equal to the formula), and the graph underneath.

    `meet_h0` and `meet_h1` are those of the meet variant: all islands of all formats, and the cycles inside them.
    """

    h0: int
    h1: int
    euler: int
    n_vertices: int
    n_edges: int
    n_components: int
    betti1: int
    meet_h0: int
    meet_h1: int
    formats: tuple[FormatSummary, ...]


@dataclass(frozen=True)
class BytesRow:
    """The bytes of one forward pass (`precision.traffic.Bytes`): `total` = weights + activations + casts."""

    total: int
    weights: int
    activations: int
    casts: int
    n_casts: int
    peak_memory: int


@dataclass(frozen=True)
class Baseline:
    """Another way to run the same model, measured on the same held-out inputs.

    `name` is its key ("uniform-fp16", "autocast-bf16", "half"), `label` for people, `semantics` says what was run.
    `error` is in the units of the analysis' norm, None when the output was not finite (`finite` False) or it could not
    be run here (`ran` False, `note` says why). `n_overflows` counts vertices whose value left its format's range, None
    where not observed.
    """

    name: str
    label: str
    semantics: str
    error: float | None
    finite: bool
    bytes: BytesRow | None
    n_overflows: int | None = None
    note: str = ""
    ran: bool = True


@dataclass(frozen=True)
class Round:
    """One round of the closed loop: the error the solver was given, what the plan predicted and what it measured.

    `measured` is the error over the `n_inputs` calibration inputs that it ran on, `worst` that of the worst single one,
    `bound` what an unseen input is expected to keep (`precision.unseen`, estimated); None when not finite. `solved` is
    False for the widest format everywhere, the last resort that no solver chose.
    """

    target: float
    predicted: float
    measured: float | None
    worst: float | None
    bytes: int
    bound: float | None = None
    n_inputs: int = 0
    solved: bool = True


@dataclass(frozen=True)
class TradeOff:
    """One point of the Pareto curve: the cheapest plan predicted to meet `epsilon`; None where there is none.

    `objective` and `lower_bound` are in the objective's units (bytes by default). `measured_error` is that over the
    calibration inputs, of the few points that were run; None for the others, and where an output was not finite.
    """

    epsilon: float
    predicted_error: float | None
    objective: float | None
    lower_bound: float | None
    measured_error: float | None = None


@dataclass(frozen=True)
class CurvatureRow:
    """Curvature and conditioning of one op (`precision.curvature.OpCurvature`), with the closed form's reference.

    `measured` and `condition` are None where the op could not be differentiated.
    """

    op: str
    target: str
    module: str
    bound: float | None
    formula: str
    reference: str
    measured: float | None
    condition: float | None


@dataclass(frozen=True)
class Refutation:
    """What became of one attempt to prove something about formats and epsilon (`precision.prove`).

    `kind` is format, collision, witness or curvature (whose `format` is "any"), which say what cannot be, or box, an
    upper bound of the plan's error. It is proved, with its certificate's file and the proved bound `error` of the error
    (None: not finite, or none), or not found, with the reason in `text`.
    """

    format: str
    kind: str
    text: str
    epsilon: float
    norm: str
    error: float | None
    certificate: str | None = None

    @property
    def status(self) -> str:
        """ "proved" or "not found"."""
        return "proved" if self.certificate else "not found"


@dataclass(frozen=True)
class Export:
    """The plan in another tool's format (`precision.exports`): files by their paths in the run folder.

    `keeps` and `omits` say what of the plan the format can express and what it cannot, or, in `omits`, why nothing was
    written (`files` empty). `check` says what loading it back showed; empty where only the tool itself could do that.
    """

    name: str
    files: tuple[str, ...]
    keeps: str
    omits: str
    check: str = ""


@dataclass(frozen=True)
class BalanceEdge:
    """A tensor and one op that reads it: by how many bits it carries more than this op asks of it (less: negative)."""

    op: str
    module: str
    reader: str
    reader_module: str
    waste: float


@dataclass(frozen=True)
class BalanceSummary:
    """The balance class (`precision.balance`), experimental: the bits that branches which meet again waste.

    `waste` is the least sum over all edges, in bits, `certified` a lower bound of it from a circulation; `n_unbalanced`
    of `n_loops` fundamental loops do not sum to zero. `edges` are those with the largest waste.
    """

    n_loops: int
    n_unbalanced: int
    waste: float
    certified: float
    edges: tuple[BalanceEdge, ...]


@dataclass(frozen=True)
class PrecisionResult:
    """A verified mixed-precision plan, or the reason why there is none (`reason` set, `plan` empty).

    `predicted_error` (estimated) is that of the final plan, `calibration_error` and `measured_error` (held-out) are
    measured under the `semantics` named; `met` compares the held-out error with `epsilon`. `lower_bound` and `gap` are
    about the last round's problem (proved-in-model); `infeasible` says that it is proved to have no solution.
    `n_surveyed` further inputs only showed ranges; `n_overflows` vertices left their format's range on held-out inputs.
    Without held-out inputs `n_heldout` is 0, and calibration inputs take their place.
    `bytes_plan`, `bytes_fp32`, `bytes_fp16` and `bytes_autocast` (CUDA op lists, fp16) are counted the same way.
    """

    epsilon: float
    norm: ErrorNorm
    formats: tuple[str, ...]
    objective: str
    level: str
    semantics: str
    inputs: str
    n_calibration: int
    n_heldout: int
    outputs: tuple[str, ...]
    n_ops: int
    n_weights: int
    n_fixed: int
    n_edges: int
    n_parameters: int
    met: bool
    reason: str
    infeasible: bool
    predicted_error: float | None
    calibration_error: float | None
    measured_error: float | None
    fp32_error: float | None
    rounds: tuple[Round, ...]
    plan: tuple[PlanRow, ...]
    edges: tuple[tuple[int, int], ...]
    sheaf: SheafSummary
    obstructions: tuple[ObstructionSet, ...]
    bytes_plan: BytesRow | None
    bytes_fp32: BytesRow
    bytes_fp16: BytesRow
    bytes_autocast: BytesRow
    lower_bound: float | None
    gap: float | None
    baselines: tuple[Baseline, ...]
    pareto: tuple[TradeOff, ...]
    curvature: tuple[CurvatureRow, ...]
    n_probes: int
    notes: tuple[str, ...] = field(default=())
    n_surveyed: int = 0
    n_overflows: int = 0
    refutations: tuple[Refutation, ...] = ()
    exports: tuple[Export, ...] = ()
    balance: BalanceSummary | None = None

    @property
    def kind(self) -> str:
        """Always "program": the forward pass was captured."""
        return "program"

    @property
    def measured_on(self) -> str:
        """What `measured_error` was measured on: "4 held-out inputs", or "1 calibration input" without others."""
        n, which = (self.n_heldout, "held-out") if self.n_heldout else (self.n_calibration, "calibration")
        return f"{n:,} {which} input{'' if n == 1 else 's'}"


@dataclass(frozen=True)
class WeightRow:
    """One weight tensor without its program: per format the relative rounding error, or why it cannot be stored there.

    `errors[f]` is ||round_f(w) - w||_2 / ||w||_2 (measured), absent where `refused[f]` has a reason.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    numel: int
    largest: float
    errors: dict[str, float]
    refused: dict[str, str]


@dataclass(frozen=True)
class WeightsResult:
    """What can be said of weights whose forward pass is unknown: storage alone, no claim about any output.

    `bytes_by_format[f]` is what all weights take when each that can be is stored in f and the others as they are.
    """

    why: str
    formats: tuple[str, ...]
    weights: tuple[WeightRow, ...]
    n_parameters: int
    bytes_stored: int
    bytes_by_format: dict[str, int]
    notes: tuple[str, ...] = field(default=())

    @property
    def kind(self) -> str:
        """Always "weights": there is no program."""
        return "weights"
