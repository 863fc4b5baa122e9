"""Our own architectures at the model door: registered with transformers the moment a configuration names one of them.

Their code is ours and comes with this package, so a folder of theirs needs no permission to run code.
"""

from __future__ import annotations

from typing import Any, Literal

# model_type of a configuration to the classes that checkpoints of it name.
_CLASSES = {
    "cohomological_transformer": ("CohomologicalTransformer", "CohomologicalModel"),
    "nonlinear_transformer": ("NonLinearTransformer", "NonLinearModel"),
}


def register_own(model_type: object) -> None:
    """Make transformers know `model_type` if it is one of ours; nothing is imported otherwise."""
    if isinstance(model_type, str) and model_type in _CLASSES:
        import cohomcli.nn  # noqa: F401 -- importing it registers


def own_class(config: Any) -> tuple[Any, Literal["causal", "masked"] | None] | None:
    """The class to load for a configuration of ours and the head it brings, or None when it is not ours."""
    known = _CLASSES.get(getattr(config, "model_type", ""))
    if known is None:
        return None
    listed = getattr(config, "architectures", None)
    named = listed[0] if isinstance(listed, list) and listed and listed[0] in known else known[0]
    head: Literal["causal", "masked"] = "causal" if getattr(config, "causal", False) else "masked"
    return own_class_named(named), head if named == known[0] else None


def own_class_named(name: str) -> Any:
    """Our model class called `name`, or None."""
    if not any(name in names for names in _CLASSES.values()):
        return None
    import cohomcli.nn

    return getattr(cohomcli.nn, name)
