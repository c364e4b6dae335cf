"""Putting right what fsck finds, one repair for each rule that has one; then checking again.

Repairs of the catalog alone are in imagefs.catalog.repairs; here are those that need the store or the staging
directory. What no repair can bring back is left as it is, and named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from uuid import UUID

from imagefs.blocks.packs import read_footer
from imagefs.catalog import Damage, Op, PackDone, PackKind, PackRow, PackState
from imagefs.catalog.repairs import REPAIRS as CATALOG_REPAIRS
from imagefs.catalog.rules import Finding
from imagefs.errors import Busy, Damaged, NewerVersion, NotFound
from imagefs.images import fsck, reaping
from imagefs.images.heal import Healer
from imagefs.images.repository import Repository
from imagefs.images.scrub import Scrub
from imagefs.types import Image, Status

ROUNDS = 4
"""A repair may bring to light what another rule finds."""
NOBODY = UUID(int=0)


@dataclass(slots=True)
class Repaired:
    """What was done, as (rule, phrase), and what is still wrong."""

    done: list[tuple[str, str]] = field(default_factory=list)
    left: list[Finding] = field(default_factory=list)


def repair(repo: Repository, progress: Callable[[str], None] = lambda rule: None) -> Repaired:
    """Checks, repairs and checks again, until nothing is wrong or nothing more can be done. The repository may be
    in use. Errors as for fsck.check and Healer.run."""
    result = Repaired()
    for _ in range(ROUNDS):
        result.left = fsck.check(repo, progress)
        done = list(_round(repo, result.left))
        result.done += done
        if not done:
            return result
    result.left = fsck.check(repo, progress)
    return result


def _round(repo: Repository, findings: Iterable[Finding]) -> Iterator[tuple[str, str]]:
    by_rule: dict[str, list[str]] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule, []).append(finding.subject)
    for rule, subjects in by_rule.items():
        phrases: Iterable[str] = ()
        if rule in CATALOG_REPAIRS:
            phrases = CATALOG_REPAIRS[rule](repo.catalog)
        elif rule in REPAIRS:
            phrases = REPAIRS[rule](repo, subjects)
        for phrase in phrases:
            yield rule, phrase


def _row(repo: Repository, name: str) -> PackRow | None:
    return repo.catalog.packs.by_name(fsck.name16(name))


def look_again(repo: Repository, names: Iterable[str]) -> Iterator[str]:
    """Objects that are missing or do not verify: recorded as damaged, and healed if there is a copy. A frame table
    of the catalog that is not the pack's is made anew from its footer."""
    scrub = Scrub(repo, deep=True)
    for name in names:
        row = _row(repo, name)
        if row is None or row.state not in (PackState.LIVE, PackState.TRASH):
            continue
        if row.kind == PackKind.PACK and (line := _frames(repo, row, scrub)) is not None:
            yield line
        damage = scrub.look_at(row)
        if damage is not None:
            if repo.catalog.scrubs.get(row.no) is None:
                yield f"noted that {name} is {'trash that is ' * (row.state == PackState.TRASH)}damaged"
            repo.catalog.scrubs.found(damage)
    yield from heal_all(repo, ())


def _frames(repo: Repository, row: PackRow, scrub: Scrub) -> str | None:
    """The frame table by the footer, when that describes what is there and the catalog does not."""
    try:
        footer = read_footer(repo.store, row.name16)
        if footer.frames_row == fsck.known_frames(repo, row):
            return None
    except NewerVersion:
        raise
    except (NotFound, Damaged):
        return None
    before = scrub.look_at(row)
    kept = PackDone(row.no, fsck.known_frames(repo, row), row.blocks, row.stored, row.footer_off, row.footer_digest)
    made = PackDone(
        row.no, footer.frames_row, footer.nblocks, footer.stored_bytes, footer.footer_off, footer.footer_digest
    )
    repo.catalog.packs.finished([made])
    after = scrub.look_at(repo.catalog.packs.get(row.no))
    if _worse(after, before):
        repo.catalog.packs.finished([kept])
        return None
    return f"made the frame table of {row.object_name} anew from its footer"


def _worse(after: Damage | None, before: Damage | None) -> bool:
    """Whether there is more damage than before."""
    if after is None or before is None or before.missing:
        return after is not None and before is None
    return after.missing or len(after.frames) > len(before.frames)


def heal_all(repo: Repository, _: Iterable[str]) -> Iterator[str]:
    """Everything that is known to be damaged."""
    try:
        healed = Healer(repo).run()
    except Busy as error:
        yield f"nothing was healed: {error}"
        return
    if healed.blocks:
        yield f"stored {healed.blocks} blocks anew"
    for name in healed.objects:
        yield f"healed {name}"


def adopt(repo: Repository, names: Iterable[str]) -> Iterator[str]:
    """Objects that no table knows: into the trash, from where gc deletes them."""
    for name in names:
        name16 = fsck.name16(name)
        if len(name16) != 16 or repo.catalog.packs.by_name(name16) is not None:
            continue
        kind = PackKind.PACK if name.startswith("packs/") else PackKind.MANIFEST
        try:
            stored = repo.store.size(name)
        except NotFound:
            continue
        with repo.catalog.transaction():
            no = repo.catalog.packs.reserve_named(NOBODY, kind, name16)
            repo.catalog.packs.finished([PackDone(no, stored=max(1, stored))])
            repo.catalog.packs.discard([no])
        if (damage := Scrub(repo).look_at(repo.catalog.packs.get(no))) is not None:
            repo.catalog.scrubs.found(damage)
        yield f"put {name} into the trash: nothing needs it"


def make_log(repo: Repository, names: Iterable[str]) -> Iterator[str]:
    """A snapshot of the catalog in place of log objects that do not verify."""
    if any(names):
        repo.logs.snapshot()
        yield "replaced the log objects by a snapshot"


def drop_drafts(repo: Repository, ids: Iterable[str]) -> Iterator[str]:
    """Drafts whose file is lost: the image is queued again, as if its data had been unlinked."""

    def queued(image: Image) -> Image:
        if image.draft is None or repo.staging.stat(image.id, image.draft.gen) is not None:
            return image
        return replace(image, status=Status.QUEUED, draft=None, data_ino=repo.catalog.images.new_ino())

    for image_id in map(UUID, ids):
        with contextlib.suppress(NotFound):
            if repo.catalog.images.update(image_id, queued, Op.DRAFT).status == Status.QUEUED:
                yield f"image {image_id} is queued again: the file of its draft is lost"


def reap(repo: Repository, ids: Iterable[str]) -> Iterator[str]:
    """Sessions that are dead, and were sealing."""
    if any(ids):
        for session in reaping.reap(repo):
            yield f"ended session {session}, which was dead"


REPAIRS: dict[str, Callable[[Repository, Iterable[str]], Iterator[str]]] = {
    "objects_are_there": look_again,
    "footers_agree": look_again,
    "manifests_agree": look_again,
    "known_damage": heal_all,
    "objects_are_known": adopt,
    "log_objects_verify": make_log,
    "drafts_have_files": drop_drafts,
    "sealers_live": reap,
}
