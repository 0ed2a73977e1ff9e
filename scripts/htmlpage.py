"""A page that stands alone: its style and its pictures are part of it, so that it can be sent as one file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

CSS = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #ffffff; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
p.setting { color: #555555; margin-top: 0; }
ul.checks { list-style: none; padding: 0; } .ok { color: #00694e; } .bad { color: #b03a00; font-weight: 600; }
table { border-collapse: collapse; } td, th { padding: .25rem 1rem .25rem 0; border-bottom: 1px solid #dddddd;
       text-align: left; vertical-align: top; }
img { max-width: 100%; height: auto; background: #ffffff; }
@media (prefers-color-scheme: dark) { body { color: #e8e8e8; background: #181a1b; } p.setting { color: #a8a8a8; }
  .ok { color: #4fd1a5; } .bad { color: #ff9466; } td, th { border-color: #444444; } }
"""


def document(title: str, body: str, css: str = "") -> str:
    """Return the whole page; `body` is HTML already, `css` is added to the common style."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}{css}</style></head><body>'
        f"{body}</body></html>\n"
    )


def image(picture: Path, text: str) -> str:
    """Return a PNG as part of the page, with the text for those who don't see it."""
    data = base64.b64encode(picture.read_bytes()).decode()
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Return a table of plain texts."""

    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    lines = ([line(head, "th")] if head else []) + [line(row, "td") for row in rows]
    return f"<table>{''.join(lines)}</table>"


def escape(text: str) -> str:
    """Return a text as HTML shows it."""
    return html.escape(text)
