"""A CA of one's own and a server certificate of it, made by the machine's openssl; renewed when names or dates ask for it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.process import run

CA_DAYS = 3650
SERVER_DAYS = 397
RENEW_BEFORE_S = 30 * 24 * 3600
_OPENSSL = "install openssl"


@dataclass(frozen=True)
class ServerCertificate:
    """The files that a TLS server needs, and the CA that clients are given."""

    ca: Path
    certificate: Path
    key: Path
    renewed: bool


def ensure_certificate(folder: Path, names: Sequence[str]) -> ServerCertificate:
    """Make a CA and a server certificate for these names and addresses be there.

    The CA stays what it is: whoever was given it once goes on trusting. Its key never leaves the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    found = ServerCertificate(folder / "ca.pem", folder / "server.pem", folder / "server.key", False)
    listed = folder / "names"
    wanted = "\n".join(names) + "\n"
    if not found.ca.exists():
        _make_ca(folder)
    elif found.certificate.exists() and listed.exists() and listed.read_text() == wanted and _lasts(found.certificate):
        return found
    _make_server(folder, names)
    listed.write_text(wanted)
    return ServerCertificate(found.ca, found.certificate, found.key, True)


def fingerprint(certificate: Path) -> str:
    """Return a certificate's SHA-256, for people to compare."""
    done = run(
        ["openssl", "x509", "-in", certificate, "-noout", "-fingerprint", "-sha256"], timeout_s=30, mend=_OPENSSL
    )
    return done.stdout.strip().partition("=")[2]


def _lasts(certificate: Path) -> bool:
    args: list[str | Path] = ["openssl", "x509", "-in", certificate, "-noout", "-checkend", str(RENEW_BEFORE_S)]
    return run(args, timeout_s=30, check=False, mend=_OPENSSL).exit_code == 0


def _make_ca(folder: Path) -> None:
    config = folder / "ca.cnf"
    config.write_text(
        "[req]\ndistinguished_name=dn\nx509_extensions=ext\nprompt=no\n[dn]\nCN=GitOps lab mirror CA\n"
        "[ext]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
    )
    _new_key(folder / "ca.key")
    _openssl(
        folder, "req", "-x509", "-new", "-key", "ca.key", "-days", str(CA_DAYS), "-config", "ca.cnf", "-out", "ca.pem"
    )


def _make_server(folder: Path, names: Sequence[str]) -> None:
    kinds = ",".join(f"{'IP' if _is_address(name) else 'DNS'}:{name}" for name in names)
    (folder / "server.cnf").write_text("[req]\ndistinguished_name=dn\nprompt=no\n[dn]\nCN=GitOps lab mirror\n")
    (folder / "server.ext").write_text(
        f"basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n"
        f"subjectAltName={kinds}\nauthorityKeyIdentifier=keyid\n"
    )
    _new_key(folder / "server.key")
    _openssl(folder, "req", "-new", "-key", "server.key", "-config", "server.cnf", "-out", "server.csr")
    # Not `req -x509 -CA`: the openssl of macOS does not have it.
    _openssl(
        folder, "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-sha256",
        "-days", str(SERVER_DAYS), "-extfile", "server.ext", "-out", "server.pem",
    )  # fmt: skip


def _new_key(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    _openssl(path.parent, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path.name)


def _openssl(folder: Path, *args: str) -> None:
    run(["openssl", *args], timeout_s=60, cwd=folder, mend=_OPENSSL)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
