"""`make dashboards`: the dashboards drawn from live queries into one page, for whoever has no Grafana.

The definitions are those that Grafana gets: the JSON is made, read back, and each panel's queries are asked over the
time that is shown. A panel without data says why.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from scripts import console, deploy, htmlpage
from scripts.cache import write_atomically
from scripts.monitoring.dashboards import generate, panels
from scripts.monitoring.dashboards.panels import Dashboard, Panel
from scripts.monitoring.pictures import Line, draw, names
from scripts.monitoring.prometheus import Prometheus, QueryError, connected
from scripts.monitoring.query import SHORTEST_STEP_S, seconds_of
from scripts.settings import ROOT, Settings

REPORTS = ROOT / "reports" / "dashboards"
DEFAULT_SINCE = "1h"
POINTS = 240


@dataclass(frozen=True)
class Span:
    """The time that is shown, in seconds since 1970, and how far its points are apart."""

    start: float
    end: float
    step_s: float

    def __str__(self) -> str:
        zone = datetime.now().astimezone().tzinfo
        begin, end = (datetime.fromtimestamp(t, zone) for t in (self.start, self.end))
        return f"{begin:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S %Z}, a point each {self.step_s:.0f} s"


@dataclass(frozen=True)
class Found:
    """What a panel's queries came to; `empty` says why there is nothing, `missing` which part of it."""

    panel: Panel
    lines: tuple[Line, ...]
    empty: str = ""
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shown:
    """A panel with its picture, if it has data."""

    found: Found
    picture: Path | None


def span_of(since: str, now: float) -> Span:
    """Return the time that ends now; raises UsageError for a duration that is none."""
    seconds = seconds_of(since or DEFAULT_SINCE)
    return Span(now - seconds, now, max(SHORTEST_STEP_S, seconds / POINTS))


def dashboards(settings: Settings, since: str) -> int:
    """Draw all dashboards and print where the page is, and which panels have nothing to show."""
    span = span_of(since, time.time())
    kube = deploy.lab_kube(settings)
    started = time.monotonic()
    with connected(kube) as prometheus, console.Board() as board, board.task("drawing the dashboards"):
        folder, shown = write(prometheus, span, f"context {kube.context}")
    count = sum(len(s) for s in shown.values())
    console.done("dashboards", time.monotonic() - started, f"{count} panels over {since or DEFAULT_SINCE}")
    for title, drawn in shown.items():
        for s in drawn:
            for why in filter(None, [s.found.empty, *s.found.missing]):
                console.line(f"  without data: {title}: {s.found.panel.title}: {why}")
    where = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    console.line(f"page: {where}/index.html")
    return 0


def write(
    prometheus: Prometheus, span: Span, source: str, reports: Path = REPORTS
) -> tuple[Path, dict[str, list[Shown]]]:
    """Draw all dashboards into a folder of their own and return it, and what is shown, by dashboard."""
    folder = reports / f"{datetime.fromtimestamp(span.end, UTC):%Y%m%dT%H%M%SZ}"
    folder.mkdir(parents=True, exist_ok=True)
    boards = [panels.read(board) for board in generate.boards()]
    shown: dict[str, list[Shown]] = {}
    for board in boards:
        drawn = shown[board.title] = []
        for panel, name in zip(board.panels, names(board.uid), strict=False):
            console.note(f"{board.title}: {panel.title}")
            found = look(prometheus, panel, span)
            picture = (
                draw(panel, found.lines, (span.start, span.end), span.step_s, folder / name) if found.lines else None
            )
            drawn.append(Shown(found, picture))
    write_atomically(folder / "index.html", page(boards, shown, span, source))
    return folder, shown


