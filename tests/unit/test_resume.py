"""When a lab that was brought back knows its loads again."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client import ApiException

from scripts import resume


def scaler(namespace: str, problem: str = "") -> dict[str, Any]:
    active = {"type": "ScalingActive", "status": "False" if problem else "True", "message": problem}
    return {"metadata": {"name": "demo-app", "namespace": namespace}, "status": {"conditions": [active]}}


@pytest.mark.parametrize(
    ("scalers", "measured", "lines"),
    [
        ([], None, []),
        ([scaler("dev")], None, ["metrics-server does not answer yet (HTTP 503)"]),
        # What an autoscaler says may still be from before.
        ([scaler("dev")], [], ["HPA dev/demo-app: none of its pods is measured yet"]),
        ([scaler("dev", "unable to get metrics")], ["dev"], ["HPA dev/demo-app: unable to get metrics"]),
        ([scaler("dev"), scaler("staging")], ["dev"], ["HPA staging/demo-app: none of its pods is measured yet"]),
        # Not for want of figures: it was so before, and status says it.
        ([scaler("dev", "its target is missing")], ["dev"], []),
        ([scaler("dev"), scaler("staging")], ["dev", "staging"], []),
    ],
)
def test_autoscalers_without_figures(
    monkeypatch: pytest.MonkeyPatch, scalers: list[dict[str, Any]], measured: list[str] | None, lines: list[str]
) -> None:
    def get_text(path: str) -> str:
        assert path == "/apis/metrics.k8s.io/v1beta1/pods"
        if measured is None:
            raise ApiException(status=503)
        return json.dumps({"items": [{"metadata": {"namespace": n}} for n in measured]})

    monkeypatch.setattr(resume, "collect", lambda _: SimpleNamespace(autoscalers=scalers))
    assert resume._without_figures(SimpleNamespace(get_text=get_text)) == lines  # type: ignore[arg-type]
