"""Which hosts may be another machine: where a server's report leads, another server goes."""

import pytest

from retinue.socket_addresses import may_be_another_host


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "127.8.9.1",
            "0.0.0.0",
            "::1",
            "::",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
        ),
        *("::ffff:127.0.0.1", "255.255.255.255", "localhost", "LOCALHOST.", "a.localhost", "", "127.1"),
        "2130706433",
    ],
)
def test_what_leads_back_or_to_nobody_is_none(host: str) -> None:
    assert not may_be_another_host(host)


@pytest.mark.parametrize("host", ["192.0.2.5", "10.0.0.1", "2001:db8::1", "server2", "server2.example.net"])
def test_any_other_may_be(host: str) -> None:
    assert may_be_another_host(host)
