import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import bounded_runc
from scripts.bounded_runc import CAPABILITIES, bounding_set, option, prepare

ALL = [f"CAP_{name}" for name in CAPABILITIES]
LACKING = ("CAP_SYS_RESOURCE", "CAP_SYS_MODULE")
ALLOWED = set(ALL) - set(LACKING)
ID = "3f4cbbd5a1e0" * 4
# How containerd's shim calls a runtime (`docker run --privileged`, `docker exec --privileged`).
GLOBAL = ["--root", "/var/run/docker/runtime-runc/moby", "--log", "/run/run/log.json", "--log-format", "json"]

# What dockerd 20.10 writes for `docker run --privileged`, shortened.
SPEC: dict[str, Any] = {
    "ociVersion": "1.0.2-dev",
    "process": {
        "user": {"uid": 0, "gid": 0},
        "args": ["/usr/local/bin/entrypoint", "/sbin/init"],
        "env": ["PATH=/usr/bin", "container=docker"],
        "cwd": "/",
        "capabilities": {
            "bounding": ALL,
            "effective": ALL,
            "inheritable": ALL,
            "permitted": ALL,
        },
        "oomScoreAdj": -500,
    },
    "root": {"path": "/var/lib/docker/overlay2/x/merged"},
    "hostname": "gitops-lab-control-plane",
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
    "linux": {"cgroupsPath": "/docker/x", "resources": {"devices": [{"allow": True, "access": "rwm"}]}},
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SPEC))
    return folder


def reduced(spec: dict[str, Any]) -> dict[str, Any]:
    wanted = copy.deepcopy(spec)
    process = wanted.get("process", wanted)
    for kind in process.get("capabilities", {}):
        process["capabilities"][kind] = [name for name in ALL if name in ALLOWED]
    process.pop("oomScoreAdj", None)
    return wanted


def test_the_bit_order_is_the_kernels() -> None:
    # linux/capability.h: CAP_SETPCAP 8, CAP_SYS_MODULE 16, CAP_SYS_ADMIN 21, CAP_SYS_RESOURCE 24, CAP_BPF 39, last 40
    assert [CAPABILITIES.index(n) for n in ("CHOWN", "SETPCAP", "SYS_MODULE", "SYS_ADMIN", "SYS_RESOURCE", "BPF")] == [
        0, 8, 16, 21, 24, 39,
    ]  # fmt: skip
    assert len(CAPABILITIES) == len(set(CAPABILITIES)) == 41


@pytest.mark.parametrize(
    ("mask", "lacking"),
    [
        ("000001ffffffffff", set()),
        ("000001fffeffffff", {"CAP_SYS_RESOURCE"}),
        ("0000003fffffffff", {"CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE"}),
        ("0000000000000000", set(ALL)),
        ("ffffffffffffffff", set()),
    ],
)
def test_the_bounding_set_is_read_from_a_process_status(mask: str, lacking: set[str]) -> None:
    status = (
        f"Name:\tsh\nCapInh:\t0000000000000000\nCapPrm:\t000001ffffffffff\nCapBnd:\t{mask}\nCapAmb:\t0000000000000000\n"
    )
    assert bounding_set(status) == set(ALL) - lacking


@pytest.mark.parametrize("command", ["create", "run"])
@pytest.mark.parametrize("given", [("--bundle", "{}"), ("-b", "{}"), ("--bundle={}",), ("-b={}",)])
def test_a_new_container_asks_for_no_more_than_there_is(bundle: Path, command: str, given: tuple[str, ...]) -> None:
    options = [part.format(bundle) for part in given]
    prepare([*GLOBAL, command, *options, "--pid-file", f"{bundle}/init.pid", ID], ALLOWED)
    assert json.loads((bundle / "config.json").read_text()) == reduced(SPEC)


def test_the_bundle_is_the_current_folder_unless_given(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle)
    prepare(["create", ID], ALLOWED)
    assert json.loads((bundle / "config.json").read_text()) == reduced(SPEC)


@pytest.mark.parametrize("given", [("--process", "{}"), ("-p", "{}"), ("--process={}",)])
def test_a_command_in_a_container_asks_for_no_more_than_there_is(tmp_path: Path, given: tuple[str, ...]) -> None:
    path = tmp_path / "runc-process123"
    path.write_text(json.dumps(SPEC["process"]))
    prepare([*GLOBAL, "exec", *(part.format(path) for part in given), "--detach", ID], ALLOWED)
    assert json.loads(path.read_text()) == reduced(SPEC["process"])


def test_a_process_without_capabilities_stays_without(tmp_path: Path) -> None:
    path = tmp_path / "process"
    process = {"args": ["ls"], "cwd": "/", "oomScoreAdj": -1}
    path.write_text(json.dumps(process))
    prepare(["exec", "--process", str(path), ID], ALLOWED)
    assert json.loads(path.read_text()) == {"args": ["ls"], "cwd": "/"}


def test_the_score_stays_where_it_can_be_lowered(bundle: Path) -> None:
    prepare(["create", "--bundle", str(bundle), ID], set(ALL) - {"CAP_SYS_MODULE"})
    process = json.loads((bundle / "config.json").read_text())["process"]
    assert process["oomScoreAdj"] == -500
    assert "CAP_SYS_RESOURCE" in process["capabilities"]["bounding"]
    assert "CAP_SYS_MODULE" not in process["capabilities"]["bounding"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["features"],
        [*GLOBAL, "start", ID],
        [*GLOBAL, "kill", "--all", ID, "9"],
        [*GLOBAL, "delete", "--force", ID],
        [*GLOBAL, "state", ID],
        [*GLOBAL, "exec", ID, "ls"],
        [],
    ],
)
def test_other_commands_are_passed_on_untouched(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(bundle)
    prepare(arguments, set())
    assert json.loads((bundle / "config.json").read_text()) == SPEC


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--bundle", "/b"], "/b"),
        (["--bundle=/b=c"], "/b=c"),
        (["-b", "/b"], "/b"),
        (["--bundles", "/b"], ""),
        (["x", "--bundle"], ""),
        ([], ""),
    ],
)
def test_an_option_is_found_in_each_way_of_writing_it(arguments: list[str], value: str) -> None:
    assert option(arguments, "--bundle", "-b") == value


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_program_reduces_the_spec_and_becomes_runc(tmp_path: Path, bundle: Path) -> None:
    runc = tmp_path / "bin" / "runc"
    runc.parent.mkdir()
    runc.write_text('#!/bin/sh\necho "$@"\nexit 7\n')
    runc.chmod(0o755)
    arguments = ["--root", "/r", "create", "--bundle", str(bundle), ID]
    # -I: the engine starts it without this repository and its packages.
    done = subprocess.run(
        [sys.executable, "-I", bounded_runc.__file__, *arguments],
        env={"PATH": str(runc.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (7, " ".join(arguments) + "\n"), done.stderr
    here = bounding_set(Path(f"/proc/{os.getpid()}/status").read_text())
    found = json.loads((bundle / "config.json").read_text())["process"]["capabilities"]["bounding"]
    assert found == [name for name in ALL if name in here]
