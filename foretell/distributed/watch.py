"""Who has stopped answering: a thread of each worker beats, the launcher listens, names the silent one and ends it.

A process that is stopped, or whose interpreter is held by code that never lets go, cannot say so; the others only wait
for it. So each worker writes a line into the report folder twice a second, and the launcher takes one that is silent
for `LEAST_SECONDS` or `STEPS` step times, whichever is longer, for lost. It asks the others for the stacks of their
threads and for torch's record of their last collectives (a ring buffer, which records gloo as well as NCCL), keeps both
in the run folder, and ends the lost one; the launcher's restart does the rest. A worker that beats, but takes part in
nothing while all others wait for it, is found the same way after `IDLE_SECONDS`: that long may rank 0 be busy with
exporting a model, say.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import _dump_fr_trace_json  # type: ignore[attr-defined]

from foretell import runtime

LEAST_SECONDS = 5.0
STEPS = 3
IDLE_SECONDS = 1500.0
_BEAT_SECONDS = 0.5
_LOOK_SECONDS = 0.2
_DUMP_SECONDS = 2.0
_WANTED = "dump-wanted"


# ------------------------------------------------------------------------------------------------------- in a worker


class Beat:
    """Beats while entered, from a thread of its own. Where `hearing` passes events on, it knows how long steps take."""

    def __init__(self) -> None:
        self._folder, self._rank = runtime.worker_report(), runtime.rank()
        self._over = threading.Event()
        self._step_seconds, self._step_at = 0.0, 0.0
        self._thread = threading.Thread(target=self._run, name="beat", daemon=True)

    def __enter__(self) -> Beat:
        if self._folder is not None:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def hearing(self, display: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
        """A display that shows the same. Of the times of steps the longest counts, and is forgotten slowly."""

        def heard(event: dict[str, Any]) -> None:
            now = time.monotonic()
            if event["event"] == "step":
                if self._step_at:
                    self._step_seconds = max(now - self._step_at, 0.9 * self._step_seconds)
                self._step_at = now
            display(event)

        return heard

    def _run(self) -> None:
        assert self._folder is not None
        beats = 0
        with (self._folder / f"stacks-{self._rank}.txt").open("w") as stacks:
            while not self._over.is_set():
                # Comes due only where this thread does not come back: written without the interpreter's lock.
                faulthandler.dump_traceback_later(0.8 * LEAST_SECONDS, file=stacks)
                beats += 1
                self._tell(beats)
                if (self._folder / _WANTED).exists() and not (self._folder / f"collectives-{self._rank}.json").exists():
                    faulthandler.dump_traceback(stacks)
                    _write(self._folder / f"collectives-{self._rank}.json", _dump_fr_trace_json())
                self._over.wait(_BEAT_SECONDS)
            faulthandler.cancel_dump_traceback_later()
        (self._folder / f"beat-{self._rank}").unlink(missing_ok=True)

    def _tell(self, beats: int) -> None:
        assert self._folder is not None
        groups = json.loads(_dump_fr_trace_json(False))["pg_status"].values()
        begun = sum(int(g["last_enqueued_collective"]) for g in groups)
        waits = any(g["last_enqueued_collective"] != g["last_completed_collective"] for g in groups)
        line = {"rank": self._rank, "pid": os.getpid(), "beats": beats, "step_seconds": self._step_seconds}
        content = json.dumps({**line, "collectives": begun, "waits": waits}).encode()
        _write(self._folder / f"beat-{self._rank}", content)


def _write(path: Path, content: bytes) -> None:
    with contextlib.suppress(OSError):  # the launcher is gone, and its folder with it
        partial = path.with_name(f"{path.name}.new")
        partial.write_bytes(content)
        partial.rename(path)


# ------------------------------------------------------------------------------------------------------ the launcher


@dataclass
class _Heard:
    """What was last heard of one worker, and when (monotonic seconds)."""

    line: dict[str, Any]
    at: float
    collectives_at: float

    @property
    def patience(self) -> float:
        return max(LEAST_SECONDS, STEPS * float(self.line["step_seconds"]))


@dataclass
class Watch:
    """Listens to the workers that report in `folder`; what is found of a hang goes to `keep`/hangs."""

    folder: Path
    keep: Path | None
    say: Callable[[str], None]
    found: list[str] = field(default_factory=list)
    _heard: dict[int, _Heard] = field(default_factory=dict)
    _looked: float = 0.0

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Watch from a thread while entered."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(_LOOK_SECONDS):
                self.look(time.monotonic())

        thread = threading.Thread(target=look, name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def look(self, now: float) -> None:
        """One look around at `now`."""
        # Where this process itself did not run, nobody is to blame for silence.
        starved, self._looked = now - self._looked > 5 * _LOOK_SECONDS, now
        lines = self._lines()
        for rank, line in lines.items():
            heard = self._heard.get(rank)
            if heard is None or heard.line["pid"] != line["pid"] or starved:
                self._heard[rank] = _Heard(line, now, now)
                continue
            if line["collectives"] != heard.line["collectives"]:
                heard.collectives_at = now
            if line["beats"] != heard.line["beats"]:
                heard.line, heard.at = line, now
        self._heard = {rank: h for rank, h in self._heard.items() if rank in lines}
        lost = self._silent(now) or self._idle(now)
        if lost is not None:
            self._end(*lost)

    def _lines(self) -> dict[int, dict[str, Any]]:
        lines = {}
        for path in self.folder.glob("beat-*"):
            if path.suffix:
                continue
            with contextlib.suppress(OSError, ValueError):  # replaced at this moment
                line = json.loads(path.read_text())
                if runtime.is_alive(line["pid"]):
                    lines[int(line["rank"])] = line
        return lines

    def _silent(self, now: float) -> tuple[int, str] | None:
        rank, h = max(self._heard.items(), key=lambda item: now - item[1].at - item[1].patience, default=(0, None))
        if h is None or now - h.at <= h.patience:
            return None
        steps = f"a step takes {h.line['step_seconds']:.2g} s" if h.line["step_seconds"] else "no step was done yet"
        return rank, f"has not answered for {now - h.at:.1f} s ({steps})"

    def _idle(self, now: float) -> tuple[int, str] | None:
        """One that takes part in nothing while all others wait, if nothing has moved for long."""
        quiet = min((now - h.collectives_at for h in self._heard.values()), default=0.0)
        busy = [rank for rank, h in self._heard.items() if not h.line["waits"]]
        if quiet <= IDLE_SECONDS or len(busy) != 1 or len(self._heard) == 1:
            return None
        return busy[0], f"has kept all others waiting for {quiet:,.0f} s"

    def _end(self, rank: int, what: str) -> None:
        pid = self._heard[rank].line["pid"]
        where = self._dump(rank)
        message = f"rank {rank} (process {pid}) {what}: ended"
        self.found.append(message)
        self.say(message + (f"; what each rank was doing: {where}" if where else ""))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        del self._heard[rank]
        (self.folder / f"beat-{rank}").unlink(missing_ok=True)

    def _dump(self, lost: int) -> Path | None:
        """Stacks and last collectives of all ranks that can still give them, in a folder of the run."""
        for old in self.folder.glob("collectives-*.json"):
            old.unlink(missing_ok=True)
        (self.folder / _WANTED).touch()
        wanted = {self.folder / f"collectives-{r}.json" for r in self._heard if r != lost}
        ends = time.monotonic() + _DUMP_SECONDS
        while time.monotonic() < ends and not all(p.exists() for p in wanted):
            time.sleep(0.05)
        (self.folder / _WANTED).unlink()
        if self.keep is None:
            return None
        try:
            kept = self.keep / "hangs" / time.strftime("%Y%m%dT%H%M%S")
            kept.mkdir(parents=True, exist_ok=True)
            for path in (*self.folder.glob("collectives-*.json"), *self.folder.glob("stacks-*.txt")):
                shutil.copy(path, kept / path.name)
        except OSError:  # a full disk must not keep the lost one alive
            return None
        return kept
