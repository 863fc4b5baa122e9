"""The inert machine against Python's own unpickler on plain data, and against damage of every kind."""

import contextlib
import io
import math
import pickle
import pickletools
from pathlib import Path

import hostile
import pytest
import torch
from filemodels import WAYS, plain_state, small_cnn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohomcli.errors import InputRefused
from cohomcli.models.files.inert import no_persistent_objects, read_pickle
from cohomcli.models.files.limits import DEFAULT, Limits
from cohomcli.models.files.objects import Inert, OpaqueKey, Ref
from cohomcli.models.files.read import read_model_file
from cohomcli.models.files.source import from_bytes


def inert(data: bytes, limits: Limits = DEFAULT) -> object:
    return read_pickle(from_bytes(data, "m"), limits, no_persistent_objects)[0]


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.integers(-(2**70), 2**70),
)
keys = st.one_of(st.text(), st.integers(-(2**62), 2**62), st.booleans(), st.binary(), st.none())
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(keys, inner), st.tuples(inner, inner, inner)
    ),
    max_leaves=30,
)


@given(plain, st.integers(0, 5), st.booleans())
def test_plain_data_come_out_as_pickle_reads_them(value: object, protocol: int, in_python: bool) -> None:
    buffer = io.BytesIO()
    pickler = pickle._Pickler if in_python else pickle.Pickler  # type: ignore[attr-defined]
    pickler(buffer, protocol).dump(value)
    assert inert(buffer.getvalue()) == value
    assert inert(pickletools.optimize(buffer.getvalue())) == value


@given(st.sets(st.integers() | st.text()), st.frozensets(st.integers()), st.integers(0, 5))
def test_sets_come_out_as_their_members(value: set[object], frozen: frozenset[int], protocol: int) -> None:
    found = inert(pickle.dumps((value, frozen), protocol))
    assert isinstance(found, tuple)
    assert (set(found[0]), set(found[1])) == (value, frozen)
    assert len(found[0]) == len(value)


@pytest.mark.parametrize("protocol", range(6))
def test_shared_and_cyclic_structures_stay_so(protocol: int) -> None:
    inner: list[object] = [1]
    outer = [inner, inner]
    inner.append(outer)
    found = inert(pickle.dumps(outer, protocol))
    assert isinstance(found, list)
    assert found[0] is found[1]
    assert found[0][1] is found


class Thing:
    """A class with attributes, for pickling."""

    def __init__(self) -> None:
        self.a, self.b = 1, [2.5, "x"]


class Slotted:
    """A class with slots, whose state is a pair."""

    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 7


class Mapping(dict):  # type: ignore[type-arg]
    """A dict subclass with attributes."""


class Listing(list):  # type: ignore[type-arg]
    """A list subclass."""


@pytest.mark.parametrize("protocol", range(6))
def test_objects_become_descriptions_of_themselves(protocol: int) -> None:
    found = inert(pickle.dumps(Thing(), protocol))
    assert isinstance(found, Inert)
    assert found.path == f"{__name__}.Thing"
    assert found.fields == {"a": 1, "b": [2.5, "x"]}
    mapping = Mapping(k=1)
    mapping.note = "n"  # type: ignore[attr-defined]
    held = inert(pickle.dumps(mapping, protocol))
    assert isinstance(held, Inert)
    assert held.fields == {"note": "n"}
    if protocol >= 2:
        assert held.items == {"k": 1}
        listing = inert(pickle.dumps(Listing([1, 2]), protocol))
        assert isinstance(listing, Inert)
        assert listing.members == [1, 2]
        slotted = inert(pickle.dumps(Slotted(), protocol))
        assert isinstance(slotted, Inert)
        assert slotted.fields == {"a": 7}


def test_functions_are_names_and_odd_keys_are_opaque() -> None:
    found = inert(pickle.dumps({(1, 2): len, "f": math.sin}))
    assert isinstance(found, dict)
    (odd, builtin), (_, function) = found.items()
    assert isinstance(odd, OpaqueKey)
    assert odd.value == (1, 2)
    assert isinstance(builtin, Ref)
    assert isinstance(function, Ref)
    assert (builtin.path, function.path) == ("builtins.len", "math.sin")


