"""Telling systemd that a service is ready (sd_notify(3)), where a service manager asked for it."""

from __future__ import annotations

import os
import socket


def ready() -> None:
    """Sends READY=1 to the socket in NOTIFY_SOCKET; nothing without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(address)
        channel.send(b"READY=1")
