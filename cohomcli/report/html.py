"""The report as one self-contained HTML page: figures inlined, no request to anywhere, nothing a name could execute."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from cohomcli.report.document import Document, Gallery, Part, Table
from cohomcli.report.picture import Picture
from cohomcli.report.style import DPI

SCRIPTS = ("sort.js", "explorer.js")


@dataclass(frozen=True)
class Inlined:
    """A drawn figure as a data URI with its size in CSS pixels (96 to the inch)."""

    group: str
    title: str
    alt: str
    caption: str
    data: str
    width: int
    height: int


@dataclass(frozen=True)
class Shown:
    """A table or a gallery of drawn figures (the other is None or empty) under a heading with an anchor."""

    anchor: str
    title: str
    table: Table | None = None
    pictures: tuple[Inlined, ...] = ()


@dataclass(frozen=True)
class ShownPart:
    """A part of an entry with its figures inlined; `anchor` starts the anchors of everything in it."""

    anchor: str
    part: Part
    overview: tuple[Inlined, ...]
    blocks: tuple[Shown, ...]


def render(document: Document, plots: Path | None) -> str:
    """The whole page; `plots` is the folder with the drawn figures, None when there are none.

    Jinja escapes every value; the explorer's JSON is escaped by its maker. A content security policy forbids all
    requests and every script but ours.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    here = files("cohomcli.report")
    script = "".join(here.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    template = environment.from_string(here.joinpath("template.html").read_text(encoding="utf-8"))
    return template.render(
        document=document,
        parts=[
            [_shown(part, f"{entry.anchor}-{at}", plots) for at, part in enumerate(entry.parts, start=1)]
            for entry in document.entries
        ],
        comparison_pictures=inline(document.comparison.pictures, plots) if document.comparison else [],
        script=Markup(script),
        verbatim=Markup,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _shown(part: Part, anchor: str, plots: Path | None) -> ShownPart:
    blocks = []
    for at, block in enumerate(part.blocks, start=1):
        if isinstance(block, Gallery):
            blocks += [Shown(f"{anchor}-{at}", block.title, pictures=inline(block.pictures, plots))] if plots else []
        else:
            blocks.append(Shown(f"{anchor}-{at}", block.title, table=block))
    return ShownPart(anchor, part, inline(part.overview, plots), tuple(blocks))


def inline(pictures: Iterable[Picture], plots: Path | None) -> tuple[Inlined, ...]:
    """The drawn figures as data URIs."""
    return tuple(_inline(picture, plots / picture.file) for picture in pictures) if plots else ()


def _inline(picture: Picture, path: Path) -> Inlined:
    data = path.read_bytes()
    # A PNG begins with its signature and the IHDR chunk: width and height are big-endian at bytes 16 and 20.
    width, height = (int.from_bytes(data[at : at + 4], "big") * 96 // DPI for at in (16, 20))
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return Inlined(picture.group, picture.title, picture.alt, picture.caption, uri, width, height)
