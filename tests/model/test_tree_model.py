"""The tree against a dict: whatever is made, written, renamed, sealed and removed, both say the same.

Each rule predicts its own outcome from the model, errors included. Fine rules alone rarely reach what matters
(data that is shared, replaced, deleted while open), so compound ones stand beside them, and the events that
make a run worth something are counted: without one of them the test fails.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from imagefs.errors import Exists, ImagefsError, NotEmpty, NotFound, Protected, Refused, Sealed
from imagefs.images.opens import Handle
from imagefs.tree import RENAME_NOREPLACE, SetAttr
from tests.trees import bench

EVENTS: Counter[str] = Counter()
WANTED = (
    "sealed", "sealed the same data again", "deleted with data", "deleted while open", "replaced",
    "protected", "draft written again", "promoted", "promoted over a draft", "pending_delete", "queued again",
    "renamed", "remounted", "truncated", "disambiguated",
)  # fmt: skip

NAMES = st.sampled_from(["a", "b", "c", "d%2Fd", "ü"])
TEMPORARY = st.sampled_from([".tmp1", ".tmp2"])
CONTENTS = st.sampled_from([b"", b"x", b"y" * 5000, b"z" * 4096 + bytes(8192) + b"z", bytes(20_000)])
KEYS = st.sampled_from(["os_distro", "role"])
PICK = st.integers(0, 1 << 16)


@dataclass
class Model:
    """One image as it should be."""

    id: UUID
    entry: str | None = None
    status: str = "queued"
    content: bytes = b""
    protected: bool = False
    properties: dict[str, str] = field(default_factory=dict)
    siblings: dict[str, bytes] = field(default_factory=dict)
    mode: int = 0o644

    @property
    def has_data(self) -> bool:
        return self.status in {"saving", "active"}

    @property
    def directory(self) -> str:
        return f"images/{self.id}"


class TreeMachine(RuleBasedStateMachine):
    """`images` is the model; `readers` are files held open, with what they must go on reading."""

    @initialize()
    def mount(self) -> None:
        """Begins with an image of each kind: from nothing, most steps would find nothing to do."""
        self.directory = Path(tempfile.mkdtemp(prefix="imagefs-tree-model-"))
        self.images: dict[UUID, Model] = {}
        self.readers: list[tuple[Handle, bytes]] = []
        self.sealed: set[bytes] = set()
        self.open()
        self.mkdir()
        self.put("a", b"y" * 5000)
        self.put("b", b"x")
        self.write_by_name("c", b"x")

    def open(self) -> None:
        self.stack = ExitStack()
        self.tree = self.stack.enter_context(bench(self.directory / "repository"))

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            for handle, _ in self.readers:
                self.tree.close(handle)
            self.stack.close()
            shutil.rmtree(self.directory)

    # -- the model ---------------------------------------------------------------------------------

    def pick(self, number: int, *statuses: str) -> Model | None:
        """Some image in one of these states, or in any."""
        fitting = [image for image in self.images.values() if not statuses or image.status in statuses]
        return fitting[number % len(fitting)] if fitting else None

    def named(self, entry: str) -> Model | None:
        return next((image for image in self.images.values() if image.entry == entry), None)

    def gone(self, image: Model) -> None:
        EVENTS["deleted with data"] += image.has_data
        EVENTS["deleted while open"] += any(handle.node.image.id == image.id for handle, _ in self.readers)
        del self.images[image.id]

    def outcome(self, expected: type[ImagefsError] | None, call: object, *words: object) -> bool:
        """Calls; whether it succeeded, as it did exactly if no error is expected."""
        try:
            call(*words)
        except ImagefsError as error:
            assert expected is not None, f"{call} {words}: {error!r}"
            assert isinstance(error, expected), f"{call} {words}: {error!r} instead of {expected}"
            return False
        assert expected is None, f"{call} {words} succeeded instead of {expected}"
        return True

    # -- rules -------------------------------------------------------------------------------------

    @rule()
    def mkdir(self) -> None:
        image = Model(uuid4())
        self.tree.mkdir(image.id)
        self.images[image.id] = image

    @rule(entry=NAMES, content=CONTENTS)
    def write_by_name(self, entry: str, content: bytes) -> None:
        image = self.named(entry)
        expected = Sealed if image and image.status == "active" else None
        if not self.outcome(expected, self.tree.write, f"by-name/{entry}", content):
            return
        if image is None:
            image = Model(self.tree.id(f"by-name/{entry}"), entry)
            self.images[image.id] = image
        self.written(image, content)

    @rule(number=PICK, content=CONTENTS)
    def write_data(self, number: int, content: bytes) -> None:
        image = self.pick(number)
        if image is None:
            return
        expected = {"active": Sealed, "pending_delete": Refused}.get(image.status)
        if self.outcome(expected, self.tree.write, f"{image.directory}/data", content):
            self.written(image, content)

    def written(self, image: Model, content: bytes) -> None:
        if image.status == "saving":
            EVENTS["draft written again"] += 1
            image.content = content + image.content[len(content) :]
        else:
            image.status, image.content = "saving", content

    @precondition(lambda self: self.pick(0, "saving"))
    @rule(number=PICK)
    def seal(self, number: int) -> None:
        image = self.pick(number, "saving")
        if image is not None:
            self.tree.seal(image.directory)
            image.status = "active"
            EVENTS["sealed"] += 1
            EVENTS["sealed the same data again"] += image.content in self.sealed
            self.sealed.add(image.content)

    @rule(entry=NAMES, content=CONTENTS)
    def put(self, entry: str, content: bytes) -> None:
        """cp and wait: the way to data that is worth deleting."""
        if self.named(entry) is None:
            self.write_by_name(entry, content)
            image = self.named(entry)
            assert image is not None
            self.tree.seal(f"by-name/{entry}")
            image.status = "active"
            EVENTS["sealed"] += 1
            EVENTS["sealed the same data again"] += content in self.sealed
            self.sealed.add(content)

    @precondition(lambda self: self.pick(0, "saving"))
    @rule(number=PICK, size=st.sampled_from([0, 1, 4096, 30_000]))
    def truncate(self, number: int, size: int) -> None:
        image = self.pick(number, "saving", "active")
        if image is None:
            return
        expected = Sealed if image.status == "active" else None
        if self.outcome(expected, self.tree.set_attr, f"{image.directory}/data", SetAttr(size=size)):
            image.content = image.content[:size].ljust(size, b"\0")
            EVENTS["truncated"] += 1

    @rule(number=PICK, content=CONTENTS)
    def put_over(self, number: int, content: bytes) -> None:
        """What editors and `rsync` do to a name that is there: write another image, rename it."""
        entries = [image.entry for image in self.images.values() if image.entry is not None]
        if entries and self.named("e") is None:
            self.put("e", content)
            self.rename("e", entries[number % len(entries)], 0)

    @rule(old=NAMES, new=NAMES, flags=st.sampled_from([0, RENAME_NOREPLACE]))
    def rename(self, old: str, new: str, flags: int) -> None:
        image, victim = self.named(old), self.named(new)
        expected: type[ImagefsError] | None = None
        if image is None:
            expected = NotFound
        elif victim is not None and flags:
            expected = Exists
        elif victim is not None and victim is not image and victim.protected:
            expected = Protected
        if not self.outcome(expected, self.tree.rename, f"by-name/{old}", f"by-name/{new}", flags):
            return
        assert image is not None
        if victim is not None and victim is not image:
            self.gone(victim)
            EVENTS["replaced"] += 1
        image.entry = new
        EVENTS["renamed"] += old != new

    @rule(entry=NAMES)
    def unlink_by_name(self, entry: str) -> None:
        image = self.named(entry)
        expected = NotFound if image is None else Protected if image.protected else None
        EVENTS["protected"] += expected is Protected
        if self.outcome(expected, self.tree.unlink, f"by-name/{entry}"):
            assert image is not None
            self.gone(image)

    @rule(number=PICK)
    def try_protected(self, number: int) -> None:
        """The ways to delete an image that is protected."""
        image = self.pick(number)
        if image is not None and image.entry is not None:
            if not image.protected:
                self.protect(list(self.images).index(image.id))
            self.unlink_by_name(image.entry)
            self.unlink_data(list(self.images).index(image.id))

    @rule(number=PICK)
    def rm_r(self, number: int) -> None:
        """What `rm -r images/<id>` does to an active image."""
        image = self.pick(number, "active")
        if image is not None and not image.protected and not image.siblings:
            self.unlink_data(list(self.images).index(image.id))
            self.tree.unlink(f"{image.directory}/metadata.json")
            self.rmdir(list(self.images).index(image.id))

    @rule(number=PICK)
    def discard(self, number: int) -> None:
        """A draft is thrown away and written anew."""
        image = self.pick(number, "saving")
        if image is not None and not image.protected:
            self.unlink_data(list(self.images).index(image.id))
            self.write_data(list(self.images).index(image.id), b"anew")

    @rule(number=PICK)
    def delete_while_open(self, number: int) -> None:
        """The reader stays behind and is read after every later step."""
        image = self.pick(number, "active")
        if image is not None and image.entry is not None and len(self.readers) < 4:
            self.readers.append((self.tree.open(f"by-name/{image.entry}"), image.content))
            self.unlink_by_name(image.entry)

    @rule(number=PICK)
    def unlink_data(self, number: int) -> None:
        image = self.pick(number)
        if image is None:
            return
        expected = NotFound if not image.has_data else Protected if image.protected else None
        EVENTS["protected"] += expected is Protected
        if not self.outcome(expected, self.tree.unlink, f"{image.directory}/data"):
            return
        if image.status == "active":
            image.status, image.entry = "pending_delete", None
        else:
            image.status = "queued"
        image.content = b""
        EVENTS["pending_delete"] += image.status == "pending_delete"
        EVENTS["queued again"] += image.status == "queued"

    @rule(number=PICK)
    def rmdir(self, number: int) -> None:
        image = self.pick(number)
        if image is None:
            return
        full = image.has_data or image.siblings
        expected = NotEmpty if full else Protected if image.protected else None
        if self.outcome(expected, self.tree.rmdir, image.directory):
            self.gone(image)

    @rule(number=PICK, key=KEYS, value=st.sampled_from(["debian", "", "ü"]))
    def set_property(self, number: int, key: str, value: str) -> None:
        image = self.pick(number)
        if image is not None:
            self.tree.set(image.directory, f"user.property.{key}", value)
            image.properties[key] = value

    @rule(number=PICK, key=KEYS)
    def remove_property(self, number: int, key: str) -> None:
        image = self.pick(number)
        if image is not None:
            expected = None if key in image.properties else NotFound
            if self.outcome(expected, self.tree.remove, image.directory, f"user.property.{key}"):
                del image.properties[key]

    @rule(number=PICK)
    def protect(self, number: int) -> None:
        image = self.pick(number)
        if image is not None:
            image.protected = not image.protected
            self.tree.set(image.directory, "user.image.protected", str(image.protected))

    @rule(number=PICK, name=st.sampled_from(["a", "b", "c", "e"]))
    def name(self, number: int, name: str) -> None:
        """S6: a name that is taken gets the id behind it; a draft with an entry keeps its own (S8)."""
        image = self.pick(number)
        if image is None:
            return
        before = self.tree.find(image.directory, "user.image.name")
        self.tree.set(image.directory, "user.image.name", name)
        if image.status == "pending_delete" or (image.status == "saving" and image.entry) or before == name:
            return
        taken = self.named(name) not in (None, image)
        image.entry = f"{name}~{str(image.id)[:8]}" if taken else name
        EVENTS["disambiguated"] += taken

    @rule(number=PICK, other=PICK)
    def name_like_another(self, number: int, other: int) -> None:
        """Drawn from all names, this would be too rare to be seen in every run."""
        named = self.pick(other)
        if named is not None and named.entry is not None:
            name = self.tree.get(named.directory, "user.image.name")
            if name == named.entry:  # spelled as it is
                self.name(number, name)

    @rule(number=PICK, name=TEMPORARY, content=CONTENTS)
    def write_sibling(self, number: int, name: str, content: bytes) -> None:
        image = self.pick(number)
        if image is None:
            return
        old = image.siblings.get(name)
        closed = old is None and image.status not in {"queued", "saving"}
        if self.outcome(Refused if closed else None, self.tree.write, f"{image.directory}/{name}", content):
            image.siblings[name] = content + (old or b"")[len(content) :]

    @rule(number=PICK, name=TEMPORARY, content=CONTENTS)
    def write_and_promote(self, number: int, name: str, content: bytes) -> None:
        """What rsync does."""
        image = self.pick(number, "queued", "saving")
        if image is not None:
            self.write_sibling(list(self.images).index(image.id), name, content)
            self.promote(list(self.images).index(image.id), name)

    @rule(number=PICK, name=TEMPORARY)
    def promote(self, number: int, name: str) -> None:
        image = self.pick(number)
        if image is None:
            return
        expected: type[ImagefsError] | None = None
        if name not in image.siblings:
            expected = NotFound
        elif image.status not in {"queued", "saving"}:
            expected = Sealed
        path = f"{image.directory}/{name}"
        if self.outcome(expected, self.tree.rename, path, f"{image.directory}/data"):
            EVENTS["promoted"] += 1
            EVENTS["promoted over a draft"] += image.status == "saving"
            image.status, image.content = "saving", image.siblings.pop(name)

    @rule(number=PICK, name=TEMPORARY)
    def unlink_sibling(self, number: int, name: str) -> None:
        image = self.pick(number)
        if image is not None:
            expected = None if name in image.siblings else NotFound
            if self.outcome(expected, self.tree.unlink, f"{image.directory}/{name}"):
                del image.siblings[name]

    @rule(number=PICK)
    @precondition(lambda self: len(self.readers) < 4)
    def hold_open(self, number: int) -> None:
        image = self.pick(number, "active")
        if image is not None:
            self.readers.append((self.tree.open(f"{image.directory}/data"), image.content))

    @rule(number=PICK)
    @precondition(lambda self: self.readers)
    def close_reader(self, number: int) -> None:
        handle, content = self.readers.pop(number % len(self.readers))
        assert handle.pread(0, 1 << 20) == content
        self.tree.close(handle)

    @rule()
    @precondition(lambda self: len(self.images) > 2)
    def remount(self) -> None:
        for handle, _ in self.readers:
            self.tree.close(handle)
        self.readers.clear()
        self.stack.close()
        self.open()
        EVENTS["remounted"] += 1

    # -- what must always hold ---------------------------------------------------------------------

    @invariant()
    def names_agree(self) -> None:
        if not hasattr(self, "stack"):
            return
        assert set(self.tree.names("images", 3)) == {str(image_id) for image_id in self.images}
        entries = sorted(image.entry for image in self.images.values() if image.entry is not None)
        assert sorted(self.tree.names("by-name", 3)) == entries

    @invariant()
    def images_agree(self) -> None:
        for image in list(getattr(self, "images", {}).values())[-2:]:
            self.agrees(image)

    @invariant()
    def readers_read(self) -> None:
        for handle, content in getattr(self, "readers", []):
            assert handle.pread(0, 1 << 20) == content

    def agrees(self, image: Model) -> None:
        path = image.directory
        assert self.tree.status(path) == image.status
        properties = {name for name in self.tree.list(path) if name.startswith("user.property.")}
        assert {name: self.tree.get(path, name) for name in properties} == {
            f"user.property.{key}": value for key, value in image.properties.items()
        }
        data = ["data"] if image.has_data else []
        names = self.tree.names(path)
        assert names[: len(data) + 1] == [*data, "metadata.json"]
        assert set(names[len(data) + 1 :]) == set(image.siblings)
        for name, content in image.siblings.items():
            assert self.tree.read(f"{path}/{name}") == content
        paths = [f"{path}/data"] * image.has_data + [f"by-name/{image.entry}"] * (image.entry is not None)
        for name in paths:
            attr = self.tree.attr(name)
            assert (attr.size, attr.nlink) == (len(image.content), len(paths))
            assert attr.mode & os.path.stat.S_IWUSR == (0 if image.status == "active" else 0o200)
            assert self.tree.read(name) == image.content


TreeMachine.TestCase.settings = settings(max_examples=settings().max_examples * 2 // 3, stateful_step_count=30)
TestTree = TreeMachine.TestCase


def test_the_runs_were_worth_something() -> None:
    """Runs behind the machine above (pytest keeps the order of a file)."""
    if not EVENTS:
        return  # run alone, or by another process
    never = [event for event in WANTED if not EVENTS[event]]
    assert not never, f"{never} of {dict(EVENTS)}"
