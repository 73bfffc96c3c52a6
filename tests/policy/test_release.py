"""Replies leave a node on a grid of seconds."""

import time

import pytest

from fedattn_app.policy import release
from fedattn_app.policy.release import wait_for_release


@pytest.mark.parametrize(
    ("elapsed", "every", "slept"),
    [(0.2, 1.0, 0.8), (1.0, 1.0, 0.0), (1.5, 1.0, 0.5), (0.1, 30.0, 29.9), (5.0, 0.0, None)],
)
def test_a_reply_waits_for_the_next_multiple(monkeypatch, elapsed, every, slept):
    sleeps = []
    monkeypatch.setattr(release.time, "monotonic", lambda: 100.0 + elapsed)
    monkeypatch.setattr(release.time, "sleep", sleeps.append)
    wait_for_release(100.0, every)
    assert sleeps == ([] if slept is None else [pytest.approx(slept)])


def test_time_really_passes():
    began = time.monotonic()
    wait_for_release(began, 0.2)
    assert 0.2 <= time.monotonic() - began < 1.0
