"""What the model door hands out: where a model came from, what it is, its activations and its language metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from cohomcli.errors import InputRefused

SourceKind = Literal["builtin", "preset", "hub", "folder", "gguf", "file", "new"]
ModelKind = Literal["decoder", "encoder", "encoder-decoder", "module", "weights"]
PoolingName = Literal["auto", "last", "cls", "mean"]
Site = Literal["block", "attention", "mlp"]


@dataclass(frozen=True)
class ModelSource:
    """A resolved `--model` value. `name` is short and safe for file names; `location` is a hub id, a folder or a file.

    `gguf_file` and `weights_file` name the one file inside the folder that was asked for, when one was. A source of
    the kind "file" is one file that stands alone, and its `location` is the file itself. "new" has random weights.
    """

    name: str
    kind: SourceKind
    location: str
    gguf_file: str | None = None
    weights_file: str | None = None

    @property
    def path(self) -> Path | None:
        """The local folder or file, or None for a hub id."""
        return None if self.kind in ("preset", "hub", "new") else Path(self.location)


@dataclass(frozen=True)
class LoadOptions:
    """How to load. Code shipped with a model runs only when `trust_remote_code` is set.

    `tokenizer` names a folder, a built-in model or a hub id whose tokenizer is used instead of the model's own. The
    rest is for single files: a `config.json`, the user's own code (`file.py:factory`), the place of the weights inside
    the file, and permission for the file to run its own code in a child process (`trust`).
    """

    device: str = "cpu"
    trust_remote_code: bool = False
    revision: str | None = None
    tokenizer: str | None = None
    config_json: Path | None = None
    model_code: str | None = None
    weights_at: str | None = None
    trust: bool = False

    @property
    def for_files(self) -> tuple[str, ...]:
        """The options given that only a single file understands, as flags."""
        given = {
            "--config-json": self.config_json,
            "--model-code": self.model_code,
            "--weights-at": self.weights_at,
            "--trust": self.trust,
        }
        return tuple(flag for flag, value in given.items() if value)


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, read from its configuration and weights, never guessed from its name.

    `n_layer` counts every block (an encoder-decoder's encoder and decoder together).
    `weights_sha256` is the SHA-256 over all parameters and buffers in name order (name, dtype, shape, raw bytes).
    `lm_head` says which language-modelling head with trained weights is present: "causal", "masked" or None.
    `kind` is "module" for a program whose layers are unknown here and "weights" for tensors without a program; these
    have no `n_layer`, `hidden_size` and `vocab_size`, which are 0.
    `trust` records what was allowed to run: "file" (the child process of `--trust`, with its limits) and "model_code"
    (the user's file, its SHA-256, the function); empty when nothing was.
    """

    name: str
    source: SourceKind
    location: str
    architecture: str
    kind: ModelKind
    n_layer: int
    hidden_size: int
    vocab_size: int
    n_parameters: int
    max_positions: int | None
    lm_head: Literal["causal", "masked"] | None
    weights_sha256: str
    trust_remote_code: bool = False
    trust: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, float32, on its device, with its tokenizer.

    From `load` it is always a language model with a tokenizer. From `load_any` it may be any module that runs
    (`info.kind` "module") and `tokenizer` may be None; `refusal` is then why texts cannot be fed to it. (For an
    exported program, whose layers have no names, `load` may still build a model of the family its weights give away.)
    `samples` are the positional inputs an exported program came with, which are also the only shapes it accepts.
    `notes` are for people: what was assumed, converted, left out or allowed to run.
    """

    model: nn.Module
    tokenizer: Any
    info: ModelInfo
    samples: tuple[Tensor, ...] = ()
    notes: tuple[str, ...] = ()
    refusal: InputRefused | None = None


@dataclass(frozen=True)
class LoadedWeights:
    """The weights of a file whose program is unknown: only they can be analysed, and nothing said about any output.

    `tensors` are on the CPU in their stored element types; names that are one tensor share memory. `why` says why
    there is no program and `hint` what the user can add. `info.kind` is "weights"; `info.architecture` is the class
    or family the file gives away, or "unknown".
    """

    tensors: dict[str, Tensor]
    info: ModelInfo
    why: str
    hint: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ActivationOptions:
    """What to collect. `layers` empty means all; `token_budget` 0 means: choose it from the memory forecast.

    `mask_positions` is how many positions of each text a masked model's pseudo-perplexity hides, drawn with `seed`
    (0: every position, which is exact); it has no effect on causal models.
    """

    layers: tuple[str, ...] = ()
    sites: tuple[Site, ...] = ("block",)
    pooling: PoolingName = "auto"
    max_length: int = 128
    token_budget: int = 0
    perplexity: bool = False
    mask_positions: int = 8
    seed: int = 0


@dataclass(frozen=True)
class LanguageMetrics:
    """Language-modelling quality measured on the analysed texts.

    `kind` is "perplexity" (causal: every next token) or "pseudo-perplexity" (masked: one position hidden at a time;
    Salazar et al. 2020). `loss` is in nats per predicted token, `perplexity` = exp(loss), `accuracy` the share of
    argmax hits, `n_predictions` the number of predicted tokens, `standard_error` that of `loss` over texts
    when only a sample of positions was masked, else None.
    """

    kind: Literal["perplexity", "pseudo-perplexity"]
    loss: float
    perplexity: float
    accuracy: float
    n_predictions: int
    standard_error: float | None = None


@dataclass(frozen=True)
class Activations:
    """Pooled activations: layer name -> (n_texts, width) float32, in forward order, rows in the order of the texts.

    Names: `embedding`, `layer_0` .. `layer_{L-1}` (each block's true output), `final_norm` (only when the model has
    a norm after its last block), `layer_i.attention`, `layer_i.mlp`; encoder-decoders prefix `encoder.`/`decoder.`.
    """

    layers: dict[str, NDArray[np.float32]]
    pooling: str
    n_tokens: int
    n_truncated: int
    metrics: LanguageMetrics | None = None
    metrics_reason: str = ""
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class ModelDescription:
    """What `cohom inspect` says about a model without loading its weights.

    `files` are (name, bytes) of the weight files and `dtypes` the element types stored in them. The forecasts are in
    bytes: `load_bytes` while loading in float32, `forward_bytes` for one batch of the planned token budget, and
    `token_bytes` for what one block keeps of one token.
    `n_parameters` is counted on an architecture built without storage; `ModelSource` says where it came from.
    """

    source: ModelSource
    architecture: str
    kind: ModelKind
    n_layer: int
    hidden_size: int
    vocab_size: int
    n_parameters: int
    max_positions: int | None
    files: tuple[tuple[str, int], ...]
    dtypes: tuple[str, ...]
    load_bytes: int
    forward_bytes: int
    available_bytes: int
    token_budget: int
    token_bytes: int
    needs_remote_code: bool = False
    notes: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """The size of all weight files in bytes."""
        return sum(size for _, size in self.files)
