"""Root file systems of source mode, made by mmdebstrap from the machine's own Debian package sources.

Each is a `.tar.gz` in the cache that the engine imports as a base image. `SOURCE_DATE_EPOCH` makes the same
packages give the same bytes.
"""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from scripts import console
from scripts.cache import Cache, digest_of
from scripts.errors import LabError
from scripts.process import run

# A fixed time stamp for every file: 2026-01-01.
SOURCE_DATE_EPOCH = "1767225600"


@dataclass(frozen=True)
class RootFs:
    """A recipe: mmdebstrap's variant and what is added to it."""

    name: str
    variant: str
    packages: tuple[str, ...]
    dpkg_excludes: tuple[str, ...] = (
        "/usr/share/doc/*",
        "/usr/share/man/*",
        "/usr/share/locale/*",
        "/usr/share/info/*",
    )
    # A command run on the unpacked tree, which is its "$1".
    hook: str = ""


# /usr is merged before the first package is unpacked: Debian's own way to merge it later brings all of Perl, 47 MB.
MERGED = "usr-is-merged"
MERGE_HOOKS = "/usr/share/mmdebstrap/hooks/merged-usr"
# Packages that are only unpacked run no script, so nothing has made a bundle of the certificates.
CA_BUNDLE = 'cat "$1"/usr/share/ca-certificates/mozilla/*.crt > "$1/etc/ssl/certs/ca-certificates.crt"'

# What kind's own node image holds (images/base/Dockerfile of its module), with Debian's runc.
NODE = RootFs(
    "rootfs-node",
    "minbase",
    (
        MERGED, "systemd", "conntrack", "iptables", "nftables", "iproute2", "ethtool", "util-linux", "mount", "kmod",
        "libseccomp2", "pigz", "e2fsprogs", "bash", "ca-certificates", "curl", "jq", "procps", "runc",
    ),
)  # fmt: skip
# kube-proxy and kube-router call these tools.
NET = RootFs(
    "rootfs-net",
    "essential",
    (MERGED, "iptables", "nftables", "conntrack", "ipset", "iproute2", "ca-certificates", "kmod"),
)
# Envoy's release binary needs glibc and a CA bundle, nothing else.
GLIBC = RootFs("rootfs-glibc", "extract", ("base-files", "netbase", "libc6", "ca-certificates"), hook=CA_BUNDLE)
GIT = RootFs("rootfs-git", "essential", ("git", "lighttpd", "ca-certificates"))
# What the application runs on has no shell, as its base in registry mode has none.
PYTHON = RootFs(
    "rootfs-python",
    "extract",
    ("base-files", "netbase", "tzdata", "ca-certificates", "python3-minimal", "libpython3-stdlib"),
    hook=CA_BUNDLE,
)
ALL = (NODE, NET, GLIBC, GIT, PYTHON)


def rootfs_key(recipe: RootFs, suite: str) -> str:
    """Return the key of a root file system: its recipe, not the state of the package mirror on one day."""
    hook = [recipe.hook] if recipe.hook else []
    return digest_of(
        1, recipe.name, recipe.variant, recipe.packages, recipe.dpkg_excludes, suite, platform.machine(), *hook
    )


def _is_merged(recipe: RootFs) -> bool:
    return recipe.variant == "extract" or MERGED in recipe.packages


def build_rootfs(cache: Cache, recipe: RootFs, suite: str, log_dir: Path) -> tuple[Path, bool]:
    """Return the tar file of a root file system and whether it had to be built. Needs root and mmdebstrap."""

    def build(folder: Path) -> None:
        if not shutil.which("mmdebstrap"):
            raise LabError("mmdebstrap is missing.", "apt-get install -y --no-install-recommends mmdebstrap")
        console.note(f"{recipe.name}: Debian packages")
        log_dir.mkdir(parents=True, exist_ok=True)
        log = log_dir / f"build-{recipe.name}.log"
        log.write_text("")
        run(
            [
                "mmdebstrap",
                f"--variant={recipe.variant}",
                f"--include={','.join(recipe.packages)}",
                *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.dpkg_excludes),
                *([f"--hook-dir={MERGE_HOOKS}"] if _is_merged(recipe) else []),
                *([f"--extract-hook={recipe.hook}"] if recipe.hook else []),
                suite,
                folder / "root.tar.gz",
            ],
            timeout_s=1800,
            env={"SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH, "TMPDIR": str(_temporary(cache))},
            log_file=log,
            mend="check that apt's package mirror can be reached (`apt-get update`), then run again",
        )

    entry, built = cache.ensure(recipe.name, rootfs_key(recipe, suite), build)
    return entry / "root.tar.gz", built


def _temporary(cache: Cache) -> Path:
    folder = cache.root / "work" / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o1777)
    return folder
