"""Self-made certificates: an authority, and what it signs for 127.0.0.1."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_NEW = ["-newkey", "rsa:2048", "-nodes"]


@dataclass(frozen=True)
class Signed:
    certificate: Path  # PEM
    key: Path  # PEM, PKCS 8


@dataclass(frozen=True)
class Authority:
    folder: Path
    certificate: Path

    def sign(self, name: str) -> Signed:
        """For a server at 127.0.0.1 or localhost, or for a client of that name."""
        key, request, certificate = (self.folder / f"{name}.{kind}" for kind in ("key", "csr", "pem"))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        _openssl("req", *_NEW, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        authority = ["-CA", self.certificate, "-CAkey", self.certificate.with_suffix(".key"), "-CAcreateserial"]
        _openssl("x509", "-req", "-in", request, *authority, "-out", certificate, "-days", "2", "-extfile", extensions)
        return Signed(certificate, key)


def new_authority(folder: Path) -> Authority:
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = folder / "ca.pem", folder / "ca.key"
    _openssl("req", "-x509", *_NEW, "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=spoor tests")
    return Authority(folder, certificate)


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
