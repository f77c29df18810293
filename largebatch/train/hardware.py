"""Read the hardware of a rank: its GPU by NVML, its host by psutil."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from largebatch.train.step_times import PHASES, StepTimes

Reading = dict[str, Any]
Reader = Callable[[], Reading]


class GpuReader:
    """Reads one GPU; values that the GPU or its driver does not report are left out.

    Gives ``gpu_utilization`` (fraction of the last sample period in which a kernel ran),
    ``gpu_memory_bytes`` (in use, of all processes), ``gpu_power_watts``,
    ``gpu_temperature_celsius``, ``gpu_sm_clock_mhz``, ``gpu_memory_clock_mhz`` and, from the second
    reading on, ``nvlink_tx_bytes_per_second`` and ``nvlink_rx_bytes_per_second`` over all links.

    Args:
        nvml: the module ``pynvml``, initialised.
        uuid: UUID of the GPU, in NVML's form.
    """

    def __init__(self, nvml: Any, uuid: str) -> None:
        self._nvml, self._uuid = nvml, uuid
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        self._last: tuple[float, float, float] | None = None

    def __call__(self) -> Reading:
        """Take a reading."""
        nvml, handle = self._nvml, self._handle
        found: Reading = {"gpu": self._uuid}
        for name, read in {
            "gpu_utilization": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "gpu_memory_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
            "gpu_power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "gpu_temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(
                handle, nvml.NVML_TEMPERATURE_GPU
            ),
            "gpu_sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "gpu_memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(
                handle, nvml.NVML_CLOCK_MEM
            ),
        }.items():
            with suppress(nvml.NVMLError):
                found[name] = read()
        with suppress(nvml.NVMLError):
            found.update(self._links())
        return found

    def _links(self) -> Reading:
        """Return the rates since the last reading, from counters in KiB."""
        nvml = self._nvml
        every_link = 0xFFFFFFFF
        values = nvml.nvmlDeviceGetFieldValues(
            self._handle,
            [
                (nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, every_link),
                (nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, every_link),
            ],
        )
        if any(value.nvmlReturn != nvml.NVML_SUCCESS for value in values):
            return {}
        now = time.monotonic()
        sent, received = (value.value.ullVal * 1024 for value in values)
        before, self._last = self._last, (now, sent, received)
        if before is None or now <= before[0]:
            return {}
        seconds = now - before[0]
        return {
            "nvlink_tx_bytes_per_second": (sent - before[1]) / seconds,
            "nvlink_rx_bytes_per_second": (received - before[2]) / seconds,
        }


def gpu_reader(device: torch.device) -> GpuReader | None:
    """Return the reader of a rank's GPU; None on a CPU or without NVML."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # torch's numbers count the visible devices, NVML's all of them: only the UUID is the same.
        return GpuReader(pynvml, f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return None


class HostReader:
    """Reads the host and this process.

    Gives ``host_cpu_utilization`` (fraction of all cores since the last reading),
    ``host_memory_bytes`` (in use, of all processes) and ``process_memory_bytes`` (resident, of the
    rank without its data workers).
    """

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        self._process = psutil.Process()
        psutil.cpu_percent(None)  # the first call only starts the interval

    def __call__(self) -> Reading:
        """Take a reading."""
        memory = self._psutil.virtual_memory()
        return {
            "host_cpu_utilization": self._psutil.cpu_percent(None) / 100,
            "host_memory_bytes": memory.total - memory.available,
            "process_memory_bytes": self._process.memory_info().rss,
        }


class StepReader:
    """Means over the steps since the last reading: ``data_seconds``, ``compute_seconds``, ..."""

    def __init__(self, times: StepTimes) -> None:
        self._times = times
        self._last = (0, dict.fromkeys(PHASES, 0.0))

    def __call__(self) -> Reading:
        """Take a reading; nothing if no step has ended since the last."""
        steps, totals = self._times.steps, dict(self._times.totals)
        (before, spent), self._last = self._last, (steps, totals)
        if steps == before:
            return {}
        return {
            f"{phase}_seconds": (totals[phase] - spent[phase]) / (steps - before)
            for phase in PHASES
        }


class HardwareSampler:
    """Takes readings every few seconds, in a thread of its own, until :meth:`close`.

    Args:
        readers: functions that each return some fields.
        every: seconds between readings; 0 takes none.
    """

    def __init__(self, readers: list[Reader], every: float) -> None:
        self.latest: Reading = {}
        """The newest reading; a new dictionary each time."""
        self._readers, self._every = readers, every
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if every > 0:
            self._thread = threading.Thread(target=self._run, name="hardware", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._closed.wait(self._every):
            found: Reading = {}
            for read in self._readers:
                found.update(read())
            self.latest = found
