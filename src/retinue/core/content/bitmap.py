"""Which chunks of an image somebody holds: one bit for each, the lowest bit of the first byte first."""

from collections.abc import Iterable, Iterator
from typing import Self


class Bitmap:
    """A set of chunk numbers below `size`."""

    __slots__ = ("_bits", "size")

    def __init__(self, size: int, bits: bytes = b"") -> None:
        """Raises ValueError for bits of another size, or ones that stand for no chunk."""
        self.size = size
        self._bits = bytearray((size + 7) // 8)
        if bits:
            if len(bits) != len(self._bits) or (size % 8 and bits[-1] >> size % 8):
                raise ValueError(f"{len(bits)} bytes are no bitmap of {size} chunks")
            self._bits[:] = bits

    @classmethod
    def of(cls, size: int, chunks: Iterable[int]) -> Self:
        made = cls(size)
        for chunk in chunks:
            made.add(chunk)
        return made

    @classmethod
    def full(cls, size: int) -> Self:
        return cls.of(size, range(size))

    def add(self, chunk: int) -> None:
        if not 0 <= chunk < self.size:
            raise ValueError(f"there is no chunk {chunk}")
        self._bits[chunk >> 3] |= 1 << (chunk & 7)

    def discard(self, chunk: int) -> None:
        if chunk in self:
            self._bits[chunk >> 3] &= ~(1 << (chunk & 7))

    def __contains__(self, chunk: int) -> bool:
        return 0 <= chunk < self.size and bool(self._bits[chunk >> 3] >> (chunk & 7) & 1)

    def __iter__(self) -> Iterator[int]:
        return (chunk for chunk in range(self.size) if chunk in self)

    def __len__(self) -> int:
        return int.from_bytes(self._bits, "little").bit_count()

    def __bytes__(self) -> bytes:
        return bytes(self._bits)
