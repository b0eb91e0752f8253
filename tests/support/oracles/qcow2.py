"""The content of a qcow2 file, read by the format's own description (QEMU, docs/interop/qcow2.txt): no code
of ours and none of QEMU's has a part in it. Without compression, encryption and snapshots."""

import struct
from pathlib import Path

OFFSET = 0x00FF_FFFF_FFFF_FE00


def content(path: Path, base: bytes = b"") -> bytes:
    """All that a guest would read; `base` is what it lies over."""
    data = path.read_bytes()
    magic, version, _, _, cluster_bits, size, _, l1_size, l1_at = struct.unpack(">4sIQIIQIIQ", data[:48])
    assert (magic, version) == (b"QFI\xfb", 3)
    cluster = 1 << cluster_bits
    found = bytearray(base[:size].ljust(size, b"\0"))
    entries = cluster // 8
    for n, l1 in enumerate(struct.unpack(f">{l1_size}Q", data[l1_at : l1_at + 8 * l1_size])):
        if not l1 & OFFSET:
            continue
        at = l1 & OFFSET
        for m, l2 in enumerate(struct.unpack(f">{entries}Q", data[at : at + cluster])):
            start = (n * entries + m) * cluster
            assert not l2 >> 62 & 1, "compressed"
            if l2 & 1:
                piece = bytes(cluster)
            elif l2 & OFFSET:
                piece = data[l2 & OFFSET : (l2 & OFFSET) + cluster].ljust(cluster, b"\0")
            else:
                continue
            if start < size:
                found[start : min(size, start + cluster)] = piece[: size - start]
    return bytes(found)
