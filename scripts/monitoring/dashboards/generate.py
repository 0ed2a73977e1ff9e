"""`make dashboards-generate`: the dashboards as the ConfigMaps that Grafana's sidecar loads, one file each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from scripts.cache import write_atomically
from scripts.monitoring.dashboards import application, autoscaling, capacity, gitops
from scripts.monitoring.dashboards.build import as_json
from scripts.outcome import Outcome
from scripts.settings import FLUX_CD, MONITORING_NAMESPACE

FOLDER = FLUX_CD / "infrastructure" / "_components" / "_prometheus-stack" / "dashboards"
BOARDS = (application.board, autoscaling.board, gitops.board, capacity.board)
HEADER = "# Generated from scripts/monitoring/dashboards/ by `make dashboards-generate`: edit there.\n"


def boards() -> list[dict[str, Any]]:
    """Return all dashboards as Grafana reads them."""
    return [as_json(board()) for board in BOARDS]


def files() -> dict[str, str]:
    """Return what the folder of the dashboards holds, by file name."""
    found = {}
    for board in boards():
        name = board["uid"].removeprefix("lab-")
        found[f"{name}.yaml"] = HEADER + _yaml(config_map(board))
    resources = sorted(found)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": MONITORING_NAMESPACE,
        "resources": resources,
        "labels": [{"pairs": {"app.kubernetes.io/component": "dashboards", "app.kubernetes.io/part-of": "monitoring"}}],
    }
    found["kustomization.yaml"] = HEADER + _yaml(kustomization)
    return found


def config_map(board: dict[str, Any]) -> dict[str, Any]:
    """Return the ConfigMap of a dashboard; the sidecar finds it by its label."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"dashboard-{board['uid'].removeprefix('lab-')}",
            "labels": {"grafana_dashboard": "1"},
            # ${datasource} is Grafana's to fill in, not Flux's.
            "annotations": {"kustomize.toolkit.fluxcd.io/substitute": "disabled"},
        },
        "data": {f"{board['uid']}.json": json.dumps(board, indent=1, ensure_ascii=False) + "\n"},
    }


def write(folder: Path = FOLDER) -> Outcome:
    """Write the files that differ and remove those that no dashboard has any more."""
    wanted = files()
    folder.mkdir(parents=True, exist_ok=True)
    there = {p.name: p.read_text() for p in folder.glob("*.yaml")}
    for name, text in wanted.items():
        if there.get(name) != text:
            write_atomically(folder / name, text)
    for name in there.keys() - wanted.keys():
        (folder / name).unlink()
    changed = sorted(n for n in there.keys() | wanted.keys() if there.get(n) != wanted.get(n))
    return Outcome(bool(changed), f"dashboards: {', '.join(changed) if changed else 'nothing changed'}")


class _Text(yaml.SafeDumper):
    """YAML with texts of several lines as blocks, as a person would write them."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Text.add_representer(str, _text)


def _yaml(thing: dict[str, Any]) -> str:
    text: str = yaml.dump(thing, Dumper=_Text, sort_keys=False, allow_unicode=True, width=1000)
    return text
