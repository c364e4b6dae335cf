"""`worker`: the process that serves a mount. Wires everything together, and takes it apart in order.

The supervisor starts it (see imagefs.fuse.supervisor for the words it adds); nobody types it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from imagefs.catalog import LogRow
from imagefs.cli.running import Running
from imagefs.cli.settings import Settings, pass_settings
from imagefs.config import Config, SealMode, Transport
from imagefs.errors import ImagefsError
from imagefs.fuse.kernel.device import Ended
from imagefs.fuse.kernel.init import Negotiated
from imagefs.fuse.kernel.passthrough import Passthrough
from imagefs.fuse.kernel.protocol import Init
from imagefs.fuse.kernel.transport import KernelTransport
from imagefs.fuse.supervisor import EXIT_DRAINED, EXIT_HOPELESS, READY
from imagefs.images.janitor import Janitor
from imagefs.images.materialising import Materialiser
from imagefs.images.opens import OpenFiles
from imagefs.images.repository import Repository
from imagefs.images.service import Images
from imagefs.images.tail import Listener, LogTail
from imagefs.tree import Tree

log = logging.getLogger(__name__)


def worker_words(
    settings: Settings,
    session: UUID,
    mountpoint: Path,
    transport: Transport,
    given: dict[str, Any],
    log_file: Path | None,
) -> tuple[str, ...]:
    """The command line of a mount's worker, without what the supervisor adds to it."""
    return (
        sys.executable, "-m", "imagefs", "--repo", str(settings.path),
        *(["--config", str(settings.config_file.absolute())] if settings.config_file else []),
        *(["--debug"] if settings.debug else []),
        "worker", "--session", str(session), "--mountpoint", str(mountpoint), "--transport", str(transport),
        "--settings", json.dumps(given), *(["--log", str(log_file)] if log_file else []),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Mount:
    """What the supervisor and `imagefs mount` say about the mount to serve."""

    session: UUID
    lock_fd: int
    mountpoint: Path
    transport: Transport
    log: str | None
    device_fd: int
    minor: int
    max_write: int
    init_flags: int
    incarnation: int
    ready_fd: int | None
    connection: UUID | None
    """Not used: a session is exactly one connection, and what it leaves open is found by the session."""


@click.command("worker", hidden=True)
@click.option("--session", type=click.UUID, required=True)
@click.option("--lock-fd", type=int, required=True)
# Not click.Path, which looks at the path: nobody answers for the mount before this process does.
@click.option("--mountpoint", type=Path, required=True)
@click.option("--transport", type=click.Choice([str(t) for t in Transport]), required=True)
@click.option("--settings", "given", default="{}")
@click.option("--log")
@click.option("--device-fd", type=int, default=-1)
@click.option("--connection", type=click.UUID)
@click.option("--minor", type=int, default=0)
@click.option("--max-write", type=int, default=0)
@click.option("--init-flags", type=int, default=0)
@click.option("--incarnation", type=int, default=0)
@click.option("--ready-fd", type=int)
@pass_settings
def worker_command(settings: Settings, /, given: str, transport: str, **words: Any) -> None:
    """Serve a mount until it is gone."""
    config = settings.config.changed(json.loads(given), "The command line")
    _log_to_stderr(config, debug=settings.debug)
    # From a terminal these reach everybody; the supervisor decides what they mean.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    mount = Mount(transport=Transport(transport), **words)
    try:
        worker = Worker(settings.path, config, mount, json.loads(given))
    except (ImagefsError, OSError) as error:
        log.error("the mount %s cannot be served: %s", mount.mountpoint, error)
        _tell(mount.ready_fd, str(error))
        sys.exit(EXIT_HOPELESS)
    sys.exit(worker.run())


class Worker:
    """One incarnation of a mount's server.

    Threads: the transport's, the log's tail, the janitor's. They start after everything is wired, and end
    in the order in which they feed one another: requests, then sealing, then the log's tail.
    """

    def __init__(self, path: Path, config: Config, mount: Mount, options: dict[str, Any]) -> None:
        self._mount = mount
        self._config = config
        self.repo = Repository.open(path, config, "mount", session=mount.session, lock_fd=mount.lock_fd)
        images = Images(self.repo)
        self._materialiser = Materialiser(self.repo)
        passes = mount.transport is Transport.KERNEL and Init.PASSTHROUGH in Init(mount.init_flags)
        self._files = OpenFiles(
            images,
            mount.session,
            seal_on_close=config.seal is SealMode.CLOSE,
            backing=Passthrough(mount.device_fd) if passes else None,
            slow=self._materialiser.opened,
        )
        uid = os.getuid() if config.uid is None else config.uid
        gid = os.getgid() if config.gid is None else config.gid
        self._tree = Tree(self.repo, images, self._files, uid=uid, gid=gid)
        kernel = mount.transport is Transport.KERNEL
        self._serve, notify = self._kernel() if kernel else (self._portable, _nobody_to_tell)
        self._janitor = Janitor(images, config.settle_seconds)
        self._tail = LogTail(self.repo, self._files, [notify, self._janitor.changed])
        self._record = Running(
            session=str(mount.session),
            mountpoint=str(mount.mountpoint),
            transport=str(mount.transport),
            worker_pid=os.getpid(),
            supervisor_pid=os.getppid(),
            incarnation=mount.incarnation,
            options=options,
            log=mount.log,
        )

    def run(self) -> int:
        """Serves until the mount is gone or another worker is to take over; the exit status."""
        ended = Ended.DRAINED
        try:
            with self._upkeep():
                self._record.write(self.repo.path)
                ended = self._serve()
        finally:
            if ended is Ended.UNMOUNTED:
                self._record.remove(self.repo.path)
                self.repo.opens.drop(self._mount.session)
                self.repo.catalog.slots.drop(self._mount.session)
                self.repo.logs.flush()
            self.repo.close(end=ended is Ended.UNMOUNTED)
        return 0 if ended is Ended.UNMOUNTED else EXIT_DRAINED

    @contextmanager
    def _upkeep(self) -> Iterator[None]:
        if self._mount.incarnation:
            self._take_over()
        self._tail.start()
        self._janitor.start()
        try:
            yield
        finally:
            self._materialiser.close()
            self._janitor.stop()
            self._tail.stop()

    def _take_over(self) -> None:
        """Opens what the worker before had open, and holds what was deleted of it meanwhile (T8)."""
        self._files.restore()
        gen = self.repo.catalog.generation()
        deleted = {image_id for _, image_id in self.repo.catalog.images.unlinked()}
        self.repo.catalog.sessions.ack(self._mount.session, gen, self._files.held() & deleted)

    def _kernel(self) -> tuple[Callable[[], Ended], Listener]:
        """What answers the kernel, and what tells it about changes."""
        mount = self._mount
        server = KernelTransport(
            mount.device_fd,
            Negotiated(mount.minor, mount.max_write, Init(mount.init_flags)),
            self._tree,
            self.repo.catalog,
            connection=mount.session,
            session=mount.session,
            incarnation=mount.incarnation,
        )

        def serve() -> Ended:
            # Requests wait in the kernel until they are read: the mount answers from here on.
            self._ready()
            return server.serve()

        return serve, server.notifier.push

    def _portable(self) -> Ended:
        # Not above: importing it loads libfuse 2, which need not be there.
        from imagefs.fuse import portable  # noqa: PLC0415

        portable.serve(
            self._tree,
            self._files,
            self._mount.mountpoint,
            source=str(self.repo.path),
            allow_other=self._config.allow_other,
            ready=self._ready,
        )
        return Ended.UNMOUNTED

    def _ready(self) -> None:
        _tell(self._mount.ready_fd, READY)


def _nobody_to_tell(rows: Sequence[LogRow] | None) -> None:
    """Libfuse takes no notifications: what it caches, it forgets after a second."""


def _tell(fd: int | None, message: str) -> None:
    """Writes to the pipe on which `imagefs mount` waits, and closes it."""
    if fd is not None:
        with contextlib.suppress(OSError):  # whoever waited has gone
            os.write(fd, message.encode())
        os.close(fd)


def _log_to_stderr(config: Config, *, debug: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if debug else config.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )
