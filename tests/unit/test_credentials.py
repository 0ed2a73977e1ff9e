import base64
import json
import subprocess
from pathlib import Path

import pytest

from scripts.credentials import credentials_for, engine_environment, stored_credentials
from scripts.errors import UsageError
from scripts.settings import Credentials
from tests.unit.conftest import Programs

HOST = "mirror.example:5443"
SECRET = "pass:word-of-the-mirror"


def encoded(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    for name in ("IMAGE_MIRROR_USER", "IMAGE_MIRROR_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "docker").mkdir()
    return tmp_path / "docker" / "config.json"


def set_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_MIRROR_USER", "env-user")
    monkeypatch.setenv("IMAGE_MIRROR_PASSWORD", SECRET)


def test_what_docker_login_left_is_found(config: Path) -> None:
    assert credentials_for(HOST) is None
    config.write_text(json.dumps({"auths": {HOST: {"auth": encoded("me", SECRET)}, "other": {"auth": "!"}}}))
    assert stored_credentials(HOST) == Credentials("me", SECRET)
    assert stored_credentials("nobody.example") is None
    assert stored_credentials("other") is None
    config.write_text(json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": encoded("hub", "x1")}}}))
    assert stored_credentials("docker.io") == Credentials("hub", "x1")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_configuration_holds_nothing(config: Path, text: str) -> None:
    config.write_text(text)
    assert stored_credentials(HOST) is None


@pytest.mark.parametrize(
    ("answer", "exit_code", "found"),
    [
        ({"Username": "me", "Secret": SECRET}, 0, Credentials("me", SECRET)),
        ({"Username": "<token>", "Secret": SECRET}, 0, None),
        ({}, 1, None),
    ],
)
@pytest.mark.parametrize("key", ["credsStore", "credHelpers"])
def test_a_helper_is_asked_by_standard_input(
    config: Path,
    programs: Programs,
    tmp_path: Path,
    key: str,
    answer: dict[str, str],
    exit_code: int,
    found: Credentials | None,
) -> None:
    config.write_text(json.dumps({key: "keys" if key == "credsStore" else {HOST: "keys"}}))
    programs.add(
        "docker-credential-keys",
        f"PATH=/usr/bin:/bin; cat > {tmp_path}/asked; cat <<'END'\n{json.dumps(answer)}\nEND\nexit {exit_code}",
    )
    assert stored_credentials(HOST) == found
    assert (tmp_path / "asked").read_text() == HOST
    assert programs.calls() == [["docker-credential-keys", "get"]]


def test_a_helper_that_is_gone_holds_nothing(config: Path, programs: Programs) -> None:
    config.write_text('{"credsStore": "desktop"}')
    assert stored_credentials(HOST) is None


def test_the_environment_counts_before_what_is_stored(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text(json.dumps({"auths": {HOST: {"auth": encoded("me", "stored")}}}))
    set_environment(monkeypatch)
    assert credentials_for(HOST) == Credentials("env-user", SECRET)
    monkeypatch.delenv("IMAGE_MIRROR_USER")
    with pytest.raises(UsageError, match="Only one of"):
        credentials_for(HOST)


def test_the_engine_is_let_in_for_one_pull_and_no_trace_is_left(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {
        "auths": {"other": {"auth": "x"}},
        "credsStore": "desktop",
        "credHelpers": {HOST: "a", "gcr.io": "b"},
        "currentContext": "colima",
    }
    config.write_text(json.dumps(stored))
    (config.parent / "contexts").mkdir()
    set_environment(monkeypatch)
    with engine_environment(HOST) as environment:
        folder = Path(environment["DOCKER_CONFIG"])
        given = json.loads((folder / "config.json").read_text())
        assert given["auths"] == {"other": {"auth": "x"}, HOST: {"auth": encoded("env-user", SECRET)}}
        assert given["credHelpers"] == {"gcr.io": "b"}
        assert given["currentContext"] == "colima", "which engine is meant stays as it was"
        assert "credsStore" not in given
        assert (folder / "contexts").resolve() == config.parent / "contexts"
        assert (folder / "config.json").stat().st_mode & 0o077 == 0
        assert folder.stat().st_mode & 0o077 == 0
        shown = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert SECRET not in shown
    assert not folder.exists()
    assert json.loads(config.read_text()) == stored


def test_without_a_user_in_the_environment_the_engines_own_login_holds(config: Path) -> None:
    with engine_environment(HOST) as environment:
        assert environment == {}


def test_upstream_never_sees_the_mirrors_user(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)
    with engine_environment("") as environment:
        assert environment == {}
    assert stored_credentials("docker.io") is None
