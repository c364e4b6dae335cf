"""The end of every sealing: what the record says of the data, the manifest, the commit (T3)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from uuid import UUID

from imagefs.blocks import manifest, maprows
from imagefs.catalog import Op, PackDone, Seal, SealCommit
from imagefs.catalog.records import dumps
from imagefs.errors import Mismatch, NotFound, PacksGone
from imagefs.formats import Read
from imagefs.images.ingest import Ingest
from imagefs.images.packing import Stored
from imagefs.images.repository import Repository
from imagefs.types import BLOCK, Draft, Image, Status

log = logging.getLogger(__name__)

Hashes = Callable[[str], tuple[str, str]]
"""(md5, digest by the named algorithm) of all bytes, hex."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealing:
    """Data on its way into an image: whose it is, and what it is beside its map."""

    image_id: UUID
    draft: Draft
    """As it was when reading began."""
    seal: Seal
    size: int
    mtime_ns: int
    read: Read
    """Gives the first 4 MiB at least, which tell the format."""
    hashes: Hashes
    hashed: bool = False
    """Whether the hashes are there already: then they are recorded even if nobody declared any."""


def commit(repo: Repository, work: Sealing, ingest: Ingest, stored: list[Stored]) -> Image:
    """The image, active; `stored` are the packs that no checkpoint has recorded yet.

    Raises Mismatch when the data is not what was declared, PacksGone when packs that the map names went
    away, SealCancelled when the draft changed or has another sealer now.
    """
    # As it is now: what is declared meanwhile counts as well.
    image = repo.catalog.images.get(work.image_id)
    expected = image.draft.expected if image.draft else {}
    fields = _fields(work, image, expected, ingest.root.hexdigest())
    rows = ingest.maps.rows()
    used = maprows.packs_of(rows)
    names = _names(repo, used)
    record = replace(
        image,
        status=Status.ACTIVE,
        draft=None,
        map_uuid=work.seal.map_uuid,
        size=work.size,
        **fields,  # type: ignore[arg-type]
    )
    body = manifest.encode(dumps(record), names, rows, str(fields["root"]))
    name = manifest.object_name(work.seal.map_uuid)
    repo.store.delete(name)  # an earlier round's or sealer's, never committed
    repo.store.put(name, body)
    written = PackDone(no=work.seal.manifest_no, stored=len(body))
    sealed = repo.catalog.seals.commit(
        SealCommit(
            image_id=image.id,
            session=repo.session.id,
            gen=work.draft.gen,
            writes=work.draft.writes,
            map_id=work.seal.map_id,
            map_uuid=work.seal.map_uuid,
            size=work.size,
            allocated=sum(used.values()) * BLOCK,
            rows=rows,
            packs=[*(pack.done for pack in stored), written],
            fields=fields,
            expected=expected,
        )
    )
    repo.index_packs(stored)
    return sealed


def kill(repo: Repository, image_id: UUID, reason: str) -> None:
    """Ends an image whose data is not what was declared."""
    log.warning("image %s is killed: %s", image_id, reason)
    repo.catalog.images.update(image_id, lambda image: replace(image, status=Status.KILLED, draft=None), Op.DRAFT)


def _fields(work: Sealing, image: Image, expected: dict[str, str], root: str) -> dict[str, object]:
    """What sealing adds to the record; raises Mismatch when it is not what was declared."""
    # Imported here: it brings all of oslo.utils, 90 ms that `imagefs clone` does not have.
    from imagefs.formats import detect  # noqa: PLC0415

    found = detect.inspect(work.read, work.size)
    fields: dict[str, object] = {
        "disk_format": image.disk_format or found.disk_format,
        "container_format": image.container_format or "bare",
        "virtual_size": found.virtual_size if found.virtual_size is not None else work.size,
        "root": root,
        "mtime": work.mtime_ns,
        "os_hash_algo": expected.get("os_hash_algo", "sha512"),
    }
    if "size" in expected and int(expected["size"]) != work.size:
        raise Mismatch(f"Image {image.id} has {work.size} bytes, not the {expected['size']} declared.")
    declared = [name for name in ("checksum", "os_hash_value") if name in expected]
    if declared or work.hashed:
        fields["checksum"], fields["os_hash_value"] = work.hashes(str(fields["os_hash_algo"]))
    for name in declared:
        if expected[name] != fields[name]:
            raise Mismatch(f"Image {image.id}: {name} is {fields[name]}, declared was {expected[name]}.")
    return fields


def _names(repo: Repository, packs: Iterable[int]) -> dict[int, bytes]:
    names, gone = {}, set()
    for no in packs:
        try:
            names[no] = repo.catalog.packs.get(no).name16
        except NotFound:  # a gc was quicker than this seal
            gone.add(no)
    if gone:
        raise PacksGone(frozenset(gone))
    return names
