"""The kernel transport of one worker: everything between an agreed connection and its end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from imagefs.fuse.kernel import notices
from imagefs.fuse.kernel.device import Device, Ended
from imagefs.fuse.kernel.notifier import Notifier
from imagefs.fuse.kernel.request import Journal, Served

if TYPE_CHECKING:
    from uuid import UUID

    from imagefs.catalog import Catalog
    from imagefs.fuse.kernel.init import Negotiated
    from imagefs.tree.tree import Tree


class KernelTransport:
    """Serves a tree on a /dev/fuse descriptor whose INIT the supervisor has answered.

    `connection` names the kernel's connection in the open table and the reply slots; `session` this mount in
    the change log, whose rows go to `notifier.push`; `incarnation` counts the connection's earlier workers.
    """

    def __init__(
        self, fd: int, agreed: Negotiated, tree: Tree, catalog: Catalog,
        *, connection: UUID, session: UUID, incarnation: int = 0,
    ) -> None:  # fmt: skip
        self._fd = fd
        self._agreed = agreed
        self._incarnation = incarnation
        self._device = Device(fd, Served(tree, Journal(catalog, connection)), agreed.max_write, incarnation)
        self.notifier = Notifier(self._device, agreed.minor, session)

    def serve(self) -> Ended:
        """Answers requests until the mount is gone, or SIGTERM asks for another worker to take over.

        Call it in the main thread. Raises OSError when the descriptor cannot be used.
        """
        if self._incarnation:
            if self._agreed.resend:
                # Before the first read: what the predecessor left comes first, and nobody else answers.
                os.write(self._fd, notices.resend())
            self.notifier.push(None)
        try:
            return self._device.serve()
        finally:
            self.notifier.stop()

    def drain(self) -> None:
        """Makes serve() return once all that has been read is answered."""
        self._device.drain()
