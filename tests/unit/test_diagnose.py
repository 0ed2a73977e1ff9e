import base64
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import diagnose, hostfacts
from scripts.kube import Kube, UnreachableError
from scripts.masking import Masker, secret_values
from scripts.process import Completed
from scripts.settings import Settings

TOKEN = "hunter2-and-some-more"
BINARY = base64.b64encode(b"\xff\xfe\x00\x01" * 8).decode()


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


HIDDEN = [
    ("plain", f"the token was {TOKEN}!", "the token was ***!"),
    ("base64", f"x {b64(TOKEN)} y", "x ***"),
    ("url", f"clone https://git:{TOKEN}@git.example/x failed", "clone https://***@git.example/x failed"),
    ("user only", "clone https://somebody@git.example/x", "clone https://***@git.example/x"),
    ("header", "Authorization: Bearer abc.def", "Authorization: Bearer ***"),
    ("header in JSON", '{"Authorization":"Basic abcdef="}', '{"Authorization":"Basic ***"}'),
    ("header in Go", "map[Authorization:[Bearer abc]]", "map[Authorization:[Bearer ***]]"),
    ("variable", "GIT_TOKEN=abc other=1", "GIT_TOKEN=*** other=1"),
    ("argument", "--hmac-secret=abc --x", "--hmac-secret=*** --x"),
    ("yaml", "dbPassword: abc", "dbPassword: ***"),
    ("json", '{"apiKey": "a\\"b c", "n": 1}', '{"apiKey": "***", "n": 1}'),
    ("key", "SIGNING_KEY=abc", "SIGNING_KEY=***"),
    ("token by shape", "got ghp_0123456789abcdefghij", "got ***"),
    ("web token", "got eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrIn0.c2lnbmF0dXJl", "got ***"),
    ("private key", "a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nb", "a\n***\nb"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "masked"), [case[1:] for case in HIDDEN], ids=[case[0] for case in HIDDEN])
def test_a_secret_is_masked_in_text(text: str, masked: str) -> None:
    found = Masker([TOKEN]).text(text)
    assert found.startswith(masked)
    assert TOKEN not in found
    assert b64(TOKEN) not in found


@pytest.mark.parametrize("user", ["a", "ab", "abc", "abcd"])
def test_a_secret_is_masked_inside_longer_base64(user: str) -> None:
    found = Masker([TOKEN]).text(f"sent {b64(f'{user}:{TOKEN}:end')}.")
    pieces = found.removeprefix("sent ").removesuffix(".").split("***")
    assert len(pieces) == 2
    assert all(len(piece) <= 8 for piece in pieces), found


SHOWN = [
    "tolerations:\n- key: node.kubernetes.io/not-ready\n  operator: Exists",
    "  topologyKey: kubernetes.io/hostname",
    "  secretName: demo-app-secret",
    "automountServiceAccountToken: false",
    "    secret:\n      defaultMode: 420",
    'secret "demo-app-secret" not found',
    'Kustomization dev: secrets "x" is forbidden: User "u" cannot get',
    "main@sha1:0123456789abcdef",
    "monkey business: yes",
    '"Syncing" key="kube-system/coredns"',
    "GET http://10.244.1.7:8000/healthz",
]


@pytest.mark.parametrize("text", SHOWN)
def test_what_is_no_secret_stays_readable(text: str) -> None:
    assert Masker([TOKEN]).text(text) == text


def test_an_object_is_masked_by_its_fields() -> None:
    thing = {
        "metadata": {
            "name": "a",
            "managedFields": [1],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "x/token": "abc"},
        },
        "spec": {
            "env": [{"name": "API_TOKEN", "value": "abc"}, {"name": "SIZE", "value": "9"}],
            "tolerations": [{"key": "a", "value": "b"}],
            "password": "multi\nline",
            "secretName": "kept",
            "note": f"see {TOKEN}",
        },
        "Config": {"Env": ["PATH=/bin", "HTTPS_PROXY=http://u:p@proxy:3128", "ANYTHING=abc", "FLAG"]},
    }
    assert Masker([TOKEN]).plain(thing) == {
        "metadata": {"name": "a", "annotations": {"x/token": "***"}},
        "spec": {
            "env": [{"name": "API_TOKEN", "value": "***"}, {"name": "SIZE", "value": "9"}],
            "tolerations": [{"key": "a", "value": "b"}],
            "password": "***",
            "secretName": "kept",
            "note": "see ***",
        },
        "Config": {"Env": ["PATH=/bin", "HTTPS_PROXY=http://***@proxy:3128", "ANYTHING=***", "FLAG=***"]},
    }


def secret(namespace: str, **data: str) -> dict[str, Any]:
    return {"kind": "Secret", "metadata": {"name": "s", "namespace": namespace}, "type": "Opaque", "data": data}


