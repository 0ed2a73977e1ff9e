from pathlib import Path

import pytest

from scripts import timings
from scripts.settings import Settings
from scripts.timings import RunTiming, StepTiming


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_root=tmp_path)


def run(number: int, ok: bool = True, steps: tuple[str, ...] = ("preflight", "cluster")) -> RunTiming:
    made = tuple(StepTiming(name, 1.5 + index, index > 0) for index, name in enumerate(steps))
    return RunTiming(f"2026-05-01T12:{number:02d}:00Z", "source", ok, 100.0 + number, made)


def test_what_is_recorded_is_read_again(settings: Settings) -> None:
    for number in range(3):
        timings.record(settings, run(number, ok=number != 1))
    assert timings.load(settings) == [run(0), run(1, ok=False), run(2)]


def test_only_the_newest_runs_are_read(settings: Settings) -> None:
    for number in range(13):
        timings.record(settings, run(number))
    assert timings.load(settings) == [run(n) for n in range(3, 13)]


@pytest.mark.parametrize(
    "torn",
    ['{"started": "2026-05', '{"started": "x"}', "[]", "null", '{"steps": [1]}', '{"steps": null}', "\x00\x00", "\n\n"],
)
def test_a_line_that_is_not_whole_costs_only_itself(settings: Settings, torn: str) -> None:
    timings.record(settings, run(1))
    with timings.timings_file(settings).open("a") as file:
        file.write(torn)
    assert timings.load(settings) == [run(1)]
    timings.record(settings, run(2))
    assert timings.load(settings) == [run(1), run(2)]


def test_bytes_that_are_no_text_cost_only_their_line(settings: Settings) -> None:
    timings.record(settings, run(1))
    with timings.timings_file(settings).open("ab") as file:
        file.write(b"\xff\xfe{")
    timings.record(settings, run(2))
    assert timings.load(settings) == [run(1), run(2)]


def test_the_table_has_a_column_per_step_and_marks_changes(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    timings.record(settings, run(1, ok=False, steps=("preflight",)))
    timings.record(settings, run(2))
    timings.show(settings)
    title, header, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert " ".join(title) == "The last 2 setup runs (* changed something)"
    assert header == ["started", "(UTC)", "images", "preflight", "cluster", "in", "all", "result"]
    assert first == ["2026-05-01", "12:01:00", "source", "1.5", "s", "-", "1", "min", "41", "s", "failed"]
    assert second == ["2026-05-01", "12:02:00", "source", "1.5", "s", "2.5", "s*", "1", "min", "42", "s", "ok"]


def test_without_a_run_the_next_command_is_named(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    timings.show(settings)
    assert "make setup-all" in capsys.readouterr().out


def test_a_run_ends_with_its_steps_and_its_time_in_all(capsys: pytest.CaptureFixture[str]) -> None:
    timings.show_run(run(1).steps, 101)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2:4] == [["preflight", "1.5", "s", "as", "it", "was"], ["cluster", "2.5", "s", "changed"]]
    assert lines[4][:6] == ["in", "all", "1", "min", "41", "s"]
