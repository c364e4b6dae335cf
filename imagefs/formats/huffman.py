"""Blocks of a deflate stream as zlib lays them out: its trees, tie by tie (trees.c of zlib 1.2 and 1.3).

RFC 1951 says what a block may look like; which of all trees with the same cost zlib takes follows from the
order of its heap. Names are those of trees.c where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

Symbol = tuple[int, int]
"""(distance, length - 3), or (0, byte)."""

END_BLOCK = 256
_EXTRA_L = (0,) * 8 + (1,) * 4 + (2,) * 4 + (3,) * 4 + (4,) * 4 + (5,) * 4 + (0,)
_EXTRA_D = (0, 0, *(bits for bits in range(14) for _ in range(2)))
_BL_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
_REPEATS = {16: 2, 17: 3, 18: 7}
"""Bits that follow the code lengths' own repeat codes."""


def _bases(extra: Sequence[int]) -> list[int]:
    bases = [0]
    for bits in extra[:-1]:
        bases.append(bases[-1] + (1 << bits))
    return bases


_BASE_L = [*_bases(_EXTRA_L)[:-1], 255]  # 258 has a code of its own, with no further bits
_BASE_D = _bases(_EXTRA_D)
_LENGTH_CODE = [max(code for code in range(29) if _BASE_L[code] <= length) for length in range(256)]
_DIST_CODE = [code for code in range(30) for _ in range(1 << _EXTRA_D[code])]


class _Kind(NamedTuple):
    """One of the three codes of a block."""

    elems: int
    max_length: int
    first_extra: int
    extra: Sequence[int]
    static: Sequence[int]
    """Lengths in the fixed code."""


_LITERAL = _Kind(286, 15, 257, _EXTRA_L, (8,) * 144 + (9,) * 112 + (7,) * 24 + (8,) * 8)
_DISTANCE = _Kind(30, 15, 0, _EXTRA_D, (5,) * 30)
_LENGTHS = _Kind(19, 7, 16, (2, 3, 7), (0,) * 19)


class _Tree(NamedTuple):
    lens: list[int]
    max_code: int
    cost: int
    """Bits of all its symbols, with what follows them."""
    static_cost: int
    """The same in the fixed code."""


def _build(kind: _Kind, freq: list[int]) -> _Tree:
    """build_tree: two symbols at least have a code."""
    elems = kind.elems
    used = [symbol for symbol in range(elems) if freq[symbol]]
    max_code = used[-1] if used else -1
    forced: list[int] = []
    while len(used) + len(forced) < 2:
        if max_code < 2:
            max_code += 1
            forced.append(max_code)
        else:
            forced.append(0)
    weight = [*freq, *[0] * elems]
    for symbol in forced:
        weight[symbol] = 1
    order, dad = _merged(weight, [*used, *forced], elems)
    lens = _bit_lengths(kind, order, dad, weight, max_code)
    cost = static = 0
    for symbol in used:
        extra = kind.extra[symbol - kind.first_extra] if symbol >= kind.first_extra else 0
        cost += freq[symbol] * (lens[symbol] + extra)
        static += freq[symbol] * (kind.static[symbol] + extra)
    return _Tree(lens[:elems], max_code, cost, static)


