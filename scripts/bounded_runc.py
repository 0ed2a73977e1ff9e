#!/usr/bin/env python3
"""An OCI runtime that drops what this machine can't give, then becomes runc.

`--privileged` asks for every capability. Where the machine's own bounding set lacks one, runc refuses the whole
container ("unable to apply caps: operation not permitted"). This wrapper takes the missing ones out of the OCI
spec first; it is set up only where one is missing. Standard library only: the engine runs it outside any
virtual environment. Format: https://github.com/opencontainers/runtime-spec/blob/main/config.md
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

# Bit order of linux/capability.h.
CAPABILITIES = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
]


def bounding_set(status: str) -> set[str]:
    """Return the names of the capabilities in a /proc/<pid>/status text's CapBnd."""
    mask = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapBnd"))
    return {f"CAP_{name}" for bit, name in enumerate(CAPABILITIES) if mask >> bit & 1}


def reduce_process(process: dict[str, Any], allowed: set[str]) -> None:
    """Take the capabilities that can't be given, and the score that can't be lowered, out of an OCI process."""
    for kind, names in (process.get("capabilities") or {}).items():
        process["capabilities"][kind] = [name for name in names if name in allowed]
    if "CAP_SYS_RESOURCE" not in allowed:
        process.pop("oomScoreAdj", None)


def option(arguments: list[str], *names: str) -> str:
    """Return an option's value, given as `--name value` or `--name=value`; empty if absent."""
    for index, argument in enumerate(arguments):
        if argument in names and index + 1 < len(arguments):
            return arguments[index + 1]
        for name in names:
            if argument.startswith(f"{name}="):
                return argument.partition("=")[2]
    return ""


def prepare(arguments: list[str], allowed: set[str]) -> None:
    """Rewrite the spec that runc is about to read."""
    if "create" in arguments or "run" in arguments:
        path = Path(option(arguments, "--bundle", "-b") or ".") / "config.json"
        spec = json.loads(path.read_text())
        reduce_process(spec["process"], allowed)
        path.write_text(json.dumps(spec))
    elif "exec" in arguments and option(arguments, "--process", "-p"):
        path = Path(option(arguments, "--process", "-p"))
        process = json.loads(path.read_text())
        reduce_process(process, allowed)
        path.write_text(json.dumps(process))


def main() -> None:
    """Reduce the spec and become runc."""
    arguments = sys.argv[1:]
    prepare(arguments, bounding_set(Path("/proc/self/status").read_text()))
    runc = shutil.which("runc") or shutil.which("runc", path="/usr/local/sbin:/usr/sbin:/sbin:/usr/bin")
    if not runc:
        sys.exit("bounded-runc: runc is not there")
    os.execv(runc, ["runc", *arguments])


if __name__ == "__main__":
    main()
