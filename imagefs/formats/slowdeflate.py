"""zlib's deflate once more, in Python: for a machine whose own zlib makes other streams from the same parameters.

A stream that was made by zlib can be made again here whatever the machine has (zlib-ng, hardware deflate, a later
zlib), a hundred times slower: bytes that are stored are never out of reach. It follows deflate.c of zlib 1.2 and
1.3 at the default strategy; names are those of deflate.c where there is one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from imagefs.formats.huffman import Bits, Symbol, send_block

MIN_MATCH, MAX_MATCH = 3, 258
_MIN_LOOKAHEAD = MAX_MATCH + MIN_MATCH + 1
_TOO_FAR = 4096


class _Config(NamedTuple):
    """What a level means."""

    good_length: int
    max_lazy: int
    nice_length: int
    max_chain: int


_LEVELS = {
    1: _Config(4, 4, 8, 4),
    2: _Config(4, 5, 16, 8),
    3: _Config(4, 6, 32, 32),
    4: _Config(4, 4, 16, 16),
    5: _Config(8, 16, 32, 32),
    6: _Config(8, 16, 128, 128),
    7: _Config(8, 32, 128, 256),
    8: _Config(32, 128, 258, 1024),
    9: _Config(32, 258, 258, 4096),
}
_LAZY_FROM = 4
"""The levels from here on look whether the next byte begins a longer match."""


def encode(plain: bytes, level: int, wbits: int, mem_level: int) -> bytes:
    """The stream that zlib makes of `plain` in one go and finished. 64 KiB take some tenths of a second."""
    deflate = _Deflate(plain, _LEVELS[level], abs(wbits), mem_level)
    bits = Bits()
    symbols: list[Symbol] = []
    start = 0
    for at, symbol in deflate.slow() if level >= _LAZY_FROM else deflate.fast():
        symbols.append(symbol)
        if len(symbols) == deflate.most_symbols:
            send_block(bits, symbols, plain[start:at] if start >= deflate.base else None, last=False)
            symbols, start = [], at
    send_block(bits, symbols, plain[start:] if start >= deflate.base else None, last=True)
    if wbits < 0:
        return bits.finish()
    flags = 0 if level < 2 else 1 if level < 6 else 2 if level == 6 else 3
    head = (8 + ((wbits - 8) << 4)) << 8 | flags << 6
    head += 31 - head % 31
    return head.to_bytes(2, "big") + bits.finish() + zlib.adler32(plain).to_bytes(4, "big")


class _Deflate:
    """The search for matches. Positions count from the beginning of the input; the window only bounds them."""

    def __init__(self, plain: bytes, config: _Config, wbits: int, mem_level: int) -> None:
        self._plain = plain
        self._config = config
        self._wsize = 1 << wbits
        self._max_dist = self._wsize - _MIN_LOOKAHEAD
        hash_bits = mem_level + 7
        self._shift = (hash_bits + MIN_MATCH - 1) // MIN_MATCH
        self._mask = (1 << hash_bits) - 1
        self._head: dict[int, int] = {}
        self._prev = [0] * len(plain)
        self._filled = 0
        """End of what is in the window."""
        self._match_start = 0
        self.base = 0
        """Where the window begins: what lies before can no more be sent as plain bytes."""
        self.most_symbols = (1 << (mem_level + 6)) - 1

    def _fill(self, strstart: int) -> int:
        """fill_window; the lookahead."""
        while self._filled - strstart < _MIN_LOOKAHEAD and self._filled < len(self._plain):
            if strstart - self.base >= self._wsize + self._max_dist:
                self.base += self._wsize
            self._filled = min(len(self._plain), self.base + 2 * self._wsize)
        if self._filled - strstart < _MIN_LOOKAHEAD and strstart - self.base >= self._wsize + self._max_dist:
            self.base += self._wsize
        return self._filled - strstart

    def _insert(self, at: int) -> int:
        """INSERT_STRING: the last place with the same hash, 0 for none (and for the first byte)."""
        plain = self._plain
        key = ((plain[at] << 2 * self._shift) ^ (plain[at + 1] << self._shift) ^ plain[at + 2]) & self._mask
        head = self._prev[at] = self._head.get(key, 0)
        self._head[key] = at
        return head

    def _longest(self, strstart: int, cur: int, prev_length: int, lookahead: int) -> int:
        """longest_match from the place `cur` on; `_match_start` is where it begins."""
        plain, prev, config = self._plain, self._prev, self._config
        chain = config.max_chain >> 2 if prev_length >= config.good_length else config.max_chain
        best, nice = prev_length, min(config.nice_length, lookahead)
        limit = max(strstart - self._max_dist, 0)
        most = min(MAX_MATCH, lookahead)
        while best < most:
            if plain[cur : cur + best + 1] == plain[strstart : strstart + best + 1]:
                length = best + 1
                while length < most and plain[cur + length] == plain[strstart + length]:
                    length += 1
                self._match_start, best = cur, length
                if length >= nice:
                    break
            cur = prev[cur]
            chain -= 1
            if cur <= limit or not chain:
                break
        return min(best, lookahead)

    def slow(self) -> Iterator[tuple[int, Symbol]]:
        """deflate_slow: (end of what has been sent, symbol)."""
        strstart, length, available = 0, MIN_MATCH - 1, False
        while lookahead := self._fill(strstart):
            head = self._insert(strstart) if lookahead >= MIN_MATCH else 0
            prev_length, prev_match, length = length, self._match_start, MIN_MATCH - 1
            if head and prev_length < self._config.max_lazy and strstart - head <= self._max_dist:
                length = self._longest(strstart, head, prev_length, lookahead)
                if length == MIN_MATCH and strstart - self._match_start > _TOO_FAR:
                    length = MIN_MATCH - 1
            if prev_length >= MIN_MATCH and length <= prev_length:
                end = strstart - 1 + prev_length
                for at in range(strstart + 1, min(end, self._filled - MIN_MATCH + 1)):
                    self._insert(at)
                yield end, (strstart - 1 - prev_match, prev_length - MIN_MATCH)
                strstart, length, available = end, MIN_MATCH - 1, False
                continue
            if available:
                yield strstart, (0, self._plain[strstart - 1])
            available = True
            strstart += 1
        if available:
            yield strstart, (0, self._plain[strstart - 1])

    def fast(self) -> Iterator[tuple[int, Symbol]]:
        """deflate_fast: the same, each match taken as it is found."""
        strstart = 0
        while lookahead := self._fill(strstart):
            head = self._insert(strstart) if lookahead >= MIN_MATCH else 0
            length = 0
            if head and strstart - head <= self._max_dist:
                length = self._longest(strstart, head, MIN_MATCH - 1, lookahead)
            if length < MIN_MATCH:
                strstart += 1
                yield strstart, (0, self._plain[strstart - 1])
                continue
            symbol = (strstart - self._match_start, length - MIN_MATCH)
            if length <= self._config.max_lazy and lookahead - length >= MIN_MATCH:
                for at in range(strstart + 1, strstart + length):
                    self._insert(at)
            strstart += length
            yield strstart, symbol
