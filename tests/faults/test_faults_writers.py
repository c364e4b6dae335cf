"""Copies that were interrupted never become images by themselves (S3)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from imagefs.images import drafts, recovery
from imagefs.images.arming import blocked_reason, seal_due
from imagefs.images.opens import Handle
from imagefs.images.staging import cookie
from imagefs.types import Image, Status
from tests.content import noise
from tests.repositories import USER, Opened, opened

CONTENT = noise(100_000, 1)


@pytest.fixture
def it(repo_dir: Path) -> Iterator[Opened]:
    with opened(repo_dir) as it:
        yield it


@pytest.fixture
def writer() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the status that it is told, and then stays as it was in its last moment."""
    process = subprocess.Popen(["sh", "-c", "read status; exit $status"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate(timeout=10)


def end(process: subprocess.Popen[bytes], how: str | int) -> None:
    """Ends it by a signal or with a status, and does not wait for it: /proc still shows how it ended."""
    if isinstance(how, str):
        process.send_signal(getattr(signal, how))
    else:
        assert process.stdin is not None
        process.stdin.write(f"{how}\n".encode())
        process.stdin.flush()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z":
        assert time.monotonic() < deadline
        time.sleep(0.005)


def begin(it: Opened) -> tuple[Image, Handle]:
    image = it.images.create("image", draft=True)
    return image, it.files.open(image.data_ino, os.O_RDWR, USER, it.files.new_fh(), fresh=True)


def state(it: Opened, image: Image) -> tuple[str | None, bool]:
    """(why it is not sealed by itself, whether it would be)."""
    now = it.images.get(image.id)
    assert now.status == Status.SAVING
    return blocked_reason(it.repo, now), seal_due(it.repo, now, 0.0) is not None


@pytest.mark.parametrize(
    ("how", "reason"),
    [("SIGTERM", "signal 15"), ("SIGKILL", "signal 9"), ("SIGINT", "signal 2"), (3, "status 3")],
)
def test_a_writer_that_ends_badly_disarms(
    it: Opened, writer: subprocess.Popen[bytes], how: str | int, reason: str
) -> None:
    image, handle = begin(it)
    handle.pwrite(0, memoryview(CONTENT), writer.pid)
    end(writer, how)
    handle.flush(writer.pid)
    it.files.release(handle.fh)
    blocked, due = state(it, image)
    assert reason in (blocked or "")
    assert not due
    it.images.seal(image.id)  # who insists gets what is there
    assert it.read(image.id) == CONTENT


def test_a_writer_that_ends_well_does_not(it: Opened, writer: subprocess.Popen[bytes]) -> None:
    image, handle = begin(it)
    handle.pwrite(0, memoryview(CONTENT), writer.pid)
    end(writer, 0)
    handle.flush(writer.pid)
    it.files.release(handle.fh)
    assert state(it, image) == (None, True)


def test_who_dies_without_having_written_does_not(it: Opened, writer: subprocess.Popen[bytes]) -> None:
    """A shell flushes what its children have open."""
    image, handle = begin(it)
    handle.pwrite(0, memoryview(CONTENT), os.getpid())
    end(writer, "SIGKILL")
    handle.flush(writer.pid)
    it.files.release(handle.fh)
    assert state(it, image) == (None, True)


def test_a_new_start_arms_again(it: Opened, writer: subprocess.Popen[bytes]) -> None:
    image, handle = begin(it)
    handle.pwrite(0, memoryview(CONTENT), writer.pid)
    end(writer, "SIGKILL")
    handle.flush(writer.pid)
    handle.truncate(0)
    handle.pwrite(0, memoryview(CONTENT), os.getpid())
    it.files.release(handle.fh)
    assert state(it, image) == (None, True)


def test_a_mount_that_ended_while_it_was_written_disarms(repo_dir: Path) -> None:
    with opened(repo_dir) as it:
        image, handle = begin(it)
        handle.pwrite(0, memoryview(CONTENT))
        recovery.recover(it.repo)
        assert it.images.get(image.id).draft == image.draft, "it is still being written"
        # A mount that is gone: its kernel closed nothing, and its session is dead.
        it.repo.opens.drop(it.repo.session.id)
        it.images.update_draft(image.id, lambda draft: replace(draft, writer=uuid4()))
        recovery.recover(it.repo)
        assert "ended while" in (state(it, image)[0] or "")


class TestAnotherBoot:
    """After a power cut a file may be short or full of zeros."""

    def released(self, it: Opened) -> Image:
        image = it.images.get(it.draft("image", CONTENT))
        return it.images.update_draft(image.id, lambda draft: replace(draft, boot="another boot"))

    def test_what_was_not_known_to_be_on_the_disk_is_not_sealed(self, it: Opened) -> None:
        blocked, due = state(it, self.released(it))
        assert "restarted" in (blocked or "")
        assert not due

    def test_what_was_is(self, it: Opened) -> None:
        image = self.released(it)
        fd = it.repo.staging.open(image.id, 1)
        now = cookie(fd, 1)
        os.close(fd)
        it.images.update_draft(image.id, lambda draft: replace(draft, complete=now))
        assert state(it, image) == (None, True)

    def test_what_has_changed_since_is_not(self, it: Opened) -> None:
        image = self.released(it)
        fd = it.repo.staging.open(image.id, 1, write=True)
        now = cookie(fd, 1)
        os.pwrite(fd, b"x", 0)
        os.close(fd)
        it.images.update_draft(image.id, lambda draft: replace(draft, complete=now))
        assert not state(it, image)[1]

    def test_opening_it_again_starts_over(self, it: Opened) -> None:
        image = self.released(it)
        it.images.update_draft(image.id, drafts.reopened(it.repo.session.id))
        it.images.update_draft(image.id, drafts.released(time.time_ns(), it.repo.boot))
        assert state(it, image) == (None, True)
