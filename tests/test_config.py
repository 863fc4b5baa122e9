"""Precedence, validation and round trips of the configuration."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cohomcli.config import Config, commented_yaml, dump_yaml, resolve
from cohomcli.errors import InputRefused, UsageError

LAYERS = ["yaml", "env", "set", "flag"]


@given(st.sets(st.sampled_from(LAYERS)))
def test_precedence_is_defaults_yaml_env_set_flags(
    tmp_path_factory: pytest.TempPathFactory, given_by: set[str]
) -> None:
    file = tmp_path_factory.mktemp("config") / "c.yaml"
    file.write_text("data: {samples: 11}" if "yaml" in given_by else "")
    config = resolve(
        file,
        ["data.samples=33"] if "set" in given_by else [],
        {"data.samples": 44 if "flag" in given_by else None},
        {"COHOM_DATA__SAMPLES": "22"} if "env" in given_by else {},
    )
    values = {"yaml": 11, "env": 22, "set": 33, "flag": 44}
    expected = next((values[layer] for layer in reversed(LAYERS) if layer in given_by), 200)
    assert config.data.samples == expected


def test_a_flag_switches_a_yaml_true_off(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("output: {plots: true}")
    assert resolve(file, flags={"output.plots": False}, environ={}).output.plots is False


@pytest.mark.parametrize("write", [dump_yaml, commented_yaml])
def test_written_yaml_reads_back_equal(tmp_path: Path, write) -> None:
    config = resolve(
        None,
        ["data.field='naïve: #x'", "topology.compat=todacomm", "output.name='yes'"],
        {"models": ["a,b", "c"], "activations.layers": "embedding,-1"},
        {},
    )
    file = tmp_path / "c.yaml"
    file.write_text(write(config), encoding="utf-8")
    assert resolve(file, environ={}) == config


def test_every_key_is_described() -> None:
    plain = yaml.safe_load(dump_yaml(Config()))
    text = commented_yaml(Config())
    for section, values in plain.items():
        for key in values if isinstance(values, dict) else [section]:
            line = next(row for row in text.splitlines() if row.strip().startswith(f"{key}:"))
            assert "  # " in line


@pytest.mark.parametrize(
    ("overrides", "fragment"),
    [
        (["data.sample=5"], "data.samples"),
        (["data.samples=0"], "data.samples"),
        (["data.samples=many"], "data.samples"),
        (["samples"], "key=value"),
        (["models.x=1", "models.y=2"], "models"),
        (["topology.pca=[1"], "topology.pca"),
        (["models=''"], "models"),
    ],
)
def test_bad_overrides_name_the_key(overrides: list[str], fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment):
        resolve(None, overrides, environ={})


def test_bad_files_are_refused_with_a_place(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    with pytest.raises(InputRefused, match="No such file"):
        resolve(file, environ={})
    file.write_text("data: {samples: [\n")
    with pytest.raises(UsageError, match="line 2"):
        resolve(file, environ={})
    file.write_text("- a")
    with pytest.raises(UsageError, match="mapping"):
        resolve(file, environ={})
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputRefused, match="UTF-8"):
        resolve(file, environ={})
