"""How models are called here."""

from __future__ import annotations

import inspect
from typing import Any


def uncached(module: Any) -> dict[str, Any]:
    """The keyword that keeps `module` from storing keys and values for a generation that never comes, where it knows
    one: they are copied once more, and stay until the pass ends.
    """
    return {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}
