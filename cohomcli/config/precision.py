"""The section on formats and plans."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from cohomcli.config.section import Section


class PrecisionConfig(Section):
    """What a mixed-precision plan must keep, and what it is made on."""

    enabled: bool = Field(True, description="make a plan as a stage of `cohom run`")
    epsilon: float = Field(1e-2, gt=0, lt=float("inf"), description="largest output error allowed, in the norm below")
    norm: Literal["rel-l2", "max-abs", "kl"] = Field("rel-l2", description="rel-l2, max-abs or kl (nats per position)")
    formats: list[str] = Field(
        ["fp32", "bf16", "fp16"], min_length=1, description="of fp64, fp32, bf16, fp16, e4m3, e5m2, int8"
    )
    objective: str = Field("bytes", description="what is minimised: bytes, weights, or a JSON file of costs")
    granularity: Literal["op", "module", "block"] = Field("op", description="what takes one format: op, module, block")
    keep: list[str] = Field([], description="formats that are wished for: pattern=format, for example lm_head=fp32")
    hardware: str | None = Field(None, description="cpu, sm70 to sm90, or a JSON file: op name to formats")
    headroom: float = Field(2.0, ge=1, description="range left free above the magnitudes that calibration saw")
    inputs: list[str] = Field([], description="files with input tensors, instead of texts")
    heldout_inputs: list[str] = Field([], description="files with inputs to measure on; else the later half of inputs")
    input_shape: str | None = Field(None, description="shape of random inputs, for example 1x3x224x224")
    outputs: list[str] = Field([], description="outputs that count, for example logits; none names them all")
    calibration: int = Field(4, ge=1, description="inputs a plan is made on")
    heldout: int = Field(4, ge=1, description="further inputs its error is measured on")
    survey: int | None = Field(
        None, ge=0, description="further calibration inputs that unseen ones are judged by; none: 12 to 28, by size"
    )
    length: int = Field(32, ge=1, description="tokens per text")
    batch: int = Field(1, ge=1, description="texts per input")
    probes: int = Field(16, ge=1, description="random adjoints per input")
    rounds: int = Field(3, ge=1, description="rounds of planning and measuring at most")
    time_limit: float = Field(60.0, gt=0, description="seconds per solve at most, a last resort")
    pareto: int = Field(9, ge=0, description="points of the trade-off curve")
    baselines: bool = Field(True, description="measure uniform formats, half() and autocast on the same inputs")
    save_model: bool = Field(False, description="write the model with its weights in the plan's formats")
    box: float = Field(
        0.0, ge=0, description="bound the plan's error for all inputs this close to the first; 0: do not"
    )
    refute: bool = Field(False, description="prove, where it can be, that uniform formats cannot keep epsilon")
    export: list[str] = Field(
        [], description="write the plan for torch, onnx, torchao, hf, modelopt, bitsandbytes or autocast"
    )

    @field_validator("export")
    @classmethod
    def _by_commas(cls, names: list[str]) -> list[str]:
        return list(dict.fromkeys(part.strip() for name in names for part in name.split(",") if part.strip()))
