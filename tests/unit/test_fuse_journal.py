"""Changes whose request comes twice are made once (the reply slots), on the real catalog."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from imagefs.catalog import Catalog
from imagefs.errors import Exists
from imagefs.fuse.kernel.protocol import IN_HEADER, RESENT, Opcode
from imagefs.fuse.kernel.request import Journal, Request
from imagefs.types import Image

CONNECTION = UUID(int=5)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog.create(tmp_path / "catalog", uuid4())
    yield catalog
    catalog.close()


def request(unique: int, slot: int = 0) -> Request:
    message = bytearray(IN_HEADER.pack(40, Opcode.MKDIR, unique, 1, 0, 0, 0, 0, 0))
    arrived = Request(memoryview(message), slot)
    assert arrived.arrived(len(message)) == Opcode.MKDIR
    return arrived


def test_numbers_of_a_resent_request() -> None:
    first, again = request(10), request(10 | RESENT)
    assert (first.resent, again.resent) == (False, True)
    assert first.identity == again.identity == 10
    assert again.unique == 10 | RESENT


def test_a_change_that_was_made_is_not_made_again(catalog: Catalog) -> None:
    journal = Journal(catalog, CONNECTION)
    image = Image(id=uuid4())

    def change() -> bytes:
        catalog.images.add(image)
        return b"made"

    assert journal.once(request(10), change) == b"made"
    assert Journal(catalog, CONNECTION).once(request(10 | RESENT, slot=1), change) == b"made"
    with pytest.raises(Exists):
        Journal(catalog, uuid4()).once(request(10 | RESENT), change)


def test_a_change_that_was_not_made_is_made_when_it_comes_again(catalog: Catalog) -> None:
    image = Image(id=uuid4())
    journal = Journal(catalog, CONNECTION)
    assert journal.once(request(12 | RESENT), lambda: bytes(catalog.images.add(image).id.bytes)) == image.id.bytes


def test_an_error_undoes_the_change_and_is_given_again(catalog: Catalog) -> None:
    image = Image(id=uuid4())

    def change() -> bytes:
        catalog.images.add(image)
        raise Exists("on second thoughts")

    for unique in (14, 14 | RESENT):
        with pytest.raises(Exists):
            Journal(catalog, CONNECTION).once(request(unique), change)
    assert catalog.images.count() == 0


def test_a_thread_keeps_its_last_reply_only(catalog: Catalog) -> None:
    journal = Journal(catalog, CONNECTION)
    for unique in (20, 22):
        journal.once(request(unique), lambda unique=unique: b"%d" % unique)  # type: ignore[misc]
    journal.once(request(24, slot=1), lambda: None)
    assert catalog.slots.get(CONNECTION, 20) is None
    assert catalog.slots.get(CONNECTION, 22) == b"22"
    assert catalog.slots.get(CONNECTION, 24) == b""