@pytest.mark.parametrize(
    ("data", "limits"),
    [
        (pickle.dumps(list(range(100))), Limits(max_opcodes=50)),
        (pickle.dumps("x" * 100), Limits(max_text=99)),
        (b"\x80\x02" + b"(" * 11 + b"t" * 11 + b".", Limits(max_nesting=10)),
        (b"\x80\x02N", DEFAULT),
        (b"\x80\x02.", DEFAULT),
        (b"\x80\x02NN.", DEFAULT),
        (b"\x80\x02(N.", DEFAULT),
        (b"\x80\x02h\x05.", DEFAULT),
        (b"\x80\x02t.", DEFAULT),
        (b"\x80\x02N(\x85.", DEFAULT),
        (b"\x80\x020.", DEFAULT),
        (b"\x80\x02NNa.", DEFAULT),
        (b"\x80\x02NNNs.", DEFAULT),
        (b"\x80\x02}(Nu.", DEFAULT),
        (b"\x80\x02NN\x93.", DEFAULT),
        (b"\x80\x02NNR.", DEFAULT),
        (b"\x80\x02(o.", DEFAULT),
        (b"\x80\x02N\x97.", DEFAULT),
        (b"\x80\x02\x82\x01.", DEFAULT),
        (b"\xff\xff", DEFAULT),
    ],
)
def test_programs_that_are_wrong_or_too_large_are_refused(data: bytes, limits: Limits) -> None:
    with pytest.raises(InputRefused):
        inert(data, limits)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The small net saved in every way."""
    folder = tmp_path_factory.mktemp("saved")
    model, inputs = small_cnn()
    for way, save in WAYS.items():
        save(model, inputs, folder / way)
    torch.save(model, folder / "legacy-module", _use_new_zipfile_serialization=False)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


KINDS = [*WAYS, "legacy-module"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short_anywhere_is_refused(kind: str, saved: dict[str, bytes], tmp_path: Path) -> None:
    data = saved[kind]
    for length in {*range(0, len(data), max(1, len(data) // 60)), len(data) - 1, len(data) - 2}:
        (tmp_path / "m").write_bytes(data[:length])
        with pytest.raises(InputRefused):
            read_model_file(tmp_path / "m")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_are_noticed_or_harmless(
    kind: str, data: st.DataObject, saved: dict[str, bytes], tmp_path: Path
) -> None:
    """A flip gives tensors (others only where no checksum covers them) or one line, never another exception."""
    content = bytearray(saved[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "m").write_bytes(bytes(content))
    line = ""
    try:
        file = read_model_file(tmp_path / "m")
        assert sum(value.numel() for value in file.tensors.values()) < 10_000
    except InputRefused as error:
        line = str(error)
    assert len(line.splitlines()) <= 1
    assert len(line) < 1000


@pytest.mark.parametrize("kind", ["state-dict", "whole-module", "torchscript"])
def test_checksums_catch_every_flipped_weight(kind: str, saved: dict[str, bytes], tmp_path: Path) -> None:
    weight = plain_state(small_cnn()[0])["conv.weight"].numpy().tobytes()
    start = saved[kind].index(weight)
    for at in range(start, start + len(weight), 37):
        content = bytearray(saved[kind])
        content[at] ^= 1
        (tmp_path / "m").write_bytes(bytes(content))
        with pytest.raises(InputRefused, match="checksum"):
            read_model_file(tmp_path / "m")


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_random_programs_never_raise_anything_but_a_refusal(body: bytes) -> None:
    with pytest.raises(InputRefused):
        inert(b"\x80\x02" + body + b"\xff")


SIMPLE = [bytes([code]) for code in b"N]})(012aesutldRbQo\x81\x85\x86\x87\x88\x8f\x90\x91\x92\x93\x94"]
GLOBALS = (
    "torch.FloatStorage", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3", "numpy.dtype",
    "collections.OrderedDict", "_codecs.encode", "numpy.core.multiarray._reconstruct", "builtins.set",
    "torch._tensor._rebuild_from_type_v2", "torch.storage._load_from_bytes", "copyreg._reconstructor",
)  # fmt: skip
opcodes = st.sampled_from(
    [*SIMPLE, *map(hostile.glob, GLOBALS), hostile.text("x"), b"K\x01", b"q\x00", b"h\x00", b"C\x02ab"]
)


@settings(max_examples=500)
@given(st.lists(opcodes, max_size=25))
def test_random_opcodes_never_raise_anything_but_a_refusal(parts: list[bytes]) -> None:
    with contextlib.suppress(InputRefused):
        inert(b"\x80\x02" + b"".join(parts) + b".")
