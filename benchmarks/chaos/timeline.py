"""Strikes a run with one fault after the other, and notes how long each holds it up."""

import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos.faults import Fault, NothingToStrikeError
from benchmarks.chaos.scene import Scene
from orchestrator.storage.journal import NoteEvent, StepEvent, read_events

LOOK_EVERY_S = 0.2
START_TIMEOUT_S = 600.0
"""How long the run may take to its first step."""
SILENCE_S = 600.0
"""A run that makes no step for so long hangs."""


@dataclass
class Struck:
    """A fault that has struck, and what came of it."""

    kind: str
    text: str
    at: float
    """By `time.monotonic`."""
    step: int
    """The newest finished step then."""
    noted: int
    """How many notes the run had."""
    recovered_s: float | None = None
    """Seconds to the next step that was finished."""
    notes: list[str] = field(default_factory=list)
    """What the run noted from then to the next fault."""


class HangError(Exception):
    """The run makes no step any more."""


@dataclass
class Timeline:
    """What befell a run."""

    struck: list[Struck] = field(default_factory=list)
    ends: list[tuple[float, Fault]] = field(default_factory=list)
    """Faults that last, and when they end."""
    restarts: list[str] = field(default_factory=list)
    """Each time that the command ended with an error and was started again: the last line it printed."""
    steps: int = 0
    """Steps that the run was asked for in the end."""


def strike(scene: Scene, faults: Sequence[Fault], every_s: float, seed: int, steps: int) -> Timeline:
    """Run until all faults have struck and all steps are made.

    Args:
        faults: In this order. One whose victim an earlier one holds comes later.
        every_s: Seconds from one to the next; the first comes as long after the first step.
        steps: Of the run. It is asked for more if it ends before the last fault.

    Raises:
        HangError: The run makes no step for `SILENCE_S`.
    """
    left, dice, timeline = list(faults), random.Random(seed), Timeline(steps=steps)
    step, moved, due = 0, time.monotonic(), None
    while True:
        time.sleep(LOOK_EVERY_S)
        now = time.monotonic()
        _end_what_is_over(scene, timeline, now)
        if (newest := _newest_step(scene.run)) != step:
            due = now + every_s if due is None else due
            step, moved = newest, now
            for one in timeline.struck:
                if one.recovered_s is None and step > one.step:
                    one.recovered_s = now - one.at
        if now - moved > SILENCE_S:
            raise HangError(f"no step since step {step} for {SILENCE_S:g} s")
        if scene.driver is not None and (status := scene.driver.poll()) is not None:
            scene.endings.append((time.time(), status))
            if status == 0 and not left:
                break
            if status == 0:
                timeline.steps += 10
                scene.settings.append(f"run.steps={timeline.steps}")
            else:
                timeline.restarts.append(_last_words(scene.log, status))
            scene.start_driver()
        if due is not None and now >= due and left and _strike_next(scene, left, dice, timeline, step):
            due = now + every_s
    for _, fault in timeline.ends:
        fault.end(scene)
    _take_in_notes(timeline, scene.run)
    return timeline


def _strike_next(scene: Scene, left: list[Fault], dice: random.Random, timeline: Timeline, step: int) -> bool:
    """Strike with the first of the faults that can; returns whether one did."""
    for fault in left:
        try:
            noted = len(_notes(scene.run))
            fault.strike(scene, dice)
        except NothingToStrikeError:
            continue
        left.remove(fault)
        timeline.struck.append(Struck(fault.kind, fault.text, time.monotonic(), step, noted))
        if fault.lasts_s:
            timeline.ends.append((time.monotonic() + fault.lasts_s, fault))
        print(f"  {time.strftime('%H:%M:%S')} step {step:3}: {fault.text}", flush=True)
        return True
    return False


def _end_what_is_over(scene: Scene, timeline: Timeline, now: float) -> None:
    over = [(end, fault) for end, fault in timeline.ends if now >= end]
    timeline.ends = [one for one in timeline.ends if one not in over]
    for _, fault in over:
        fault.end(scene)


def _newest_step(run: Path) -> int:
    steps = [event.step for event in read_events(run) if isinstance(event, StepEvent)]
    return max(steps, default=0)


def _last_words(log: Path, status: int) -> str:
    """The last line that the command printed, or the signal that ended it."""
    if status < 0:
        return f"signal {-status}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {status}"


def _notes(run: Path) -> list[str]:
    return [event.text for event in read_events(run) if isinstance(event, NoteEvent)]


def _take_in_notes(timeline: Timeline, run: Path) -> None:
    """Give each fault what was noted from it to the next one."""
    notes = _notes(run)
    for one, following in itertools.pairwise([*timeline.struck, None]):
        one.notes = notes[one.noted : following.noted if following else None]
