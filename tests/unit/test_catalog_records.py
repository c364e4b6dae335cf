"""Image records as bytes."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.catalog import records
from imagefs.errors import Damaged, InvalidValue, NewerVersion, NotText
from imagefs.types import Cookie, Draft, Image, Status, Visibility

FULL = Image(
    id=UUID(int=7),
    name="Grüße",
    entry="Grüße".encode(),
    status=Status.SAVING,
    owner="team",
    visibility=Visibility.PUBLIC,
    disk_format="qcow2",
    container_format="bare",
    size=1 << 40,
    virtual_size=1 << 41,
    checksum="0" * 32,
    os_hash_algo="sha512",
    os_hash_value="1" * 128,
    root="2" * 64,
    min_disk=1,
    min_ram=2,
    protected=True,
    os_hidden=True,
    tags=("a", "b,c"),
    properties={"os_distro": "debian", "empty": ""},
    xattrs={"user.key": b"\x00\xff"},
    created_at=1,
    updated_at=2,
    dir_ino=64,
    data_ino=66,
    uid=1000,
    gid=4294967294,
    mode=0o600,
    dir_mode=0o700,
    atime=-1,
    mtime=4,
    ctime=5,
    map_id=0,
    map_uuid=UUID(int=9),
    allocated=4096,
    draft=Draft(
        gen=3,
        writes=2,
        sealer=UUID(int=8),
        blocked="why",
        marked=True,
        released_ns=6,
        boot="b",
        complete=Cookie(1, 2, 3, 4, 5, 6),
        base_map=11,
        base_size=12,
        base_uuid=UUID(int=10),
        expected={"size": "1"},
    ),
    draft_gen=3,
)


def test_everything_comes_back() -> None:
    assert records.decode(records.encode(FULL)) == FULL
    bare = Image(id=uuid4())
    assert records.decode(records.encode(bare)) == bare


def test_local_numbers_stay_out_of_the_json() -> None:
    image = replace(FULL, status=Status.ACTIVE, draft=None, map_id=5)
    assert records.loads(records.dumps(image)) == replace(image, map_id=0)
    assert FULL.draft is not None
    assert records.loads(records.dumps(FULL)) == replace(FULL, draft=replace(FULL.draft, base_map=0))


def test_the_header_says_what_the_record_does() -> None:
    attrs = records.attrs(records.encode(FULL))
    names = (
        "id mode dir_mode uid gid dir_ino data_ino map_id size allocated atime mtime ctime created_at "
        "updated_at status protected entry draft_gen"
    )
    for name in names.split():
        assert getattr(attrs, name) == getattr(FULL, name), name
    assert (attrs.base_map, attrs.base_size, attrs.hidden, attrs.sealed, attrs.has_draft) == (
        11,
        12,
        True,
        False,
        True,
    )
    queued = records.attrs(records.encode(Image(id=uuid4())))
    assert (queued.size, queued.size_or_none, queued.entry, queued.has_draft) == (0, -1, None, False)


@given(st.text(max_size=40), st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4), st.binary())
def test_any_text_comes_back(name: str, properties: dict[str, str], value: bytes) -> None:
    image = Image(id=UUID(int=1), name=name, properties=properties, xattrs={"user.x": value})
    assert records.decode(records.encode(image)) == image


def test_a_newer_record_is_refused() -> None:
    raw = bytearray(records.encode(FULL))
    raw[0] = records.VERSION + 1
    for read in (records.attrs, records.decode):
        with pytest.raises(NewerVersion):
            read(bytes(raw))
    with pytest.raises(NewerVersion):
        records.loads(b'{"v":99,"id":"x"}')


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"v":1}', b'{"v":1,"id":"x"}', b'{"v":1,"id":5,"odd":1}'])
def test_what_is_no_record_is_damaged(raw: bytes) -> None:
    with pytest.raises(Damaged):
        records.loads(raw)


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(NotText):
        records.encode(replace(FULL, properties={"k": "\ud800"}))
    with pytest.raises(InvalidValue):
        records.encode(replace(FULL, uid=1 << 32))


def test_states_have_kept_their_numbers() -> None:
    # Written in every header: a new state goes to the end.
    assert [status.value for status in records.STATUSES[:9]] == [
        "queued", "saving", "uploading", "importing", "active", "deactivated", "killed", "pending_delete",
        "deleted",
    ]  # fmt: skip
