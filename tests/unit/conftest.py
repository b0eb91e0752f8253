"""Authorities, which are slow to make: a module's tests share them."""

import pytest

from support.pki_files import Certificates


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Another authority, which issues whatever is wanted."""
    return Certificates(tmp_path_factory.mktemp("strangers"))
