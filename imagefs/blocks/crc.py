"""CRC-32C (Castagnoli), as in iSCSI (RFC 3720, appendix B.4), of the few bytes that need one.

In Python because it is of 64 bytes at a time (8 us): the package that does it in C asks importlib.metadata for
its own version, which takes longer than all the rest of a short command.
"""

from __future__ import annotations

_POLYNOMIAL = 0x82F63B78


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(_entry(byte) for byte in range(256))


def crc32c(data: bytes) -> int:
    """The checksum of `data`, 32 bits."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
