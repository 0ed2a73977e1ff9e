import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts.errors import LabError, UsageError
from scripts.hpa import charts, compare, report
from scripts.hpa.timeline import summarise
from tests.unit.hpa_facts import BEGAN, PLAN, answers, latency_recording, recording

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = recording()
    return report.write(run, summarise(run), tmp_path_factory.mktemp("hpa"))


def test_a_report_is_a_folder_named_by_time_and_environment(written: Path) -> None:
    assert written.name == "19700112T134630Z-staging"
    assert {p.name for p in written.iterdir()} == {
        "index.html",
        "overview.png",
        "pods.png",
        "series.json",
        "summary.md",
    }
    for picture in ("overview.png", "pods.png"):
        data = (written / picture).read_bytes()
        assert data.startswith(PNG)
        assert int.from_bytes(data[16:20], "big") >= 1200, "too narrow to read"


def test_the_page_stands_alone(written: Path) -> None:
    page = (written / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    for words in (
        "staging, constant load for 60 s: every check holds",
        "back at its minimum",
        "New size: 4",
        "demo-app-1-2",
    ):
        assert words in page


def test_what_comes_from_outside_is_text_on_the_page() -> None:
    bad = "<img src=x onerror=alert(1)>"
    run = recording(during=(*recording().during, replace(answers(1, 1.5, 2, 0.1, 500)[0], error=bad)), obstacles=(bad,))
    page = report.page(run, summarise(run), [])
    assert bad not in page
    assert "&lt;img src=x" in page


def test_the_json_has_the_raw_series_and_the_moments(written: Path) -> None:
    data = json.loads((written / "series.json").read_text())
    assert data["version"] == report.VERSION
    assert data["run"]["environment"] == "staging" and data["run"]["minimum"] == 2 and data["run"]["metric"] == "cpu"
    assert data["moments"]["decision"] == 14.8 and data["moments"]["at_minimum"] == 110.0
    assert data["requests"] == {
        "total": 740, "failed": 0, "errors": [], "planned_in_load": 600, "sent_in_load": 600, "late_p99_ms": 0.0,
    }  # fmt: skip
    assert data["replicas"] == {"lowest": 2, "highest_ready": 4, "highest_desired": 4}
    assert len(data["samples"]) == 130 and data["samples"][0]["t"] == -10
    assert data["samples"][30]["pods"][0]["node"] == "worker0"
    assert sum(s["sent"] for s in data["seconds"]) == 740
    assert data["events"][0]["last"] == "2026-05-01T12:00:00Z" and data["events"][0]["t"] == 14.8
    assert data["pods"][1] == {
        "name": "demo-app-1-2", "node": "worker1", "created": 15.2, "ready": 29.5, "ending": 99.9, "gone": 108.0,
    }  # fmt: skip
    assert all(check["ok"] for check in data["checks"]) and data["ok"] is True


def test_the_summary_is_short_and_has_the_times(written: Path) -> None:
    text = (written / "summary.md").read_text()
    assert len(text.splitlines()) < 40
    for row in (
        "| load to decision | 14.8 s |",
        "| load to new pod | 15.2 s |",
        "| load to first new pod Ready | 29.5 s |",
        "| load to latency back at its level before | 35.1 s |",
        "| end of load to minimum | 50.0 s |",
        "| highest number of pods Ready | 4 (desired 4) |",
        "| requests | 740, of them failed 0 |",
    ):
        assert row in text


def test_a_run_on_latency_tells_the_latency_and_what_both_histograms_would_have_asked_for(tmp_path: Path) -> None:
    run = latency_recording()
    folder = report.write(run, summarise(run), tmp_path)
    data = json.loads((folder / "series.json").read_text())
    assert (data["run"]["metric"], data["run"]["target_ms"], data["run"]["fail_rate"]) == ("latency", 150, 0.05)
    assert {s["hpa_latency_ms"] for s in data["samples"]} == {290.0, 60.0}
    every, failed = data["histograms"]["every"], data["histograms"]["failed_only"]
    assert every["blind_s"] == 0 and len(every["wishes"]) == len(failed["wishes"]) > 20
    assert all(f["observed"] < e["observed"] for e, f in zip(every["wishes"], failed["wishes"], strict=True))
    text = (folder / "summary.md").read_text()
    assert "target a p95 of 150 ms" in text
    assert re.search(
        r"\| a p95 of failed requests only, 150 ms being the target \| at most \d pods, nothing to tell by", text
    )
    assert (folder / "overview.png").stat().st_size > 30_000


def test_a_run_on_cpu_without_failures_says_nothing_of_histograms(written: Path) -> None:
    assert "failed requests only" not in (written / "summary.md").read_text()
    assert json.loads((written / "series.json").read_text())["histograms"]["failed_only"]["highest"] is None


SPARSE: list[tuple[str, dict[str, Any]]] = [
    ("interrupted before the load", {"load_began": None, "load_ended": None, "planned": 0, "before": (), "during": (), "after": (), "interrupted": True}),
    ("nothing seen", {"samples": (), "events": (), "pods": ()}),
    ("one sample", {"samples": recording().samples[:1], "pods": recording().pods[:1], "after": ()}),
    ("failures", {"during": tuple(answers(0, 60, 10, 2.0, 503)), "obstacles": ("quota: exceeded quota.",), "notes": ("a note",)}),
]  # fmt: skip


@pytest.mark.parametrize("more", [s[1] for s in SPARSE], ids=[s[0] for s in SPARSE])
def test_a_run_of_which_little_was_seen_still_has_its_report(
    more: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Everything is drawn, for fewer dots.
    monkeypatch.setattr(charts, "DPI", 30)
    run = recording(**more)
    summary = summarise(run)
    folder = report.write(run, summary, tmp_path)
    assert (folder / "index.html").stat().st_size > 1000
    json.loads((folder / "series.json").read_text())
    report.show(run, summary, folder)
    shown = capsys.readouterr().out
    assert "✘" in shown and "report: " in shown
    assert all(o in shown for o in run.obstacles)


def test_names_of_moments_that_are_close_go_on_lines_of_their_own() -> None:
    plt = charts.pyplot()
    figure, axis = plt.subplots()
    axis.set_xlim(-10, 190)
    charts.mark_moments([axis], summarise(recording()).moments, BEGAN)
    heights = {text.get_text(): text.xyann[1] for text in axis.texts}
    plt.close(figure)
    assert heights["decision"] != heights["new pod"]
    assert heights["load"] == heights["load ends"]


# --- two runs side by side


@pytest.fixture
def runs(tmp_path: Path) -> Callable[..., Path]:
    def add(name: str, **more: Any) -> Path:
        run = recording(**more)
        folder = tmp_path / name
        folder.mkdir()
        (folder / "series.json").write_text(json.dumps(report.as_data(run, summarise(run))))
        return folder

    return add


def test_a_comparison_is_one_table_and_one_picture(
    runs: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs("20260501T100000Z-staging")
    runs("20260501T110000Z-staging")
    wider = replace(PLAN, capacity=replace(PLAN.capacity, request_millicores=150))
    runs("20260501T120000Z-staging", plan=wider, during=tuple(answers(0, 60, 10, 0.6)))
    assert compare.compare([], tmp_path) == 0
    folder = tmp_path / "compare-20260501T110000Z-staging-20260501T120000Z-staging"
    assert (folder / "compare.png").read_bytes().startswith(PNG)
    rows = {
        r[1].strip(): [c.strip() for c in r[2:5]]
        for r in (line.split("|") for line in (folder / "compare.md").read_text().splitlines())
    }
    assert rows["CPU request of a pod"] == ["100m", "150m", "+50m (+50 %)"]
    assert rows["p95 at its worst"] == ["300 ms", "600 ms", "+300 ms (+100 %)"]
    assert rows["load to latency back at its level before"] == ["35.1 s", "-", ""]
    assert rows["load to decision"] == ["14.8 s", "14.8 s", "same"]
    assert rows["environment"] == ["staging", "staging", "same"]
    shown = capsys.readouterr().out
    assert "+50m (+50 %)" in shown and "compare.png" in shown
    # The comparison's own folder is no run.
    assert [p.name for p in compare.choose([], tmp_path)] == ["20260501T110000Z-staging", "20260501T120000Z-staging"]


def test_runs_are_taken_by_name_or_by_folder(runs: Callable[..., Path], tmp_path: Path) -> None:
    first, second = runs("20260501T100000Z-dev"), runs("20260501T110000Z-dev")
    assert compare.choose([second.name, str(first)], tmp_path) == [second, first]


REFUSED: list[tuple[list[str], str]] = [
    ([], "There are 1 runs"),
    (["20260501T100000Z-dev"], "names 1 runs"),
    (["a", "b", "c"], "names 3 runs"),
    (["20260501T100000Z-dev", "elsewhere"], "There is no run elsewhere"),
]


@pytest.mark.parametrize(("names", "told"), REFUSED)
def test_a_comparison_of_anything_but_two_runs_is_refused(
    names: list[str], told: str, runs: Callable[..., Path], tmp_path: Path
) -> None:
    runs("20260501T100000Z-dev")
    with pytest.raises(UsageError, match=told):
        compare.compare(names, tmp_path)


@pytest.mark.parametrize(
    ("text", "told"), [("{", "not a run's JSON"), ("[]", "not a run's"), ('{"version": 0}', "version 0")]
)
def test_a_json_that_is_no_run_is_refused(text: str, told: str, runs: Callable[..., Path]) -> None:
    folder = runs("20260501T100000Z-dev")
    (folder / "series.json").write_text(text)
    with pytest.raises(LabError, match=told):
        compare.load(folder)
    shutil.rmtree(folder)
    with pytest.raises(LabError, match="not a run's"):
        compare.load(folder)
