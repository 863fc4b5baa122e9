"""Builders of hostile model files: payloads for every pickle opcode that calls something, and zip archives that lie.

Every payload writes the canary file when it is run. `run_control` runs one with Python's own unpickler, so that a test
can show that the payload works before it shows that our reader does not run it.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

MAGIC = 0x1950A86A20F9469CFC6C


def text(value: str) -> bytes:
    """BINUNICODE."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def glob(path: str) -> bytes:
    """GLOBAL."""
    module, _, name = path.rpartition(".")
    return b"c" + f"{module}\n{name}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    """REDUCE of a function and arguments that are opcodes themselves."""
    return function + b"(" + b"".join(arguments) + b"tR"


def program(body: bytes, protocol: int = 2) -> bytes:
    """A whole pickle that returns what `body` pushes."""
    return b"\x80" + bytes([protocol]) + body + b"."


def payloads(canary: Path) -> dict[str, bytes]:
    """Name -> opcodes that push one value, and write `canary` on the way if anything in them is ever called."""
    shell = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w').close()"
    system, execute = glob("posix.system"), glob("builtins.exec")
    reduce = call(system, text(shell))
    raw_shell = f"S'{shell}'\n".encode()
    return {
        "reduce": reduce,
        "reduce-exec": call(execute, text(code)),
        "reduce-eval": call(glob("builtins.eval"), text(f"__import__('os').system({shell!r})")),
        "stack-global": call(text("posix") + text("system") + b"\x93", text(shell)),
        "inst": b"(" + raw_shell + b"iposix\nsystem\n",
        "obj": b"(" + system + raw_shell + b"o",
        "newobj": glob("subprocess.Popen") + b"(" + b"](" + text("touch") + text(str(canary)) + b"et" + b"\x81",
        "newobj-ex": glob("subprocess.Popen") + b"(](" + text("touch") + text(str(canary)) + b"et}\x92",
        "getattr-chain": call(call(glob("builtins.getattr"), glob("builtins.__dict__"), text("get")), text("exec")),
        "getattr-import": call(
            call(glob("builtins.getattr"), call(glob("builtins.__import__"), text("os")), text("system")), text(shell)
        ),
        "attrgetter": call(
            call(call(glob("operator.attrgetter"), text("system")), call(glob("builtins.__import__"), text("os"))),
            text(shell),
        ),
        "partial": call(call(glob("functools.partial"), system, text(shell))),
        "map": call(glob("builtins.list"), call(glob("builtins.map"), system, b"](" + text(shell) + b"e")),
        "methodcaller": call(
            call(glob("operator.methodcaller"), text("system"), text(shell)),
            call(glob("builtins.__import__"), text("os")),
        ),
        "copyreg-newobj": call(glob("copyreg.__newobj__"), glob("subprocess.Popen"), b"](" + text(shell) + b"e"),
        "copyreg-reconstructor": call(glob("copyreg._reconstructor"), system, glob("builtins.str"), text(shell)),
        "setstate": glob("argparse.Namespace") + b")\x81}" + text("__setstate__") + system + b"sb" + text(shell) + b"b",
        "state-payload": glob("argparse.Namespace") + b")\x81}" + text("a") + reduce + b"sb",
        "key-hash": b"}" + reduce + text("v") + b"s",
        "set-item": glob("os.environ") + text("COHOM_HOSTILE") + text("1") + b"s",
        "append": glob("sys.path") + text("/hostile") + b"a",
        "defaultdict-factory": call(
            glob("collections.defaultdict"), call(glob("functools.partial"), system, text(shell))
        ),
        "from-type": call(
            glob("torch._tensor._rebuild_from_type_v2"), system, glob("torch.Tensor"), b"(" + text(shell) + b"t", b"}"
        ),
        "parameter": call(glob("torch._utils._rebuild_parameter"), reduce, b"\x88", b"}"),
        "runstring": call(glob("numpy.testing._private.utils.runstring"), text(code), b"}"),
        "hub-load": call(glob("torch.hub.load_state_dict_from_url"), text("http://127.0.0.1:9/x")),
        "torch-load": call(glob("torch.serialization.load"), text(str(canary))),
        "pipepager": call(glob("pydoc.pipepager"), text("x"), text(shell)),
        "timeit": call(glob("timeit.timeit"), text("1"), text(code)),
        "nested-pickle": call(glob("pickle.loads"), _bytes(program(reduce))),
        "nested-storage": call(glob("torch.storage._load_from_bytes"), _bytes(legacy(program(reduce)))),
        "object-array": call(glob("numpy.core.multiarray._reconstruct"), glob("numpy.ndarray"), b"(K\x00t", b"C\x01b")
        + b"(K\x01(K\x01t"
        + call(glob("numpy.dtype"), text("O8"), b"\x89", b"\x88")
        + b"\x89]"
        + reduce
        + b"atb",
        "persistent-call": b"(" + text("storage") + reduce + text("0") + text("cpu") + b"K\x01tQ",
        "persistent-key": b"(" + text("storage") + glob("torch.FloatStorage") + reduce + text("cpu") + b"K\x01tQ",
        "persistent-text": b"Pposix.system\n",
        "persistent-module": b"(" + text("module") + system + text(shell) + text(code) + b"tQ",
        "extension": b"\x82\xf0" + b"(" + text(shell) + b"tR",
    }


CONTROLS = (
    "reduce", "reduce-exec", "reduce-eval", "stack-global", "inst", "obj", "getattr-import", "attrgetter", "partial",
    "map", "methodcaller", "setstate", "state-payload", "timeit", "nested-pickle", "key-hash",
)  # fmt: skip


def _bytes(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def run_control(data: bytes) -> None:
    """Run a payload as Python would; some end in an error after their effect."""
    try:
        value = pickle.loads(program(data, 4))
        if hasattr(value, "wait"):
            value.wait()
    except (TypeError, AttributeError, pickle.UnpicklingError, KeyError):
        pass


def legacy(main: bytes, keys: bytes = b"\x80\x02].", tail: bytes = b"") -> bytes:
    """A legacy torch stream around a main pickle."""
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, {"little_endian": True}))
    return head + main + keys + tail


@dataclass(frozen=True)
class Member:
    """One zip member; every field that is not None overrides what an honest writer would say."""

    name: str
    data: bytes = b""
    method: int = 0
    crc: int | None = None
    n_bytes: int | None = None
    n_stored: int | None = None
    local_name: str | None = None
    flags: int = 0
    mode: int = 0
    header: int | None = None
    extra: bytes = b""


def zip_archive(
    members: Iterable[Member], count: int | None = None, comment: bytes = b"", prefix: bytes = b""
) -> bytes:
    """A zip archive with exactly the lies its members tell."""
    body, directory = bytearray(prefix), bytearray()
    members = list(members)
    for member in members:
        stored = member.data
        if member.method == 8:
            deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
            stored = deflater.compress(member.data) + deflater.flush()
        crc = zlib.crc32(member.data) if member.crc is None else member.crc
        n_bytes = len(member.data) if member.n_bytes is None else member.n_bytes
        n_stored = len(stored) if member.n_stored is None else member.n_stored
        header = len(body) if member.header is None else member.header
        name = member.name.encode()
        local = name if member.local_name is None else member.local_name.encode()
        common = (20, member.flags, member.method, 0, 0, crc, n_stored, n_bytes)
        body += struct.pack("<4s5H3L2H", b"PK\x03\x04", *common, len(local), 0) + local + stored
        directory += struct.pack(
            "<4s6H3L5H2L",
            b"PK\x01\x02", 20, *common, len(name), len(member.extra), 0, 0, 0, member.mode << 16, header,
        )  # fmt: skip
        directory += name + member.extra
    total = len(members) if count is None else count
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, total, total, len(directory), len(body), len(comment))
    return bytes(body + directory + end + comment)


def torch_zip(main: bytes, *others: Member) -> bytes:
    """A torch archive around a main pickle."""
    return zip_archive([Member("m/data.pkl", main), Member("m/version", b"3\n"), *others])


def torchscript(main: bytes, constants: bytes = b"\x80\x02).") -> bytes:
    """A TorchScript archive around two pickles."""
    code = b"class Net(Module):\n  __parameters__ = []\n  __buffers__ = []\n"
    return zip_archive(
        [
            Member("m/data.pkl", main),
            Member("m/constants.pkl", constants),
            Member("m/code/__torch__.py", code),
            Member("m/version", b"3\n"),
        ]
    )


def rezip(data: bytes, change: Callable[[str, bytes], bytes | None], *added: Member) -> bytes:
    """An honest archive with members changed (`change` returns new data, or None to drop) and added."""
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pairs = [(name, change(name, archive.read(name))) for name in archive.namelist()]
    return zip_archive([*(Member(name, content) for name, content in pairs if content is not None), *added])


def spiked_export(honest: bytes, body: bytes) -> dict[str, bytes]:
    """A `.pt2` archive with a payload in each of the places that `torch.export.load` unpickles."""
    root = "m/"
    inner = torch_zip(program(body))

    def change_table(folder: str, prefix: str) -> Callable[[str, bytes], bytes | None]:
        def change(name: str, content: bytes) -> bytes | None:
            if not name.endswith(f"model_{folder}_config.json"):
                return content
            table = json.loads(content)
            table["config"]["spike"] = {
                "path_name": f"{prefix}99", "is_param": False, "use_pickle": True, "tensor_meta": None,
            }  # fmt: skip
            return json.dumps(table).encode()

        return change

    def change_samples(name: str, content: bytes) -> bytes | None:
        return inner if name.endswith("sample_inputs/model.pt") else content

    return {
        "sample-inputs": rezip(honest, change_samples),
        "pickled-weight": rezip(
            honest, change_table("weights", "weight_"), Member(f"{root}data/weights/weight_99", inner)
        ),
        "pickled-constant": rezip(
            honest, change_table("constants", "tensor_"), Member(f"{root}data/constants/tensor_99", inner)
        ),
        "opaque-constant": rezip(
            honest,
            change_table("constants", "opaque_obj_"),
            Member(f"{root}data/constants/opaque_obj_99", program(body)),
        ),
    }


def claimed_tensor(numel: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A state dict with one float tensor that says whatever is asked of it, on storage "0"."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(_integer(value) for value in values) + b"t"

    identity = b"(" + text("storage") + glob("torch.FloatStorage") + text("0") + text("cpu") + _integer(numel) + b"tQ"
    tensor = call(
        glob("torch._utils._rebuild_tensor_v2"),
        identity, _integer(offset), numbers(shape), numbers(stride), b"\x89", b"}",
    )  # fmt: skip
    return program(b"}" + text("w") + tensor + b"s")


def _integer(value: int) -> bytes:
    raw = pickle.encode_long(value)
    return b"\x8a" + bytes([len(raw)]) + raw
