"""Checking a repository: one function for each rule, each yields what breaks it. Changes nothing.

Rules about the catalog alone are in imagefs.catalog.rules; here are those between the catalog, the store
and the staging directory. The repository may be in use: what is being written meanwhile is not reported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from imagefs.blocks import logobject, manifest
from imagefs.blocks.packs import read_footer
from imagefs.catalog import PackKind, PackRow, PackState, rules
from imagefs.catalog.rules import Finding
from imagefs.errors import BackendFailed, Damaged, NewerVersion, NotFound
from imagefs.images.hits import describe, hits
from imagefs.images.listing import with_status
from imagefs.images.repository import Repository
from imagefs.images.session import is_dead
from imagefs.types import Status

Rule = Callable[[Repository], Iterator[Finding]]
KEPT = (PackState.LIVE, PackState.TRASH)
"""States in which the object must be on the store, whole."""


def objects_are_there(repo: Repository) -> Iterator[Finding]:
    """Every live or trash object is on the store with the size that the catalog knows."""
    for row in repo.catalog.packs.scan():
        if not _must_be_whole(repo, row):
            continue  # what nobody recorded as put may never have been
        try:
            size = repo.store.size(row.object_name)
        except NotFound:
            if _still(repo, row):
                yield Finding("objects_are_there", row.object_name, "is not on the store")
            continue
        if size != row.stored:
            yield Finding("objects_are_there", row.object_name, f"has {size} bytes, not {row.stored}")


def objects_are_known(repo: Repository) -> Iterator[Finding]:
    """Every pack and manifest on the store is in the catalog, in some state."""
    for prefix in ("packs/", "maps/"):
        for name in repo.store.list(prefix):
            if repo.catalog.packs.by_name(name16(name)) is not None:
                continue
            with contextlib.suppress(NotFound):  # collected since it was listed
                repo.store.size(name)
                yield Finding("objects_are_known", name, "is on the store and in no table")


def name16(name: str) -> bytes:
    """The 16 bytes that an object's name ends in; b"" for a name that no writer of ours gives."""
    try:
        return bytes.fromhex(name.rpartition("/")[2].replace("-", ""))
    except ValueError:
        return b""


def footers_agree(repo: Repository) -> Iterator[Finding]:
    """Every pack's footer verifies and has the frame table that the catalog has."""
    for row in repo.catalog.packs.scan():
        if row.kind != PackKind.PACK or not _must_be_whole(repo, row):
            continue
        try:
            footer = read_footer(repo.store, row.name16)
            if footer.frames_row != known_frames(repo, row):
                yield Finding("footers_agree", row.object_name, "has another frame table than the catalog")
        except NotFound:
            continue  # objects_are_there says so
        except (Damaged, NewerVersion, BackendFailed) as error:
            yield Finding("footers_agree", row.object_name, str(error))


def known_frames(repo: Repository, row: PackRow) -> bytes:
    """The frame table that the catalog has of a pack; b"" when it has none."""
    try:
        return repo.catalog.packs.frames(row.no)
    except NotFound:
        return b""


def manifests_agree(repo: Repository) -> Iterator[Finding]:
    """Every map's manifest verifies and names the same packs."""
    for row in repo.catalog.packs.scan():
        if row.kind != PackKind.MANIFEST or row.state != PackState.LIVE:
            continue
        try:
            manifest.decode(repo.store.get(row.object_name), row.object_name)
        except NotFound:
            continue
        except (Damaged, NewerVersion, BackendFailed) as error:
            yield Finding("manifests_agree", row.object_name, str(error))


def log_objects_verify(repo: Repository) -> Iterator[Finding]:
    """Every log object and snapshot decodes."""
    for prefix in ("log/", "snap/"):
        for name in repo.store.list(prefix):
            try:
                logobject.decode(repo.store.get(name), name)
            except NotFound:
                continue
            except (Damaged, NewerVersion, BackendFailed) as error:
                yield Finding("log_objects_verify", name, str(error))


def known_damage(repo: Repository) -> Iterator[Finding]:
    """No stored object is known to be damaged, and no image has bytes in one."""
    damages = repo.catalog.scrubs.damaged()
    for damage in damages:
        row = repo.catalog.packs.find(damage.no)
        if row is not None:
            yield Finding("known_damage", row.object_name, str(damage) or "is damaged")
    for hit in hits(repo, damages):
        yield Finding("known_damage", str(hit.image.id), describe([hit])[0])


def drafts_have_files(repo: Repository) -> Iterator[Finding]:
    """Every draft has its staging file."""
    for image in with_status(repo.catalog, Status.SAVING):
        if image.draft is not None and repo.staging.stat(image.id, image.draft.gen) is None:
            yield Finding("drafts_have_files", str(image.id), "is saving and has no staging file")


def sealers_live(repo: Repository) -> Iterator[Finding]:
    """No draft is being sealed by a session that is dead."""
    for image in with_status(repo.catalog, Status.SAVING):
        sealer = image.draft.sealer if image.draft else None
        if sealer is not None and is_dead(repo.path / "sessions", sealer):
            yield Finding("sealers_live", str(image.id), f"is being sealed by dead session {sealer}")


def _must_be_whole(repo: Repository, row: PackRow) -> bool:
    """Whether the object is on the store for all we know. What was damaged and is in the trash, gc ends."""
    if row.state not in KEPT or not row.done:
        return False
    return row.state == PackState.LIVE or repo.catalog.scrubs.get(row.no) is None


def _still(repo: Repository, row: PackRow) -> bool:
    """Whether the row is as it was scanned: gc may have ended it meanwhile."""
    try:
        return repo.catalog.packs.get(row.no).state == row.state
    except NotFound:
        return False


RULES: tuple[Rule, ...] = (
    objects_are_there,
    objects_are_known,
    footers_agree,
    manifests_agree,
    log_objects_verify,
    known_damage,
    drafts_have_files,
    sealers_live,
)


def check(repo: Repository, progress: Callable[[str], None] = lambda rule: None) -> list[Finding]:
    """Everything that breaks a rule; an empty list is a clean repository. `progress` gets each rule's name."""
    findings: list[Finding] = []
    for catalog_rule in rules.RULES:
        progress(catalog_rule.__name__)
        findings += catalog_rule(repo.catalog)
    for rule in RULES:
        progress(rule.__name__)
        findings += rule(repo)
    return findings
