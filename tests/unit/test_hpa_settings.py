import pytest

from scripts import cli
from scripts.errors import UsageError
from scripts.settings import HpaMetric, HpaSettings, Profile, load_hpa


def test_nothing_asked_for_gives_the_defaults() -> None:
    assert load_hpa({}) == HpaSettings("production", 120, 0, 0, Profile.CONSTANT, True)
    names = (
        "ENV",
        "HPA_DURATION",
        "HPA_RATE",
        "HPA_CONCURRENCY",
        "HPA_PROFILE",
        "WAIT_SCALE_IN",
        "HPA_METRIC",
        "HPA_FAIL_RATE",
    )
    assert load_hpa(dict.fromkeys(names, "")) == HpaSettings()


def test_every_variable_is_taken() -> None:
    asked = {"ENV": "dev", "HPA_DURATION": "30", "HPA_RATE": "2000", "HPA_PROFILE": "spike", "WAIT_SCALE_IN": "0"}
    assert load_hpa(asked) == HpaSettings("dev", 30, 2000, 0, Profile.SPIKE, False)
    latency = load_hpa({"HPA_METRIC": "latency", "HPA_FAIL_RATE": "0.05"})
    assert (latency.metric, latency.fail_rate) == (HpaMetric.LATENCY, 0.05)
    assert load_hpa({"HPA_FAIL_RATE": ".5"}).fail_rate == 0.5
    assert load_hpa({"HPA_CONCURRENCY": "40", "HPA_DURATION": "900"}).concurrency == 40


REFUSED = [
    ("ENV", "qa", "dev, staging, production"),
    ("HPA_DURATION", "29", "from 30 to 900"),
    ("HPA_DURATION", "901", "from 30 to 900"),
    ("HPA_DURATION", "two minutes", "HPA_DURATION=120"),
    ("HPA_DURATION", "60s", "HPA_DURATION=120"),
    ("HPA_DURATION", "-60", "HPA_DURATION=120"),
    ("HPA_DURATION", "6e1", "HPA_DURATION=120"),
    ("HPA_DURATION", "9" * 5000, "HPA_DURATION=120"),
    ("HPA_RATE", "0", "from 1 to 2000"),
    ("HPA_RATE", "2001", "from 1 to 2000"),
    ("HPA_RATE", "many", "HPA_RATE=1"),
    ("HPA_CONCURRENCY", "0", "from 1 to 40"),
    ("HPA_CONCURRENCY", "100000", "from 1 to 40"),
    ("HPA_PROFILE", "sawtooth", "constant, ramp, step, spike"),
    ("WAIT_SCALE_IN", "no", "take 1"),
    ("HPA_METRIC", "memory", "cpu, latency"),
    ("HPA_FAIL_RATE", "0.51", "from 0 to 0.5"),
    ("HPA_FAIL_RATE", "-0.1", "from 0 to 0.5"),
    ("HPA_FAIL_RATE", "20%", "HPA_FAIL_RATE=0.05"),
    ("HPA_FAIL_RATE", "1e-3", "HPA_FAIL_RATE=0.05"),
]


@pytest.mark.parametrize(("variable", "value", "told"), REFUSED, ids=[f"{r[0]}-{r[1][:9]}" for r in REFUSED])
def test_a_value_that_cannot_be_used_is_refused_by_its_variable(variable: str, value: str, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        load_hpa({variable: value})
    assert f"{variable}={value}" in refused.value.what
    assert told in str(refused.value)
    assert "\n" not in refused.value.what


def test_rate_and_concurrency_together_are_refused() -> None:
    with pytest.raises(UsageError, match="both set the load"):
        load_hpa({"HPA_RATE": "5", "HPA_CONCURRENCY": "5"})


def test_a_bad_value_is_one_line_of_the_command_and_its_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("HPA_CONCURRENCY", "0")
    monkeypatch.delenv("ENV", raising=False)
    assert cli.main(["hpa-demo"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["✘ HPA_CONCURRENCY=0 is not a whole number from 1 to 40.", "To mend it: HPA_CONCURRENCY=1"]
