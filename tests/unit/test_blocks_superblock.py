from __future__ import annotations

import json
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.blocks.superblock import Superblock
from imagefs.errors import NewerVersion, NotARepository, UnknownFeature

REPO = UUID("11111111-2222-4333-8444-555555555555")
WHERE = "/srv/images/imagefs.json"


def changed(**fields: object) -> bytes:
    """A superblock's text with fields replaced; `format__version=2` reaches inside."""
    text = json.loads(Superblock.new(REPO).dump())
    for path, value in fields.items():
        *outer, name = path.split("__")
        holder = text
        for key in outer:
            holder = holder[key]
        if value is ...:
            del holder[name]
        else:
            holder[name] = value
    return json.dumps(text).encode()


@pytest.mark.parametrize("key", [None, bytes(32), b"k" * 32])
def test_a_superblock_comes_back(key):
    superblock = Superblock.new(REPO, sampling=8, digest_key=key)
    assert Superblock.load(superblock.dump(), WHERE) == superblock
    superblock.check(write=True)


def test_what_the_text_says():
    text = json.loads(Superblock.new(REPO, digest_key=bytes(32)).dump())
    del text["created"]
    assert text == {
        "format": {"version": 1, "min_reader": 1, "min_writer": 1, "features": []},
        "repo": str(REPO),
        "digest": {"alg": "blake3-160", "key": "00" * 32},
        "block": 4096,
        "sampling": 16,
    }


def test_the_key_is_not_shown_in_messages():
    assert "6b6b" not in repr(Superblock.new(REPO, digest_key=b"k" * 32))
    assert "kkkk" not in repr(Superblock.new(REPO, digest_key=b"k" * 32))


def test_fields_of_later_versions_are_passed_over():
    assert Superblock.load(changed(later={"x": 1}, format__version=7), WHERE).version == 7


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        changed(repo="x"),
        changed(repo=...),
        changed(repo=7),
        changed(format=[]),
        changed(format__min_reader="1"),
        changed(format__min_reader=True),
        changed(format__features=None),
        changed(digest__key="00"),
        changed(digest__key="zz"),
        changed(digest=None),
        changed(sampling=3),
        changed(sampling=512),
        changed(sampling=0),
        changed(created=-1),
    ],
)
def test_what_is_no_superblock(data):
    with pytest.raises(NotARepository, match=WHERE):
        Superblock.load(data, WHERE)


def test_a_repository_for_newer_readers_is_refused_even_when_its_fields_are_others():
    with pytest.raises(NewerVersion, match=f"{WHERE} needs format 2 to read"):
        Superblock.load(changed(format__min_reader=2, repo=..., digest=...), WHERE)


def test_a_repository_for_newer_writers_is_read_only():
    superblock = Superblock.load(changed(format__min_writer=2), WHERE)
    with pytest.raises(NewerVersion, match="needs format 2 to write"):
        superblock.check(write=True)


def test_unknown_features():
    with pytest.raises(UnknownFeature, match="shiny"):
        Superblock.load(changed(format__features=["shiny"]), WHERE)
    superblock = Superblock.load(changed(format__features=["ro:quiet"]), WHERE)
    with pytest.raises(UnknownFeature, match="ro:quiet"):
        superblock.check(write=True)
    assert superblock == replace(superblock)


@pytest.mark.parametrize("fields", [{"block": 8192}, {"digest__alg": "sha256"}])
def test_other_identities_and_blocks_are_refused(fields):
    with pytest.raises(UnknownFeature, match="unknown here"):
        Superblock.load(changed(**fields), WHERE)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
paths = st.sampled_from(
    [
        "format",
        "repo",
        "digest",
        "block",
        "sampling",
        "created",
        "digest__alg",
        "digest__key",
        "format__version",
        "format__min_reader",
        "format__min_writer",
        "format__features",
    ]
)


@given(st.dictionaries(paths, json_values, max_size=1))
def test_any_value_in_any_field_is_taken_or_refused(fields):
    try:
        Superblock.load(changed(**fields), WHERE)
    except (NotARepository, NewerVersion):
        pass


@given(st.binary())
def test_any_bytes_are_refused(data):
    with pytest.raises(NotARepository):
        Superblock.load(data, WHERE)
