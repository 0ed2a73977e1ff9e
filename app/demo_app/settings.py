"""The app's settings: the one place that reads the environment, and the one that says what a variable may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MIN_TOKEN_LENGTH = 16


class SettingsError(Exception):
    """A variable that can't be used; the text is one line that names it and says what it may be."""


@dataclass(frozen=True)
class Settings:
    """What the environment asks for. Secrets are kept out of the printable form."""

    greeting: str = field(repr=False)
    readiness_delay_s: float = 5.0
    fail_rate: float = 0.0
    control_token: str = field(default="", repr=False)
    environment: str = "local"
    version: str = "unknown"
    revision: str = "unknown"
    pod: str = "unknown"
    node: str = "unknown"
    workers: int = 2
    drain_s: float = 2.0
    metrics_dir: Path | None = None


def _number(environ: Mapping[str, str], variable: str, default: float, low: float, high: float = math.inf) -> float:
    text = environ.get(variable)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not low <= value <= high:
        allowed = f"from {low:g} to {high:g}" if math.isfinite(high) else f">= {low:g}"
        raise SettingsError(f"{variable}={text!r} is not usable: it must be a number {allowed}")
    return value


def _count(environ: Mapping[str, str], variable: str, default: int, low: int, high: int) -> int:
    text = environ.get(variable)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10) or not low <= int(text) <= high:
        raise SettingsError(f"{variable}={text!r} is not usable: it must be a whole number from {low} to {high}")
    return int(text)


def load(environ: Mapping[str, str]) -> Settings:
    """Return the settings that the environment asks for; raises SettingsError for a value that can't be used."""
    greeting = environ.get("GREETING", "")
    if not greeting.strip():
        raise SettingsError("GREETING is not set or empty: it must be a text of at least one character")
    token = environ.get("CONTROL_TOKEN", "")
    if token and not (len(token) >= MIN_TOKEN_LENGTH and token.isascii() and token.isprintable()):
        raise SettingsError(
            f"CONTROL_TOKEN (not shown) is not usable: it must have at least {MIN_TOKEN_LENGTH} printable ASCII "
            "characters, or be left out to turn the control endpoint off"
        )
    metrics_dir = environ.get("PROMETHEUS_MULTIPROC_DIR", "")
    return Settings(
        greeting=greeting,
        readiness_delay_s=_number(environ, "READINESS_DELAY_SEC", Settings.readiness_delay_s, 0),
        fail_rate=_number(environ, "FAIL_RATE", Settings.fail_rate, 0, 1),
        control_token=token,
        environment=environ.get("ENVIRONMENT", "") or Settings.environment,
        version=environ.get("APP_VERSION", "") or Settings.version,
        revision=environ.get("APP_REVISION", "") or Settings.revision,
        pod=environ.get("POD_NAME", "") or Settings.pod,
        node=environ.get("NODE_NAME", "") or Settings.node,
        workers=_count(environ, "WEB_CONCURRENCY", Settings.workers, 1, 16),
        drain_s=_number(environ, "DRAIN_SEC", Settings.drain_s, 0, 60),
        metrics_dir=Path(metrics_dir) if metrics_dir else None,
    )
