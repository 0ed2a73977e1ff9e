"""A folder with all that a person looks at when the lab is broken, secrets masked; works as far as the lab does.

What can't be had is named in summary.txt with its reason, and the rest is written all the same.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from scripts import console, hostfacts
from scripts.cache import now_iso, write_atomically
from scripts.causes import one_line
from scripts.cluster import node_containers
from scripts.docker import containers_with_label, docker, engine_info
from scripts.errors import LabError
from scripts.kube import Kube, Object, UnreachableError
from scripts.lockfile import LOCK_FILE
from scripts.masking import Masker, secret_values
from scripts.preflight_network import wanted_ports
from scripts.reasons import explain
from scripts.settings import EDGE_NAMESPACE, FLUX_NAMESPACE, OWNER_LABEL, Settings, environments
from scripts.snapshot import Snapshot, collect, event_time
from scripts.status import why_unreachable
from scripts.versions import VERSIONS_FILE

KEPT = 5
LOG_LINES = 500
JOURNAL_LINES = 400
LOG_BYTES = 512 * 1024
LAB_LOGS = 3
FLUX_GROUPS = tuple(f"{name}.toolkit.fluxcd.io" for name in ("source", "kustomize", "helm", "notification"))

_FOLDER = re.compile(r"^\d{8}T\d{6}Z(-\d+)?$")


class _Report:
    """The folder being written: every text goes through the masker, every failure into `missing`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.masker = Masker()
        self.missing: list[str] = []

    def write(self, name: str, text: str) -> None:
        """Write a file that only this user can read."""
        path = self.folder / name
        for parent in reversed(path.relative_to(self.folder).parents[:-1]):
            (self.folder / parent).mkdir(mode=0o700, exist_ok=True)
        text = self.masker.text(text)
        write_atomically(path, text if text.endswith("\n") else f"{text}\n", mode=0o600)

    def write_objects(self, name: str, things: Iterable[Any]) -> None:
        """Write plain data as YAML."""
        plain = [self.masker.plain(thing) for thing in things]
        self.write(name, yaml.dump_all(plain, Dumper=yaml.CSafeDumper, sort_keys=False, width=160))

    def attempt(self, what: str, action: Callable[[], None]) -> None:
        """Do one part; what keeps it from being done is noted."""
        from kubernetes.client import ApiException

        console.note(f"collecting {what}")
        try:
            action()
        except LabError as error:
            self.missing.append(f"{what}: {one_line(error.what)}")
        except ApiException as error:
            self.missing.append(f"{what}: HTTP {error.status} {error.reason}")
        except (OSError, ValueError, yaml.YAMLError) as error:
            self.missing.append(f"{what}: {type(error).__name__}: {one_line(str(error))}")


def diagnose(settings: Settings, kube: Kube) -> Path:
    """Write a folder of diagnostics and return it; the newest five are kept."""
    report = _Report(_new_folder(settings))
    causes = _cluster(report, settings, kube)
    _engine(report, settings)
    report.attempt("facts of this machine", lambda: _host(report, settings))
    report.attempt("pinned versions", lambda: _copies(report))
    report.attempt("the lab's own logs", lambda: _lab_logs(report, settings))
    report.write("summary.txt", _summary(report, settings, causes))
    _keep_newest(report.folder.parent)
    return report.folder


def _new_folder(settings: Settings) -> Path:
    root = settings.state_dir / "diagnostics"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for number in range(100):
        folder = root / (f"{stamp}-{number}" if number else stamp)
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder
    raise LabError(f"No folder for diagnostics can be made in {root}.", "remove what is in there")


def _keep_newest(root: Path) -> None:
    folders = sorted((p for p in root.iterdir() if _FOLDER.match(p.name)), key=lambda p: p.stat().st_mtime_ns)
    for folder in folders[:-KEPT]:
        shutil.rmtree(folder, ignore_errors=True)


