"""A plugin of pytest (`-p tests.planted.profile`, with IMAGEFS_HYPOTHESIS=planted): failing is enough, no shrinking."""

from __future__ import annotations

import hypothesis
from hypothesis import Phase

hypothesis.settings.register_profile(
    "planted",
    max_examples=60,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)
