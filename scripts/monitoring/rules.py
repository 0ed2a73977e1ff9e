"""Prometheus' rules for the service level objectives, made from rules/slo.yaml.

    python -m scripts rules

Both sets of windows are made: rules/prometheusrule-slo.yaml, and rules/short-windows/ as a patch in its place. Both
kinds of promise share the same series, told apart by the label `slo`, so that one expression alerts on both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from scripts.monitoring.slo import BUDGET_PERIOD, NORMAL, RULES, SHORT, Objective, Objectives, Severity, Windows, load
from scripts.settings import APP_NAME

Rule = dict[str, Any]
RULE_FILE = RULES / "prometheusrule-slo.yaml"
SHORT_FILE = RULES / "short-windows" / "prometheusrule-slo.yaml"
RUNBOOKS = "how-to-run.MD"
_HEADER = "# Made by `make rules` from {source}: a test holds both together.\n"
_COUNT = "app_request_duration_seconds_count"
_BUCKET = "app_request_duration_seconds_bucket"
_FAILED = 'status=~"5.."'
_ANSWERED = 'status!~"5.."'
# What fails is the share of requests; the alerts' names say which promise it breaks.
_ALERTS = {
    ("availability", Severity.CRITICAL): "AvailabilityBudgetBurning",
    ("availability", Severity.WARNING): "AvailabilityBudgetShrinking",
    ("latency", Severity.CRITICAL): "LatencyBudgetBurning",
    ("latency", Severity.WARNING): "LatencyBudgetShrinking",
}
_SAYS = {
    "availability": "{{ $value | humanizePercentage }} of {{ $labels.namespace }}'s requests fail",
    "latency": "{{ $value | humanizePercentage }} of {{ $labels.namespace }}'s requests are slower than promised",
}


def slo_rule(objectives: Objectives, windows: Windows) -> dict[str, Any]:
    """Return the PrometheusRule with every recording rule and alert of the objectives."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "slo", "namespace": "monitoring"},
        "spec": {
            "groups": [
                {"name": "slo-objectives", "interval": "15s", "rules": list(_objectives(objectives))},
                {"name": "slo-errors", "interval": "15s", "rules": list(_errors(objectives, windows))},
                {"name": "slo-alerts", "interval": "15s", "rules": list(_alerts(objectives, windows))},
                # Over all that is kept, so it is asked for less often.
                {"name": "slo-budget", "interval": "1m", "rules": list(_budget(objectives))},
            ]
        },
    }


def _objectives(objectives: Objectives) -> Iterator[Rule]:
    """Yield the promised share of good requests per environment, as series: an added environment appears by itself."""
    for slo in ("availability", "latency"):

        def share(objective: Objective, slo: str = slo) -> float:
            return float(getattr(objective, slo))

        expr = _each(
            objectives,
            share,
            lambda value, matcher: f"group by (namespace) (up{{{_selector(matcher)}}}) * {_number(value / 100)}",
        )
        yield _recorded("slo:objective:ratio", slo, expr)


def _errors(objectives: Objectives, windows: Windows) -> Iterator[Rule]:
    for window in windows.all:
        record = f"slo:errors:ratio_rate{window}"
        yield _recorded(record, "availability", _ratio(_failed("rate", window), _all("rate", window)))
        yield _recorded(record, "latency", _slow_ratio(objectives, "rate", window))
    for window in windows.long:
        record = f"slo:errors:increase{window}"
        yield _recorded(record, "availability", _failed("increase", window))
        yield _recorded(record, "latency", _all_slow(objectives, "increase", window))


def _alerts(objectives: Objectives, windows: Windows) -> Iterator[Rule]:
    for (slo, severity), name in _ALERTS.items():
        condition = _condition(slo, severity, objectives, windows)
        rule: Rule = {"alert": name, "expr": condition}
        speeds = " or ".join(f"{b.rate:g} times over {b.long}" for b in windows.burns if b.severity is severity)
        if severity is Severity.WARNING:
            # What pages already is not said twice.
            paging = _condition(slo, Severity.CRITICAL, objectives, windows)
            rule["expr"] = f"(\n{condition}\n)\nunless on (namespace, slo)\n(\n{paging}\n)"
            rule["for"] = windows.warning_for
        yield rule | {
            "labels": {"severity": str(severity)},
            "annotations": {
                "summary": f"{{{{ $labels.namespace }}}}: the {slo} budget is spent too fast",
                "description": f"{_SAYS[slo]}; of what lasts for {BUDGET_PERIOD}, that is more than {speeds}.",
                "runbook_url": f"{RUNBOOKS}#{name.lower()}",
            },
        }