def _summary(report: _Report, settings: Settings, causes: list[str]) -> str:
    files = sorted(str(p.relative_to(report.folder)) for p in report.folder.rglob("*") if p.is_file())
    choices = {k: str(v) for k, v in asdict(settings).items()}
    return "\n".join(
        [
            f"Diagnostics of {settings.context}, {now_iso()}",
            "",
            "Deepest causes:",
            *(f"  {cause}" for cause in causes or ["none found: all that was looked at is as it should be"]),
            "",
            "Could not be had:",
            *(f"  {line}" for line in report.missing or ["nothing: this is complete"]),
            "",
            "Settings:",
            *(f"  {name}: {value}" for name, value in choices.items()),
            "",
            "Files:",
            *(f"  {name}" for name in files),
        ]
    )


# --- the cluster


def _cluster(report: _Report, settings: Settings, kube: Kube) -> list[str]:
    """Write what the API server tells and return the deepest causes."""
    console.note("collecting from the cluster")
    found: dict[str, Any] = {}

    def secrets() -> None:
        found["secrets"] = [{"kind": "Secret"} | s for s in kube.get("/api/v1/secrets")["items"]]

    def snapshot() -> None:
        found["snapshot"] = collect(kube)

    try:
        report.write("version.json", kube.get_text("/version"))
    except UnreachableError as error:
        deepest = why_unreachable(settings, error)
        report.missing.append(f"everything from the cluster: {one_line(error.what)}")
        return [f"{deepest.what} To mend it: {deepest.mend}"]
    report.attempt("the values of Secrets, to mask them", secrets)
    report.attempt("the cluster's objects", snapshot)
    taken: Snapshot | None = found.get("snapshot")
    if "secrets" not in found:
        report.missing.append("the values of Secrets could not be read: secrets are masked by name and shape only")
    else:
        names = {s["metadata"]["namespace"] for s in found["secrets"]} | set(environments())
        report.masker = Masker(secret_values(found["secrets"], names))
        report.attempt("Secrets (names only)", lambda: report.write_objects("secrets.yaml", found["secrets"]))
    report.attempt("Flux objects", lambda: _flux_objects(report, kube))
    report.attempt("events", lambda: _events(report, kube))
    if taken is None:
        return ["the cluster's objects could not be read; see what could not be had"]
    report.missing += taken.unread
    report.attempt("pods", lambda: report.write_objects("pods.yaml", taken.pods))
    report.attempt("nodes", lambda: report.write_objects("nodes.yaml", taken.nodes))
    workloads = (*taken.workloads, *taken.autoscalers)
    report.attempt("workloads", lambda: report.write_objects("workloads.yaml", workloads))
    _pod_logs(report, kube, taken)
    return explain(taken)


def _flux_objects(report: _Report, kube: Kube) -> None:
    """Write all objects of Flux's kinds, whichever of them this cluster has."""
    from kubernetes.client import ApiException

    for group in FLUX_GROUPS:
        try:
            version = kube.get(f"/apis/{group}")["preferredVersion"]["groupVersion"]
        except ApiException as error:
            report.missing.append(f"Flux objects of {group}: HTTP {error.status} {error.reason}")
            continue
        for kind in kube.get(f"/apis/{version}")["resources"]:
            if "list" in kind.get("verbs", []):
                things = kube.get(f"/apis/{version}/{kind['name']}")["items"]
                if things:
                    report.write_objects(f"flux/{kind['name']}.yaml", things)


def _events(report: _Report, kube: Kube) -> None:
    events = sorted(kube.get("/api/v1/events")["items"], key=event_time)
    lines = []
    for event in events:
        about = event.get("involvedObject") or {}
        place = f"{about.get('namespace', '-')} {about.get('kind')}/{about.get('name')}"
        count = f" (x{event['count']})" if (event.get("count") or 1) > 1 else ""
        message = " ".join((event.get("message") or "").split())
        lines.append(f"{event_time(event)} {event.get('type', '')} {place} {event.get('reason')}: {message}{count}")
    report.write("events.txt", "\n".join(lines))


