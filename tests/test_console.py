"""Progress where there is no terminal: one line per finished step, each with its own clock."""

import pytest

from cohomcli.cli import console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_step_that_comes_again_is_timed_anew(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bars(quiet=False) as progress:
        for begun, seconds in ((0.0, 2.0), (100.0, 5.0)):
            clock[0] = begun
            progress("topology", 0, 7)
            clock[0] = begun + seconds
            progress("topology", 7, 7)
    assert capsys.readouterr().err == "cohom: topology: 7 done in 2.0 s\ncohom: topology: 7 done in 5.0 s\n"


def test_short_steps_and_quiet_runs_say_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bars(quiet=False) as progress:
        progress("load", 0, 1)
        clock[0] = 0.5
        progress("load", 1, 1)
    with console.progress_bars(quiet=True) as progress:
        progress("load", 0, 1)
        clock[0] = 50.0
        progress("load", 1, 1)
    assert capsys.readouterr().err == ""
