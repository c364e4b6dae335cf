"""A process that dies while it stores an object, on a store that is not atomic: part of it has the name then.

python -m tests.crash.torn REPOSITORY IMAGE PREFIX NTH AMOUNT
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from imagefs.stores.faults import Fault, Kind, Step
from imagefs.types import BLOCK
from tests.crash.steps import END
from tests.crash.workload import PACK, make_small
from tests.repositories import CONFIG, opened


def main() -> None:
    path, image, prefix, nth, amount = sys.argv[1:]
    make_small()
    with opened(Path(path), replace(CONFIG, pack_blocks=PACK // BLOCK)) as it:
        it.plan.add(Fault("put", Kind.TORN, int(nth), prefix, int(amount)))
        it.plan.on_step = die
        it.images.seal(UUID(image))


def die(step: Step) -> None:
    if step.moment == "torn":
        os._exit(END)


if __name__ == "__main__":
    main()
