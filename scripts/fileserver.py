"""The release files over HTTP, read only: what gunicorn serves for `make mirror-serve`. Downloads can be resumed."""

from __future__ import annotations

from flask import Flask


def app_for(folder: str) -> Flask:
    """Return the application that serves a folder: its files and nothing else, with ranges and entity tags."""
    return Flask(__name__, static_folder=folder, static_url_path="")
