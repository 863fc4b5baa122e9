"""Hub models through a small hub on 127.0.0.1: download, cache, resume, and one clear line for every failure."""

import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
import tinymodels
from hubserver import HubServer

from cohomcli.errors import AnalysisIncomplete, InputRefused
from cohomcli.models.hub import fetch
from cohomcli.models.inspect import describe
from cohomcli.models.load import load
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import LoadOptions


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running hub with `org/pico` and `org/gated`, and an empty cache."""
    for name in ("pico", "gated"):
        shutil.copytree(tinymodels.saved("gpt2"), tmp_path / "root/models/org" / name)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # the suite itself runs offline
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with HubServer(tmp_path / "root", gated={"org/gated"}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def refused(reference, says, **options):
    with pytest.raises(InputRefused, match=says) as caught:
        load(resolve(reference), LoadOptions(**options))
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_model_is_downloaded_by_id_and_then_lives_offline(hub, monkeypatch):
    info = load(resolve("org/pico"), LoadOptions()).info
    assert info.weights_sha256 == tinymodels.loaded("gpt2").info.weights_sha256
    assert (info.name, info.source, info.location) == ("pico", "hub", "org/pico")
    hub.log.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load(resolve("org/pico"), LoadOptions()).info == info
    assert not hub.log


def test_a_cached_model_survives_an_unreachable_hub(hub, monkeypatch):
    info = load(resolve("org/pico"), LoadOptions()).info
    monkeypatch.setenv("HF_ENDPOINT", closed_port())
    assert load(resolve("org/pico"), LoadOptions()).info == info


def test_only_what_a_model_needs_is_downloaded(hub):
    folder = hub.root / "models/org/pico"
    (folder / "onnx").mkdir()
    unneeded = {"pytorch_model.bin", "tf_model.h5", "evil.py", "README.md", "model.onnx", "onnx/config.json"}
    for name in unneeded:
        (folder / name).write_bytes(b"x")
    snapshot = fetch("org/pico", LoadOptions())
    names = {file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & unneeded
    assert (fetch("org/pico", LoadOptions(trust_remote_code=True)) / "evil.py").exists()


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_download_that_breaks_off_goes_on_by_itself(hub, how):
    hub.cut_once("model.safetensors", after=3000, how=how)
    assert load(resolve("org/pico"), LoadOptions()).info.n_layer == 3
    first, second = hub.downloads("model.safetensors")
    assert first.cut
    assert not second.cut


def test_a_connection_that_always_breaks_is_one_line(hub, monkeypatch):
    monkeypatch.setattr(hub, "take_cut", lambda name: (10, "reset") if name.endswith(".safetensors") else None)
    refused("org/pico", "connection broke off 4 times while downloading model 'org/pico'; run the command again")


def test_ids_that_do_not_exist_revisions_and_gates(hub):
    refused("org/none", "there is no model 'org/none' on the hub at http://127.0.0.1.*; check the id")
    refused("org/pythia-70", "no model 'org/pythia-70'.*did you mean pythia-70m.* check the id")
    refused("org/pico", "the hub has no model 'org/pico' at revision 'v9'; check --revision", revision="v9")
    refused("org/gated", "model 'org/gated' is gated on the hub; accept its terms on its page, then log in")


def test_an_unreachable_a_failing_and_a_forbidden_hub(hub, monkeypatch):
    class OutOfOrder(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(503)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), OutOfOrder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    refused("org/pico", "the hub at http://.* answered 503 for model 'org/pico'; try again later")
    server.shutdown()
    server.server_close()
    monkeypatch.setenv("HF_ENDPOINT", closed_port())
    refused("org/pico", "cannot reach the hub at .* for model 'org/pico'; check the network .* give a local path")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused("org/pico", "not in the local cache and HF_HUB_OFFLINE is set")


def test_repositories_without_weights_we_read(hub):
    (hub.root / "models/org/pico/model.safetensors").unlink()
    refused("org/pico", "'org/pico' has no weights")
    (hub.root / "models/org/pico/m.Q4.gguf").write_bytes(b"GGUF")
    refused("org/pico", r"only GGUF files; download one \(e.g. m.Q4.gguf\)")


def test_a_full_disk(hub, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(AnalysisIncomplete, match="disk is full: model 'org/pico' could not be stored; free space or"):
        load(resolve("org/pico"), LoadOptions())


def test_inspecting_a_hub_model_downloads_no_weights(hub, monkeypatch):
    found = describe(resolve("org/pico"), LoadOptions())
    size = (tinymodels.saved("gpt2") / "model.safetensors").stat().st_size
    assert (found.n_layer, found.kind, found.files) == (3, "decoder", (("model.safetensors", size),))
    assert found.n_parameters == tinymodels.loaded("gpt2").info.n_parameters
    assert not hub.downloads("model.safetensors")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert describe(resolve("org/pico"), LoadOptions()).files == ()
