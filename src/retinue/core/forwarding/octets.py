"""Fields in a frame's bytes, and checksums that are amended for what changes (RFC 1624)."""

from collections.abc import Mapping

from retinue.core.pipeline.entry import FIELD_BYTES, Field


def word(frame: bytes | bytearray, at: int) -> int:
    return int.from_bytes(frame[at : at + 2], "big")


def put(fields: dict[Field, int], frame: bytes, at: int, field: Field) -> None:
    fields[field] = int.from_bytes(frame[at : at + FIELD_BYTES[field]], "big")


def put_back(out: bytearray, at: int, field: Field, fields: Mapping[Field, int]) -> None:
    """Write a field, or what of it lies within the frame: a cut-off ARP is written to all the same."""
    size = min(FIELD_BYTES[field], max(0, len(out) - at))
    out[at : at + size] = fields.get(field, 0).to_bytes(FIELD_BYTES[field], "big")[:size]


def amend(out: bytearray, at: int, old: int, new: int) -> None:
    """Amend the checksum at `at` for a 16-bit word that changes (RFC 1624, equation 3)."""
    total = (~word(out, at) & 0xFFFF) + (~old & 0xFFFF) + new
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    out[at : at + 2] = (~total & 0xFFFF).to_bytes(2, "big")


def amend_words(out: bytearray, at: int, old: bytes, new: bytes) -> None:
    for start in range(0, len(old), 2):
        amend(out, at, word(old, start), word(new, start))
