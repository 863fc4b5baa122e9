"""Nothing in a hostile file runs: payloads in every kind of file, shown to work where they are not read inertly."""

import contextlib
import copyreg
import io
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import hostile
import pytest
import torch
from filemodels import WAYS, small_cnn
from hostile import Member, program
from torch import Tensor, nn

from cohomcli.errors import InputRefused
from cohomcli.models.files.modelfile import ModelFile
from cohomcli.models.files.opened import open_model_file
from cohomcli.models.files.read import read_model_file

NAMES = tuple(hostile.payloads(Path("canary")))


def beside_a_weight(body: bytes) -> bytes:
    """A payload as one value of a state dict, its honest neighbour in another."""
    weight = hostile.claimed_tensor(3, (3,), (1,))
    return weight.removesuffix(b".") + hostile.text("evil") + body + b"s."


PLACES: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda body: program(body, 4),
    "torch-zip": lambda body: hostile.torch_zip(beside_a_weight(body), Member("m/data/0", bytes(12))),
    "legacy": lambda body: hostile.legacy(program(body)),
    "legacy-header": lambda body: program(hostile._integer(hostile.MAGIC)) + program(body) * 4,
    "legacy-keys": lambda body: hostile.legacy(program(b"}"), program(body)),
    "torchscript-data": lambda body: hostile.torchscript(program(body)),
    "torchscript-constants": lambda body: hostile.torchscript(
        program(hostile.glob("__torch__.Net") + b")\x81"), program(body)
    ),
}


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """Where payloads write; they must not have, nor have changed the interpreter, when the test ends."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()
    assert "/hostile" not in sys.path
    assert "COHOM_HOSTILE" not in os.environ


def read_or_refusal(path: Path) -> ModelFile | str:
    """The file, or the one line that refuses it."""
    try:
        return read_model_file(path)
    except InputRefused as error:
        return str(error)


@pytest.mark.parametrize("name", hostile.CONTROLS)
def test_the_payloads_do_run_when_python_reads_them(name: str, tmp_path: Path) -> None:
    hostile.run_control(hostile.payloads(tmp_path / "canary")[name])
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_no_payload_runs_anywhere(name: str, place: str, canary: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(PLACES[place](hostile.payloads(canary)[name]))
    found = read_or_refusal(path)
    if isinstance(found, str):
        assert "\n" not in found
    else:
        assert set(found.tensors) <= {"w", "CONSTANTS.c0"}


def test_a_registered_extension_is_not_called(canary: Path, tmp_path: Path) -> None:
    copyreg.add_extension("posix", "system", 0xF0)
    try:
        (tmp_path / "m").write_bytes(program(hostile.payloads(canary)["extension"]))
        with pytest.raises(InputRefused):
            read_model_file(tmp_path / "m")
    finally:
        copyreg.remove_extension("posix", "system", 0xF0)


def test_a_hostile_neighbour_does_not_spoil_the_weights(canary: Path, tmp_path: Path) -> None:
    values = torch.tensor([1.0, -2.0, 0.5])
    body = hostile.payloads(canary)["reduce"]
    member = Member("m/data/0", values.numpy().tobytes())
    (tmp_path / "m").write_bytes(hostile.torch_zip(beside_a_weight(body), member))
    assert torch.equal(read_model_file(tmp_path / "m").tensors["w"], values)


@pytest.mark.parametrize("hooked", ["__setstate__", "__reduce__"])
def test_a_hostile_class_in_a_pickled_module_is_not_touched(hooked: str, canary: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.system, (f"touch {canary}",))

    model = nn.Sequential(nn.Linear(2, 2))
    model.evil = Evil()
    model[0].__dict__[hooked] = Evil()
    torch.save(model, tmp_path / "m")
    opened = open_model_file(tmp_path / "m")
    assert torch.equal(opened.file.tensors["0.weight"], model[0].weight)


class SetState(nn.Module):
    """TorchScript runs this `__setstate__` inside `torch.jit.load`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.training_only = False

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return (self.weight, self.training_only)

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        assert state[1], "SETSTATE RAN"
        self.weight = state[0]
        self.training_only = state[1]
        self.training = False


