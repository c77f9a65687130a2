"""A cluster that speaks TLS: a run trains on it, and who has no certificate of its authority is not let in.

    python -m pytest -q -m "" tests/e2e/test_tls.py
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from ray.util import get_node_ip_address

from tests.e2e.head import Head, Result, pipeline, tiny_config, two_sources

pytestmark = pytest.mark.slow


def sign(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name, by: ec.EllipticCurvePrivateKey, is_authority: bool
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    hosts = [x509.IPAddress(ipaddress.ip_address(ip)) for ip in {"127.0.0.1", get_node_ip_address()}]
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), *hosts]), critical=False)
        .sign(by, hashes.SHA256())
    )  # fmt: skip


def certificates(folder: Path) -> dict[str, str]:
    """A node's certificate by an authority of its own; what Ray must be told of it."""
    folder.mkdir()
    authority, node = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    pem = serialization.Encoding.PEM
    files = {
        "CA_CERT": sign("authority", authority, issuer, authority, True).public_bytes(pem),
        "SERVER_CERT": sign("node", node, issuer, authority, False).public_bytes(pem),
        "SERVER_KEY": node.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {"RAY_USE_TLS": "1", **{f"RAY_TLS_{name}": str(folder / name) for name in files}}


@pytest.fixture(scope="module")
def tls_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("tls")
    head = Head.start(folder, 4, **certificates(folder / "certificates"))
    yield head
    head.stop()


def test_a_run_trains_the_same_batches(tls_head: Head, config: Path, reference: Result) -> None:
    done = pipeline("pretrain", "--config", str(config), "run.name=tls", env=tls_head.env)
    assert done.code == 0, done.out + done.err
    assert done.summary["order_digest"] == reference.summary["order_digest"]


@pytest.mark.parametrize("who", ["nobody", "a stranger"])
def test_who_has_no_certificate_of_its_authority_is_not_let_in(tls_head: Head, tmp_path: Path, who: str) -> None:
    """The token is right; an authority of one's own does not help."""
    theirs = certificates(tmp_path / "theirs") if who == "a stranger" else {"RAY_USE_TLS": "0"}
    config = tiny_config(tmp_path, two_sources(tmp_path / "corpus"))
    env = {**tls_head.env, **theirs, "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    refused = pipeline("pretrain", "--config", str(config), env=env, timeout_s=300)
    assert refused.code != 0 and not (tmp_path / "runs/tiny").exists()
    assert "Failed to connect to GCS" in refused.err, refused.err  # Ray ends the process itself
