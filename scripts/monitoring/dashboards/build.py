"""What all dashboards share: how a panel looks, where its data comes from, and the JSON that Grafana reads.

The SDK is imported by this package only, and this package only by the commands that draw or generate dashboards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus as prometheus_builders
from grafana_foundation_sdk.builders import stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard

# A variable, so that a person's own Grafana can show the same file with a data source of another name.
DATASOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "gitops-lab"
COLUMNS = 24
# Grafana's own: as long as four scrapes, longer for a longer range.
RATE = "$__rate_interval"


@dataclass(frozen=True)
class Row:
    """Panels below a common heading."""

    title: str
    panels: Sequence[timeseries.Panel | stat.Panel]


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard: all values of a label, one or several of which are shown."""

    name: str
    label: str
    values: str


@dataclass(frozen=True)
class Board:
    """A dashboard: its name in addresses and files, its title, what it answers, its rows."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = ()


ENVIRONMENT = Variable("environment", "environment", "label_values(app_build_info, namespace)")


def query(expression: str, legend: str) -> prometheus_builders.Dataquery:
    """Return a query over the dashboard's time, its series named by a template such as {{namespace}}."""
    return prometheus_builders.Dataquery().expr(" ".join(expression.split())).legend_format(legend).range()


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: prometheus_builders.Dataquery,
    width: int = 8,
    minimum: float | None = 0,
    maximum: float | None = None,
    limit: float | None = None,
    stacked: bool = False,
    steps: bool = False,
    when_empty: str = "",
) -> timeseries.Panel:
    """Return a panel of lines over time.

    Args:
        title: what it shows.
        description: what to make of it.
        unit: Grafana's name of the unit, as in reqps, s, percentunit, short.
        queries: one or more.
        width: of the 24 columns.
        minimum: where the axis begins; None for the data's own.
        maximum: where it ends; None for the data's own.
        limit: a line that should not be crossed, dashed and red.
        stacked: lines on top of each other, for parts of a whole.
        steps: for numbers that hold until they change.
        when_empty: why it has nothing to show, where that is right at times.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(" ".join(description.split()))
        .unit(unit)
        .datasource(DATASOURCE)
        .height(8)
        .span(width)
        .line_width(2)
        .fill_opacity(40 if stacked else 5)
        .show_points(common.VisibilityMode.NEVER)
        .line_interpolation(common.LineInterpolation.STEP_AFTER if steps else common.LineInterpolation.LINEAR)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
    )
    for number, asked in enumerate(queries):
        panel = panel.with_target(asked.ref_id(chr(ord("A") + number)))
    if minimum is not None:
        panel = panel.min(minimum)
    if maximum is not None:
        panel = panel.max(maximum)
    if stacked:
        panel = panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if limit is not None:
        panel = panel.thresholds(_limits(limit)).thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        )
    return panel.no_value(when_empty) if when_empty else panel


def number(
    title: str,
    description: str,
    unit: str,
    asked: prometheus_builders.Dataquery,
    *,
    width: int = 6,
    limit: float | None = None,
    low_is_bad: bool = False,
    when_empty: str = "",
) -> stat.Panel:
    """Return a panel of figures: the last value of each series, coloured by a limit."""
    panel = (
        stat.Panel()
        .title(title)
        .description(" ".join(description.split()))
        .unit(unit)
        .datasource(DATASOURCE)
        .height(5)
        .span(width)
        .text_mode(common.BigValueTextMode.VALUE_AND_NAME)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(asked.ref_id("A"))
    )
    if limit is not None:
        panel = panel.thresholds(_limits(limit, low_is_bad))
    return panel.no_value(when_empty) if when_empty else panel


def _limits(limit: float, low_is_bad: bool = False) -> builders.ThresholdsConfig:
    below, above = ("red", "green") if low_is_bad else ("green", "red")
    steps = [dashboard.Threshold(value=None, color=below), dashboard.Threshold(value=limit, color=above)]
    return builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)


def as_json(board: Board) -> dict[str, Any]:
    """Return a dashboard as Grafana reads it."""
    made = (
        builders.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags([TAG])
        .readonly()
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .with_variable(builders.DatasourceVariable("datasource").label("data source").type("prometheus"))
    )
    for variable in board.variables:
        made = made.with_variable(
            builders.QueryVariable(variable.name)
            .label(variable.label)
            .query(variable.values)
            .datasource(DATASOURCE)
            .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".+")
            .current(dashboard.VariableOption(selected=True, text="All", value="$__all"))
        )
    number = 0
    for row in board.rows:
        number += 1
        made = made.with_row(builders.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            made = made.with_panel(panel.id(number))
    found: dict[str, Any] = json.loads(json.dumps(made.build(), cls=JSONEncoder, sort_keys=True))
    return found
