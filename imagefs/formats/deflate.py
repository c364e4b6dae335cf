"""Deflate streams made again bit by bit: which parameters of zlib an encoder used, and encoding with them.

RFC 1951 leaves an encoder all choices, zlib makes them by four parameters (zlib.h, deflateInit2). A stream
can be made again from its plain bytes once these are known. Whether it is the same is for the caller to
compare: nothing here promises it, other encoders exist.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from blake3 import blake3

from imagefs.formats import slowdeflate

log = logging.getLogger(__name__)

Encode = Callable[[bytes], bytes]
"""Plain bytes to a stream."""
PROBE = 96 << 10
"""Bytes encoded to tell whether an encoder is the one that made the streams: text, noise and runs."""
_WORDS = 4096


@dataclass(frozen=True, slots=True)
class Codec:
    """The parameters of zlib's deflateInit2."""

    level: int
    """1 to 9."""
    wbits: int
    """Window of 2 ** abs(wbits) bytes; negative: raw deflate, positive: with zlib's header (RFC 1950)."""
    mem_level: int
    """1 to 9: after how many symbols a block ends."""
    strategy: int = zlib.Z_DEFAULT_STRATEGY

    def encode(self, plain: bytes | memoryview) -> bytes:
        """The stream of these bytes. 64 KiB take about 1.4 ms at level 6; the GIL is released meanwhile."""
        encoder = zlib.compressobj(self.level, zlib.DEFLATED, self.wbits, self.mem_level, self.strategy)
        return encoder.compress(plain) + encoder.flush()


def candidates(wbits: Iterable[int]) -> list[Codec]:
    """Codecs that an image's writer may have used, the likely ones first: qemu takes level 6 (the default),
    memLevel 9 in qcow2 and 8 in vmdk; others level 9 or 1."""
    levels = (6, 9, 1, 5, 4, 3, 2, 7, 8)
    return [Codec(level, bits, mem) for bits in wbits for level in levels for mem in (9, 8)]


def decode(stored: bytes, wbits: int, length: int) -> tuple[bytes, int] | None:
    """(`length` plain bytes, how many of `stored` they came from); None when it is no such stream.

    At most `length` bytes are made, whatever the stream says.
    """
    decoder = zlib.decompressobj(wbits)
    try:
        plain = decoder.decompress(stored, length)
        if len(plain) == length and not decoder.eof and decoder.decompress(decoder.unconsumed_tail, 1):
            return None
    except zlib.error:
        return None
    if len(plain) != length or not decoder.eof:
        return None
    return plain, len(stored) - len(decoder.unused_data)


def probe(samples: Sequence[tuple[bytes, bytes]], codecs: Iterable[Codec]) -> Codec | None:
    """The codec that makes most of the samples (plain, stream) again; None when none makes half of them."""
    best, most = None, (len(samples) - 1) // 2
    for codec in codecs:
        made = sum(codec.encode(plain) == stream for plain, stream in samples)
        if made > most:
            best, most = codec, made
        if most == len(samples):
            break
    return best


@lru_cache(maxsize=64)
def probe_digest(codec: Codec) -> bytes:
    """8 bytes that tell this machine's encoder from others with the same parameters: of a fixed plain text.

    zlib-ng, hardware deflate and a future zlib may make other streams from the same parameters.
    """
    return blake3(codec.encode(_probe_text())).digest(8)


def encoder(codec: Codec, probe: bytes) -> Encode | None:
    """What makes of the probe text what `probe` says: this machine's zlib, or the one in Python, which is a
    hundred times slower; None when neither does."""
    if probe_digest(codec) == probe:
        return codec.encode
    if codec.strategy == zlib.Z_DEFAULT_STRATEGY and blake3(_slowly(codec, _probe_text())).digest(8) == probe:
        log.warning("this machine's zlib is not the one that %s stands for: streams are made slowly", codec)
        return partial(_slowly, codec)
    return None


def _slowly(codec: Codec, plain: bytes) -> bytes:
    return slowdeflate.encode(plain, codec.level, codec.wbits, codec.mem_level)


@lru_cache(maxsize=1)
def _probe_text() -> bytes:
    """Near and far matches, lazy ones, runs, and literals: every choice an encoder makes comes up."""
    noise = blake3(b"imagefs deflate probe").digest(PROBE)
    words = [noise[at : at + 2 + noise[at] % 11] for at in range(0, _WORDS, 8)]
    text = bytearray()
    for at in range(0, PROBE, 3):
        if len(text) >= PROBE:
            break
        kind, which = noise[at], int.from_bytes(noise[at + 1 : at + 3], "little")
        text += bytes([kind]) * (which % 300) if kind < 6 else words[which % len(words)]
        if kind > 250:
            text += noise[which % 60000 :][: which % 200]
    return bytes(text[:PROBE])
