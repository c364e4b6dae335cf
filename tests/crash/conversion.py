"""A conversion that ends at some step, by a kill or a power cut, and the look at what is left.

    python -m tests.crash.conversion PATH (kill|power) FIRST EVERY [SEED]

Ends before step FIRST, FIRST + EVERY and so on, each time in a copy of one prepared repository below PATH; prints
a JSON object: "steps", what they were; "failed", what was wrong afterwards, by step.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from imagefs.catalog import PackState
from imagefs.config import Config
from imagefs.images import drafts, fsck, recovery
from imagefs.images.convert import Converter
from imagefs.images.gc import Collector
from imagefs.images.hashtask import fill_in_hashes
from imagefs.images.repository import Repository
from imagefs.images.service import Images
from tests import compressed
from tests.crash.examine import another_boot
from tests.crash.steps import END, Power, Steps
from tests.crash.zygote import forked

CONFIG = Config(sampling=1, pack_blocks=32, retention_seconds=0, frame_cache_bytes=0)
DISK = compressed.text(10 * compressed.CLUSTER, 21)
CONTENT = {"raw": DISK[: 4 * compressed.CLUSTER], "compressed": compressed.qcow2(DISK), "twin": compressed.qcow2(DISK)}
"""Of what is inside the compressed ones, 4 clusters are stored already; the others are put."""


def prepare(path: Path) -> None:
    Repository.create(path, CONFIG)
    repo = Repository.open(path, CONFIG, "cli")
    images = Images(repo)
    for name, content in CONTENT.items():
        image = images.create(name, draft=True)
        repo.staging.path(image.id, 1).write_bytes(content)
        images.update_draft(image.id, drafts.released(1, repo.boot))
        images.seal(image.id)
        fill_in_hashes(repo, image.id, lambda: False)
    repo.close()


def convert(path: Path) -> None:
    repo = Repository.open(path, CONFIG, "cli")
    image = repo.catalog.images.named("compressed")[0]
    Converter(repo).convert(image, ratio=2.0)
    collect(repo)
    repo.close()


def collect(repo: Repository) -> None:
    for _ in range(3):
        repo.catalog.sessions.ack(repo.session.id, repo.catalog.generation())
        Collector(repo, retention_s=0).run()


def examine(path: Path) -> None:
    """Recovers; the images have their bytes, nothing is left over, and the conversion can be made (again)."""
    repo = Repository.open(path, CONFIG, "cli")
    recovery.recover(repo)
    same_bytes(repo)
    sound(repo)
    image = repo.catalog.images.get(repo.catalog.images.named("compressed")[0])
    if image.layout == "plain":
        Converter(repo).convert(image.id, ratio=2.0)
    same_bytes(repo)
    sound(repo)
    layouts = {repo.catalog.images.get(repo.catalog.images.named(name)[0]).layout for name in ("compressed", "twin")}
    assert layouts == {"recode"}, layouts
    assert (path / "imagefs.json").read_bytes() == repo.store.get("imagefs.json")
    repo.close()


def same_bytes(repo: Repository) -> None:
    for name, content in CONTENT.items():
        image = repo.catalog.images.get(repo.catalog.images.named(name)[0])
        assert repo.reader.pread(image.map_id, len(content), 0, len(content)) == content, f"{name} has other bytes"


def sound(repo: Repository) -> None:
    collect(repo)
    findings = fsck.check(repo)
    assert not findings, findings
    states = {row.state for row in repo.catalog.packs.scan()}
    assert states == {PackState.LIVE}, f"objects are left: {states}"
    temporary = list((repo.path / "store").rglob("*.tmp"))
    assert not temporary, f"temporary files are left: {temporary}"


def crash(path: Path, last: int | None, *, power: bool, seed: int | None) -> tuple[bool, str]:
    """(whether it came to the step, what was wrong afterwards)."""
    repository, said = path / "repository", path / "said"
    for left in (repository, path / "backup"):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(path / "base", repository)

    def work() -> None:
        sys.stderr = said.open("w")
        steps = Steps(last, Power(repository, path / "backup", seed) if power else None)
        steps.install()
        convert(repository)
        (path / "steps").write_text("\n".join(steps.trace))

    def look() -> None:
        sys.stderr = said.open("w")
        if power:
            another_boot()
        examine(repository)

    status = forked(work)
    if status not in (0, END):
        return False, f"the conversion ended with {status}: {said.read_text()}"
    return status == END, said.read_text() if forked(look) else ""


def main(path: Path, mode: str, first: int, every: int, seed: int | None) -> dict[str, object]:
    assert forked(lambda: prepare(path / "base")) == 0
    failed: dict[int, str] = {}
    _, wrong = crash(path, None, power=False, seed=None)
    if wrong:
        return {"steps": [], "failed": {0: wrong}}
    steps = (path / "steps").read_text().split("\n")
    for point in range(first, len(steps) + 1, every):
        _, wrong = crash(path, point, power=mode == "power", seed=None if seed is None else seed + point)
        if wrong:
            failed[point] = f"{steps[point - 1]}: {wrong}"
    return {"steps": steps, "failed": failed}


if __name__ == "__main__":
    place, how, begin, step, *rest = sys.argv[1:]
    print(json.dumps(main(Path(place), how, int(begin), int(step), int(rest[0]) if rest else None)))
