"""A short form of ``kill_and_resume.py``."""

import pytest
from kill_and_resume import kill_and_resume


@pytest.mark.slow
def test_a_killed_and_resumed_run_has_the_same_outcome():
    kills, _ = kill_and_resume(num_kills=2, seed=1)
    assert len(kills) == 2
    assert any(kill.has_checkpoint for kill in kills)