def test_a_secret_object_shows_the_names_of_its_keys_only() -> None:
    found = Masker().plain(secret("dev", token=b64("abc"), user=b64("def")))
    assert found == {
        "kind": "Secret",
        "metadata": {"namespace": "dev", "name": "s"},
        "type": "Opaque",
        "keys": ["token", "user"],
    }


def test_values_are_taken_where_they_are_secrets_and_not_words() -> None:
    flux = secret("flux-system", token=b64("abcd"), username=b64("somebody"), short=b64("git"), key=BINARY)
    other = secret("dev", a=b64("short"), b=b64("long enough\n"), c=b64("production"))
    assert secret_values([flux, other], ["production"]) == ["abcd", BINARY, "long enough"]


def test_each_line_of_a_key_is_masked_wherever_it_is_indented() -> None:
    key = "-----BEGIN X-----\n0123456789abcdefghijklmn\nqrstuvwxyz0123456789\n-----END X-----"
    masked = Masker([key]).text("log: |\n    0123456789abcdefghijklmn\n    qrstuvwxyz0123456789")
    assert masked == "log: |\n    ***\n    ***"


# --- the folder


class FakeKube(Kube):
    """Answers from a table; a path that is not in it has no objects, an exception is raised."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        super().__init__("kind-lab")
        self.answers = answers

    def get_text(self, path: str, **query: str | int | bool) -> str:
        answer = self.answers.get(path, {"items": []})
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, str) else json.dumps(answer)

    def list_custom(self, kind: str, namespace: str = "") -> list[dict[str, Any]]:
        return []


def crashing(namespace: str, name: str) -> dict[str, Any]:
    state = {"waiting": {"reason": "CrashLoopBackOff"}}
    last = {"terminated": {"exitCode": 1}}
    status = {"name": "app", "state": state, "lastState": last, "restartCount": 3}
    env = [{"name": "GIT_PASSWORD", "value": "hushed"}]
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"nodeName": "lab-worker", "containers": [{"name": "app", "env": env}]},
        "status": {"phase": "Running", "conditions": [], "containerStatuses": [status]},
    }


def answers() -> dict[str, Any]:
    log = f"first\nfatal: bad token {TOKEN}\n"
    resources = [{"name": "kustomizations", "verbs": ["list"]}, {"name": "kustomizations/status", "verbs": ["get"]}]
    event = {
        "lastTimestamp": "2026-05-01T12:00:00Z", "type": "Warning", "reason": "BackOff", "message": "back-off\nrestarting",
        "count": 4, "involvedObject": {"kind": "Pod", "namespace": "dev", "name": "a"},
    }  # fmt: skip
    return {
        "/version": {"gitVersion": "v1.37.0"},
        "/api/v1/secrets": {"items": [secret("flux-system", token=b64(TOKEN))]},
        "/api/v1/pods": {"items": [crashing("dev", "a"), crashing("elsewhere", "b")]},
        "/api/v1/events": {"items": [event]},
        "/api/v1/namespaces/dev/pods/a/log": log,
        "/apis/kustomize.toolkit.fluxcd.io": {"preferredVersion": {"groupVersion": "kustomize.toolkit.fluxcd.io/v1"}},
        "/apis/kustomize.toolkit.fluxcd.io/v1": {"resources": resources},
        "/apis/kustomize.toolkit.fluxcd.io/v1/kustomizations": {
            "items": [{"metadata": {"name": "dev"}, "spec": {"path": "./x"}}]
        },
        **{f"/apis/{name}.toolkit.fluxcd.io": _not_found() for name in ("source", "helm", "notification")},
    }


def _not_found() -> Exception:
    from kubernetes.client import ApiException

    error: Exception = ApiException(status=404, reason="Not Found")
    return error


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return a lab with one node container; its own log is in the state folder."""
    inspected = [{"Name": "/lab-worker", "Config": {"Env": ["A=abc", "PATH=/bin"], "Labels": {"role": "worker"}}}]

    def docker(*args: str, **more: Any) -> Completed:
        out = json.dumps(inspected) if args[:2] == ("container", "inspect") else f"said {' '.join(args)} {TOKEN}"
        return Completed(args, 0, out, "", 0.0)

    monkeypatch.setattr(diagnose, "docker", docker)
    monkeypatch.setattr(diagnose, "engine_info", lambda: {"ServerVersion": "29", "HttpProxy": "http://u:p@proxy:3128"})
    monkeypatch.setattr(diagnose, "node_containers", lambda settings: ["lab-worker"])
    monkeypatch.setattr(diagnose, "containers_with_label", lambda label: ["lab-git"])
    monkeypatch.setattr(diagnose, "environments", lambda: ["dev"])
    monkeypatch.setattr(hostfacts, "gather", lambda *args: hostfacts.HostFacts("linux"))
    settings = Settings(cluster_name="lab", state_root=tmp_path, git_url="https://u:p@git.example/x")
    (settings.state_dir / "logs").mkdir(parents=True)
    (settings.state_dir / "logs" / "setup-all.log").write_text(f"$ push {TOKEN}\n")
    return settings


