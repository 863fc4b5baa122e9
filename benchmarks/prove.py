"""What proofs cost: enclosures, refutations and their checks of models of several sizes, in CPU seconds.

python -m benchmarks.prove                 # tiny-gpt, tiny-bert and a 12-layer GPT-2 of width 768, random weights
python -m benchmarks.prove --model ./my-model --tokens 8
python -m benchmarks.prove --boxes         # certified over sampled error of small nets on boxes
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cohomcli.precision.capture import capture
from cohomcli.precision.execute import Emulator, run, uniform
from cohomcli.precision.output_norm import bind
from cohomcli.precision.prove.box import certify_box
from cohomcli.precision.prove.lowering import known_values
from cohomcli.precision.prove.package import Package
from cohomcli.precision.prove.refute import RefuteOptions, refute
from cohomcli.precision.result import Refutation
from cohomcli.verify.checker import verify
from cohomcli.verify.enclose import enclose, forecast, start_precision

FORMATS = ("bf16", "fp16")
ROW = "{:<12} {:>10} {:>5} {:>9} {:>10} {:>9} {:>9} {:>7} {:>11} {:>11}"
HEAD = ["model", "weights", "bits", "forecast", "enclose_s", "refute_s", "verify_s", "format", "measured", "proved"]


def gpt2() -> tuple[str, nn.Module]:
    """GPT-2 small in its real shape with seeded random weights: nothing is downloaded."""
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config()
    return "gpt2-random", transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def loaded(name: str) -> tuple[str, nn.Module]:
    """A model by any name that `cohom` takes, with eager attention."""
    from cohomcli.models.load import load
    from cohomcli.models.resolve import resolve
    from cohomcli.models.spec import LoadOptions

    model: nn.Module = load(resolve(name), LoadOptions()).model
    model.set_attn_implementation("eager")  # type: ignore[operator]
    return Path(name).name, model


@dataclass(frozen=True)
class Wish:
    """Tokens per input, formats to refute, and whether enclosing and checking are also timed on their own."""

    tokens: int
    formats: tuple[str, ...]
    brief: bool


def measure(name: str, model: nn.Module, wish: Wish) -> None:
    """One line per format: uniform use proved not to reach 0.999 times its measured relative L2 error."""
    generator = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    ids = torch.randint(0, size, (1, wish.tokens), generator=generator)
    call: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "use_cache", False) and "Bert" not in type(model).__name__:
        call["use_cache"] = False
    captured = capture(model, call)
    with tempfile.TemporaryDirectory() as folder:
        package = Package(Path(folder), name, captured, {})
        known, wanted = known_values(captured, call), set(package.graph.outputs.values())
        needed = forecast(package.graph, known, wanted, start_precision(package.graph)) / 2**20
        enclosing = "-" if wish.brief else f"{_seconds(lambda: enclose(package.graph, known, wanted)):.1f}"
        for fmt in wish.formats:
            outputs = Emulator(captured)(uniform(captured, fmt), call).outputs
            measured = bind(captured, [call], "rel-l2").error([outputs])
            options = RefuteOptions(0.999 * measured, "rel-l2", (fmt,))
            found: list[Refutation] = []
            refuting = _seconds(lambda o=options, f=found: f.extend(refute(captured, [call], o, package)))  # type: ignore[misc]
            witness = next(r for r in found if r.kind == "witness")
            path = Path(folder) / str(witness.certificate)
            checking = "-" if wish.brief or not witness.certificate else f"{_seconds(lambda p=path: verify(p)):.1f}"  # type: ignore[misc]
            proved = f"{witness.error:.4e}" if witness.error is not None else witness.status
            count = sum(h.tensor.numel() for h in captured.program.held)
            row = (
                name,
                count,
                start_precision(package.graph),
                f"{needed:.0f} MiB",
                enclosing,
                f"{refuting:.1f}",
                checking,
            )
            print(ROW.format(*row, fmt, f"{measured:.4e}", proved), flush=True)


def _seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of `work`."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def boxes() -> None:
    """A 16-64-64-10 net with four activations on boxes of radius 0.05: certified over sampled (256 inputs)."""
    print(f"{'net':<8} {'format':<6} {'splits':>6} {'certified':>10} {'sampled':>10} {'ratio':>7} {'CPU s':>6}")
    kinds: dict[str, type[nn.Module]] = {"ReLU": nn.ReLU, "Tanh": nn.Tanh, "GELU": nn.GELU, "SiLU": nn.SiLU}
    for name, kind in kinds.items():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 64), kind(), nn.Linear(64, 64), kind(), nn.Linear(64, 10)).eval()
        x = (torch.randn(1, 16),)
        captured = capture(net, x)
        run(captured, x, torch.float64)
        for fmt in FORMATS:
            for splits in (0, 3) if kind is nn.ReLU else (0,):
                with tempfile.TemporaryDirectory() as folder:
                    begun = time.process_time()
                    package = Package(Path(folder), name, captured, {})
                    found = certify_box(captured, x, 0.05, uniform(captured, fmt), package, splits)
                    seconds = time.process_time() - begun
                proved = "" if found.certificate else " (refused by the checker)"
                print(
                    f"{name:<8} {fmt:<6} {splits:>6} {found.certified:>10.3g} {found.sampled:>10.3g} "
                    f"{found.ratio:>7.1f} {seconds:>6.1f}{proved}",
                    flush=True,
                )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="a model by any name that cohom takes (repeatable)")
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--brief", action="store_true", help="time the refutation alone, which encloses and checks")
    parser.add_argument("--boxes", action="store_true")
    parser.add_argument("--only-gpt2", action="store_true", help="only the large one with random weights")
    wished = parser.parse_args(arguments)
    if wished.boxes:
        boxes()
        return
    wish = Wish(wished.tokens, tuple(wished.formats.split(",")), wished.brief)
    print(ROW.format(*HEAD), flush=True)
    for name in wished.model or ([] if wished.only_gpt2 else ["tiny-gpt", "tiny-bert"]):
        measure(*loaded(name), wish)
    if not wished.model:
        measure(*gpt2(), wish)


if __name__ == "__main__":
    main()