def look(prometheus: Prometheus, panel: Panel, span: Span) -> Found:
    """Return what a panel's queries came to, each that came to nothing with its reason."""
    lines: list[Line] = []
    missing = []
    for query in panel.queries:
        expression = panels.without_variables(query.expression, span.step_s)
        try:
            series = prometheus.range(expression, span.start, span.end, span.step_s).series
        except QueryError as error:
            missing.append(error.what)
            continue
        drawn = [Line(panels.name_of(query.legend, dict(s.labels)), s.points) for s in series]
        with_values = [line for line in drawn if line.finite]
        lines += with_values
        if not with_values:
            missing.append(why_nothing(prometheus, panel, expression, span, only_nan=bool(drawn)))
    if lines:
        return Found(panel, tuple(lines), missing=tuple(missing))
    return Found(panel, (), "; ".join(dict.fromkeys(missing)))


def why_nothing(prometheus: Prometheus, panel: Panel, expression: str, span: Span, only_nan: bool) -> str:
    """Return why an expression has no value in a span of time."""
    absent = []
    for metric in panels.metrics_of(expression):
        if not prometheus.range(f'count({{__name__="{metric}"}})', span.start, span.end, span.step_s).series:
            absent.append(metric)
    if absent:
        said = f"there is no metric {', '.join(absent)} in this time: nothing that has it was scraped"
    elif only_nan:
        said = "nothing was measured in this time (only NaN)"
    else:
        said = "its metrics are there, and no series matches in this time"
    return f"{said}; {panel.when_empty}" if panel.when_empty else said


_CSS = """
body { max-width: 118rem; }
nav a { margin-right: 1rem; } a { color: inherit; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr)); gap: 1rem; }
figure { margin: 0; padding: .5rem; border: 1px solid #dddddd; border-radius: .3rem; }
figure img { display: block; width: 100%; border-radius: .2rem; }
figcaption { font-size: .85rem; color: #555555; padding: .3rem .2rem 0; }
.empty { font-size: .95rem; } .empty strong { display: block; }
@media (prefers-color-scheme: dark) { figure { border-color: #444444; } figcaption { color: #a8a8a8; } }
"""


def page(boards: Sequence[Dashboard], shown: dict[str, list[Shown]], span: Span, source: str) -> str:
    """Return the page: the time, every dashboard with its panels, and a list of what has no data."""
    e = htmlpage.escape
    links = "".join(f'<a href="#{e(b.uid)}">{e(b.title)}</a>' for b in boards)
    body = [
        "<h1>Dashboards of the lab</h1>",
        f'<p class="setting">{e(str(span))}; {e(source)}</p><nav>{links}<a href="#empty">Without data</a></nav>',
    ]
    for board in boards:
        body.append(f'<h1 id="{e(board.uid)}">{e(board.title)}</h1><p class="setting">{e(board.description)}</p>')
        row = None
        for s in shown[board.title]:
            if s.found.panel.row != row:
                body.append(("</div>" if row is not None else "") + f"<h2>{e(s.found.panel.row)}</h2>")
                body.append('<div class="panels">')
                row = s.found.panel.row
            body.append(_figure(s))
        body.append("</div>")
    rows = [
        (title, s.found.panel.title, why)
        for title, drawn in shown.items()
        for s in drawn
        for why in filter(None, [s.found.empty, *s.found.missing])
    ]
    table = htmlpage.table(rows, ("dashboard", "panel", "why")) if rows else "<p>Every panel has data.</p>"
    body.append(f'<h1 id="empty">Without data</h1>{table}')
    return htmlpage.document("Dashboards of the lab", "".join(body), _CSS)


def _figure(shown: Shown) -> str:
    panel, e = shown.found.panel, htmlpage.escape
    caption = f"<figcaption>{e(panel.description)}</figcaption>"
    if shown.picture is None:
        said = f"<strong>{e(panel.title)}</strong>no data: {e(shown.found.empty)}"
        return f'<figure class="empty">{said}{caption}</figure>'
    return f"<figure>{htmlpage.image(shown.picture, panel.title)}{caption}</figure>"
