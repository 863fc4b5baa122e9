"""How much memory a model and one batch need, and how much there is: a forecast instead of a crash."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cohomcli.errors import AnalysisIncomplete

FLOAT = 4  # bytes of a float32
DEFAULT_TOKEN_BUDGET = 2048
_LOGIT_BYTES = 64 * 2**20  # the head runs over slices of positions no larger than this
_LIMIT_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class Forecast:
    """Bytes of float32 weights, of the activations alive per token of a batch, and of one slice of logits.

    `logits` are those of one token in the three copies that a slice is handled in: few tokens fill no slice.
    """

    weights: int
    per_token: int
    head: int
    logits: int = 0

    def forward(self, n_tokens: int) -> int:
        """Bytes one forward pass over `n_tokens` padded tokens needs beside the weights."""
        return n_tokens * self.per_token + min(self.head, n_tokens * self.logits)


def forecast(config: Any, n_parameters: int, max_length: int, head: bool) -> Forecast:
    """Forecast from a transformers configuration.

    Alive at the peak of one block without gradients: about eight buffers of the hidden size (residual, norms, q, k,
    v, attention output), five of the MLP's width (an activation written out in steps keeps that many), and four copies
    of one row of attention scores per head (attention that is not fused; the fused kinds keep none).
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden = int(text.hidden_size)
    heads = int(getattr(text, "num_attention_heads", 1) or 1)
    per_token = FLOAT * (8 * hidden + 5 * mlp_width(text) + 4 * heads * max_length)
    logits = 3 * FLOAT * int(getattr(text, "vocab_size", 0) or 0)
    return Forecast(FLOAT * n_parameters, per_token, 3 * _LOGIT_BYTES if head else 0, logits)


def mlp_width(config: Any) -> int:
    """The width inside the MLPs of a text model's configuration; four times the hidden size where none is given."""
    found = (int(getattr(config, key)) for key in _MLP_WIDTHS if getattr(config, key, None))
    return next(found, 4 * int(config.hidden_size))


_MLP_WIDTHS = ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "d_ff", "n_inner", "hidden_dim")


def logit_rows(vocab_size: int) -> int:
    """How many positions the head handles at once, so that the vocabulary does not explode the memory."""
    return max(1, _LOGIT_BYTES // (FLOAT * vocab_size))


def available_bytes() -> int:
    """Memory this process can still take: the least of the system's, the container's and the process limit's."""
    candidates = [_system_available(), *_container_available(), *_process_available()]
    return max(0, min(candidates))


def choose_token_budget(needs: Forecast, longest: int, requested: int = 0) -> int:
    """Padded tokens per batch.

    The same on every machine that has room, so that results do not depend on how busy a machine is: a requested
    budget or the default, halved only while a batch would take more than half of the free memory.

    Raises:
        AnalysisIncomplete: not even the longest text alone fits.
    """
    free = available_bytes()
    if needs.forward(longest) > free:
        raise AnalysisIncomplete(
            f"one text of {longest} tokens needs about {gigabytes(needs.forward(longest))} and "
            f"{gigabytes(free)} is free",
            "lower --max-length or use a smaller model",
        )
    budget = requested or DEFAULT_TOKEN_BUDGET
    while not requested and budget > longest and needs.forward(budget) > free // 2:
        budget //= 2
    return max(budget, longest)


def refuse_if_too_big(name: str, needed: int) -> None:
    """Refuse to load a model that cannot fit, before a byte of it is read.

    Raises:
        AnalysisIncomplete: `needed` bytes are more than the free memory.
    """
    free = available_bytes()
    if needed > free:
        raise AnalysisIncomplete(
            f"model {name!r} needs about {gigabytes(needed)} in float32 and {gigabytes(free)} is free",
            "use a smaller model or a machine with more memory",
        )


def gigabytes(n_bytes: int) -> str:
    """`n_bytes` for people: "1.5 GiB", "312 MiB"."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def _system_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _container_available() -> list[int]:
    for limit_file, usage_file in _LIMIT_FILES:
        try:
            limit, usage = Path(limit_file).read_text().strip(), Path(usage_file).read_text().strip()
        except OSError:
            continue
        if limit.isdigit() and usage.isdigit():
            # the page cache counts as usage but is given back on demand; it is in the system's figure already
            return [int(limit) - int(usage) + _page_cache(Path(limit_file).parent)]
    return []


def _page_cache(folder: Path) -> int:
    try:
        fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(fields.get("inactive_file", fields.get("total_inactive_file", 0)))


def _process_available() -> list[int]:
    try:
        import resource
    except ImportError:  # Windows
        return []
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return []
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        used = 0
    return [limit - used]


def give_back() -> None:
    """Return freed memory to the system: the C library of Linux keeps what large tensors left behind in its heap."""
    import ctypes

    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def map_large_blocks() -> None:
    """Let the C library of Linux map every block of 4 MiB and more by itself for the rest of the process.

    Such a block is the system's again as soon as it is freed; left alone the library raises that limit to 32 MiB, and
    the peak depends on chance.
    """
    import ctypes

    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 4 * 2**20)


_M_MMAP_THRESHOLD = -3  # malloc.h
