"""Every query of every dashboard is PromQL: Prometheus' own parser reads it, as Grafana sends it and as the page does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from scripts import settings
from scripts.monitoring.dashboards import generate, panels
from scripts.process import run


@pytest.fixture(scope="module")
def promtool() -> Path:
    binary = settings.load().tools_dir / "promtool"
    assert binary.exists(), f"{binary} is not there: `make test` brings it"
    return binary


def test_prometheus_reads_every_query_of_the_dashboards(promtool, tmp_path):
    rules = []
    for board in map(panels.read, generate.boards()):
        for panel in board.panels:
            for query in panel.queries:
                name = f"query:{len(rules)}"
                rules.append({"record": name, "expr": panels.without_variables(query.expression, 15)})
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    done = run([promtool, "check", "rules", file], timeout_s=60, check=False)
    assert done.exit_code == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout
    # And it does say no.
    file.write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": [{"record": "a", "expr": "sum(rate(b[5m])"}]}]}))
    assert run([promtool, "check", "rules", file], timeout_s=60, check=False).exit_code != 0
