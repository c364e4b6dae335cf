from __future__ import annotations

import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.blocks import logobject, trailer
from imagefs.blocks.logobject import Record
from imagefs.errors import Damaged

REPO = UUID("11111111-2222-4333-8444-555555555555")
ONE = Record(5, 1, UUID(int=1), b'{"name": "a"}')
TWO = Record(9, 8, UUID(int=2), b"{}")


def test_names_carry_generations_in_16_hex_digits():
    assert logobject.object_name(255) == "log/00000000000000ff"
    assert logobject.snapshot_name((1 << 64) - 1) == "snap/ffffffffffffffff"


def test_a_batch_comes_back_under_the_name_of_its_last_generation():
    data = logobject.encode(REPO, 5, [ONE, TWO], epoch=3)
    found = logobject.decode(data, "log/0000000000000009")
    assert (found.repo, found.epoch, found.first_gen, found.records) == (REPO, 3, 5, (ONE, TWO))


def test_a_snapshot_comes_back_under_the_generation_that_it_shows():
    data = logobject.encode(REPO, 12, [TWO._replace(op=0), ONE._replace(op=0)])
    found = logobject.decode(data, "snap/000000000000000c")
    assert (found.first_gen, [record.gen for record in found.records]) == (12, [9, 5])
    assert logobject.decode(logobject.encode(REPO, 0, []), "snap/0000000000000000").records == ()


@given(
    st.lists(
        st.tuples(st.integers(1, 1 << 60), st.integers(0, 255), st.uuids(), st.binary(max_size=80)),
        min_size=1,
        max_size=20,
        unique_by=lambda record: record[0],
    )
)
def test_any_batch_comes_back(records):
    batch = [Record(*record) for record in sorted(records)]
    data = logobject.encode(REPO, batch[0].gen, batch)
    assert logobject.decode(data, logobject.object_name(batch[-1].gen)).records == tuple(batch)


@pytest.mark.parametrize("name", ["log/0000000000000005", "log/000000000000000a", "snap/0000000000000009", "log/9"])
def test_another_object_under_the_name_is_damage(name):
    with pytest.raises(Damaged, match=f"{name} is another object"):
        logobject.decode(logobject.encode(REPO, 5, [ONE, TWO]), name)


HEAD = struct.pack("<8s16sQQI", b"IFSLOG01", REPO.bytes, 0, 5, 2)
DAMAGED = {
    "empty": b"",
    "no records": trailer.seal(HEAD),
    "short head": trailer.seal(HEAD[:-1]),
    "another magic": trailer.seal(b"X" + HEAD[1:]),
    "record cut in its head": trailer.seal(HEAD + bytes(28)),
    "record cut in its body": trailer.seal(HEAD + struct.pack("<QB16sI", 5, 0, bytes(16), 10) + b"{}"),
    "generations going back": logobject.encode(REPO, 9, [TWO, ONE]),
    "first generation of another": logobject.encode(REPO, 4, [ONE, TWO]),
    "truncated": logobject.encode(REPO, 5, [ONE, TWO])[:-1],
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("name", ["log/0000000000000009", "log/0000000000000005"])
def test_damage_names_the_object(name, data):
    with pytest.raises(Damaged, match=name):
        logobject.decode(data, name)
