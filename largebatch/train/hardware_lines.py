"""Write lines about the hardware of every rank to metrics.jsonl."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from largebatch.probes import Instrument, Moment
from largebatch.processes.heartbeat import Heartbeat
from largebatch.schedule import Step
from largebatch.train.hardware import HardwareSampler, HostReader, Reader, StepReader, gpu_reader
from largebatch.train.step_times import StepTimes
from largebatch.train.telemetry import Telemetry


class HardwareLines(Instrument):
    """Reads the hardware in a thread; rank 0 writes one line per rank every few seconds.

    Args:
        heartbeat: this rank's heartbeat, which carries the readings to rank 0.
        seconds: seconds between readings, above 0.
    """

    name = "hardware"

    def __init__(
        self,
        device: torch.device,
        times: StepTimes,
        heartbeat: Heartbeat,
        telemetry: Telemetry,
        seconds: float,
    ) -> None:
        self._device, self._times = device, times
        self._heartbeat, self._telemetry = heartbeat, telemetry
        self._seconds = seconds
        self._next = time.monotonic() + seconds
        self._sampler: HardwareSampler | None = None

    def begin(self, samples: int, steps: int) -> None:
        """Start the thread."""
        readers: list[Reader] = [HostReader(), StepReader(self._times)]
        gpu = gpu_reader(self._device)
        if gpu is not None:
            readers.append(gpu)
        sampler = self._sampler = HardwareSampler(readers, self._seconds)
        self._heartbeat.note = lambda: {"hardware": sampler.latest}
        self._next = time.monotonic() + self._seconds

    def due(self, step: Step, number: int) -> bool:
        """Return True: rank 0 decides by its clock, and nothing is sent for this."""
        return True

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Write the lines if the time has come; returns no figure."""
        if self._heartbeat.world.is_main and time.monotonic() >= self._next:
            self._next = time.monotonic() + self._seconds
            self._write(at.step.end, at.number)
        return {}

    def _write(self, samples: int, number: int) -> None:
        """Write a line for every rank that has sent a reading."""
        watts: dict[str, float] = {}
        beats = sorted(self._heartbeat.beats().items())
        readings = [(rank, beat, beat["hardware"]) for rank, beat in beats if beat.get("hardware")]
        for rank, beat, reading in readings:
            line = {"rank": rank, "host": beat["host"], **reading}
            self._telemetry.line("hardware", samples, number, line)
            # Ranks may share a GPU, whose power counts once; a rank that tells none makes a NaN.
            gpu = reading.get("gpu", f"of rank {rank}")
            watts[gpu] = reading.get("gpu_power_watts", math.nan)
        total = sum(watts.values())
        everyone = len(readings) == self._heartbeat.world.world_size
        self._telemetry.watts = total if everyone and total > 0 else None

    def close(self) -> None:
        """End the thread."""
        if self._sampler is not None:
            self._sampler.close()
