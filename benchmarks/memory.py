"""Memory that `--dry-run` forecasts for a command against the peak that the command reaches, over commands and sizes.

    python -m benchmarks.memory                      # all commands, all sizes: a markdown table
    python -m benchmarks.memory --only train --size wide

Every row is two processes forked from one that has all code loaded: the first prints the forecast `memory_bytes`, the
second runs the command. Its peak is the resident set's (VmHWM, Linux) over what the process held when it was forked.
Models beyond the built-in ones are GPT-2s with random weights and the built-in tokenizer in a temporary folder: memory
does not depend on the weights. Caches are empty and there is one thread. The bar is a factor of 1.5 either way; small
peaks are mostly objects of Python, which no forecast of tensors knows, so that peaks below 64 MiB count as 64 MiB.
Exit code 1 when a row is beyond the bar.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import sys
import tempfile
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from benchmarks.faults import preload

MIB = 2**20
FLOOR, BAR = 64 * MIB, 1.5
# blocks, width, heads, vocabulary
SIZES = {"small": (4, 128, 2, 1000), "mid": (12, 256, 4, 8000), "wide": (12, 768, 12, 50257)}
COMMANDS = {
    "tda": "tda --samples 96 --max-length 128 --null none",
    "tda, 800 points": "tda --samples 800 --max-length 32 --null none",
    "tda, H2": "tda --samples 300 --max-length 32 --null none --maxdim 2",
    "precision": "precision --calibration 2 --heldout 2 --survey 0 --probes 2 --pareto 0 --no-baselines --no-refute",
    "precision, 128 tokens": "precision --calibration 2 --heldout 2 --survey 0 --probes 2 --pareto 0 --no-baselines"
    " --no-refute --length 128",
    "run": "run --samples 96 --max-length 64 --null none --set precision.survey=0 --set precision.probes=2"
    " --set precision.pareto=0 --set precision.baselines=false --set precision.refute=false",
    "train": "train --max-steps 3 --batch-size 8 --block-size 64",
    "train, checkpointing": "train --max-steps 3 --batch-size 8 --block-size 64 --gradient-checkpointing",
    "train, long": "train --max-steps 2 --batch-size 16 --block-size 128",
    "prune": "prune --method wanda --calibration-tokens 2048 --eval-tokens 1024 --block-size 64",
    "prune, sparsegpt": "prune --method sparsegpt --calibration-tokens 2048 --eval-tokens 1024 --block-size 64",
    "prune, chain": "prune --calibration-tokens 2048 --eval-tokens 1024 --block-size 128",
    "prune, channels": "prune --pattern mlp:0.25 --calibration-tokens 2048 --eval-tokens 1024 --block-size 64",
    "prune, rank": "prune --pattern rank:0.3 --calibration-tokens 2048 --eval-tokens 1024 --block-size 64",
}
TOO_LONG = {("prune, sparsegpt", "wide"), ("prune, channels", "wide"), ("prune, rank", "wide"), ("run", "wide")}


def status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def map_code() -> None:
    """Touch all code of loaded libraries: a forked process maps it anew, which is not memory the command takes."""
    libc, populate = ctypes.CDLL(None, use_errno=True), 22  # MADV_POPULATE_READ, Linux 5.14
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *_ = line.split()
        if inode != "0":
            begin, end = (int(value, 16) for value in span.split("-"))
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), populate)


def save_model(folder: Path, size: str) -> str:
    """A GPT-2 of that size with random weights; its folder."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from cohomcli.models.load import load
    from cohomcli.models.quiet import quiet
    from cohomcli.models.resolve import resolve
    from cohomcli.models.spec import LoadOptions

    layers, width, heads, vocabulary = SIZES[size]
    tokenizer = load(resolve("tiny-gpt"), LoadOptions()).tokenizer
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=max(vocabulary, len(tokenizer)), n_embd=width, n_layer=layers, n_head=heads, n_positions=256,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with quiet():
        GPT2LMHeadModel(config).save_pretrained(folder / size)
        tokenizer.save_pretrained(folder / size)
    return str(folder / size)


def forked(words: list[str], home: Path) -> tuple[int, int, str]:
    """Run `cohom` with `words` in a forked process: (exit code, peak bytes beyond the start, stdout)."""
    home.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if not child:
        code = 70
        try:
            os.environ["COHOM_CACHE"] = str(home / "cache")
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(home / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            from cohomcli.__main__ import main as cohom

            map_code()
            before = status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            code = cohom(words)
            (home / "peak").write_text(str(status("VmHWM") - before))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, int((home / "peak").read_text()), (home / "out").read_text()


def forecast_of(document: dict[str, Any]) -> int:
    """`memory_bytes` of a dry run, wherever the command puts it."""
    if "memory_bytes" in document:
        return int(document["memory_bytes"])
    return max(int(model["forecast"].get("memory_bytes", 0)) for model in document["models"])


def warm_up(home: Path, only: str) -> None:
    """Run every command that begins with `only` once on a tiny model in this process, so that all code is loaded."""
    from cohomcli.__main__ import main as cohom
    from cohomcli.models.memory import give_back

    os.environ["COHOM_CACHE"] = str(home / "cache")
    for command in ("tda", "precision", "train", "prune"):
        if not command.startswith(only[:3]) and only != "run":
            continue
        words = [*COMMANDS[command].split(), "-m", "tiny-gpt", "--quiet", "--output-dir", str(home / "out")]
        with redirect_stdout(StringIO()):
            cohom(words)
    give_back()


def measure(name: str, model: str, root: Path) -> tuple[int, int]:
    """(forecast, peak) of one command on one model."""
    words = [*COMMANDS[name].split(), "-m", model, "--output-dir", str(root / "out"), "--threads", "1"]
    code, _, text = forked([*words, "--dry-run", "--json"], root / "dry")
    if code:
        raise SystemExit(f"{name}: {(root / 'dry' / 'err').read_text()[-300:]}")
    code, peak, _ = forked([*words, "--quiet"], root / "run")
    if code not in (0, 4):  # 4: a plan that misses its bound has taken all the memory a good one takes
        raise SystemExit(f"{name}: {(root / 'run' / 'err').read_text()[-300:]}")
    shutil.rmtree(root)
    return forecast_of(json.loads(text)), peak


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only commands that begin so")
    parser.add_argument("--size", help="only this model: tiny-gpt, tiny-bert, " + ", ".join(SIZES))
    wanted = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    root = Path(tempfile.mkdtemp(prefix="cohom-memory-"))
    preload()
    with suppress(SystemExit):
        warm_up(root / "warm", wanted.only)
    beyond = 0
    print("| command | model | forecast, MiB | peak, MiB | forecast / peak |\n|---|---|---|---|---|", flush=True)
    for size in ("tiny-gpt", "tiny-bert", *SIZES):
        if wanted.size not in (None, size):
            continue
        model = save_model(root, size) if size in SIZES else size
        for name in COMMANDS:
            if not name.startswith(wanted.only) or (name, size) in TOO_LONG:
                continue
            forecast, peak = measure(name, model, root / "row")
            ratio = max(forecast, FLOOR) / max(peak, FLOOR)
            beyond += not 1 / BAR <= ratio <= BAR
            print(f"| {name} | {size} | {forecast / MIB:,.0f} | {peak / MIB:,.0f} | {ratio:.2f} |", flush=True)
    shutil.rmtree(root)
    print(f"\n{beyond} beyond a factor of {BAR}")
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
