"""Flux's install manifests: what `flux install --export` says, tuned for a lab of one user."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from scripts.cache import Cache, digest_of
from scripts.fluxcli import CONTROLLERS
from scripts.process import run
from scripts.settings import CONTROL_PLANE_LABEL
from scripts.versions import Versions

Object = dict[str, Any]

# Arguments that make Flux answer at once in a lab of one user. Each replaces one of the same name.
# Source: https://fluxcd.io/flux/installation/configuration/vertical-scaling/ and each controller's options page.
_COMMON_ARGS = {
    # One replica each with strategy Recreate: there is nobody to elect against, and a lease left by a killed
    # controller costs up to 35 s after each restart.
    "--enable-leader-election": "false",
    "--concurrent": "10",
    # What is not ready yet (a dependency, a source) is looked at again after half a second, not 30 s.
    "--requeue-dependency": "500ms",
}
_ARGS: Mapping[str, Mapping[str, str]] = {
    "source-controller": _COMMON_ARGS,
    "kustomize-controller": {
        **_COMMON_ARGS,
        # A push that mends a release must not wait until the broken one's health check has timed out.
        "--feature-gates": "CancelHealthCheckOnNewRevision=true",
        # An environment has some twenty objects: each is compared by a dry run, and these are most of a reconcile.
        "--concurrent-ssa": "10",
    },
    "helm-controller": _COMMON_ARGS,
    "notification-controller": {k: v for k, v in _COMMON_ARGS.items() if k != "--requeue-dependency"},
}
# A build throws away most of what it takes, Kubernetes' whole schema each time: collected less often, a push costs less.
_ENVIRONMENT: Mapping[str, Mapping[str, str]] = {"kustomize-controller": {"GOGC": "200"}}
_REQUESTS = {"cpu": "20m", "memory": "48Mi"}


def install_manifests(
    cache: Cache, flux: Path, versions: Versions, pin_images: bool, on_control_plane: bool
) -> list[Object]:
    """Return Flux's install manifests (from `flux install --export`), tuned, with images by digest if asked for."""
    objects: list[Object] = json.loads((exported(cache, flux, versions) / "objects.json").read_text())
    for thing in objects:
        if thing["kind"] == "Deployment":
            _tune(thing, versions, pin_images)
            if on_control_plane:
                # It starts while the workers still join, and no drain or load of theirs reaches it.
                pod = thing["spec"]["template"]["spec"]
                pod["nodeSelector"] = {**pod.get("nodeSelector", {}), CONTROL_PLANE_LABEL: ""}
                taint = {"key": CONTROL_PLANE_LABEL, "operator": "Exists", "effect": "NoSchedule"}
                pod["tolerations"] = [*pod.get("tolerations", []), taint]
    return objects


def exported(cache: Cache, flux: Path, versions: Versions) -> Path:
    """Return a folder with what `flux install --export` says: as it says it (flux.yaml), and quick to read (objects.json).

    A program says the same each time, and takes a second of CPU time for it.
    """
    program = flux.stat()
    args = ["install", "--export", f"--components={','.join(CONTROLLERS)}", f"--version=v{versions.flux}"]

    def build(folder: Path) -> None:
        text = run([flux, *args], timeout_s=60).stdout
        (folder / "flux.yaml").write_text(text)
        objects = [o for o in yaml.load_all(text, Loader=yaml.CSafeLoader) if o]
        (folder / "objects.json").write_text(json.dumps(objects))

    return cache.ensure("flux-manifests", digest_of(args, program.st_size, program.st_mtime_ns), build)[0]


def _tune(deployment: Object, versions: Versions, pin_images: bool) -> None:
    name = deployment["metadata"]["name"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    wanted = _ARGS[name]
    kept = [a for a in container["args"] if a.partition("=")[0] not in wanted]
    container["args"] = kept + [f"{key}={value}" for key, value in wanted.items()]
    container["env"] += [{"name": key, "value": value} for key, value in _ENVIRONMENT.get(name, {}).items()]
    container["resources"]["requests"] = dict(_REQUESTS)
    # No CPU limit: a reconcile is a burst, and a quota of one CPU stretches it over several periods of 100 ms.
    container["resources"]["limits"].pop("cpu", None)
    # What is fetched, unpacked and built is gone with the pod anyway: in memory no disk is waited for. It stays small.
    for volume in deployment["spec"]["template"]["spec"]["volumes"]:
        if "emptyDir" in volume:
            volume["emptyDir"] = {"medium": "Memory"}
    # Ready is looked for every 10 s by default; a lab that is brought up by a person looks every second.
    container["readinessProbe"]["periodSeconds"] = 1
    image = versions.images[name]
    container["image"] = image.reference if pin_images else image.tagged
