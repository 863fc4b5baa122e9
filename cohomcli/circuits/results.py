"""What circuit discovery gives back."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Component:
    """A head, MLP, neuron or edge: its effect on the metric, the mean over the search pairs.

    `effect` is what exchanging it changes, by the method of the search; `exact` the same by exact patching, where it
    was measured. `in_circuit` says whether it is part of the circuit found.
    """

    name: str
    effect: float
    exact: float | None = None
    in_circuit: bool = False


@dataclass(frozen=True)
class CurvePoint:
    """Faithfulness on held-out pairs when the `kept` components of largest effect stay and all others are replaced.

    `low` and `high` are 95% limits over bootstrap resamples of pairs and corruptions; `share` is kept / all.
    """

    kept: int
    share: float
    faithfulness: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """Attribution against exact patching on `n_components`, half of them of largest effect and half drawn at random
    (or all there are): Pearson correlation (None: not defined), and the share of the former half with equal signs.
    """

    n_components: int
    pearson: float | None
    same_sign: float
    all_components: bool


@dataclass(frozen=True)
class CircuitOptions:
    """How to search. `base` is the run in which components are exchanged; `steps` are those of "integrated".

    `ablation` is what components outside a circuit are replaced by: those of the pair's own corrupt prompt ("pair"), of
    another pair's ("resample"), or the mean over corrupt prompts of equal length, token by token ("mean").
    A circuit is accepted when |1 - faithfulness| <= `tolerance`. `check` components are patched exactly too.
    """

    level: str = "heads"
    method: str = "attribution"
    base: str = "clean"
    metric: str = "logit"
    ablation: str = "pair"
    steps: int = 5
    tolerance: float = 0.1
    draws: int = 3
    check: int = 0
    minimise: bool = True
    seed: int = 0


@dataclass(frozen=True)
class CircuitResult:
    """A circuit: the smallest set of components found whose faithfulness is within the tolerance on the search pairs.

    `clean` and `corrupt` are the mean metric when the whole model reads either side, held-out pairs. Faithfulness is
    (m - corrupt) / (clean - corrupt): 1 keeps the whole behaviour, 0 nothing (Wang et al. 2022). `faithfulness`,
    `low` and `high` are of the circuit on the held-out pairs, `searched` on the pairs it was found with. `stability` is
    the mean Jaccard index of the top components, as many as the circuit has, between bootstrap resamples of the search
    pairs. `minimal` says that no component can be left out alone. `components`
    are all there are, or those of largest effect.
    """

    task: str
    options: CircuitOptions
    n_search: int
    n_heldout: int
    clean: float
    corrupt: float
    accuracy: float
    n_components: int
    components: tuple[Component, ...]
    circuit: tuple[str, ...]
    faithfulness: float
    low: float
    high: float
    searched: float
    minimal: bool
    stability: float
    curve: tuple[CurvePoint, ...]
    agreement: Agreement | None
    n_heads: int
    n_groups: int
    n_layer: int
    seconds: float = field(default=0.0, compare=False)
