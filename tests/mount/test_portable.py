"""What is particular about the transport over fusepy and libfuse 2; the rest is tested over both."""

from __future__ import annotations

import ctypes.util
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.errors import Damaged, Sealed, Stale
from tests.content import MIB, noise
from tests.mounted import Mounted, ok, run, wait_until

pytestmark = pytest.mark.skipif(ctypes.util.find_library("fuse") is None, reason="libfuse 2 is not installed")


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with Mounted(tmp_path_factory.mktemp("portable"), transport="fusepy") as mounted:
        yield mounted


def test_it_is_mounted_as_itself(portable: Mounted) -> None:
    line = next(line for line in Path("/proc/mounts").read_text().splitlines() if str(portable.path) in line)
    source, _, kind, options, *_ = line.split()
    assert (source, kind) == (str(portable.repo), "fuse.imagefs")
    assert "max_read=131072" in options.split(",")
    assert "default_permissions" not in options  # see imagefs.fuse.mounting.SHARED


def test_a_deleted_open_file_leaves_no_other_name(portable: Mounted) -> None:
    """hard_remove: libfuse would rename it to .fuse_hidden..., an image of its own."""
    image = portable.put("hidden", b"content" * 1000)
    draft = portable.by_name / "hidden-draft"
    with image.open("rb") as sealed, draft.open("wb+") as writer:
        image.unlink()
        draft.unlink()
        assert not [name for name in os.listdir(portable.by_name) if "hidden" in name]
        assert sealed.read() == b"content" * 1000
        writer.write(b"more" * 1000)
        writer.flush()
        writer.seek(0)
        assert writer.read() == b"more" * 1000
        time.sleep(1.1)  # for the kernel to forget the attributes
        with pytest.raises(OSError, match="No such file"):
            os.fstat(writer.fileno())


def test_one_time_is_set_and_the_other_stays(portable: Mounted) -> None:
    image = portable.by_name / "times"
    image.write_bytes(b"x")
    os.utime(image, ns=(1_000_000_123, 2_000_000_456))
    wait_until(lambda: image.stat().st_mtime_ns == 2_000_000_456, 5, "the times to be seen")
    assert image.stat().st_atime_ns == 1_000_000_123
    ok("touch", "-m", "-d", "@77", image)
    wait_until(lambda: image.stat().st_mtime == 77, 5, "the time to be seen")
    assert image.stat().st_atime_ns == 1_000_000_123
    ok("touch", "-a", image)
    wait_until(lambda: abs(image.stat().st_atime - time.time()) < 60, 5, "the time to be seen")
    assert image.stat().st_mtime == 77


def test_names_in_all_scripts(portable: Mounted) -> None:
    for name in ("grün", "雪", "naïve ☃", "🐧.raw"):
        (portable.by_name / name).write_bytes(name.encode())
        assert name in os.listdir(portable.by_name)
        assert (portable.by_name / name).read_text() == name
        os.setxattr(portable.by_name / name, f"user.property.{name}", name.encode())
        assert f"user.property.{name}" in os.listxattr(portable.by_name / name)
    with pytest.raises(OSError, match=r"[Ii]nvalid or incomplete"):
        os.mknod(os.fsencode(portable.by_name) + b"/\xff\xfe")


def test_large_reads_and_writes_in_any_order(portable: Mounted) -> None:
    content = bytearray(noise(3 * MIB + 5))
    image = portable.by_name / "pieces"
    fd = os.open(image, os.O_CREAT | os.O_RDWR)
    for start in range(len(content) - len(content) % 300_000, -1, -300_000):
        os.pwrite(fd, content[start : start + 300_000], start)
    assert os.pread(fd, len(content), 0) == content
    os.ftruncate(fd, 2 * MIB)
    os.fsync(fd)
    assert os.fstat(fd).st_size == 2 * MIB
    os.close(fd)
    portable.wait_status(image)
    assert image.read_bytes() == content[: 2 * MIB]


def test_what_it_cannot_express_is_refused_clearly(portable: Mounted) -> None:
    image = portable.by_name / "plain"
    image.write_bytes(b"x" * 10_000)
    assert "unsupported" in run("fallocate", "-p", "-o", "0", "-l", "4096", image).stderr
    with pytest.raises(OSError, match=r"not implemented|not permitted"):
        (portable.by_name / "link").symlink_to("x")
    with pytest.raises(OSError, match="not permitted"):
        os.mkfifo(portable.by_name / "fifo")
    with pytest.raises(OSError, match=r"Argument list too long|Numerical"):
        os.setxattr(image, "user.long", b"x" * 65_537)


def test_a_listing_of_many_pages(portable: Mounted) -> None:
    for number in range(2100):
        (portable.images / f"00000000-0000-4000-8000-{number:012}").mkdir()
    names = [name for name in os.listdir(portable.images) if name.startswith("00000000-0000-4000-8000-")]
    assert len(names) == len(set(names)) == 2100


@pytest.mark.parametrize(
    ("raised", "number"),
    [
        (Sealed("x"), errno.EPERM),
        (Stale("x"), errno.ESTALE),
        (Damaged("x"), errno.EIO),
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
    ],
)
def test_errors_are_translated_before_fusepy_sees_them(raised: Exception, number: int) -> None:
    from imagefs.fuse.portable import translated

    with pytest.raises(OSError, match="Errno") as caught, translated("read"):
        raise raised
    assert caught.value.errno == number


@pytest.mark.expect_log("read failed.*ZeroDivisionError")
def test_an_unexpected_error_is_eio_and_in_the_log() -> None:
    """fusepy alone would call it EINVAL and hide it."""
    from imagefs.fuse.portable import translated

    with pytest.raises(OSError, match="Errno") as caught, translated("read"):
        raise ZeroDivisionError
    assert caught.value.errno == errno.EIO
