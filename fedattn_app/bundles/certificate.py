"""A certificate with which the processes of one node recognise each other.

The processes that run the code of a run ask the SuperNode for it on a port of this machine. Without
a certificate they would take code from whoever has that port when the SuperNode has just ended.
"""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

VALID = timedelta(days=3650)
CLOCK_TOLERANCE = timedelta(days=1)


def write_certificate(folder: Path, host: str) -> list[str]:
    """Write a new key and certificate for `host` to `folder`, and return the options for them.

    They are its own authority and serve the node that `folder`, which only this user may read,
    belongs to. `host` is the name or address to which the node's port is bound.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedattn node")])
    now = datetime.now(UTC)
    names = [x509.DNSName("localhost"), _subject(host), _subject("127.0.0.1"), _subject("::1")]
    usage = x509.BasicConstraints(ca=True, path_length=0)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_TOLERANCE)
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(usage, critical=True)
        .sign(key, SHA256())
    )
    key_text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key_file, certificate_file = folder / "runtime.key", folder / "runtime.pem"
    key_file.touch(mode=0o600)
    key_file.write_bytes(key_text)
    certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    options = {"--ssl-certfile": certificate_file, "--ssl-keyfile": key_file}
    options["--ssl-ca-certfile"] = certificate_file
    return [text for option, path in options.items() for text in (option, str(path))]


def _subject(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)
