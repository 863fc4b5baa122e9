"""`cohom verify`: every altered certificate is rejected, whatever was altered, and no torch is loaded."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("flint")

from cohomcli.__main__ import main
from cohomcli.precision.capture import Example, capture
from cohomcli.precision.prove.package import Package
from cohomcli.precision.prove.refute import RefuteOptions, refute
from cohomcli.verify import document as document_module
from cohomcli.verify.checker import verify
from cohomcli.verify.document import Memory, digest
from cohomcli.verify.enclose import enclose
from cohomcli.verify.tensors import BadTensor, read_safetensors, write_safetensors
from tests.certificates import write_certificates
from tests.jsonchanges import leaves, with_change

# Told and not proved: what made the certificate. The model's name is the certificate's own word for its graph.
TOLD = ("provenance",)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One small certificate of every kind."""
    found = write_certificates(tmp_path_factory.mktemp("certificates"))
    kinds = {json.loads(path.read_text())["kind"] for path in found}
    assert kinds == {"format", "witness", "collision", "curvature", "enclosure", "box", "optimality"}
    return found


def write(folder: Path, document: Any) -> Path:
    path = folder / "altered.json"
    path.write_text(json.dumps(document))
    return path


def test_all_kinds_verify_as_they_are(certificates: list[Path]) -> None:
    assert [verify(path).state for path in certificates] == ["verified"] * len(certificates)
    assert {verify(p).status for p in certificates} == {"proved", "proved-in-model"}


def test_a_thousand_certificates_with_one_field_altered_are_rejected(certificates: list[Path], tmp_path: Path) -> None:
    rng = random.Random(0)
    documents = [json.loads(path.read_text()) for path in certificates]
    done = 0
    while done < 1000:
        document = rng.choice(documents)
        changed = with_change(document, rng.choice(list(leaves(document))), rng)
        if changed == document:
            continue
        verdict = verify(write(tmp_path, changed))
        assert verdict.state != "verified", verdict
        done += 1


def test_altered_certificates_with_a_fresh_digest_are_rejected_too(certificates: list[Path], tmp_path: Path) -> None:
    """A forger recomputes the digest: then the claim itself has to fail, or the sentence no longer fits."""
    rng = random.Random(1)
    done = 0
    while done < 300:
        document = json.loads(rng.choice(certificates).read_text())
        places = [p for p in leaves(document) if p[0] not in (*TOLD, "digest") and not _harmless(document, p)]
        place = rng.choice(places)
        changed = with_change(document, place, rng)
        if changed == document:
            continue
        changed["digest"] = digest(changed)
        verdict = verify(write(tmp_path, changed))
        assert verdict.state != "verified", (place, verdict)
        done += 1


def _harmless(document: dict[str, Any], place: tuple[Any, ...]) -> bool:
    """Fields whose change can leave the proof a proof: more bits, other multipliers."""
    if place[0] == "evaluation":
        return True
    return document["kind"] == "optimality" and place[:2] == ("claim", "tree")


def test_swapped_parts_are_rejected(certificates: list[Path], tmp_path: Path) -> None:
    documents = [json.loads(path.read_text()) for path in certificates]
    for a in documents:
        for b in documents:
            for part in ("claim", "model", "tensors", "kind", "status"):
                if a[part] != b[part]:
                    forged = a | {part: b[part]}
                    forged["digest"] = digest(forged)
                    assert verify(write(tmp_path, forged)).state == "rejected"


def test_a_claim_that_is_false_is_rejected_even_if_it_is_worded_right(certificates: list[Path], tmp_path: Path) -> None:
    from cohomcli.verify.kinds import KINDS

    for path in certificates:
        document = json.loads(path.read_text())
        claim = document["claim"]
        if "error" in claim:
            claim |= {"epsilon": 1e6, "error": 2e6}
        elif "bound" in claim and document["kind"] == "box":
            claim["bound"] /= 2
        elif "bound" in claim:
            claim["bound"] = str(10**6)
        elif "kappa" in claim:
            claim["kappa"] *= 2
        else:
            claim["upper"] = [(-1.0).hex()]
        document["statement"] = KINDS.get(document["kind"]).statement(document)
        document["digest"] = digest(document)
        assert verify(write(tmp_path, document)).state == "rejected"


