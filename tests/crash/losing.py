"""The catalog lost at every durable step of the workload: what a rebuild brings back is what had been flushed.

python -m tests.crash.losing PLACE FIRST EVERY

For each of these steps: the workload ends before it; what the catalog says is noted, and which images have changes
that no log object has yet; the catalog is deleted and rebuilt. Every other image must be as it was.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from uuid import UUID

from imagefs.catalog.records import dumps
from imagefs.images import fsck, recovery
from imagefs.images.logs import live
from imagefs.images.rebuild import Rebuild
from imagefs.types import Image, Status
from tests.crash import workload, zygote
from tests.crash.examine import _content
from tests.crash.workload import Model, Work


def lose(path: Path, models: list[Model]) -> None:
    """Raises AssertionError when something that had been flushed is not as it was."""
    before, unflushed = _noted(path)
    shutil.rmtree(path / "catalog")
    result = Rebuild(path).run()
    work = Work(path)
    try:
        after = {image.id: image for image in live(work.repo.catalog)}
        for image_id in before.keys() - unflushed:
            _require_same(before[image_id], after.get(image_id))
        extra = after.keys() - before.keys() - unflushed
        # A file that was made for a creation which never committed: nobody knows better.
        extra -= {image_id for image_id in extra if after[image_id].status == Status.SAVING}
        assert not extra, f"{extra} came to life"
        for image_id, image in after.items():
            contents = [model[image_id].content for model in models if image_id in model]
            if image.sealed and image.status == Status.ACTIVE and None not in contents:
                assert not contents or _content(work, image) in contents, f"image {image_id} has other bytes"
        recovery.recover(work.repo)
        work.collect()
        findings = fsck.check(work.repo)
        assert not findings, findings[:4]
        assert not [line for line in result.lost if "is lost" not in line], result.lost
    finally:
        work.close()


def _noted(path: Path) -> tuple[dict[UUID, Image], set[UUID]]:
    work = Work(path)
    try:
        rows = {row.image_id for row in work.repo.catalog.log.unflushed()}
        return {image.id: image for image in live(work.repo.catalog)}, rows
    finally:
        # As if it had died: nothing is flushed on the way out.
        work.close()


def _require_same(old: Image, new: Image | None) -> None:
    assert new is not None, f"image {old.id} is lost: {old}"
    if old.draft is None and new.draft is None:
        assert dumps(old) == dumps(new), f"{old} came back as {new}"
        assert bool(old.map_id) == bool(new.map_id)
    elif old.draft is not None:
        # Its seal may have been on the way: the manifest was there, or it stays a draft.
        assert new.status in (Status.SAVING, Status.ACTIVE), f"{old} came back as {new}"
    else:
        raise AssertionError(f"{old} came back as {new}")


def main() -> None:
    place, first, every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

    def look(repository: Path, journal: str, said: Path, *, power: bool) -> str | None:
        def body() -> None:
            zygote._say_into(said)
            workload.make_small()
            lose(repository, workload.models(journal))

        return None if zygote.forked(body) == 0 else said.read_text()

    zygote.look = look
    whole = zygote.crash(place / "crash", None, power=False, seed=None)
    assert whole["error"] is None, whole["error"]
    wrong = 0
    for point in range(first, len(whole["steps"]) + 1, every):
        answer = zygote.crash(place / "crash", point, power=False, seed=None)
        if answer["error"] is not None:
            wrong += 1
            last = answer["journal"].strip().rpartition("\n")[2]
            print(f"step {point} ({whole['steps'][point - 1]}) in {last}: {answer['error']}", flush=True)
            if wrong == 3:
                break
    print(f"{len(whole['steps'])} steps")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
