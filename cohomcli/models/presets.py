"""Short names for well-known models, with the figures of their published configurations, to list them offline."""

from __future__ import annotations

from dataclasses import dataclass

from cohomcli.models.spec import ModelKind


@dataclass(frozen=True)
class Preset:
    """One hub model: blocks (encoder plus decoder), parameters with the head it ships, whether a licence gates it."""

    hub_id: str
    kind: ModelKind
    n_layer: int
    n_parameters: int
    gated: bool = False


PRESETS: dict[str, Preset] = {
    "gpt2": Preset("openai-community/gpt2", "decoder", 12, 124_439_808),
    "gpt2-medium": Preset("openai-community/gpt2-medium", "decoder", 24, 354_823_168),
    "distilgpt2": Preset("distilbert/distilgpt2", "decoder", 6, 81_912_576),
    "gpt-neo-125m": Preset("EleutherAI/gpt-neo-125m", "decoder", 12, 125_198_592),
    "opt-125m": Preset("facebook/opt-125m", "decoder", 12, 125_239_296),
    "opt-350m": Preset("facebook/opt-350m", "decoder", 24, 331_196_416),
    "pythia-70m": Preset("EleutherAI/pythia-70m", "decoder", 6, 70_426_624),
    "pythia-160m": Preset("EleutherAI/pythia-160m", "decoder", 12, 162_322_944),
    "pythia-410m": Preset("EleutherAI/pythia-410m", "decoder", 24, 405_334_016),
    "pythia-1b": Preset("EleutherAI/pythia-1b", "decoder", 16, 1_011_781_632),
    "smollm-135m": Preset("HuggingFaceTB/SmolLM-135M", "decoder", 30, 134_515_008),
    "smollm-360m": Preset("HuggingFaceTB/SmolLM-360M", "decoder", 32, 361_821_120),
    "smollm2-135m": Preset("HuggingFaceTB/SmolLM2-135M", "decoder", 30, 134_515_008),
    "smollm2-360m": Preset("HuggingFaceTB/SmolLM2-360M", "decoder", 32, 361_821_120),
    "smollm2-1.7b": Preset("HuggingFaceTB/SmolLM2-1.7B", "decoder", 24, 1_711_376_384),
    "qwen2-0.5b": Preset("Qwen/Qwen2-0.5B", "decoder", 24, 494_032_768),
    "qwen2.5-0.5b": Preset("Qwen/Qwen2.5-0.5B", "decoder", 24, 494_032_768),
    "qwen2.5-coder-0.5b": Preset("Qwen/Qwen2.5-Coder-0.5B", "decoder", 24, 494_032_768),
    "qwen3-0.6b": Preset("Qwen/Qwen3-0.6B", "decoder", 28, 596_049_920),
    "tinyllama": Preset("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "decoder", 22, 1_100_048_384),
    "llama3.2-1b": Preset("meta-llama/Llama-3.2-1B", "decoder", 16, 1_235_814_400, gated=True),
    "phi-1.5": Preset("microsoft/phi-1_5", "decoder", 24, 1_418_270_720),
    "gemma2-2b": Preset("google/gemma-2-2b", "decoder", 26, 2_614_341_888, gated=True),
    "bert": Preset("google-bert/bert-base-uncased", "encoder", 12, 109_514_298),
    "distilbert": Preset("distilbert/distilbert-base-uncased", "encoder", 6, 66_985_530),
    "roberta": Preset("FacebookAI/roberta-base", "encoder", 12, 124_697_433),
    "albert": Preset("albert/albert-base-v2", "encoder", 12, 11_221_680),
    "electra-small": Preset("google/electra-small-discriminator", "encoder", 12, 13_483_008),
    "modernbert": Preset("answerdotai/ModernBERT-base", "encoder", 22, 149_655_232),
    "all-minilm-l6-v2": Preset("sentence-transformers/all-MiniLM-L6-v2", "encoder", 6, 22_713_216),
    "t5-small": Preset("google-t5/t5-small", "encoder-decoder", 12, 60_506_624),
    "bart-base": Preset("facebook/bart-base", "encoder-decoder", 12, 139_420_416),
}
