"""Heartbeats: find which rank is lost or slow, and in which collective the others wait.

A thread of every rank writes a beat with the present step to the rendezvous store every second or
two. A stopped process or a lost host falls silent; a slow rank goes on beating. Rank 0 reads all
beats. The others read rank 0's beat and its verdict. The collective that a rank waits in comes from
torch's flight recorder.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Store

from largebatch._errors import one_line
from largebatch.processes.environment import World

MOST_SECONDS = 2.0  # between two beats
RECORDED = "32"  # collectives that the flight recorder keeps
VERDICT = "largebatch/lost"  # a key of the rendezvous store
MOST_TEXT = 1000  # letters of what comes out of the store
ENDING = "ending over an error"
CONTINUE = "the same command continues from the last checkpoint"


@dataclass
class Activity:
    """The present activity of a rank, for others to read; plain fields, set on the hot path."""

    step: int = 0
    doing: str = "starting"


class Heartbeat:
    """Sends this rank's beats and watches the other ranks, until :meth:`close`.

    A rank without a beat for ``patience`` seconds ends the run. A collective that waits for this
    rank cannot be interrupted, so every other rank prints one line with the lost rank's name and
    exits with 1. A rank that beats but keeps others waiting for as long is named on rank 0. The run
    then goes on until ``distributed.timeout``.

    Args:
        patience: seconds without a beat after which a rank is lost; 0 turns the watch off.
        store: the rendezvous store; None if there are no other ranks.
    """

    def __init__(self, world: World, patience: float = 0.0, store: Store | None = None) -> None:
        self.world, self.patience = world, patience
        self.activity = Activity()
        self.note: Callable[[], dict[str, Any]] = dict
        """What this rank adds to its beats; called in the thread."""
        self.end: Callable[[str], None] = _end
        self._interval = min(patience / 8, MOST_SECONDS)
        self._host = socket.gethostname()
        self._count = 0
        self._beats: dict[int, dict[str, Any]] = {}
        self._closed = threading.Event()
        self._store: Any = None
        self._threads: list[threading.Thread] = []
        if store is None or patience <= 0:
            return
        # A connection of its own, so that no request of another thread holds it up.
        self._store = store.clone()
        self._store.set_timeout(timedelta(seconds=patience))
        self._exchanged = time.monotonic()
        # At once, so that a rank lost in its first second can be named.
        self._leave(None)
        for work in (self._exchange, self._watch_store):
            thread = threading.Thread(target=work, name="heartbeat", daemon=True)
            thread.start()
            self._threads.append(thread)

    def beats(self) -> dict[int, dict[str, Any]]:
        """Return the last beat of every rank seen so far (on rank 0; a single process: its own)."""
        return self._beats if self._store is not None else {self.world.rank: self._beat(None)}

    def close(self) -> None:
        """Sign off, so that later silence is not taken for a loss."""
        if self._store is None or self._closed.is_set():
            return
        self._closed.set()
        for thread in self._threads:
            thread.join(self._interval + 1)
        with suppress(RuntimeError):  # the store may have gone with the rank that held it
            self._leave(None, done=True)

    def account(self) -> str:
        """Return which rank is missing, after an error in a collective; '' if none can be named.

        This waits for a few beats. A rank without a beat in this time is named, or else a rank that
        is behind.
        """
        if self._store is None:
            return ""
        self.activity.doing = ENDING
        try:
            if self._store.check([VERDICT]):
                return self._verdict()
            before = self._read(range(self.world.world_size))
            time.sleep(3 * self._interval)
            after = self._read(range(self.world.world_size))
        except RuntimeError:
            return f"rank 0 ({self.world.address}), which holds the rendezvous, does not answer"
        waiting = _in_flight()
        others = [rank for rank in range(self.world.world_size) if rank != self.world.rank]
        silent = [
            rank
            for rank in others
            if rank not in after
            or (
                after[rank]["count"] == before.get(rank, {}).get("count") and not _done(after, rank)
            )
        ]
        if silent:
            return self._missing(silent[0], after, waiting)
        behind = [
            rank
            for rank in others
            if not _done(after, rank) and not after[rank]["waiting"]
            if after[rank]["doing"] != ENDING
        ]
        return self._behind(behind[0], after, waiting) if behind else ""

    def _verdict(self) -> str:
        """Return what rank 0 has left, or whoever reaches the store: not to be printed as it is."""
        return one_line(bytes(self._store.get(VERDICT)).decode(errors="replace"))[:MOST_TEXT]

    def _key(self, rank: int) -> str:
        return f"largebatch/heartbeat/{rank}"

    def _beat(self, waiting: str | None) -> dict[str, Any]:
        return {
            "count": self._count,
            "host": self._host,
            "pid": os.getpid(),
            "step": self.activity.step,
            "doing": self.activity.doing,
            "waiting": waiting,
            **self.note(),
        }

    def _leave(self, waiting: str | None, done: bool = False) -> None:
        beat = {**self._beat(waiting), "done": done}
        self._store.set(self._key(self.world.rank), json.dumps(beat))

    def _paced(self) -> Iterator[tuple[float, bool]]:
        """Yield, beat by beat, the time and whether this process itself has been held up."""
        last = time.monotonic()
        while not self._closed.wait(self._interval):
            now = time.monotonic()
            yield now, now - last > 3 * self._interval + 1
            last = now

    def _exchange(self) -> None:
        watched = range(self.world.world_size) if self.world.is_main else (0,)
        seen: dict[int, tuple[int, float]] = {rank: (-1, time.monotonic()) for rank in watched}
        waits: dict[int, tuple[Any, float]] = {}
        place, said = (-1, ""), self.patience
        try:
            for now, held_up in self._paced():
                self._count += 1
                here = (self.activity.step, self.activity.doing)
                # The recorder is asked only when nothing has moved: a run at speed pays nothing.
                waiting = _in_flight() if here == place else None
                place = here
                self._leave(waiting)
                self._beats = beats = self._read(watched)
                self._exchanged = time.monotonic()
                if not self.world.is_main and self._store.check([VERDICT]):
                    return self.end(self._verdict())
                for rank in watched:
                    count = beats.get(rank, {}).get("count", -1)
                    if count != seen[rank][0] or held_up or _done(beats, rank):
                        seen[rank] = (count, now)
                    wait = beats.get(rank, {}).get("waiting")
                    if wait is None or wait != waits.get(rank, (None, 0))[0]:
                        waits[rank] = (wait, now)
                silent = [rank for rank in watched if now - seen[rank][1] > self.patience]
                if silent:
                    text = self._missing(silent[0], beats, waiting, now - seen[silent[0]][1])
                    if self.world.is_main:
                        self._store.set(VERDICT, text)
                        time.sleep(3 * self._interval)  # the store may end with this process
                    return self.end(text)
                longest = max((now - since for wait, since in waits.values() if wait), default=0.0)
                behind = [rank for rank in beats if not beats[rank]["waiting"]]
                if longest < self._interval:
                    said = self.patience
                elif longest > said and behind and self.world.is_main:
                    print(self._behind(behind[0], beats, waiting), flush=True)
                    said *= 2
        except RuntimeError:
            return None  # the store is gone: the next collective fails, and says so
        return None

    def _watch_store(self) -> None:
        """End the run if the store itself has fallen silent: a request to it may never return."""
        for now, held_up in self._paced():
            if held_up:
                self._exchanged = now
            if now - self._exchanged > self.patience + 4 * self._interval:
                holder = "rank 0" if self.world.launcher != "torchrun" else "the launcher"
                self.end(
                    f"{holder} on {self.world.address}, which holds the rendezvous, has not "
                    f"answered rank {self.world.rank} for {now - self._exchanged:.0f} s;"
                    f"{_while(_in_flight(), self.world.rank)} {CONTINUE}"
                )
                return

    def _read(self, ranks: Any) -> dict[int, dict[str, Any]]:
        present = [
            rank for rank in ranks if rank in self._beats or self._store.check([self._key(rank)])
        ]
        if not present:
            return {}
        found = self._store.multi_get([self._key(rank) for rank in present])
        beats = {rank: _beat_of(beat) for rank, beat in zip(present, found, strict=True)}
        return {rank: beat for rank, beat in beats.items() if beat is not None}

    def _missing(
        self, rank: int, beats: dict[int, dict[str, Any]], waiting: str | None, seconds: float = 0.0
    ) -> str:
        if rank not in beats:
            return f"rank {rank} has given no sign of life since the start; {CONTINUE}"
        beat = beats[rank]
        return (
            f"rank {rank} on {beat['host']} (process {beat['pid']}) gives no sign of life"
            f"{f' for {seconds:.0f} s' if seconds else ''}: stopped, or lost with its host; it was "
            f"last in step {beat['step'] + 1}, {beat['doing']};"
            f"{_while(waiting, self.world.rank)} {CONTINUE}"
        )

    def _behind(self, rank: int, beats: dict[int, dict[str, Any]], waiting: str | None) -> str:
        beat = beats[rank]
        return (
            f"rank {rank} on {beat['host']} (process {beat['pid']}) keeps others waiting: it is in "
            f"step {beat['step'] + 1}, {beat['doing']};{_while(waiting, self.world.rank)}"
        ).rstrip(";")


def _end(text: str) -> None:
    with suppress(OSError, ValueError):  # whether or not somebody hears it
        print(f"largebatch: {text}", file=sys.stderr, flush=True)
    os._exit(1)


def _beat_of(content: bytes) -> dict[str, Any] | None:
    """Return the beat that was read, its texts safe to print; None if it is none of ours."""
    try:
        beat = json.loads(content)
        kept = {name: beat[name] for name in ("done", "hardware") if name in beat}
        for name in ("count", "pid", "step"):
            kept[name] = int(beat[name])
        for name in ("host", "doing", "waiting"):
            kept[name] = None if beat[name] is None else one_line(str(beat[name]))[:MOST_TEXT]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return kept


def _done(beats: dict[int, dict[str, Any]], rank: int) -> bool:
    return bool(beats.get(rank, {}).get("done"))


def _while(waiting: str | None, rank: int) -> str:
    return f" rank {rank} waits in {waiting};" if waiting else ""


def _in_flight() -> str | None:
    """Name the oldest collective that this process has begun and not finished."""
    try:
        from torch._C._distributed_c10d import _dump_fr_trace_json

        entries = json.loads(_dump_fr_trace_json(True, False)).get("entries", [])
    except (ImportError, RuntimeError, ValueError):
        return None
    for entry in entries:
        if not entry.get("retired"):
            sizes = [size for size in entry.get("input_sizes", []) if size]
            shape = "x".join(map(str, sizes[0])) if sizes else "nothing"
            return f"{entry['profiling_name']} number {entry['collective_seq_id']} (of {shape})"
    return None
