"""Who may do what: the rules of ordinary files, and the store's own that hold for root as well."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.mounted import TRANSPORTS, Mounted, fails, ok, run, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="another user can only be played by root")

NOBODY = {"user": 65534, "group": 65534, "extra_groups": []}


@pytest.fixture(params=TRANSPORTS)
def open_mount(request: pytest.FixtureRequest, public_directory: Path):  # type: ignore[no-untyped-def]
    """A mount that other users can see."""
    mounted = Mounted(public_directory, transport=request.param)
    mounted.options = ("--allow-other",)
    with mounted:
        yield mounted


def test_another_user_reads_what_modes_allow(open_mount: Mounted) -> None:
    image = open_mount.put("readable", b"public" * 1000)
    assert ok("cat", image, **NOBODY) == "public" * 1000
    ok("ls", "-l", open_mount.by_name, **NOBODY)
    ok("getfattr", "-d", image, **NOBODY)
    ok("chmod", "0600", image)
    fails("cat", image, says="Permission denied", **NOBODY)
    assert image.read_bytes() == b"public" * 1000


def test_another_user_changes_nothing(open_mount: Mounted) -> None:
    image = open_mount.put("guarded", b"guarded" * 1000)
    for words in (
        ["rm", "-f", image],
        ["mv", image, open_mount.by_name / "stolen"],
        ["cp", "/etc/hostname", open_mount.by_name / "planted"],
        ["mkdir", open_mount.images / "11111111-2222-3333-4444-555555555555"],
        ["setfattr", "-n", "user.property.evil", "-v", "1", image],
        ["setfattr", "-n", "user.image.protected", "-v", "true", image],
        ["setfattr", "-n", "user.imagefs.seal", "-v", "1", image],
        ["chmod", "0777", image],
        ["chown", "nobody", image],
        ["truncate", "-s", "0", image],
        ["rm", "-rf", open_mount.images / str(open_mount.id(image))],
    ):
        assert run(*words, **NOBODY).returncode != 0, words
    assert image.read_bytes() == b"guarded" * 1000
    assert sorted(os.listdir(open_mount.by_name)) == ["guarded"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_mount_can_belong_to_another_user(public_directory: Path, transport: str) -> None:
    mounted = Mounted(public_directory, transport=transport)
    mounted.options = ("--allow-other", "--uid", "65534", "--gid", "65534")
    source, image = mounted.outside / "theirs", mounted.by_name / "theirs"
    source.write_bytes(b"theirs" * 1000)
    with mounted:
        ok("cp", source, image, **NOBODY)
        mounted.wait_status(image)
        assert (image.stat().st_uid, image.stat().st_gid) == (65534, 65534)
        assert mounted.by_name.stat().st_uid == 65534
        # In a shared mount the kernel asks for write permission, and sealed data has no write bits.
        directory = mounted.images / str(mounted.id(image))
        ok("setfattr", "-n", "user.property.mine", "-v", "1", directory, **NOBODY)
        assert mounted.attribute(image, "user.property.mine") == "1"
        ok("mv", image, mounted.by_name / "moved", **NOBODY)
        ok("rm", "-f", mounted.by_name / "moved", **NOBODY)
        assert os.listdir(mounted.by_name) == []


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_mount_by_somebody_else_than_root(public_directory: Path, transport: str) -> None:
    """Through fusermount3. The one capability lets nobody read wherever this Python is installed."""
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed (Debian: fuse3)")
    if os.stat("/dev/fuse").st_mode & 0o006 != 0o006:
        pytest.skip("only root may open /dev/fuse here; Debian's udev makes it mode 0666")
    mounted = Mounted(public_directory, transport=transport)
    capability = "+dac_read_search"
    mounted.prefix = (
        *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
        *(f"--inh-caps={capability}", f"--ambient-caps={capability}"),
    )
    for path in (mounted.base, mounted.path, mounted.outside):
        os.chown(path, 65534, 65534)
    image, copy = mounted.by_name / "mine", mounted.outside / "copy"
    with mounted:
        fails("ls", mounted.path, says="Permission denied")
        ok("cp", "/etc/services", image, **NOBODY)
        get = ["getfattr", "--only-values", "-n", "user.image.status", image]
        wait_until(lambda: run(*get, **NOBODY).stdout == "active", 20, "the image")
        ok("cp", image, copy, **NOBODY)
        ok("cmp", "/etc/services", copy)
        shown = ["stat", "-c", "%u %a", image]
        wait_until(lambda: ok(*shown, **NOBODY) == "65534 444\n", 1.5, "sealed data to have no write bits")
        fails("sh", "-c", f"echo x >> {image}", says="not permitted", **NOBODY)
        ok("setfattr", "-n", "user.property.mine", "-v", "1", image, **NOBODY)
        mounted.umount()
        mounted.mount()
        ok("cmp", "/etc/services", image, **NOBODY)
        ok("rm", "-f", image, **NOBODY)


def test_without_allow_other_nobody_else_sees_it(public_directory: Path) -> None:
    with Mounted(public_directory) as mounted:
        fails("ls", mounted.path, says="Permission denied", **NOBODY)


def test_sealed_data_is_closed_to_root_as_well(mount: Mounted) -> None:
    """S4: opening it for writing, truncating it (SETATTR too) or replacing it fails with EPERM."""
    image = mount.put("sealed", b"sealed" * 1000)
    twin = mount.images / str(mount.id(image)) / "data"
    for path in (image, twin):
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
            with pytest.raises(PermissionError, match="not permitted"):
                os.close(os.open(path, flags))
        with pytest.raises(PermissionError, match="not permitted"):
            os.truncate(path, 5)
        with pytest.raises(PermissionError, match="not permitted"):
            os.truncate(path, 50_000)
    ok("chmod", "0666", image)
    with pytest.raises(PermissionError, match="not permitted"):
        os.open(image, os.O_WRONLY)
    assert image.stat().st_mode & 0o222 == 0
    assert image.read_bytes() == b"sealed" * 1000


def test_chmod_chown_and_times_are_kept(own_mount: Mounted) -> None:
    image = own_mount.put("kept", b"kept" * 1000)
    ok("chmod", "0640", image)
    ok("chown", "12:34", image)
    os.utime(image, ns=(1_000_000_000_000_000_001, 2_000_000_000_000_000_002))
    own_mount.remount()
    found = image.stat()
    assert found.st_mode & 0o777 == 0o440
    assert (found.st_uid, found.st_gid) == (12, 34)
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_000_000_000_001, 2_000_000_000_000_000_002)


def test_protected_images_cannot_be_removed(mount: Mounted) -> None:
    """S7: protected images refuse with EPERM."""
    image = mount.put("protected", b"p" * 5000)
    rival = mount.put("rival", b"r" * 5000)
    directory = mount.images / str(mount.id(image))
    ok("setfattr", "-n", "user.image.protected", "-v", "true", image)
    for words in (["rm", "-f", image], ["rm", "-rf", directory], ["mv", "-f", rival, image]):
        assert run(*words).returncode != 0, words
        assert image.read_bytes() == b"p" * 5000
    ok("setfattr", "-n", "user.image.protected", "-v", "false", image)
    ok("rm", image)


def test_deactivated_images(open_mount: Mounted) -> None:
    """S7: deactivated images cannot be opened except by root (EACCES); their data cannot be unlinked."""
    image = open_mount.put("deactivated", b"d" * 5000)
    directory = open_mount.images / str(open_mount.id(image))
    open_mount.command("set", str(open_mount.id(image)), "--deactivate")
    fails("cat", image, says="Permission denied", **NOBODY)
    assert image.read_bytes() == b"d" * 5000
    with pytest.raises(PermissionError, match="not permitted"):
        (directory / "data").unlink()
    open_mount.command("set", str(open_mount.id(image)), "--activate")
    ok("cat", image, **NOBODY)
