"""What an image file holds in compressed form, whichever format it is in."""

from __future__ import annotations

import struct

from imagefs.formats import Read, qcow2, vmdk
from imagefs.formats.compressed import MOST_CLUSTERS, Compressed, NotThis


def look(read: Read, size: int) -> Compressed | None:
    """The compressed clusters of an image file of `size` bytes; None when it has none that are known here."""
    for format_look in (qcow2.look, vmdk.look):
        try:
            found = format_look(read, size)
        except (NotThis, struct.error):
            continue
        if found is not None and 0 < len(found.clusters) <= MOST_CLUSTERS:
            return found
    return None
