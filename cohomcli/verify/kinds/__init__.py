"""One file per kind of certificate: what it says, in one sentence made from its numbers, and how that is checked."""

from __future__ import annotations

from cohomcli.registry import Registry

KINDS = Registry(
    "certificate kind",
    {
        name: f"cohomcli.verify.kinds.{name}:KIND"
        for name in ("enclosure", "format", "witness", "collision", "curvature", "box", "optimality")
    },
)
