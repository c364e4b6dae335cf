"""`create` and `save`: local files in and out, with their holes and their own attributes."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import xattr

from imagefs.blocks.digest import is_zero
from imagefs.cli.edit import Edit, edit_of, record_options
from imagefs.cli.opening import complete_image, entry_of, opened, resolve
from imagefs.cli.output import json_option, print_json, say
from imagefs.cli.progress import progress
from imagefs.cli.sealing import HOLES_HASHED
from imagefs.cli.settings import Settings, pass_settings, repo_option
from imagefs.cli.working import opened_for_data
from imagefs.errors import Busy, Exists, ImagefsError, InvalidValue, Mismatch, NoData
from imagefs.images import drafts, fields
from imagefs.images.hashtask import Source, fill_in_hashes
from imagefs.images.opens import Handle, OpenFiles
from imagefs.images.repository import Repository
from imagefs.images.service import Images
from imagefs.images.staging import data_ranges
from imagefs.images.upload import Upload
from imagefs.tree import xattrs
from imagefs.tree.metadata import document
from imagefs.types import Caller, Image

PIECE = 1 << 20
UNFINISHED = "the command that makes it (imagefs create) has not finished"
CONTROLS = b"user.imagefs."
Advance = Callable[[int], None]
attributes_option = click.option(
    "--attributes/--no-attributes",
    default=True,
    help="Carry the file's user.* attributes over.  [default: do]",
)


@click.command("create")
@click.argument("name", required=False)
@click.option(
    "--file",
    "source",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="The data; - is stdin.",
)
@click.option("--id", "image_id", type=click.UUID, help="The image's id; a random one without.")
@record_options
@click.option("--size", metavar="BYTES", help="Declare the size: other data is refused (killed).")
@click.option("--checksum", metavar="MD5", help="Declare the MD5 of the data.")
@click.option("--sha512", metavar="HEX", help="Declare the SHA-512 of the data.")
@click.option("--seal/--no-seal", default=True, help="Whether the image becomes active now.  [default: it does]")
@attributes_option
@json_option
@repo_option
@pass_settings
def create_command(
    settings: Settings,
    /,
    name: str | None,
    source: str | None,
    image_id: UUID | None,
    size: str | None,
    checksum: str | None,
    sha512: str | None,
    seal: bool,
    attributes: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make an image NAME, with the data of a file, or without data (queued) when no --file is given.

    The data goes straight into packs, and is durable when the image is active; interrupted before, nothing
    is left. Prints the new image's id.
    """
    edit = edit_of(**options)
    if name is not None:
        fields.parse("name", name)
    declared = {"size": size, "checksum": checksum, "os_hash_value": sha512}
    if source is None:
        if any(declared.values()):
            raise click.UsageError("Declaring what the data is needs --file.")
        with opened(settings) as repo, repo.catalog.transaction():
            image = Images(repo).update(Images(repo).create(name, image_id, uid=os.getuid(), gid=os.getgid()).id, edit)
    else:
        with _source(source) as fd, opened_for_data(settings) as (images, files), _polite():
            image = images.create(name, image_id, draft=True, uid=os.getuid(), gid=os.getgid())
            with _deleted_on_failure(images, image):
                change = _with_attributes(_attributes_of(fd) if attributes else {}, edit, declared)
                image = images.update(image.id, change)
                before = os.fstat(fd)
                if seal:
                    image = _upload(fd, before, source, images, files, image)
                else:
                    # A create that is killed, or whose mount seals at once, must not leave an active image.
                    images.update_draft(image.id, drafts.blocked(UNFINISHED))
                    _copy_in(fd, source, files, image)
                    image = images.update_draft(image.id, drafts.marked(True))
            if seal:
                image = _with_hashes(images.repo, image, fd, before)
    if as_json:
        print_json(document(image))
    else:
        click.echo(str(image.id))


@click.command("save")
@click.argument("image", shell_complete=complete_image)
@click.argument("target", type=click.Path(allow_dash=True, path_type=str))
@click.option("--force", "-f", is_flag=True, help="Replace a file that exists.")
@attributes_option
@repo_option
@pass_settings
def save_command(settings: Settings, /, image: str, target: str, force: bool, attributes: bool) -> None:
    """Write an image's data to a file; - is stdout. Holes stay holes.

    The file appears under its name when it is complete. A directory gets a file with the image's name.
    """
    with opened_for_data(settings) as (images, files), _polite():
        found = resolve(images.repo, image)
        if found.draft is None and not found.sealed:
            raise InvalidValue(f"Image {found.id} is {found.status}: it has no data to save.")
        if found.draft is not None:
            say(f"Image {found.id} is {found.status}: this is its draft as it is now.")
        with _handle(files, found, os.O_RDONLY) as handle, progress("saving", handle.size) as advance:
            if target == "-":
                _copy_to_stream(handle, sys.stdout.fileno(), advance)
            else:
                _save(handle, found, Path(target), force=force, attributes=attributes, advance=advance)