def test_torchscript_setstate_is_not_run(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), SetState())
    torch.jit.script(model).save(str(tmp_path / "m"))
    with pytest.raises(torch.jit.Error, match="SETSTATE RAN"):
        torch.jit.load(str(tmp_path / "m"))
    assert torch.equal(read_model_file(tmp_path / "m").tensors["0.weight"], model[0].weight)


PLACES_IN_EXPORT = ("sample-inputs", "pickled-weight", "pickled-constant", "opaque-constant")


@pytest.fixture(scope="module")
def honest_export(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("export") / "m"
    model, inputs = small_cnn()
    WAYS["exported"](model, inputs, path)
    return path.read_bytes()


@pytest.mark.parametrize("place", PLACES_IN_EXPORT)
def test_torch_export_would_run_the_payload(place: str, honest_export: bytes, tmp_path: Path) -> None:
    body = hostile.payloads(tmp_path / "canary")["reduce"]
    data = hostile.spiked_export(honest_export, body)[place]
    with contextlib.suppress(RuntimeError, ValueError, TypeError, AttributeError, AssertionError, KeyError):
        torch.export.load(io.BytesIO(data))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("place", PLACES_IN_EXPORT)
@pytest.mark.parametrize("name", ["reduce", "inst", "setstate", "nested-storage", "persistent-call"])
def test_no_payload_in_an_export_runs(
    name: str, place: str, canary: Path, honest_export: bytes, tmp_path: Path
) -> None:
    data = hostile.spiked_export(honest_export, hostile.payloads(canary)[name])[place]
    (tmp_path / "m").write_bytes(data)
    found = read_or_refusal(tmp_path / "m")
    if isinstance(found, str):
        assert "\n" not in found
    else:
        assert torch.equal(found.tensors["shift"], small_cnn()[0].shift)
        assert "spike" not in found.tensors


def graph_with(honest: bytes, change: Callable[[dict], None]) -> bytes:
    def edit(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        document = json.loads(content)
        change(document["graph_module"])
        return json.dumps(document).encode()

    return hostile.rezip(honest, edit)


@pytest.mark.parametrize(
    "target",
    ["torch.ops.aten.from_file.default", "torch.ops.aten.as_strided.default", "torch.ops.aten.resize_.default",
     "torch.ops.prim.Print.default", "torch.ops.mylib.evil.default", "builtins.eval", "_operator.call",
     "torch.ops.aten.__class__.__init__", "os.system"],
)  # fmt: skip
def test_an_exported_graph_calls_only_listed_operators(target: str, honest_export: bytes, tmp_path: Path) -> None:
    def change(program_: dict) -> None:
        program_["graph"]["nodes"][0]["target"] = target

    (tmp_path / "m").write_bytes(graph_with(honest_export, change))
    opened = open_model_file(tmp_path / "m")
    assert opened.model is None
    assert "not on the list" in opened.why


@pytest.mark.parametrize(
    "name",
    ["x): import os; os.system('touch CANARY') #", "x\n    open('CANARY','w')", "lambda", "self", "", "é", "class"],
)
def test_names_in_an_exported_graph_cannot_become_code(
    name: str, canary: Path, honest_export: bytes, tmp_path: Path
) -> None:
    name = name.replace("CANARY", str(canary))

    def rename(value: object, old: str) -> object:
        if isinstance(value, dict):
            return {key: rename(item, old) for key, item in value.items()}
        if isinstance(value, list):
            return [rename(item, old) for item in value]
        return name if value == old else value

    for old in ("x", "conv.weight"):
        data = graph_with(honest_export, lambda document, old=old: document.update(rename(document, old)))
        (tmp_path / "m").write_bytes(data)
        opened = open_model_file(tmp_path / "m")
        assert opened.model is None
        assert opened.why


CLAIMS = {
    "a trillion elements": hostile.claimed_tensor(10**12, (10**12,), (1,)),
    "a trillion by stride zero": hostile.claimed_tensor(3, (10**12,), (0,)),
    "behind its storage": hostile.claimed_tensor(3, (3,), (1,), 1),
    "a wide stride": hostile.claimed_tensor(3, (2,), (10**9,)),
    "an overflowing product": hostile.claimed_tensor(3, (2**40, 2**40), (0, 0)),
    "an overflowing stride": hostile.claimed_tensor(3, (3,), (2**63,)),
    "a negative length": hostile.claimed_tensor(3, (-3,), (1,)),
    "a negative stride": hostile.claimed_tensor(3, (3,), (-1,)),
    "a negative offset": hostile.claimed_tensor(3, (3,), (1,), -1),
    "too many dimensions": hostile.claimed_tensor(3, (1,) * 65, (1,) * 65),
    "unequal lengths": hostile.claimed_tensor(3, (3,), (1, 1)),
    "a negative storage": hostile.claimed_tensor(-3, (3,), (1,)),
    "an empty tensor of impossible shape": hostile.claimed_tensor(3, (0, 2**62, 2**62), (0, 0, 0)),
    "fewer than stored": hostile.claimed_tensor(2, (2,), (1,)),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_that_the_bytes_do_not_bear_out_are_refused(claim: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(hostile.torch_zip(CLAIMS[claim], Member("m/data/0", bytes(12))))
    with pytest.raises(InputRefused):
        read_model_file(tmp_path / "m")


def test_booleans_that_are_neither_true_nor_false_are_refused(tmp_path: Path) -> None:
    main = hostile.claimed_tensor(3, (3,), (1,)).replace(b"FloatStorage", b"BoolStorage")
    (tmp_path / "m").write_bytes(hostile.torch_zip(main, Member("m/data/0", b"\x00\x01\x02")))
    with pytest.raises(InputRefused, match="boolean"):
        read_model_file(tmp_path / "m")


def bombs() -> dict[str, bytes]:
    """Pickles that ask for memory, time or depth out of proportion to their size."""
    weight = hostile.claimed_tensor(3, (3,), (1,))
    nested = b"".join([b"(" for _ in range(100_000)])
    doubling = b"(K\x01t" + b"2\x86" * 60
    laughs = b"K\x01" + b"q\x000h\x00h\x00h\x00\x87" * 200
    shared = hostile.text("a" * 100_000) + b"q\x00" + b"0" + b"](" + b"h\x00" * 10
    encode = hostile.call(hostile.glob("_codecs.encode"), b"h\x00", hostile.text("latin1"))
    deep_lists = b"](" * 900 + b"e" * 900
    dictionary = b"}" + b"(" + b"".join(hostile._integer(i * (2**61 - 1)) + b"N" for i in range(60_000)) + b"u"
    return {
        "marks": program(nested),
        "doubling tuple": program(b"}" + doubling + b"Ns"),
        "doubling tuple as value": program(b"}" + hostile.text("k") + doubling + b"s"),
        "billion laughs": program(b"}" + hostile.text("k") + laughs + b"s"),
        "a string of 2^60 bytes": program(b"\x8e" + (2**60).to_bytes(8, "little") + b"x", 4),
        "a text of 2^60 bytes": program(b"\x8d" + (2**60).to_bytes(8, "little") + b"x", 4),
        "a number of 2^30 bytes": program(b"\x8b" + (2**30).to_bytes(4, "little") + b"x"),
        "a negative length": program(b"T" + (-5).to_bytes(4, "little", signed=True) + b"x"),
        "a frame of 2^62 bytes": program(b"\x95" + (2**62).to_bytes(8, "little") + b"N", 4),
        "a memo index of 2^32": program(b"Nr\xff\xff\xff\xff"),
        "a long decimal": program(b"I" + b"9" * 1_000_000 + b"\n"),
        "copies": program(shared + encode * 3_000 + b"e"),
        "deep lists": program(deep_lists),
        "deep tuples": program(b"N" + b"\x85" * 100_000),
        "colliding keys": program(dictionary),
        "tuple keys": program(b"}" + b"".join(doubling + b"N" + b"s" for _ in range(100))),
        "endless module": hostile.torch_zip(endless_module(), Member("m/data/0", bytes(12))),
        "many modules": hostile.torch_zip(many_modules(), Member("m/data/0", bytes(12))),
        "self list": program(b"]q\x00h\x00a"),
        "self dict": program(b"}q\x00" + hostile.text("a") + b"h\x00s"),
        "self beside weight": hostile.torch_zip(
            weight.removesuffix(b".") + b"q\x63" + hostile.text("me") + b"h\x63s.", Member("m/data/0", bytes(12))
        ),
    }


def module(children: bytes) -> bytes:
    """Opcodes of a pickled module with the given children items."""
    state = (
        hostile.text("_parameters")
        + b"}s"
        + hostile.text("_buffers")
        + b"}s"
        + hostile.text("_modules")
        + children
        + b"s"
    )
    return hostile.glob("evil.Module") + b")\x81q\x05}" + state + b"b"


def endless_module() -> bytes:
    """A module that is its own child."""
    return program(module(b"}" + hostile.text("again") + b"h\x05s"))


def many_modules() -> bytes:
    """Forty levels in which each module has the next one twice: 2^40 paths."""
    body = module(b"}")
    for _ in range(40):
        body = body + b"q\x070" + module(b"}" + hostile.text("a") + b"h\x07s" + hostile.text("b") + b"h\x07s")
    return program(body)


CHILD = """
import resource, sys
from pathlib import Path
from cohomcli.errors import InputRefused
from cohomcli.models.files.read import read_model_file
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
for name in sys.argv[1:]:
    try:
        read_model_file(Path(name))
        print(name, "was read")
    except InputRefused as error:
        assert "\\n" not in str(error) and len(str(error)) < 600, name
print("all refused")
"""


def test_bombs_are_refused_within_a_gigabyte_and_the_processor_time_given(tmp_path: Path) -> None:
    paths = []
    for name, data in {**bombs(), **zip_bombs()}.items():
        paths.append(tmp_path / name.replace(" ", "-"))
        paths[-1].write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), *map(str, paths)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    survivors = [line for line in done.stdout.splitlines() if "was read" in line]
    assert [Path(line.split()[0]).name for line in survivors] == ["self-beside-weight"], done.stderr[-2000:]
    assert done.stdout.splitlines()[-1:] == ["all refused"], done.stderr[-2000:]


def zip_bombs() -> dict[str, bytes]:
    """Archives that would unfold to far more than they are."""
    zeros = bytes(70 * 2**20)
    main = hostile.claimed_tensor(len(zeros) // 4, (len(zeros) // 4,), (1,))
    quine = [Member("m/data.pkl", main), Member("m/data/0", b"x" * 1000)]
    kernel = Member("m/0", b"x" * 2000)
    overlapping = [kernel, *(Member("m/0", b"", n_bytes=2000, n_stored=2000, header=0) for _ in range(50))]
    return {
        "deflated zeros": hostile.zip_archive([Member("m/data.pkl", main), Member("m/data/0", zeros, method=8)]),
        "overlapping members": hostile.zip_archive(overlapping),
        "a member that lies about its size": hostile.zip_archive(
            [Member("m/data.pkl", program(b"}")), Member("m/x", bytes(100), method=8, n_bytes=2**32 - 2)]
        ),
        "shorter than it says": hostile.zip_archive(
            [*quine[:1], Member("m/data/0", b"x", n_bytes=2**30, n_stored=2**30)]
        ),
        "a directory of a million": hostile.zip_archive([Member("m/data.pkl", main)], count=65535),
    }
