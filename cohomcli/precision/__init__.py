"""The sheaf precision engine: which number format every operation and weight needs, predicted, solved and measured.

>>> from cohomcli.precision import Inputs, PrecisionOptions, analyse, apply        # doctest: +SKIP
>>> found = analyse(model, Inputs(calibration, heldout), PrecisionOptions(epsilon=1e-3))     # doctest: +SKIP
>>> mixed = apply(model, found.plan, found.captured)                               # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohomcli.lazy import lazily

if TYPE_CHECKING:
    from cohomcli.precision.analysis import Analysis, analyse
    from cohomcli.precision.explicit import apply
    from cohomcli.precision.mixed_folder import load_mixed, save_mixed
    from cohomcli.precision.optimizer import SheafPrecisionOptimizer
    from cohomcli.precision.options import PrecisionOptions
    from cohomcli.precision.summary import Inputs

__all__ = [
    "Analysis",
    "Inputs",
    "PrecisionOptions",
    "SheafPrecisionOptimizer",
    "analyse",
    "apply",
    "load_mixed",
    "save_mixed",
]

__getattr__ = lazily(
    __name__,
    {
        "Analysis": "analysis",
        "Inputs": "summary",
        "PrecisionOptions": "options",
        "SheafPrecisionOptimizer": "optimizer",
        "analyse": "analysis",
        "apply": "explicit",
        "load_mixed": "mixed_folder",
        "save_mixed": "mixed_folder",
    },
)
