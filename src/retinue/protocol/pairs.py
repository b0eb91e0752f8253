"""Pairs of MAC and IP, of which a VM that is registered without either takes one."""

import msgspec


class PairBody(msgspec.Struct, forbid_unknown_fields=True):
    """One of POST /v1/pairs."""

    mac: str
    ip: str
