"""The `imagefs` command: one file per command group, and the only place that wires objects together.

Each command's module is imported when the command is used, so that `imagefs --help` starts at once.
Environment variables are read in this package only.
"""

from __future__ import annotations

from imagefs.cli.app import main

__all__ = ["main"]
