"""The app's settings: what is taken, and the line that refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from demo_app.settings import Settings, SettingsError, load

TOKEN = "a-token-of-20-letters"


def test_defaults_need_only_a_greeting() -> None:
    settings = load({"GREETING": "hello"})
    assert settings == Settings(greeting="hello")
    assert (settings.readiness_delay_s, settings.fail_rate, settings.workers) == (5, 0, 2)
    assert settings.control_token == ""


def test_every_variable_arrives() -> None:
    assert load(
        {
            "GREETING": " hello ",
            "READINESS_DELAY_SEC": "0.5",
            "FAIL_RATE": "1",
            "CONTROL_TOKEN": TOKEN,
            "ENVIRONMENT": "dev",
            "APP_VERSION": "1.2",
            "APP_REVISION": "abc",
            "POD_NAME": "p",
            "NODE_NAME": "n",
            "WEB_CONCURRENCY": "3",
            "DRAIN_SEC": "0",
            "PROMETHEUS_MULTIPROC_DIR": "/tmp/m",
        }
    ) == Settings(" hello ", 0.5, 1.0, TOKEN, "dev", "1.2", "abc", "p", "n", 3, 0.0, Path("/tmp/m"))


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("GREETING", "", "at least one character"),
        ("GREETING", "  ", "at least one character"),
        ("FAIL_RATE", "1.01", "from 0 to 1"),
        ("FAIL_RATE", "-0.1", "from 0 to 1"),
        ("FAIL_RATE", "nan", "from 0 to 1"),
        ("FAIL_RATE", "", "from 0 to 1"),
        ("FAIL_RATE", "half\nof them", "from 0 to 1"),
        ("READINESS_DELAY_SEC", "soon", "number >= 0"),
        ("READINESS_DELAY_SEC", "-1", "number >= 0"),
        ("READINESS_DELAY_SEC", "inf", "number >= 0"),
        ("DRAIN_SEC", "61", "from 0 to 60"),
        ("WEB_CONCURRENCY", "0", "from 1 to 16"),
        ("WEB_CONCURRENCY", "2.0", "from 1 to 16"),
        ("WEB_CONCURRENCY", "9" * 5000, "from 1 to 16"),
        ("CONTROL_TOKEN", "short", "at least 16"),
        ("CONTROL_TOKEN", "sixteen letters\n", "at least 16"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(variable: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load({"GREETING": "hello"} | {variable: value})
    line = str(refused.value)
    assert line.startswith(variable)
    assert allowed in line
    assert "\n" not in line


def test_secrets_are_never_shown() -> None:
    with pytest.raises(SettingsError) as refused:
        load({"GREETING": "hello", "CONTROL_TOKEN": "too-short"})
    assert "too-short" not in str(refused.value)
    shown = repr(load({"GREETING": "secret-greeting", "CONTROL_TOKEN": TOKEN}))
    assert "secret-greeting" not in shown
    assert TOKEN not in shown
