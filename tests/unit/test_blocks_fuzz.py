"""Stored objects changed at random: whatever comes back is refused by name, or is the same content (S11)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.blocks import frames, logobject, manifest, trailer
from imagefs.blocks.digest import Digests
from imagefs.blocks.footer import Moved
from imagefs.blocks.logobject import Record
from imagefs.blocks.maps import MapBuilder
from imagefs.blocks.packs import HEADER, PackBuilder, object_name, read_footer
from imagefs.errors import Damaged, NewerVersion
from imagefs.stores import MemoryStore
from imagefs.types import FRAME

REPO, SESSION = UUID(int=1), UUID(int=2)
PACK_NAME = b"n" * 16


@dataclass(frozen=True)
class Kind:
    """A stored object, how it is read, and where what its trailer covers begins and ends."""

    data: bytes
    read: Callable[[bytes], object]
    covered: tuple[slice, ...]


def a_pack() -> Kind:
    builder, digests = PackBuilder(PACK_NAME, REPO, SESSION), Digests()
    for number in range(3):
        plain = random.Random(number).randbytes(FRAME if number else FRAME // 8).ljust(FRAME, b"x")
        builder.add_frame(frames.encode(plain), digests.blocks(plain))
    pack = builder.finish([Moved(b"o" * 16, 0, 0, 3)])

    def read(data: bytes) -> object:
        store = MemoryStore()
        store.put(object_name(PACK_NAME), data)
        return read_footer(store, PACK_NAME)

    data = b"".join(bytes(part) for part in pack.parts)
    return Kind(data, read, (slice(0, HEADER), slice(pack.footer_off, len(data) - 64)))


def a_manifest() -> Kind:
    builder = MapBuilder()
    for number in range(40):
        builder.append(number % 5, number * 3, 2)
        builder.zeros(number * 3000)
    names = {number: bytes([number]) * 16 for number in range(5)}
    data = manifest.encode(b'{"name": "x"}', names, builder.rows(), bytes(32).hex())
    return Kind(data, lambda data: manifest.decode(data, "maps/x"), (slice(0, len(data) - 64),))


def a_log_object() -> Kind:
    records = [Record(gen, 1, UUID(int=gen), b'{"name": "%d"}' % gen) for gen in range(10, 20)]
    data = logobject.encode(REPO, 10, records)
    name = logobject.object_name(19)
    return Kind(data, lambda data: logobject.decode(data, name), (slice(0, len(data) - 64),))


KINDS = {"pack": a_pack(), "manifest": a_manifest(), "log": a_log_object()}


def mutated(data: bytes, source: random.Random, places: range) -> bytes:
    """The bytes with one to three changes of the kinds that disks, networks and people make."""
    out = bytearray(data)
    for _ in range(source.randint(1, 3)):
        at = places[source.randrange(len(places))]
        length = source.choice([1, 2, 4, 8, 20, 64, 500])
        change = source.randrange(5)
        if change == 0:
            out[at : at + 1] = bytes([out[at] ^ 1 << source.randrange(8)]) if at < len(out) else b"?"
        elif change == 1:
            out[at : at + length] = bytes(min(length, max(len(out) - at, 0)))
        elif change == 2:
            out[at : at + length] = source.randbytes(min(length, max(len(out) - at, 0)))
        elif change == 3:
            del out[at : at + length]
        else:
            out[at:at] = out[-length:]
    return bytes(out)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=250)
@given(st.randoms(use_true_random=False), st.booleans())
def test_a_changed_object_is_refused_or_is_the_same(kind, source, near_the_end):
    original = KINDS[kind]
    places = range(max(len(original.data) - 400, 0) if near_the_end else 0, len(original.data))
    data = mutated(original.data, source, places)
    try:
        found = original.read(data)
    except (Damaged, NewerVersion):
        return
    assert found == original.read(original.data)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=250)
@given(st.randoms(use_true_random=False))
def test_a_forged_object_with_right_digests_never_crashes(kind, source):
    # Digests guard against accidents; who can write to the store can make them match.
    original = KINDS[kind]
    data = bytearray(original.data)
    for part in original.covered:
        changed = mutated(original.data, source, range(part.start, min(part.start + 300, part.stop)))
        if len(changed) == len(data):
            data[part] = changed[part]
    end = trailer.decode(original.data, kind, len(original.data))
    digest = trailer.digest_of(*(bytes(data[part]) for part in original.covered))
    data[-64:] = trailer.encode(end.footer_off, end.footer_len, digest)
    try:
        original.read(bytes(data))
    except (Damaged, NewerVersion):
        pass
