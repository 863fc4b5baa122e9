"""The activation cache: pooled activations by content hash, so that an equal forward pass is never repeated."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cohomcli.errors import InputRefused
from cohomcli.models.spec import Activations, LanguageMetrics
from cohomcli.runs.files import write_whole

FORMAT = "cohom.activations/1"
LIMIT_BYTES = 4 * 2**30
logger = logging.getLogger(__name__)


def cache_root() -> Path:
    """`$COHOM_CACHE`, else `$XDG_CACHE_HOME/cohom`, else `~/.cache/cohom`."""
    if root := os.environ.get("COHOM_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cohom"


def content_key(parts: dict[str, Any], texts: Sequence[str]) -> str:
    """SHA-256 over all that decides the activations: `parts` (weights' hash, options, versions) and the texts."""
    digest = sha256(json.dumps(parts, sort_keys=True, default=list).encode())
    for text in texts:
        digest.update(sha256(text.encode()).digest())
    return digest.hexdigest()


@dataclass(frozen=True)
class ActivationCache:
    """Files `<key>.safetensors` under `folder`; the least recently used go when together they exceed `limit` bytes."""

    folder: Path
    limit: int = LIMIT_BYTES

    def get(self, key: str) -> Activations | None:
        """The stored activations, mapped read-only, or None; a damaged file gives a warning and is computed again."""
        from cohomcli.models.store import map_layers

        path = self.folder / f"{key}.safetensors"
        if not path.is_file():
            return None
        try:
            stored, metadata = map_layers(path)
            about = json.loads(metadata["about"])
            layers = {name: stored[name] for name in about["order"]}
            path.touch()
            metrics = LanguageMetrics(**about["metrics"]) if about["metrics"] else None
            return Activations(layers, metrics=metrics, notes=tuple(about["notes"]), **about["plain"])
        except (InputRefused, OSError, KeyError, TypeError, ValueError) as error:
            logger.warning("cached activations %s are unreadable (%s); computing them again", path.name[:12], error)
            return None

    def put(self, key: str, activations: Activations) -> None:
        """Store `activations`; a cache that cannot be written is a warning, never a failed run.

        What alone exceeds the limit is not stored.
        """
        from cohomcli.models.store import write_layers

        if sum(x.nbytes for x in activations.layers.values()) > self.limit:
            return
        plain = {name: getattr(activations, name) for name in ("pooling", "n_tokens", "n_truncated", "metrics_reason")}
        about = {
            "format": FORMAT,
            "order": list(activations.layers),
            "metrics": asdict(activations.metrics) if activations.metrics else None,
            "notes": activations.notes,
            "plain": plain,
        }
        try:
            with write_whole(self.folder / f"{key}.safetensors") as stream:
                write_layers(stream, activations.layers, {"about": json.dumps(about)})
            self._trim()
        except Exception as error:  # noqa: BLE001 - whatever hinders a cache must not cost the user the run
            logger.warning("activations could not be cached: %s", error)

    def _trim(self) -> None:
        files = sorted(self.folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for path in files:
            total += path.stat().st_size
            if total > self.limit:
                path.unlink(missing_ok=True)