WHOLE = [
    "containers/lab-git.log", "containers/lab-git.yaml", "containers/lab-worker.log", "containers/lab-worker.yaml", "engine.yaml",
    "events.txt", "flux/kustomizations.yaml", "host.yaml", "lab/setup-all.log", "logs/dev/a-app-previous.log", "nodes.yaml",
    "nodes/lab-worker-containers.txt", "nodes/lab-worker-journal.log", "pods.yaml", "secrets.yaml", "summary.txt", "version.json",
    "versions.yaml", "workloads.yaml",
]  # fmt: skip


def files(folder: Path) -> list[str]:
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != "versions.lock.yaml"
    )


def test_the_folder_holds_everything_and_no_secret(settings: Settings) -> None:
    folder = diagnose.diagnose(settings, FakeKube(answers()))
    assert files(folder) == WHOLE
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        if path.is_file():
            text = path.read_text()
            assert TOKEN not in text and b64(TOKEN) not in text and "u:p@" not in text and "hushed" not in text, path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "fatal: bad token ***" in (folder / "logs/dev/a-app-previous.log").read_text()
    assert yaml.safe_load((folder / "containers/lab-worker.yaml").read_text())["Config"]["Labels"] == {"role": "worker"}
    assert yaml.safe_load((folder / "flux/kustomizations.yaml").read_text())["spec"] == {"path": "./x"}
    line = "2026-05-01T12:00:00Z Warning dev Pod/a BackOff: back-off restarting (x4)\n"
    assert (folder / "events.txt").read_text() == line


def test_the_summary_names_the_deepest_causes_and_what_is_missing(settings: Settings) -> None:
    summary = (diagnose.diagnose(settings, FakeKube(answers())) / "summary.txt").read_text()
    causes, missing = summary.split("Settings:")[0].split("Could not be had:")
    assert "pod dev/a: ends with exit code 1 (3 restarts); its last words: fatal: bad token ***" in causes
    assert "Flux objects of helm.toolkit.fluxcd.io: HTTP 404 Not Found" in missing
    assert "git_url: https://***@git.example/x" in summary


def test_without_a_cluster_the_rest_is_written(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    down = UnreachableError("The cluster of context kind-lab can't be reached (refused).", "make resume")
    monkeypatch.setattr(
        diagnose, "why_unreachable", lambda *args: UnreachableError("The nodes do not run.", "make resume")
    )
    folder = diagnose.diagnose(settings, FakeKube({"/version": down}))
    cluster = {"events.txt", "flux/kustomizations.yaml", "logs/dev/a-app-previous.log", "nodes.yaml", "pods.yaml", "secrets.yaml", "version.json", "workloads.yaml"}  # fmt: skip
    assert files(folder) == [name for name in WHOLE if name not in cluster]
    summary = (folder / "summary.txt").read_text()
    assert "  The nodes do not run. To mend it: make resume\n" in summary
    assert "everything from the cluster: The cluster of context kind-lab can't be reached (refused)." in summary


def test_without_an_engine_the_rest_is_written(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "engine_info", lambda: None)
    folder = diagnose.diagnose(settings, FakeKube(answers()))
    assert files(folder) == [n for n in WHOLE if n != "engine.yaml" and not n.startswith(("containers/", "nodes/"))]
    assert "the container engine: it does not answer" in (folder / "summary.txt").read_text()


@pytest.mark.parametrize(
    "path", ["/api/v1/secrets", "/api/v1/events", "/api/v1/pods", "/api/v1/namespaces/dev/pods/a/log"]
)
def test_a_part_that_fails_costs_only_itself(settings: Settings, path: str) -> None:
    broken = answers() | {path: UnreachableError("The cluster went away.", "wait")}
    folder = diagnose.diagnose(settings, FakeKube(broken))
    assert "The cluster went away." in (folder / "summary.txt").read_text()
    assert "engine.yaml" in files(folder)
    assert "flux/kustomizations.yaml" in files(folder)


def test_only_the_newest_five_are_kept_and_nothing_else_is_touched(settings: Settings) -> None:
    keep = settings.state_dir / "diagnostics" / "mine"
    keep.mkdir(parents=True)
    down = FakeKube({"/version": UnreachableError("down", "")})
    made = [
        diagnose.diagnose(Settings(state_root=settings.state_root, cluster_name="lab", kube_context="x"), down)
        for _ in range(7)
    ]
    assert sorted(p for p in keep.parent.iterdir() if p != keep) == sorted(made[2:])
    assert keep.is_dir()


def test_masking_takes_time_in_line_with_the_texts_length() -> None:
    long = "A" * 200_000 + ' token="' + "b" * 200_000
    assert Masker([TOKEN]).text(long).startswith("AAAA")  # the time limit of a test is the check
