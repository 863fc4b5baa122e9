"""Load a saved model in a fresh process that cannot import cohom, and compare its logits with ours."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.errors import AnalysisIncomplete

if TYPE_CHECKING:
    from torch import Tensor

# -I: isolated, so neither this folder nor PYTHONPATH is searched; the finder refuses an installed cohom too.
_PROGRAM = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cohomcli":
            raise ImportError("not here")
sys.meta_path.insert(0, Refuse())
import torch, transformers
from safetensors.torch import load_file, save_file
folder, exchange, head = sys.argv[1:4]
torch.set_num_threads(int(sys.argv[4]))
auto = {"causal": transformers.AutoModelForCausalLM, "masked": transformers.AutoModelForMaskedLM}[head]
model, report = auto.from_pretrained(folder, local_files_only=True, output_loading_info=True, dtype=torch.float32)
wrong = {name: sorted(map(str, report[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
assert not any(wrong.values()), wrong
given = load_file(exchange)
with torch.inference_mode():
    logits = model.eval()(input_ids=given["ids"]).logits
print(float((logits - given["logits"]).abs().max()))
"""


def logits_of(model: Any, ids: Tensor) -> Tensor:
    """The model's logits on `ids` (B, T)."""
    import torch

    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids).logits
    return logits


def reload_elsewhere(folder: Path, ids: Tensor, logits: Tensor, head: str) -> float:
    """The largest absolute difference of the logits after loading `folder` with stock transformers elsewhere.

    Raises:
        AnalysisIncomplete: it does not load, or with keys missing or left over.
    """
    import torch
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as place:
        exchange = str(Path(place) / "exchange.safetensors")
        save_file({"ids": ids.contiguous(), "logits": logits.contiguous()}, exchange)
        command = [sys.executable, "-I", "-c", _PROGRAM, str(folder), exchange, head, str(torch.get_num_threads())]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message"
        raise AnalysisIncomplete(f"the saved model does not load with stock transformers: {reason}")
    return float(done.stdout.split()[-1])