# -- in ----------------------------------------------------------------------------------------


@contextmanager
def _source(path: str) -> Iterator[int]:
    """A descriptor of the file to read; standard input is not closed."""
    if path == "-":
        yield sys.stdin.fileno()
        return
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _deleted_on_failure(images: Images, image: Image) -> Iterator[None]:
    """Deletes an image that this command made and could not fill."""
    try:
        yield
    except Mismatch:
        raise  # it is killed, and says why
    except BaseException:
        with contextlib.suppress(ImagefsError):
            images.update(image.id, Edit({"protected": False}, {}, ()))
            images.delete(image.id)
        raise


@contextmanager
def _polite() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end the command as Ctrl-C does: everything half-done is cleared away."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _handle(files: OpenFiles, image: Image, flags: int) -> Iterator[Handle]:
    caller = Caller(os.getuid(), os.getgid(), os.getpid())
    handle = files.open(image.data_ino, flags, caller, files.new_fh(), fresh=flags != os.O_RDONLY)
    try:
        yield handle
    finally:
        files.release(handle.fh)


def _upload(fd: int, before: os.stat_result, name: str, images: Images, files: OpenFiles, image: Image) -> Image:
    """The image, sealed. What can be read again is hashed afterwards, which makes it active sooner."""
    regular = stat.S_ISREG(before.st_mode)
    expected = image.draft.expected if image.draft else {}
    hashed = not regular or not expected.keys().isdisjoint({"checksum", "os_hash_value"})
    with (
        Upload(images, files, image, hashed=hashed) as upload,
        progress("storing", before.st_size if regular else None) as advance,
    ):
        if regular:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            _upload_data(fd, before.st_size, upload, advance)
            _require_unchanged(fd, before, name)
        else:
            _upload_stream(fd, upload, advance)
        return upload.seal()


def _upload_data(fd: int, size: int, upload: Upload, advance: Advance) -> None:
    for offset, length in data_ranges(fd, 0, size):
        advance(offset - upload.size)
        upload.hole(offset - upload.size)
        while upload.size < offset + length:
            count = upload.read_from(fd, upload.size, offset + length - upload.size)
            if not count:
                return  # it was cut short: the caller sees that
            advance(count)
    advance(size - upload.size)
    upload.hole(size - upload.size)


def _upload_stream(fd: int, upload: Upload, advance: Advance) -> None:
    """Reads a pipe, a terminal or a device to its end."""
    with open(fd, "rb", buffering=0, closefd=False) as stream:
        buffer = memoryview(bytearray(PIECE))
        while count := stream.readinto(buffer):
            upload.write(buffer[:count])
            advance(count)


def _with_hashes(repo: Repository, image: Image, fd: int, before: os.stat_result) -> Image:
    """The image with its hashes, unless zeros would make that take long: a mount fills them in."""
    if (image.size or 0) - image.allocated > HOLES_HASHED:
        return image
    source = None
    if stat.S_ISREG(before.st_mode):
        source = Source(lambda offset, length: os.pread(fd, length, offset), lambda: _same(fd, before))
    fill_in_hashes(repo, image.id, lambda: False, source)
    return repo.catalog.images.get(image.id)


