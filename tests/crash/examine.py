"""Looking at a repository that a process left behind: everything acknowledged is there, nothing is half done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from imagefs.blocks import logobject
from imagefs.catalog import Op
from imagefs.catalog.records import dumps
from imagefs.errors import NotFound
from imagefs.images import fsck, recovery, repository, session
from imagefs.images.arming import blocked_reason
from imagefs.images.listing import with_status
from imagefs.types import Image, Kind, Status
from tests.crash.workload import Expected, Model, Work

EMPTY = ("mapseg", "seals", "holds", "base", "base_map")
"""Tables that have no rows once there are no images."""


def another_boot() -> None:
    """From here on this process believes that the machine was started again."""
    for module in (repository, session):
        module.boot_id = lambda: "another boot"


def examine(path: Path, models: list[Model], *, power: bool) -> None:
    """Raises AssertionError when something is not as it must be. Ends with an empty repository."""
    if power:
        another_boot()
    work = Work(path)
    try:
        recovery.recover(work.repo)
        _compare(work, models, power=power)
        work.collect()
        _require_clean(work)
        _require_replayable(work)
        _seal_all(work, models)
        _require_clean(work)
        _delete_all(work)
        _require_empty(work)
    finally:
        work.close()


# -- what was acknowledged -------------------------------------------------------------------------------


def _images(work: Work) -> dict[UUID, Image]:
    walked = work.repo.catalog.images.walk(Kind.DIRECTORY)
    return {attrs.id: work.images.get(attrs.id) for _, attrs in walked}


def _compare(work: Work, models: list[Model], *, power: bool) -> None:
    found = _images(work)
    for image_id in found.keys() | models[0].keys() | models[1].keys():
        image = found.get(image_id)
        wrong = [_differs(work, image, model.get(image_id), power=power) for model in models]
        assert None in wrong, f"image {image_id}: {' / '.join(str(reason) for reason in wrong)}"


def _differs(work: Work, image: Image | None, expected: Expected | None, *, power: bool) -> str | None:
    """What is not as expected; None when all is."""
    if image is None or expected is None:
        return None if image is expected else f"is {image}, expected {expected}"
    for name in ("name", "status", "tags", "properties"):
        if getattr(image, name) != getattr(expected, name):
            return f"{name} is {getattr(image, name)!r}, not {getattr(expected, name)!r}"
    if image.status == Status.SAVING:
        return _draft_differs(work, image, expected, power=power)
    if expected.content is not None and _content(work, image) != expected.content:
        return "other bytes"
    return None


def _draft_differs(work: Work, image: Image, expected: Expected, *, power: bool) -> str | None:
    assert image.draft is not None
    if image.draft.sealer is not None:
        return f"is being sealed by {image.draft.sealer}"
    content = _content(work, image)
    if expected.synced and content != expected.content:
        return "a synced draft has other bytes"
    unknown = expected.content is None or content != expected.content
    if (unknown or image.draft.released_ns is None) and blocked_reason(work.repo, image) is None:
        return "a draft that is not whole would be sealed by itself"
    if power and not expected.synced and image.draft.complete is None and blocked_reason(work.repo, image) is None:
        return "a draft that was not synced before the power cut would be sealed by itself"
    return None


def _content(work: Work, image: Image) -> bytes:
    handle = work.open(image.id, os.O_RDONLY)
    try:
        return handle.pread(0, 1 << 30)
    finally:
        work.release(image.id)


# -- nothing half done ---------------------------------------------------------------------------------------


def _require_clean(work: Work) -> None:
    findings = fsck.check(work.repo)
    assert not findings, f"fsck has {len(findings)} findings: {findings[:4]}"


def _require_replayable(work: Work) -> None:
    """The log objects say what the catalog says: nothing that was deleted would come back in a rebuild."""
    work.repo.logs.flush()
    replayed = dict(replay(work))
    catalog = {image_id: dumps(image) for image_id, image in _images(work).items()}
    assert replayed.keys() == catalog.keys(), "log objects bring back or lose images"
    for image_id, record in catalog.items():
        assert replayed[image_id] == record, f"log objects have another record of {image_id}"


def replay(work: Work) -> Iterator[tuple[UUID, bytes]]:
    """(image, record) of what lives, from snapshot and log objects alone, as a rebuild of the catalog reads them."""
    store = work.repo.store
    live: dict[UUID, bytes] = {}
    newest = 0
    for name in (*list(store.list("snap/"))[-1:], *store.list("log/")):
        for record in logobject.decode(store.get(name), name).records:
            if name.startswith("snap/"):
                newest = int(name.rpartition("/")[2], 16)
            elif record.gen <= newest:
                continue
            live[record.image_id] = record.body
            if record.op == Op.DELETE:
                del live[record.image_id]
    yield from live.items()


def _seal_all(work: Work, models: list[Model]) -> None:
    """Every draft can still be sealed, whatever stopped it, and has the bytes it had."""
    for image in list(with_status(work.repo.catalog, Status.SAVING)):
        content = _content(work, image)
        expected = [model.get(image.id) for model in models]
        if any(one is not None and one.name == "e" for one in expected):
            continue  # declared with a wrong checksum
        sealed = work.images.seal(image.id)
        assert sealed.status == Status.ACTIVE
        assert _content(work, sealed) == content, f"image {image.id} has other bytes once sealed"


def _delete_all(work: Work) -> None:
    for image_id in _images(work):
        work.images.delete(image_id)
    work.collect()
    recovery.remove_stray_staging(work.repo)


def _require_empty(work: Work) -> None:
    store, catalog = work.repo.store, work.repo.catalog
    objects = [name for prefix in ("packs/", "maps/") for name in store.list(prefix)]
    assert not objects, f"objects are left: {objects}"
    rows = [str(row) for row in catalog.packs.scan()]
    assert not rows, f"rows are left: {rows}"
    assert not catalog.images.unlinked(), "deleted images are left"
    assert not list(work.repo.staging.files()), "staging files are left"
    temporary = list((work.repo.path / "store").rglob("*.tmp"))
    assert not temporary, f"temporary files are left: {temporary}"
    assert [row.id for row in catalog.sessions.list()] == [work.repo.session.id], "dead sessions are left"
    with_rows = {name: rows for name, rows in catalog.info().items() if rows and name in EMPTY}
    assert not with_rows, f"rows are left: {with_rows}"


__all__ = ["NotFound", "examine", "replay"]
