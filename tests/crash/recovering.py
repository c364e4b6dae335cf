"""Death at every durable step of putting things right: healing, rebuilding the catalog, going back to a backup.

python -m tests.crash.recovering PLACE WHAT FIRST EVERY [power]     WHAT: heal, rebuild, restore

Makes a repository, breaks it, and for each step from FIRST on, every EVERYth, does WHAT in a child that ends before
that step; then looks at what is left, does it again, and looks at the result. Prints what was wrong, one line a
step, and how many steps there are.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from imagefs.errors import CatalogDamaged, Damaged
from imagefs.images import fsck
from imagefs.images.backup import backup, restore
from imagefs.images.heal import Healer
from imagefs.images.logs import live
from imagefs.images.reaping import reap
from imagefs.images.rebuild import rebuild
from imagefs.images.scrub import Scrub
from tests.content import KIB, noise
from tests.crash.examine import another_boot
from tests.crash.steps import END, Power, Steps
from tests.crash.zygote import _say_into, forked
from tests.repositories import CONFIG, Opened, opened

SMALL = replace(CONFIG, pack_blocks=32)
CONTENT = {
    "a": noise(300 * KIB, 1) + bytes(100 * KIB) + noise(70_001, 2),
    "b": noise(64 * KIB, 3) + noise(300 * KIB, 1),
}


def make(path: Path, what: str) -> None:
    """A repository, broken so that WHAT puts it right."""
    with opened(path, SMALL) as it:
        image = it.sealed("a", CONTENT["a"])
        it.repo.index.clear()
        it.sealed("b", CONTENT["b"])
        it.repo.index.clear()
        it.sealed("copy", CONTENT["a"])
        backup(it.repo, path.with_name("backup"), replace=True)
        it.images.clone(image.id, "clone", tags=("tag",))
        it.images.delete(it.sealed("gone", noise(5000, 4)).id)
        it.collect()
        for one in live(it.repo.catalog):
            it.repo.staging.remove(one.id, one.draft_gen)
        it.draft("draft", noise(5000, 5))
        it.repo.logs.flush()
        if what == "heal":
            names = [*it.objects_of(image)[:2], f"maps/{image.map_uuid}", next(iter(it.inner.list("log/")))]
            for name in names:
                _flip(it.path_of(name), 5000 if name.startswith("packs/") else 60)
            _flip(it.path_of(names[1]), -10)
            Scrub(it.repo).run()
            assert len(it.repo.catalog.scrubs.damaged()) == 3
    if what != "heal":
        shutil.rmtree(path / "catalog")


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


def do(path: Path, what: str) -> None:
    """WHAT."""
    if what == "heal":
        with opened(path, SMALL) as it:
            Healer(it.repo, correct=False).run()
    elif what == "rebuild":
        rebuild(path, force=True)
    else:
        restore(path, path.with_name("backup"))


def look(path: Path, what: str, *, power: bool) -> None:
    """Raises when something is wrong with what was left, or when it cannot be put right."""
    if power:
        another_boot()
    if what == "heal":
        with opened(path, SMALL) as it:
            reap(it.repo)
            _require_no_wrong_bytes(it)
            it.collect()
            _require_no_wrong_bytes(it)
        do(path, what)
    else:
        # Either there is no catalog, and it is refused, or a whole one.
        with contextlib.suppress(CatalogDamaged), opened(path, SMALL) as it:
            _require_everything(it)
        do(path, what)
    with opened(path, SMALL) as it:
        reap(it.repo)
        _require_everything(it)
        it.collect()
        assert not fsck.check(it.repo)
        assert not Scrub(it.repo, deep=True).run().damaged
        it.delete_all()
        assert it.objects() == []


def _require_no_wrong_bytes(it: Opened) -> None:
    for name in ("a", "b", "copy", "clone"):
        (image_id,) = it.repo.catalog.images.named(name)
        with contextlib.suppress(Damaged):
            assert it.read(image_id) == CONTENT.get(name, CONTENT["a"]), f"{name} has wrong bytes"


def _require_everything(it: Opened) -> None:
    images = {image.name: image for image in live(it.repo.catalog)}
    assert images.keys() == {"a", "b", "copy", "clone", "draft"}, images.keys()
    for name in ("a", "b", "copy", "clone"):
        assert it.read(images[name].id) == CONTENT.get(name, CONTENT["a"]), f"{name} has wrong bytes"
    assert images["clone"].tags == ("tag",)
    assert it.read(images["draft"].id) == noise(5000, 5)


def child(said: Path, body: Callable[[], None]) -> int:
    """Runs `body` in a fork; what it says on stderr goes to `said`."""

    def run() -> None:
        _say_into(said)
        body()

    return forked(run)


def main() -> None:
    place, what = Path(sys.argv[1]), sys.argv[2]
    first, every, power = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:] == ["power"]
    signal.alarm(3000)
    broken, path, said, trace = (place / name for name in ("broken", "repository", "said", "trace"))
    assert child(said, lambda: make(broken, what)) == 0, said.read_text()

    def fresh() -> None:
        for left in (path, place / "cut"):
            shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(broken, path)

    def work(last: int | None) -> None:
        steps = Steps(last, Power(path, place / "cut", None) if power else None)
        steps.install()
        do(path, what)
        trace.write_text("\n".join(steps.trace))

    fresh()
    assert child(said, lambda: work(None)) == 0, said.read_text()
    names = trace.read_text().split("\n")
    wrong = 0
    for point in range(first, len(names) + 1, every):
        fresh()
        status = child(said, lambda point=point: work(point))
        problem = f"it ended with {status}: {said.read_text()}" if status != END else None
        if problem is None and child(said, lambda: look(path, what, power=power)) != 0:
            problem = said.read_text()
        if problem is not None:
            wrong += 1
            print(f"step {point} ({names[point - 1]}): {problem}", flush=True)
            if wrong == 3:
                break
    print(f"{len(names)} steps")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
