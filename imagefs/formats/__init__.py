"""What an image file is: pure functions of its bytes."""

from __future__ import annotations

from collections.abc import Callable

Read = Callable[[int, int], bytes]
"""(offset, length) -> that many bytes of the file, fewer at its end."""
