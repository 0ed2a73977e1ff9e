"""What slo.yaml may say, and what becomes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from scripts.errors import LabError
from scripts.monitoring import rules, slo

DEFAULT = {"availability": 99, "latency": 95, "threshold_s": 0.5}


def written(tmp_path: Path, **document: object) -> Path:
    path = tmp_path / "slo.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_an_environment_that_is_not_named_has_the_default_and_a_named_one_only_what_differs(tmp_path: Path) -> None:
    path = written(tmp_path, default=DEFAULT, environments={"production": {"availability": 99.9}}, least_bad=10)
    objectives = slo.load(path)
    assert objectives.of("qa") == objectives.default
    assert objectives.of("production") == replace(objectives.default, availability=99.9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"default": {**DEFAULT, "availability": 100}}, "promises 100 %"),
        ({"default": {**DEFAULT, "latency": 5}}, "promises 5 %"),
        ({"default": {**DEFAULT, "threshold_s": 0}}, "threshold of 0 s"),
        ({"default": {"availability": 99}}, "can't be read"),
        ({"environments": {"dev": {"availabilty": 99}}}, "availabilty"),
        ({"environments": {"dev": {"availability": "most"}}}, "can't be read"),
        ({"least_bad": 0}, "least_bad is 0"),
        ({"least_bad": "few"}, "can't be read"),
    ],
)
def test_what_cant_be_promised_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(LabError, match=said):
        slo.load(written(tmp_path, **{"default": DEFAULT, "least_bad": 10, **change}))


def test_each_environment_is_measured_at_its_own_threshold_and_at_no_other() -> None:
    default = slo.Objective(99, 95, 0.5)
    objectives = slo.Objectives(default, {"qa": replace(default, threshold_s=1), "dev": default}, 10)
    found = {
        r["expr"]
        for g in rules.slo_rule(objectives, slo.NORMAL)["spec"]["groups"]
        for r in g["rules"]
        if r.get("labels", {}).get("slo") == "latency" and "record" in r and "_bucket" in r["expr"]
    }
    assert found
    for expr in found:
        for bucket in (part for part in expr.split("app_request_duration_seconds_bucket")[1:]):
            labels = bucket.partition("}")[0]
            assert ('le="1.0"' in labels) == ('namespace=~"qa"' in labels)
            assert ('le="0.5"' in labels) == ('namespace!~"qa"' in labels)


@pytest.mark.parametrize("windows", [slo.NORMAL, slo.SHORT], ids=["normal", "short"])
def test_a_short_window_is_a_part_of_its_long_one_and_a_slower_burn_is_looked_at_for_longer(
    windows: slo.Windows,
) -> None:
    for burn in windows.burns:
        assert slo.seconds(burn.short) * 2 < slo.seconds(burn.long)
        assert slo.seconds(burn.short) >= 60  # four scrapes
    assert [b.rate for b in windows.burns] == sorted((b.rate for b in windows.burns), reverse=True)
    assert [slo.seconds(b.long) for b in windows.burns] == sorted(slo.seconds(b.long) for b in windows.burns)
