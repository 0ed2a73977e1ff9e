"""A registry's user and password: from the environment, or from where `docker login` keeps them.

Nothing here is printed or given as an argument: helpers get the host by standard input, as their protocol asks.
https://docs.docker.com/reference/cli/docker/login/#credential-helper-protocol
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts import console
from scripts.process import run
from scripts.settings import Credentials, mirror_credentials

# Under this name Docker keeps what is for Docker Hub.
_DOCKER_HUB = "https://index.docker.io/v1/"


def credentials_for(host: str, variable: str = "IMAGE_MIRROR") -> Credentials | None:
    """Return what to show to a registry: the environment's, else the engine's own; None for neither."""
    return mirror_credentials(variable=variable) or stored_credentials(host)


def stored_credentials(host: str) -> Credentials | None:
    """Return what `docker login` keeps for a host, in its file or in a helper."""
    config = _engine_config()
    key = _DOCKER_HUB if host == "docker.io" else host
    helper = config.get("credHelpers", {}).get(host) or config.get("credsStore", "")
    if helper:
        return _from_helper(f"docker-credential-{helper}", key)
    encoded = config.get("auths", {}).get(key, {}).get("auth", "")
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        console.debug(f"what docker login keeps for {host} can't be read")
        return None
    return Credentials(user, password) if user and password else None


def _from_helper(program: str, key: str) -> Credentials | None:
    if not shutil.which(program):
        console.debug(f"{program} is not there")
        return None
    done = run([program, "get"], timeout_s=30, check=False, input_text=key)
    if done.exit_code != 0:  # "credentials not found": the protocol says so by its exit code
        return None
    answer = json.loads(done.stdout)
    # A user called <token> means that the secret is an identity token, of use to the engine only.
    if answer.get("Username", "<token>") == "<token>" or not answer.get("Secret"):
        return None
    return Credentials(answer["Username"], answer["Secret"])


@contextmanager
def engine_environment(host: str, environ: Mapping[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Give what lets `docker pull` in as the environment's user: a configuration folder that is gone afterwards.

    Without such a user, or without a mirror's host, it is empty, and the engine's client uses what `docker login`
    left, as always.
    """
    credentials = mirror_credentials(environ) if host else None
    if not credentials:
        yield {}
        return
    config = _engine_config()
    config.pop("credsStore", None)  # it would be asked instead of `auths`
    config["credHelpers"] = {name: h for name, h in config.get("credHelpers", {}).items() if name != host}
    encoded = base64.b64encode(f"{credentials.user}:{credentials.password}".encode()).decode()
    config["auths"] = {**config.get("auths", {}), host: {"auth": encoded}}
    with tempfile.TemporaryDirectory(prefix="gitops-lab-docker-") as folder:  # readable by this user only
        path = Path(folder) / "config.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))
        # Contexts say which engine is meant: they have to stay what they are.
        if (_engine_folder() / "contexts").is_dir():
            (Path(folder) / "contexts").symlink_to(_engine_folder() / "contexts")
        yield {"DOCKER_CONFIG": folder}


def _engine_folder() -> Path:
    return Path(os.environ.get("DOCKER_CONFIG", "") or Path.home() / ".docker")


def _engine_config() -> dict[str, Any]:
    try:
        config = json.loads((_engine_folder() / "config.json").read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        console.debug("the engine's config.json is no JSON")
        return {}
    return config if isinstance(config, dict) else {}