def _same(fd: int, before: os.stat_result) -> bool:
    after = os.fstat(fd)
    return (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def _require_unchanged(fd: int, before: os.stat_result, name: str) -> None:
    if not _same(fd, before):
        raise Busy(f"{name} was changed while it was being read; nothing was kept.")


def _copy_in(fd: int, name: str, files: OpenFiles, image: Image) -> None:
    before = os.fstat(fd)
    regular = stat.S_ISREG(before.st_mode)
    with (
        _handle(files, image, os.O_WRONLY) as handle,
        progress("copying", before.st_size if regular else None) as advance,
    ):
        if not regular:
            _copy_stream(fd, handle, advance)
            return
        _copy_data(fd, before.st_size, handle, advance)
        _require_unchanged(fd, before, name)


def _copy_data(fd: int, size: int, handle: Handle, advance: Advance) -> None:
    """Copies what is not a hole; zeros that are written out become holes too."""
    at = 0
    for offset, length in data_ranges(fd, 0, size):
        advance(offset - at)
        at = offset
        while at < offset + length:
            data = os.pread(fd, min(PIECE, offset + length - at), at)
            if not data:
                break
            _write(handle, at, data)
            at += len(data)
            advance(len(data))
    advance(size - at)
    handle.truncate(size)


def _copy_stream(fd: int, handle: Handle, advance: Advance) -> None:
    """Copies a pipe, a terminal or a device to its end."""
    at = 0
    with open(fd, "rb", buffering=PIECE, closefd=False) as stream:
        while data := stream.read(PIECE):
            _write(handle, at, data)
            at += len(data)
            advance(len(data))
    handle.truncate(at)


def _write(handle: Handle, at: int, data: bytes) -> None:
    if not is_zero(data):
        handle.pwrite(at, memoryview(data), os.getpid())


def _attributes_of(fd: int) -> dict[bytes, bytes]:
    """The file's user.* attributes but for imagefs' own controls; none where there cannot be any."""
    with contextlib.suppress(OSError):
        return {
            name: value
            for name, value in xattr.get_all(fd)
            if name.startswith(b"user.") and not name.startswith(CONTROLS)
        }
    return {}


def _with_attributes(
    carried: dict[bytes, bytes], edit: Edit, declared: dict[str, str | None]
) -> Callable[[Image], Image]:
    """The change that sets a file's attributes as `cp -a` would, then what the command line says.

    What the command line declares about the data counts instead of what the file's attributes do.
    """
    facts = {f"user.image.{key}".encode(): text.encode() for key, text in declared.items() if text is not None}
    if b"user.image.os_hash_value" in facts:
        facts[b"user.image.os_hash_algo"] = b"sha512"

    def change(image: Image) -> Image:
        for name, value in carried.items():
            try:
                image = xattrs.changed(image, name, value)
            except ImagefsError as error:
                say(f"The attribute {name.decode(errors='replace')} is not carried over: {error}")
        for name, value in facts.items():
            image = xattrs.changed(image, name, value)
        return edit(image)

    return change


# -- out ---------------------------------------------------------------------------------------


def _save(handle: Handle, image: Image, target: Path, *, force: bool, attributes: bool, advance: Advance) -> None:
    if target.is_dir():
        target /= entry_of(image) or str(image.id)
    if target.exists():
        if not target.is_file():
            raise InvalidValue(f"{target} is no ordinary file: it is not written to.")
        if not force:
            raise Exists(f"{target} exists; --force replaces it.")
    fd, temporary = tempfile.mkstemp(prefix=f".{target.name[:200]}.", dir=target.parent)
    try:
        try:
            _copy_out(handle, fd, advance)
            if attributes:
                _set_attributes(fd, image, target)
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(fd, 0o666 & ~mask)
            # Before the rename: a power cut must not leave an empty file under the final name.
            os.fsync(fd)
        finally:
            os.close(fd)
        if not force and target.exists():
            raise Exists(f"{target} came into being meanwhile; --force replaces it.")
        Path(temporary).rename(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _copy_out(handle: Handle, fd: int, advance: Advance) -> None:
    at = 0
    for offset, end in _data(handle):
        advance(offset - at)
        at = offset
        while at < end:
            data = handle.pread(at, min(PIECE, end - at))
            if not data:
                break
            _write_all(fd, data, at)
            at += len(data)
            advance(len(data))
    os.ftruncate(fd, handle.size)
    advance(handle.size - at)


def _data(handle: Handle) -> Iterator[tuple[int, int]]:
    """(start, end) of what is not a hole."""
    end = 0
    with contextlib.suppress(NoData):
        while True:
            start = handle.seek(end, os.SEEK_DATA)
            end = handle.seek(start, os.SEEK_HOLE)
            yield start, end


def _write_all(fd: int, data: bytes, at: int) -> None:
    done = os.pwrite(fd, data, at)
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], at + done)


def _copy_to_stream(handle: Handle, fd: int, advance: Advance) -> None:
    with open(fd, "wb", buffering=PIECE, closefd=False) as stream:
        at = 0
        while data := handle.pread(at, PIECE):
            stream.write(data)
            at += len(data)
            advance(len(data))


def _set_attributes(fd: int, image: Image, target: Path) -> None:
    lost = []
    for name in xattrs.names(image):
        value = xattrs.read(image, name)
        if value is None or name.startswith(CONTROLS):
            continue
        try:
            xattr.set(fd, name, value)
        except OSError as error:
            lost.append(f"{name.decode(errors='replace')} ({error.strerror})")
    if lost:
        say(f"{target} could not take these attributes: {', '.join(lost)}.")