def _pod_logs(report: _Report, kube: Kube, snapshot: Snapshot) -> None:
    """Write the logs of controllers and of the environments' pods, of what runs now and of what ran before."""
    wanted = {FLUX_NAMESPACE, EDGE_NAMESPACE, "kube-system", *environments()}
    for pod in snapshot.pods:
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        status = pod.get("status", {})
        if namespace not in wanted:
            continue
        for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
            state = container.get("state") or {}
            target = f"logs/{namespace}/{name}-{container['name']}"
            if "waiting" not in state:
                _one_log(report, kube, pod, container["name"], f"{target}.log", previous=False)
            if container.get("restartCount"):
                _one_log(report, kube, pod, container["name"], f"{target}-previous.log", previous=True)


def _one_log(report: _Report, kube: Kube, pod: Object, container: str, target: str, *, previous: bool) -> None:
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]

    def write() -> None:
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/log"
        text = kube.get_text(path, container=container, previous=previous, tailLines=LOG_LINES, timestamps=True)
        report.write(target, text[-LOG_BYTES:])

    which = "the previous log" if previous else "the log"
    report.attempt(f"{which} of {namespace}/{name} {container}", write)


# --- engine and host


def _engine(report: _Report, settings: Settings) -> None:
    info: dict[str, Any] = {}
    containers: set[str] = set()

    def ask() -> None:
        found = engine_info()
        if found is None:
            raise LabError("it does not answer")
        info.update(found)
        report.write_objects("engine.yaml", [info])
        containers.update(containers_with_label(f"{OWNER_LABEL}={settings.cluster_name}"))

    report.attempt("the container engine", ask)
    if not info:
        return
    nodes: list[str] = []
    if settings.owns_cluster:
        report.attempt("the cluster's nodes", lambda: nodes.extend(node_containers(settings)))
    for name in nodes:
        report.attempt(f"the journal of {name}", partial(_node_logs, report, name))
    for name in sorted(containers | set(nodes)):
        report.attempt(f"container {name}", partial(_container, report, name))


def _node_logs(report: _Report, node: str) -> None:
    journal = docker(
        "exec", node, "journalctl", "-u", "kubelet", "-u", "containerd", "--no-pager", "-n", str(JOURNAL_LINES)
    )
    report.write(f"nodes/{node}-journal.log", journal.stdout[-LOG_BYTES:])
    # What runs there by containerd's word: the only view left when the API server is what has failed.
    listed = docker("exec", node, "crictl", "ps", "--all", check=False)
    report.write(f"nodes/{node}-containers.txt", listed.stdout + listed.stderr)
    if node.endswith("-control-plane"):
        script = 'for f in /var/log/containers/*_kube-system_*.log; do echo "== $f"; tail -n 60 "$f"; done'
        tails = docker("exec", node, "sh", "-c", script, check=False)
        report.write(f"nodes/{node}-control-plane.log", tails.stdout[-LOG_BYTES:])


def _container(report: _Report, name: str) -> None:
    report.write_objects(f"containers/{name}.yaml", json.loads(docker("container", "inspect", name).stdout))
    logs = docker("logs", "--timestamps", "--tail", str(LOG_LINES), name, check=False)
    report.write(f"containers/{name}.log", (logs.stdout + logs.stderr)[-LOG_BYTES:])


def _host(report: _Report, settings: Settings) -> None:
    facts = hostfacts.gather(settings.cache_dir, wanted_ports(settings).values(), os.environ)
    report.write_objects("host.yaml", [_jsonable(asdict(facts))])


def _jsonable(thing: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(thing, default=str))


def _copies(report: _Report) -> None:
    for path in (VERSIONS_FILE, LOCK_FILE):
        if path.exists():
            report.write(path.name, path.read_text(encoding="utf-8"))


def _lab_logs(report: _Report, settings: Settings) -> None:
    """Write the ends of the newest logs that the lab's own commands, and the engine it started, have left."""
    folders = [settings.state_dir / "logs", settings.state_root / "engine"]
    logs = sorted((p for f in folders for p in f.glob("*.log")), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in logs[:LAB_LOGS]:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            text = file.read().decode(errors="replace")
        report.write(f"lab/{path.name}", text)