def _merged(weight: list[int], leaves: list[int], elems: int) -> tuple[list[int], list[int]]:
    """(nodes from the root down in the order they were taken, parent of each)."""
    depth, dad = [0] * len(weight), [0] * len(weight)
    heap = [0, *leaves]

    def smaller(a: int, b: int) -> bool:
        return weight[a] < weight[b] or (weight[a] == weight[b] and depth[a] <= depth[b])

    def down(k: int) -> None:
        v, size, j = heap[k], len(heap) - 1, 2 * k
        while j <= size:
            if j < size and smaller(heap[j + 1], heap[j]):
                j += 1
            if smaller(v, heap[j]):
                break
            heap[k] = heap[j]
            k, j = j, 2 * j
        heap[k] = v

    for k in range((len(heap) - 1) // 2, 0, -1):
        down(k)
    taken = []
    node = elems
    while len(heap) > 2:
        n, last = heap[1], heap.pop()
        heap[1] = last
        down(1)
        m = heap[1]
        taken += [n, m]
        weight[node] = weight[n] + weight[m]
        depth[node] = max(depth[n], depth[m]) + 1
        dad[n] = dad[m] = heap[1] = node
        node += 1
        down(1)
    return [heap[1], *reversed(taken)], dad


def _bit_lengths(kind: _Kind, order: list[int], dad: list[int], weight: list[int], max_code: int) -> list[int]:
    """gen_bitlen: lengths from the tree, no longer than allowed."""
    lens, count, overflow = [0] * len(weight), [0] * 17, 0
    for node in order[1:]:
        bits = lens[dad[node]] + 1
        if bits > kind.max_length:
            bits, overflow = kind.max_length, overflow + 1
        lens[node] = bits
        if node <= max_code:
            count[bits] += 1
    if not overflow:
        return lens
    while overflow > 0:
        bits = kind.max_length - 1
        while not count[bits]:
            bits -= 1
        count[bits] -= 1
        count[bits + 1] += 2
        count[kind.max_length] -= 1
        overflow -= 2
    leaves = reversed([node for node in order if node <= max_code])
    for bits in range(kind.max_length, 0, -1):
        for _ in range(count[bits]):
            lens[next(leaves)] = bits
    return lens


def _codes(lens: Sequence[int]) -> list[int]:
    """gen_codes: the canonical code, bits reversed as they are sent."""
    code, following = 0, [0] * 17
    counts = [0] * 17
    for length in lens:
        counts[length] += 1
    counts[0] = 0
    for bits in range(1, 17):
        code = (code + counts[bits - 1]) << 1
        following[bits] = code
    made = []
    for length in lens:
        made.append(int(f"{following[length]:0{length}b}"[::-1], 2) if length else 0)
        following[length] += 1
    return made


_STATIC_CODES = (_codes(_LITERAL.static), _codes(_DISTANCE.static))


def _runs(lens: Sequence[int]) -> Iterator[tuple[int, int]]:
    """scan_tree and send_tree: (code, value of the bits that follow it) for the lengths of a code."""
    before, at = -1, 0
    while at < len(lens):
        length = lens[at]
        # A length that was just sent can be repeated 6 times at most, another one is sent once before that.
        most = 138 if length == 0 else 6 if length == before else 7
        count = 1
        while count < most and at + count < len(lens) and lens[at + count] == length:
            count += 1
        at += count
        if count < (3 if length in (0, before) else 4):
            yield from [(length, 0)] * count
        elif length:
            if length != before:
                yield length, 0
                count -= 1
            yield 16, count - 3
        elif count <= 10:
            yield 17, count - 3
        else:
            yield 18, count - 11
        before = length


class Bits:
    """Bits in the order of a deflate stream."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._held = 0
        self._count = 0

    def send(self, value: int, length: int) -> None:
        """Appends the lowest `length` bits."""
        self._held |= value << self._count
        self._count += length
        if self._count >= 512:
            self._bytes += (self._held & ((1 << 512) - 1)).to_bytes(64, "little")
            self._held >>= 512
            self._count -= 512

    def raw(self, data: bytes) -> None:
        """Appends whole bytes from the next byte on."""
        self._bytes += self._held.to_bytes(-(-self._count // 8), "little") + data
        self._held = self._count = 0

    def finish(self) -> bytes:
        """Everything, the last byte filled with zeros."""
        self.raw(b"")
        return bytes(self._bytes)


def send_block(bits: Bits, symbols: Sequence[Symbol], plain: bytes | None, *, last: bool) -> None:
    """_tr_flush_block: the cheapest of the three kinds of block. `plain` None: not as plain bytes."""
    literals, distances = [0] * 286, [0] * 30
    literals[END_BLOCK] = 1
    for distance, value in symbols:
        if distance:
            literals[257 + _LENGTH_CODE[value]] += 1
            distances[_DIST_CODE[distance - 1]] += 1
        else:
            literals[value] += 1
    ltree, dtree = _build(_LITERAL, literals), _build(_DISTANCE, distances)
    runs = [*_runs(ltree.lens[: ltree.max_code + 1]), *_runs(dtree.lens[: dtree.max_code + 1])]
    lengths = [0] * 19
    for code, _ in runs:
        lengths[code] += 1
    bltree = _build(_LENGTHS, lengths)
    blcodes = max(at + 1 for at in range(19) if at < 4 or bltree.lens[_BL_ORDER[at]])
    dynamic = (ltree.cost + dtree.cost + bltree.cost + 3 * blcodes + 14 + 3 + 7) >> 3
    static = (ltree.static_cost + dtree.static_cost + 3 + 7) >> 3
    if plain is not None and len(plain) + 4 <= min(dynamic, static):
        bits.send(last, 3)
        bits.raw(len(plain).to_bytes(2, "little") + (len(plain) ^ 0xFFFF).to_bytes(2, "little") + plain)
    elif static <= dynamic:
        bits.send(2 + last, 3)
        _send_symbols(bits, symbols, _LITERAL.static, _DISTANCE.static, *_STATIC_CODES)
    else:
        bits.send(4 + last, 3)
        _send_trees(bits, (ltree.max_code + 1, dtree.max_code + 1, blcodes), bltree.lens, runs)
        _send_symbols(bits, symbols, ltree.lens, dtree.lens, _codes(ltree.lens), _codes(dtree.lens))


def _send_trees(bits: Bits, counts: tuple[int, int, int], lens: Sequence[int], runs: list[tuple[int, int]]) -> None:
    bits.send(counts[0] - 257, 5)
    bits.send(counts[1] - 1, 5)
    bits.send(counts[2] - 4, 4)
    for at in range(counts[2]):
        bits.send(lens[_BL_ORDER[at]], 3)
    codes = _codes(lens)
    for code, value in runs:
        bits.send(codes[code], lens[code])
        bits.send(value, _REPEATS.get(code, 0))


def _send_symbols(
    bits: Bits, symbols: Sequence[Symbol], llens: Sequence[int], dlens: Sequence[int], lcodes: list[int],
    dcodes: list[int],
) -> None:  # fmt: skip
    for distance, value in symbols:
        if not distance:
            bits.send(lcodes[value], llens[value])
            continue
        code = _LENGTH_CODE[value]
        bits.send(lcodes[257 + code], llens[257 + code])
        bits.send(value - _BASE_L[code], _EXTRA_L[code])
        code = _DIST_CODE[distance - 1]
        bits.send(dcodes[code], dlens[code])
        bits.send(distance - 1 - _BASE_D[code], _EXTRA_D[code])
    bits.send(lcodes[END_BLOCK], llens[END_BLOCK])
