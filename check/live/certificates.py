"""Certificates for servers with TLS: one authority, and what it has signed, made once for a run.

Source:  openssl-req(1), openssl-x509(1); nbdkit-tls(1) for the names of the files, which qemu-nbd and libnbd use, too.
Errors:  StartError, one line.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from check.live.servers import find
from impl.errors import StartError

HOSTNAME = "localhost"
FOLDER = "certificates"
DAYS = "30"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def folder_in(parent: Path) -> Path:
    """The folder, with the files in it."""
    folder = parent / FOLDER
    if not folder.exists():
        made = parent / f"{FOLDER}-in-the-making"
        made.mkdir(exist_ok=True)
        _make(made)
        made.rename(folder)
    return folder


def _make(folder: Path) -> None:
    (folder / "names").write_text(f"subjectAltName=DNS:{HOSTNAME}\n", encoding="utf-8")
    authority = ["-keyout", "ca-key.pem", "-out", "ca-cert.pem", "-subj", "/CN=cowproof"]
    _openssl(folder, "req", "-x509", *NEW_KEY, *authority, "-days", DAYS)
    _openssl(folder, "req", *NEW_KEY, "-keyout", "server-key.pem", "-out", "request.pem", "-subj", f"/CN={HOSTNAME}")
    signed_by = ["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-extfile", "names"]
    _openssl(folder, "x509", "-req", "-in", "request.pem", *signed_by, "-out", "server-cert.pem", "-days", DAYS)


def _openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run([find("openssl"), *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StartError(f"openssl {arguments[0]} failed: {' / '.join(done.stderr.splitlines()[-2:])}")