def test_side_files_are_hashed(tmp_path: Path) -> None:
    """Also where the checker remembers what it enclosed for the whole files."""
    memory = Memory()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 40)).eval()
    call = Example((torch.randn(1, 40),))
    captured = capture(net, call)
    found = refute(captured, [call], RefuteOptions(1e-4, "rel-l2", ("bf16",)), Package(tmp_path, "net", captured, {}))
    path = tmp_path / str(next(r.certificate for r in found if r.kind == "witness"))
    assert verify(path, memory=memory).state == "verified"
    beside = [p for p in tmp_path.iterdir() if p.suffix == ".safetensors" or p.name.startswith("graph-")]
    assert len(beside) == 2
    rng = random.Random(0)
    for file in beside:
        whole = file.read_bytes()
        for i in (0, 9, len(whole) // 2, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(5))):
            file.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
            assert verify(path, memory=memory).state == "rejected"
        file.write_bytes(whole[:-4])
        assert verify(path, memory=memory).state == "rejected"
        file.unlink()
        assert verify(path, memory=memory).state == "unreadable"
        file.write_bytes(whole)
    assert verify(path, memory=memory).state == "verified"


def test_certificates_about_one_input_share_its_enclosure_and_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    captured = capture(net, Example((torch.ones(1, 4),)))
    asked = []
    monkeypatch.setattr(document_module, "enclose", lambda *a, **k: asked.append(a) or enclose(*a, **k))
    memory, paths = Memory(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        options = RefuteOptions(1e-5, "rel-l2", ("bf16",))
        call, folder = Example((torch.randn(1, 4),)), tmp_path / str(seed)
        found = refute(captured, [call], options, Package(folder, "net", captured, {}))
        paths.append([folder / str(r.certificate) for r in found if r.certificate and r.kind in ("format", "witness")])
    assert all(len(some) > 1 for some in paths)
    asked.clear()
    assert {verify(path, memory=memory).state for some in paths for path in some} == {"verified"}
    assert len(asked) == 2
    assert {verify(path, memory=memory).state for path in (paths[0][0], paths[1][0]) * 2} == {"verified"}
    assert len(asked) == 6


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "..", "", "a/b"])
def test_files_outside_the_folder_are_never_read(name: str, certificates: list[Path], tmp_path: Path) -> None:
    document = json.loads(certificates[0].read_text())
    document["model"]["weights"] = {"file": name, "sha256": "0" * 64}
    document["model"]["graph"] = {"file": name, "sha256": "0" * 64}
    document["digest"] = digest(document)
    verdict = verify(write(tmp_path, document))
    assert verdict.state == "rejected"
    assert "beside the certificate" in verdict.reason or "sentence" in verdict.reason


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"schema": 1}', b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}'])
def test_what_is_no_certificate_is_unreadable(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert verify(path).state == "unreadable"
    assert verify(tmp_path / "missing.json").state == "unreadable"


# ---- the command ----


def test_the_command_prints_verdicts_and_exit_codes(
    certificates: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(certificates[0])
    assert main(["verify", good, str(certificates[1]), "-q"]) == 0
    assert capsys.readouterr().out.count("verified ") == 2
    document = json.loads(certificates[0].read_text())
    bad = str(write(tmp_path, document | {"statement": document["statement"] + " Truly."}))
    assert main(["verify", good, bad, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert [c["state"] for c in printed["certificates"]] == ["verified", "rejected"]
    assert printed["status"] == "failed"
    assert main(["verify", bad, str(tmp_path / "none.json")]) == 3


def test_a_folder_is_searched_for_certificates(
    certificates: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep").mkdir()
    shutil.copy(certificates[0], tmp_path / "deep")
    (tmp_path / "results.json").write_text("{}")
    assert main(["verify", str(tmp_path), "-q"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    (tmp_path / "empty").mkdir()
    assert main(["verify", str(tmp_path / "empty")]) == 3


def test_the_command_loads_no_torch(certificates: list[Path]) -> None:
    code = (
        "import sys; from cohomcli.__main__ import main; code = main(sys.argv[1:]);"
        "print([m for m in ('torch', 'transformers', 'scipy') if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    arguments = ["verify", "-q", *map(str, certificates)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert done.stderr.strip().endswith("[]")


# ---- tensors ----


def test_safetensors_are_read_and_written_like_the_library_does(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {
        "a": torch.randn(3, 5), "b": torch.randn(2).double(), "c": torch.tensor([True, False, True]),
        "d": torch.arange(4), "e": torch.randn(7).bfloat16(), "f": torch.randn(3).half(), "g": torch.tensor(2.5),
    }  # fmt: skip
    save_file(tensors, tmp_path / "theirs.safetensors")
    ours = read_safetensors(tmp_path / "theirs.safetensors")
    for name, tensor in tensors.items():
        assert np.array_equal(
            ours[name], (tensor.float() if tensor.dtype in (torch.bfloat16, torch.half) else tensor).numpy()
        )
    plain = {k: v for k, v in ours.items() if k not in "ef"}
    write_safetensors(tmp_path / "ours.safetensors", plain)
    back = load_file(tmp_path / "ours.safetensors")
    assert all(torch.equal(back[k], tensors[k]) for k in plain)


@pytest.mark.parametrize(
    "head", [b"", b"\x00" * 8, b"\xff" * 16, b"\x02" + b"\x00" * 7 + b"[]", b"\x40" + b"\x00" * 7 + b"{"]
)
def test_damaged_safetensors_are_refused(head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(head)
    with pytest.raises(BadTensor):
        read_safetensors(path)
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x00" * 4)
    with pytest.raises(BadTensor):
        read_safetensors(path)
