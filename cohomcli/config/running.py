"""Sections on where the work is done and where its results go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cohomcli.config.section import Section


class ComputeConfig(Section):
    """Where and how wide the work runs."""

    device: str = Field("cpu", description="cpu, cuda, cuda:N or mps")
    threads: int = Field(0, ge=0, description="CPU threads; 0 uses the cores this process may use")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of every draw")
    memory: float = Field(0.0, ge=0, description="GiB that the topology may use; 0: what is free")
    backend: Literal["auto", "threading", "loky", "dask", "ray"] = Field(
        "auto", description="where layers are analysed: auto chooses on this machine; dask and ray are clusters"
    )
    scheduler: str | None = Field(None, description="address of a Dask scheduler, such as tcp://host:8786")
    address: str | None = Field(None, description="address of a Ray cluster; none starts Ray on this machine")


class OutputConfig(Section):
    """Where results go."""

    dir: str = Field("experiments", description="folder that receives the run folder")
    name: str | None = Field(None, description="name inside the run folder's name, instead of command and model")
    plots: bool = Field(True, description="draw plots")
    html: bool = Field(True, description="write report.html")
    junit: str | None = Field(None, description="file for gates and analyses as JUnit XML")
    sarif: str | None = Field(None, description="file for tripped gates as SARIF 2.1.0")
    markdown: str | None = Field(None, description="file for gates, figures and drift as GitHub-flavoured markdown")
    github_summary: bool = Field(False, description="append that markdown to the file named by GITHUB_STEP_SUMMARY")
