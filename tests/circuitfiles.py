"""A circuit, pairs and masks for the built-in tiny-gpt, as files that commands take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write_circuit_files(folder: Path) -> None:
    """`circuit.json`, `mine.jsonl` and `masks.safetensors` in `folder`."""
    circuit = {
        "schema": "cohom.circuit/1",
        "model": {"n_heads": 6, "n_groups": 6, "weights_sha256": ""},
        "task": {"name": "mine"},
        "components": [{"name": "layer_0.head_3"}, {"name": "layer_2.neuron_7"}],
    }
    (folder / "circuit.json").write_text(json.dumps(circuit))
    pair = {"clean": "The king and the queen", "corrupt": "The lord and the queen", "answer": " is", "wrong": [" was"]}
    (folder / "mine.jsonl").write_text((json.dumps(pair) + "\n") * 4)
    mask = np.packbits(np.ones((96, 384), dtype=bool), axis=1)
    save_file({"layer_0.mlp.c_fc": mask}, folder / "masks.safetensors")
