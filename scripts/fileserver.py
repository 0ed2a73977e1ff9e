"""The release files over HTTP, read only: what gunicorn serves for `make mirror-serve`. Downloads can be resumed."""

from __future__ import annotations

from flask import Flask, Response


def app_for(folder: str) -> Flask:
    """Return the application that serves a folder: its files and nothing else, with ranges and entity tags."""
    app = Flask(__name__, static_folder=folder, static_url_path="")

    @app.after_request
    def as_it_lies_there(response: Response) -> Response:
        # A .tar.gz is a file of its own here, not a tar that was compressed for the way: clients would unpack it.
        response.headers.pop("Content-Encoding", None)
        return response

    return app
