"""The strict zip reader: what it accepts is what `zipfile` reads, what lies is refused."""

import io
import struct
import zipfile
from pathlib import Path

import pytest
from hostile import Member, program, zip_archive
from hypothesis import given
from hypothesis import strategies as st

from cohomcli.errors import InputRefused
from cohomcli.models.files.archive import Archive
from cohomcli.models.files.limits import DEFAULT, Limits
from cohomcli.models.files.source import from_bytes


def archive(data: bytes, limits: Limits = DEFAULT) -> Archive:
    return Archive(from_bytes(data, "m"), limits)


names = st.text(st.characters(codec="utf-8", exclude_characters="/\\:\0"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")
)


@given(st.dictionaries(names, st.binary(max_size=300), min_size=1, max_size=8), st.booleans(), st.binary(max_size=40))
def test_honest_archives_are_read_as_zipfile_reads_them(
    members: dict[str, bytes], deflated: bool, comment: bytes
) -> None:
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as writer:
        writer.comment = comment
        for name, data in members.items():
            writer.writestr(f"root/{name}", data)
    found = archive(buffer.getvalue())
    with zipfile.ZipFile(buffer) as reader:
        assert list(found.entries) == reader.namelist()
        assert all(found.read(name, 1000) == reader.read(name) for name in reader.namelist())
    assert found.root == "root/"


def test_streamed_archives_with_data_descriptors_are_read() -> None:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, piece: bytes) -> int:  # type: ignore[override]
            self.data += bytes(piece)
            return len(piece)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as writer:  # type: ignore[arg-type]
        writer.writestr("a/one", b"12345")
        writer.writestr("a/two", b"678")
    assert archive(pipe.data).read("a/two", 10) == b"678"


def test_zip64_archives_are_read() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as writer, writer.open("a/one", "w", force_zip64=True) as member:
        member.write(b"12345")
    assert archive(buffer.getvalue()).read("a/one", 10) == b"12345"


GOOD = Member("m/data.pkl", program(b"}"))
LIES = {
    "parent": [GOOD, Member("m/../../evil", b"x")],
    "parent first": [GOOD, Member("../evil", b"x")],
    "absolute": [GOOD, Member("/etc/evil", b"x")],
    "drive": [GOOD, Member("C:/evil", b"x")],
    "backslash": [GOOD, Member("m\\..\\evil", b"x")],
    "dot": [GOOD, Member("m/./x", b"x")],
    "double slash": [GOOD, Member("m//x", b"x")],
    "nul": [GOOD, Member("m/x\0y", b"x")],
    "nameless": [GOOD, Member("", b"x")],
    "duplicate": [GOOD, Member("m/x", b"1"), Member("m/x", b"2")],
    "two names": [GOOD, Member("m/x", b"1", local_name="m/y")],
    "symbolic link": [GOOD, Member("m/x", b"/etc/passwd", mode=0o120777)],
    "encrypted": [GOOD, Member("m/x", b"1", flags=1)],
    "unknown compression": [GOOD, Member("m/x", b"1", method=12)],
    "stored with two sizes": [GOOD, Member("m/x", b"12", n_bytes=3)],
    "overlap": [GOOD, Member("m/x", b"1234", n_bytes=500, n_stored=500)],
    "same data twice": [GOOD, Member("m/x", b"", header=0, n_bytes=len(GOOD.data), n_stored=len(GOOD.data))],
    "zip64 sizes missing": [GOOD, Member("m/x", b"1", n_bytes=2**32 - 1, n_stored=2**32 - 1)],
    "zip64 sizes lie": [
        GOOD,
        Member("m/x", b"1", n_bytes=2**32 - 1, n_stored=2**32 - 1, extra=struct.pack("<HHQQ", 1, 16, 2**50, 2**50)),
    ],
    "header elsewhere": [GOOD, Member("m/x", b"1", header=10**6)],
}


@pytest.mark.parametrize("lie", LIES)
def test_archives_that_lie_are_refused(lie: str) -> None:
    with pytest.raises(InputRefused) as caught:
        archive(zip_archive(LIES[lie]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [0, 1, 3, 65535])
def test_a_directory_that_miscounts_is_refused(count: int) -> None:
    with pytest.raises(InputRefused):
        archive(zip_archive([GOOD, Member("m/x", b"1")], count=count))


def test_data_around_the_archive_is_refused() -> None:
    honest = zip_archive([GOOD])
    for data in (zip_archive([GOOD], prefix=b"MZ" * 50), b"MZ" * 50 + honest, honest + b"trailing", honest[:-1]):
        with pytest.raises(InputRefused):
            archive(data)


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (Member("m/x", b"12345", crc=1), "checksum"),
        (Member("m/x", b"12345" * 100, method=8, n_bytes=499), "longer than"),
        (Member("m/x", b"12345" * 100, method=8, n_bytes=501), "not as long"),
        (Member("m/x", b"12345" * 100, method=8, crc=1), "checksum"),
    ],
)
def test_members_that_are_not_what_the_directory_says_are_refused(member: Member, why: str) -> None:
    with pytest.raises(InputRefused, match=why):
        archive(zip_archive([GOOD, member])).read("m/x", 10_000)


def test_too_many_members_and_too_large_ones_are_refused() -> None:
    data = zip_archive([GOOD, *(Member(f"m/{i}", b"") for i in range(20))])
    with pytest.raises(InputRefused, match="21 archive members"):
        archive(data, Limits(max_entries=20))
    with pytest.raises(InputRefused, match="more than 2"):
        archive(data).read("m/data.pkl", 2)


def test_inflation_is_capped_by_ratio_and_in_total() -> None:
    data = zip_archive([GOOD, Member("m/x", bytes(10_000), method=8)])
    assert len(archive(data).read("m/x", 10_000)) == 10_000
    with pytest.raises(InputRefused, match="bomb"):
        archive(data, Limits(free_inflation=1000, max_inflation=10))
    with pytest.raises(InputRefused, match="bomb"):
        archive(data, Limits(max_inflated=9_999))


def test_a_damaged_deflate_stream_is_refused() -> None:
    honest = zip_archive([GOOD, Member("m/x", bytes(range(256)) * 4, method=8)])
    entry = archive(honest).entries["m/x"]
    broken = honest[: entry.start] + b"\xff" * entry.n_stored + honest[entry.start + entry.n_stored :]
    with pytest.raises(InputRefused, match="decompressed"):
        archive(broken).read("m/x", 10_000)


def test_the_file_is_closed_afterwards(tmp_path: Path) -> None:
    from cohomcli.models.files.source import open_source

    (tmp_path / "m").write_bytes(zip_archive([GOOD]))
    with open_source(tmp_path / "m") as source:
        Archive(source, DEFAULT)
    assert source.stream.closed
