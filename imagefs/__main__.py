"""`python -m imagefs`: the command line, as the `imagefs` command runs it."""

from __future__ import annotations

from imagefs.cli import main

if __name__ == "__main__":
    main()
