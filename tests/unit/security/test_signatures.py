"""A signature counts if a manager of this authority made it while the certificate was good."""

import time
from pathlib import Path

import pytest

from retinue.security.signatures import SignatureError, check, sign
from support.pki_files import Certificates


def test_a_managers_signature_counts(pki: Certificates) -> None:
    certificate, key = pki.files("manager/anna")
    who = check(b"data", sign(b"data", key), certificate.read_text(), pki.authority.ca, time.time())
    assert sorted(who.names) == ["anna"]


@pytest.mark.parametrize(
    ("party", "data", "at", "why"),
    [
        ("manager/anna", b"other", 0.0, "does not match"),
        ("agent/server1", b"data", 0.0, "signed by agent server1: only a manager publishes"),
        ("reader/bob", b"data", 0.0, "only a manager"),
        ("manager/anna", b"data", 500 * 86400.0, "was not good when it signed"),
        ("manager/anna", b"data", -500 * 86400.0, "was not good when it signed"),
        ("manager/anna", b"data", 1e18, "no time"),
    ],
)
def test_what_does_not_count(pki: Certificates, party: str, data: bytes, at: float, why: str) -> None:
    certificate, key = pki.files(party)
    with pytest.raises(SignatureError, match=why):
        check(data, sign(b"data", key), certificate.read_text(), pki.authority.ca, time.time() + at)


def test_another_authoritys_manager_counts_for_nothing(pki: Certificates, tmp_path: Path) -> None:
    certificate, key = Certificates(tmp_path / "other").files("manager/anna")
    with pytest.raises(SignatureError, match="none of this authority's"):
        check(b"data", sign(b"data", key), certificate.read_text(), pki.authority.ca, time.time())


@pytest.mark.parametrize(
    "certificate", ["", "PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_what_is_no_certificate(pki: Certificates, certificate: str) -> None:
    with pytest.raises(SignatureError, match="none of this authority's"):
        check(b"data", "00", certificate, pki.authority.ca, time.time())


@pytest.mark.parametrize("signature", ["", "zz", "00", "3045"])
def test_what_is_no_signature(pki: Certificates, signature: str) -> None:
    certificate, _ = pki.files("manager/anna")
    with pytest.raises(SignatureError, match="does not match"):
        check(b"data", signature, certificate.read_text(), pki.authority.ca, time.time())


def test_a_key_that_cannot_be_used(pki: Certificates, tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="cannot read the key"):
        sign(b"data", tmp_path / "none")
    with pytest.raises(SignatureError, match="no private key"):
        sign(b"data", pki.authority.ca)
