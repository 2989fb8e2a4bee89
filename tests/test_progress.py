"""Progress between finished frames."""

from __future__ import annotations

from oasis_core.progress import Tally, about


def test_blocks_count_ahead_and_never_past_the_clip() -> None:
    told: list[float] = []
    tally = Tally(lambda done, total: told.append(done), 6)
    for _ in range(10):
        tally.block(0.8)  # 8 frames' worth: more than there are
    assert told[0] == 0
    assert 2 < told[-1] < 6
    for _ in range(6):
        tally.finished(1)
    assert told == sorted(set(told))
    assert told[-1] == 6
    assert len(told) > 10


def test_a_clip_of_unknown_length_tells_finished_frames_alone() -> None:
    told: list[tuple[float, int | None]] = []
    tally = Tally(lambda done, total: told.append((done, total)), None, done=3)
    tally.block(2.0)
    tally.block(2.0)
    tally.finished(2)
    assert told == [(3, None), (5, None)]


def test_times_in_words() -> None:
    words = {0.2: "about a second", 1.6: "about 2 seconds", 119.0: "about 119 seconds", 121.0: "about 2 minutes",
             7100.0: "about 118 minutes", 9000.0: "about 2 hours 30 minutes", 7199.0: "about 120 minutes"}  # fmt: skip
    assert {seconds: about(seconds) for seconds in words} == words
    assert about(7200.0) == "about 2 hours 0 minutes"
