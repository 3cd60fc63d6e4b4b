"""Encrypted links: TLS 1.3 by the standard library, on which each side shows a certificate.

A directory holds what QEMU's tls-creds-x509 has under the same names:

    ca-cert.pem                       who signs: only what it has signed is believed
    server-cert.pem, server-key.pem   the target's, for the host name that the source calls
    client-cert.pem, client-key.pem   the source's
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from minivmm.errors import HostError, MigrationError
from minivmm.migration.channel import PATIENCE


def server_context(creds: Path) -> ssl.SSLContext:
    """What a target needs to be ready for a source. Raises HostError."""
    return _context(ssl.PROTOCOL_TLS_SERVER, creds, "server")


def wrap_server(link: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """The encrypted form of `link`, which is the wrapper's now. Raises MigrationError."""
    link.settimeout(PATIENCE)
    try:
        return context.wrap_socket(link, server_side=True)
    except (OSError, ValueError) as error:
        link.close()
        raise MigrationError(f"the source shows no good certificate: {_reason(error)}") from None


def wrap_client(link: socket.socket, creds: Path, hostname: str) -> ssl.SSLSocket:
    """The same at the source; the target's certificate must be `hostname`'s.

    Raises MigrationError or HostError.
    """
    try:
        context = _context(ssl.PROTOCOL_TLS_CLIENT, creds, "client")
        return context.wrap_socket(link, server_hostname=hostname)
    except HostError:
        link.close()
        raise
    except (OSError, ValueError) as error:
        link.close()
        raise MigrationError(f"the target shows no good certificate: {_reason(error)}") from None


def _context(protocol: int, creds: Path, side: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    files = [creds / name for name in ("ca-cert.pem", f"{side}-cert.pem", f"{side}-key.pem")]
    for file in files:
        if not file.is_file():
            raise HostError(f"{file} is missing: creds= needs it (docs/migration.md)")
    try:
        context.load_verify_locations(files[0])
        context.load_cert_chain(files[1], files[2], password="")
    except (OSError, ValueError) as error:
        raise HostError(f"certificates in {creds} cannot be used: {_reason(error)}") from None
    return context


def _reason(error: Exception) -> str:
    """What OpenSSL found wrong, on one line."""
    said = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
    return " ".join(str(said).split())
