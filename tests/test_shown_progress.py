"""Progress where standard error is no terminal: plain lines, not too many; where it is one, a bar."""

from __future__ import annotations

import io
import sys

import pytest

from oasis_core.cli.shown import Lines, shown


def told(total: int | None, seconds: float, pace: float, first: float = 0.0) -> list[str]:
    """Lines of a job that is told every ``seconds`` of ``pace`` frames each second, from frame ``first`` to 1000."""
    now, lines = [50.0], []

    def write(line: str) -> None:
        lines.append(line)

    progress = Lines("frame", write, lambda: now[0])
    done = first
    while done < 1000:
        progress.advance(done, total)
        now[0] += seconds
        done += pace * seconds
    progress.advance(1000.0, total)
    return lines


def test_a_line_at_every_tenth() -> None:
    lines = told(1000, 1.0, 5.0)
    assert len(lines) == 9  # one every 20 seconds; the end is told by the result
    assert lines[0] == "100 of 1000 frames (10%), 5.00 frames per second, about 3 minutes left"
    assert lines[-1].startswith("900 of 1000 frames (90%)")


def test_a_slow_job_tells_each_half_minute_and_a_quick_one_nothing_too_often() -> None:
    assert len(told(1000, 1.0, 0.5)) == 9 * 7 + 6  # a tenth takes 200 seconds
    assert told(1000, 0.5, 200.0) == []  # five seconds
    assert len(told(1000, 0.5, 20.0)) == 4  # 50 seconds, ten tenths


def test_a_resumed_job_s_pace_is_its_own() -> None:
    lines = told(1000, 1.0, 5.0, first=500.0)
    assert lines[0] == "600 of 1000 frames (60%), 5.00 frames per second, about 80 seconds left"


def test_without_a_length_there_is_no_share() -> None:
    lines = told(None, 1.0, 5.0)
    assert lines[0] == "150 frames, 5.00 frames per second"
    assert len(lines) == 200 // 30


def test_what_stands_still_is_not_repeated() -> None:
    now, lines = [0.0], []
    progress = Lines("frame", lines.append, lambda: now[0])
    for _ in range(100):
        progress.advance(3.0, 10)
        now[0] += 10
    assert lines == []


@pytest.mark.parametrize("terminal", [False, True])
def test_control_characters_are_for_terminals(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    stream, now = Stream(), iter(range(0, 10**6, 40))
    monkeypatch.setattr(sys, "stderr", stream)
    with shown(10) as progress:
        if isinstance(progress, Lines):
            progress._clock = lambda: float(next(now))
        for done in range(11):
            progress.advance(float(done), 10)
            progress.note("1:50%")
    text = stream.getvalue()
    assert ("\r" in text) == terminal
    assert text.isascii() or terminal
    if not terminal:
        assert len(text.splitlines()) == 9
