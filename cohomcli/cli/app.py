"""The Typer application and its commands; importing this loads neither torch nor any engine."""

from __future__ import annotations

from typing import Annotated

import typer

from cohomcli import __version__
from cohomcli.cli import (
    analyze_precision,
    circuits,
    compare,
    generate,
    init,
    inspect,
    list_models,
    prune,
    run,
    tda,
    train,
    verify,
)

app = typer.Typer(
    name="cohom",
    help="Which parts of a model can run in lower precision, and what shape do its representations have? "
    "Loads Hugging Face or local models, plans and measures formats, computes persistent homology and perplexity, "
    "and writes a run folder.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"cohom {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Handle the options that belong to no command."""


_FIRST = (run, tda, analyze_precision, train, generate, prune, circuits)  # in the order of --help
for module in (*_FIRST, compare, list_models, init, inspect, verify):
    module.register(app)
