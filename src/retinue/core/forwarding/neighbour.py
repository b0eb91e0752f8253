"""Neighbour solicitations and advertisements (RFC 4861) as Open vSwitch sees and writes them.

It sees the type of the first link-layer address option and writes that of the first option, whichever it is;
and for that, and for the four reserved bytes, it computes the checksum anew: a wrong one becomes right, and
that of a message behind extension headers wrong.
"""

from collections.abc import Mapping

from retinue.core.forwarding.octets import amend_words, put_back
from retinue.core.packets import NDType, checksum
from retinue.core.packets.nd_options import SOURCE_MAC, TARGET_MAC
from retinue.core.pipeline.entry import Field

TYPES = (NDType.NEIGHBOUR_SOLICITATION, NDType.NEIGHBOUR_ADVERTISEMENT)
SIZE = 24
"""Bytes before the options."""
_LINK_LAYER = {SOURCE_MAC: Field.IPV6_ND_SLL, TARGET_MAC: Field.IPV6_ND_TLL}


def read(body: bytes, fields: dict[Field, int]) -> None:
    """Target and link-layer options, from behind the four reserved bytes."""
    if len(body) < 16:
        return
    found = {Field.IPV6_ND_TARGET: int.from_bytes(body[:16], "big")}
    body = body[16:]
    while len(body) >= 8 and body[1] and body[1] * 8 <= len(body):
        field = _LINK_LAYER.get(body[0])
        if field is not None and body[1] == 1:
            fields.setdefault(Field.ND_OPTIONS_TYPE, body[0])
            if found.get(field):
                return  # Given twice: an error, nothing else of it is believed.
            found[field] = int.from_bytes(body[2:8], "big")
        body = body[body[1] * 8 :]
    fields.update(found)


def write(
    out: bytearray, l3: int, l4: int, l4_size: int, had: Mapping[Field, int], has: Mapping[Field, int]
) -> None:
    """Write the fields that differ into a message whose IPv6 header is at `l3`, and which is at `l4`."""

    def changed(*of: Field) -> bool:
        return any(has.get(field, 0) != had.get(field, 0) for field in of)

    if l4_size < SIZE:
        return
    end = l4 + l4_size
    if changed(Field.ND_RESERVED, Field.ND_OPTIONS_TYPE):
        put_back(out, l4 + 4, Field.ND_RESERVED, has)
        if changed(Field.ND_OPTIONS_TYPE) and l4_size > SIZE:
            put_back(out, l4 + SIZE, Field.ND_OPTIONS_TYPE, has)
        out[l4 + 2 : l4 + 4] = bytes(2)
        # Of what the IPv6 header says, also where that is about an extension header: then it is wrong.
        size, kind = bytes(2) + bytes(out[l3 + 4 : l3 + 6]), bytes((0, 0, 0, out[l3 + 6]))
        pseudo = bytes(out[l3 + 8 : l3 + 40]) + size + kind
        out[l4 + 2 : l4 + 4] = checksum(pseudo + bytes(out[l4:end])).to_bytes(2, "big")
    if changed(Field.IPV6_ND_TARGET):
        _amended(out, l4, l4 + 8, has.get(Field.IPV6_ND_TARGET, 0).to_bytes(16, "big"))
    if not changed(Field.IPV6_ND_SLL, Field.IPV6_ND_TLL):
        return
    at = l4 + SIZE
    while end - at >= 8 and out[at + 1]:
        field = _LINK_LAYER.get(out[at])
        if field is not None and out[at + 1] == 1:
            if changed(field):
                _amended(out, l4, at + 2, has.get(field, 0).to_bytes(6, "big"))
            return  # Of these options there is one, or none.
        at += out[at + 1] * 8


def _amended(out: bytearray, l4: int, at: int, new: bytes) -> None:
    amend_words(out, l4 + 2, bytes(out[at : at + len(new)]), new)
    out[at : at + len(new)] = new
