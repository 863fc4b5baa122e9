"""The fuzz targets: each makes seeds, and puts one input before the code that reads such things."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cohomcli.errors import CohomError

Feed = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """`modules` are instrumented for coverage; `prepare(folder)` returns the seeds and the function that is fed."""

    modules: tuple[str, ...]
    prepare: Callable[[Path], tuple[list[bytes], Feed]]
    json_shaped: bool = False


def model_file(folder: Path) -> tuple[list[bytes], Feed]:
    """The file door. The first byte says what surrounds the rest, because checksums would stop most changes early."""
    from cohomcli.models.files.read import read_model_file

    path = folder / "input.pt"

    def feed(data: bytes) -> None:
        path.write_bytes(_wrapped(data[:1], data[1:]))
        read_model_file(path)

    return [*_model_seeds(folder)], feed


def _wrapped(kind: bytes, body: bytes) -> bytes:
    if kind == b"z":  # a pickle in an archive with true checksums
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("archive/data.pkl", body)
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")
            for number in range(2):
                archive.writestr(f"archive/data/{number}", bytes(16))
        return stream.getvalue()
    if kind == b"s":  # the header of a safetensors file, with its true length and some data
        return struct.pack("<Q", len(body)) + body + bytes(64)
    return body


def _model_seeds(folder: Path) -> Iterator[bytes]:
    import torch

    from tests.filemodels import WAYS
    from tests.hostile import payloads, program

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).eval()
    for name, save in WAYS.items():
        path = folder / f"seed-{name}"
        save(model, (torch.ones(3, 2),), path)
        data = path.read_bytes()
        yield b"r" + data
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield from (b"z" + archive.read(entry) for entry in archive.namelist() if entry.endswith("data.pkl"))
        path.unlink()
    state = {"w": torch.ones(2, 2)}
    torch.save(state, folder / "legacy", _use_new_zipfile_serialization=False)
    yield b"r" + (folder / "legacy").read_bytes()
    (folder / "legacy").unlink()
    yield b's{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"__metadata__":{"format":"pt"}}'
    for body in payloads(folder / "canary").values():
        yield b"z" + program(body)


def certificate(folder: Path) -> tuple[list[bytes], Feed]:
    """The certificate checker, with its digest made right again, because a wrong one ends the check at once."""
    from cohomcli.verify.checker import verify
    from cohomcli.verify.document import digest
    from tests.certificates import write_certificates

    seeds = [path.read_bytes() for path in write_certificates(folder)]
    path = folder / "certificate.json"

    def feed(data: bytes) -> None:
        path.write_bytes(_signed(data, digest))
        verify(path)

    return seeds, feed


def _signed(data: bytes, digest: Callable[[Any], str]) -> bytes:
    try:
        document = json.loads(data)
        if isinstance(document, dict) and "digest" in document:
            document["digest"] = digest(document)
            return json.dumps(document).encode()
    except (ValueError, RecursionError, TypeError):
        pass
    return data


def configuration(folder: Path) -> tuple[list[bytes], Feed]:
    """The configuration loader."""
    from cohomcli.config import Config, dump_yaml, resolve

    path = folder / "cohom.yaml"

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        resolve(path, environ={})

    # one section a seed: a short input is run many times while a long one is run once
    sections = re.split(r"\n(?=\S)", dump_yaml(Config()))
    texts = [*sections, "models: [gpt2]\ndata: {samples: 5}\n", "a: &a [*a]\n", "precision: {eps: .nan}"]
    return [text.encode() for text in texts], feed


def gate(folder: Path) -> tuple[list[bytes], Feed]:
    """Gate expressions, against a results document."""
    from cohomcli.gates import check_gates, parse_gate

    layers = [{"name": f"layer_{k}", "h1": {"total": k / 3}, "drift": None} for k in range(3)]
    document = {"schema": "cohom.results/1", "models": [{"model": "m", "topology": {"layers": layers}}]}

    def feed(data: bytes) -> None:
        check_gates([parse_gate(data.decode("utf-8", errors="replace"))], document)

    seeds = ["topology.layers.h1.total > 0.1", "topology.layers.max_drift >= 1e-3", "a.b[0] == 'x'", "x != true"]
    return [seed.encode() for seed in seeds], feed


def run_folder(folder: Path) -> tuple[list[bytes], Feed]:
    """The reader of run folders: the first line names the file that is replaced, the rest is what it then holds."""
    from cohomcli.runs.entries import load_run

    whole = _small_run(folder / "runs")
    names = sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file())
    read = [name for name in names if name.endswith((".json", ".jsonl", ".safetensors"))]
    original = {name: (whole / name).read_bytes() for name in read}

    def feed(data: bytes) -> None:
        number, _, body = data.partition(b"\n")
        name = read[len(number) % len(read)]
        (whole / name).write_bytes(body)
        try:
            load_run(whole)
        finally:
            (whole / name).write_bytes(original[name])

    return [b"." * number + b"\n" + original[name] for number, name in enumerate(read)], feed


def _small_run(parent: Path) -> Path:
    from cohomcli.__main__ import main

    code = main(["tda", "-m", "tiny-gpt", "--samples", "6", "--layers", "0", "--quiet", "--output-dir", str(parent)])
    if code:
        raise RuntimeError(f"the run that is to be read ended with {code}")
    return (parent / "latest").resolve()


TARGETS: dict[str, Target] = {
    "file": Target(("cohomcli.models.files",), model_file),
    "certificate": Target(("cohomcli.verify",), certificate, json_shaped=True),
    "config": Target(("cohomcli.config",), configuration),
    "gate": Target(("cohomcli.gates",), gate),
    "run": Target(("cohomcli.runs",), run_folder),
}
REFUSALS = (CohomError,)