def _condition(slo: str, severity: Severity, objectives: Objectives, windows: Windows) -> str:
    """Both windows burn, and enough was bad for it to mean something; the value is the long window's share."""
    parts = []
    for burn in windows.burns:
        if burn.severity is severity:
            limit = f'> on (namespace, slo) ({burn.rate:g} * (1 - slo:objective:ratio{{slo="{slo}"}}))'
            parts.append(
                f'slo:errors:ratio_rate{burn.long}{{slo="{slo}"}} {limit}\n'
                f'and on (namespace, slo) slo:errors:ratio_rate{burn.short}{{slo="{slo}"}} {limit}\n'
                f'and on (namespace, slo) slo:errors:increase{burn.long}{{slo="{slo}"}} >= {objectives.least_bad}'
            )
    return "\nor\n".join(parts)


def _budget(objectives: Objectives) -> Iterator[Rule]:
    """Yield what is left of the budget: 1 is all of it, below 0 is more than was promised."""
    ratios = {
        "availability": _ratio(_failed("increase", BUDGET_PERIOD), _all("increase", BUDGET_PERIOD)),
        "latency": _slow_ratio(objectives, "increase", BUDGET_PERIOD),
    }
    for slo, ratio in ratios.items():
        expr = f'1 - (\n{ratio}\n) / on (namespace) (1 - slo:objective:ratio{{slo="{slo}"}})'
        yield _recorded("slo:error_budget:remaining", slo, expr)


def _recorded(record: str, slo: str, expr: str) -> Rule:
    return {"record": record, "expr": expr, "labels": {"slo": slo}}


def _each(objectives: Objectives, value: Callable[[Objective], float], expression: Callable[[float, str], str]) -> str:
    """Return the expressions of all values as one: each environment is in exactly one of them."""
    return "\nor\n".join(expression(v, matcher) for v, matcher in _classes(objectives, value))


def _threshold(objective: Objective) -> float:
    return objective.threshold_s


def _all_slow(objectives: Objectives, function: str, window: str) -> str:
    return _each(objectives, _threshold, lambda threshold, matcher: _slow(function, window, threshold, matcher))


def _slow_ratio(objectives: Objectives, function: str, window: str) -> str:
    return _each(
        objectives,
        _threshold,
        lambda threshold, matcher: _ratio(
            _slow(function, window, threshold, matcher), _answered(function, window, matcher)
        ),
    )


def _classes(objectives: Objectives, value: Callable[[Objective], float]) -> list[tuple[float, str]]:
    """Return each value with the matcher of the environments that have it; the default's takes all others."""
    default = value(objectives.default)
    other: dict[float, list[str]] = {}
    for name, objective in objectives.environments.items():
        if value(objective) != default:
            other.setdefault(value(objective), []).append(name)
    named = sorted(n for names in other.values() for n in names)
    rest = f'namespace!~"{"|".join(named)}"' if named else ""
    return [(default, rest), *((v, f'namespace=~"{"|".join(sorted(names))}"') for v, names in sorted(other.items()))]


def _selector(*matchers: str) -> str:
    return ",".join((f'job="{APP_NAME}"', *(m for m in matchers if m)))


def _sum(function: str, metric: str, window: str, *matchers: str) -> str:
    return f"sum by (namespace) ({function}({metric}{{{_selector(*matchers)}}}[{window}]))"


def _failed(function: str, window: str) -> str:
    return _sum(function, _COUNT, window, _FAILED)


def _all(function: str, window: str) -> str:
    return _sum(function, _COUNT, window)


def _answered(function: str, window: str, matcher: str) -> str:
    return _sum(function, _COUNT, window, _ANSWERED, matcher)


def _slow(function: str, window: str, threshold_s: float, matcher: str) -> str:
    """Answered, and past the threshold: all less those in its bucket (a rounding below zero is none)."""
    quick = _sum(function, _BUCKET, window, _ANSWERED, f'le="{_number(threshold_s)}"', matcher)
    return f"clamp_min({_answered(function, window, matcher)} - {quick}, 0)"


def _ratio(bad: str, total: str) -> str:
    # Without requests nothing failed: 0, where dividing by none would give no number.
    return f"{bad}\n/\nclamp_min({total}, 1e-9)"


def _number(value: float) -> str:
    """Return a number as Prometheus writes it in a label: 0.5, 1.0."""
    return repr(round(float(value), 9))


class _Literal(yaml.SafeDumper):
    """Writes texts of several lines as blocks, as a person would."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Literal.add_representer(str, _text)


def rendered() -> dict[Path, str]:
    """Return every file that is made from the objectives, with its text."""
    objectives = load()
    return {
        RULE_FILE: _render(slo_rule(objectives, NORMAL), "slo.yaml"),
        SHORT_FILE: _render(slo_rule(objectives, SHORT), "../slo.yaml"),
    }


def _render(document: dict[str, Any], source: str) -> str:
    body = yaml.dump(document, Dumper=_Literal, sort_keys=False, width=1000, indent=2)
    return _HEADER.format(source=source) + body


def write() -> list[Path]:
    """Write the files that changed, and return them."""
    changed = []
    for path, text in rendered().items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            changed.append(path)
    return changed
