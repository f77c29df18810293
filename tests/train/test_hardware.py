"""Readings of the hardware: a GPU by a library that answers as NVML does, the host by psutil."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from largebatch.train.hardware import (
    GpuReader,
    HardwareSampler,
    HostReader,
    StepReader,
    gpu_reader,
)
from largebatch.train.step_times import StepTimes

UUID = "GPU-5b3f1c1e-0000-1111-2222-333344445555"


class Nvml:
    """The part of NVML that is used, with the units of its documentation."""

    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_SUCCESS = 0, 1, 2, 0
    NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX = 138, 139

    class NVMLError(Exception):
        pass

    def __init__(self, absent: frozenset[str] = frozenset(), links: bool = True) -> None:
        self.absent, self.links, self.kib = absent, links, 0

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != UUID:
            raise self.NVMLError("not found")
        return "handle"

    def _answer(self, name: str, value: Any) -> Any:
        if name in self.absent:
            raise self.NVMLError("not supported")
        return value

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return self._answer("utilization", SimpleNamespace(gpu=87, memory=12))

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return self._answer("memory", SimpleNamespace(total=80 << 30, used=3 << 30, free=77 << 30))

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self._answer("power", 412_345)  # milliwatts

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return self._answer("temperature", 61)

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return self._answer("clock", {self.NVML_CLOCK_SM: 1755, self.NVML_CLOCK_MEM: 2619}[kind])

    def nvmlDeviceGetFieldValues(self, handle: str, fields: list[tuple[int, int]]) -> list[Any]:
        self.kib += 1_000_000
        return [
            SimpleNamespace(
                nvmlReturn=0 if self.links else 3,
                value=SimpleNamespace(ullVal=self.kib * (1 + (field == 139))),
            )
            for field, _ in fields
        ]


def test_a_gpu_gives_every_field_in_its_unit() -> None:
    read = GpuReader(Nvml(), UUID)
    first = read()
    assert first == {
        "gpu": UUID,
        "gpu_utilization": 0.87,
        "gpu_memory_bytes": 3 << 30,
        "gpu_power_watts": 412.345,
        "gpu_temperature_celsius": 61,
        "gpu_sm_clock_mhz": 1755,
        "gpu_memory_clock_mhz": 2619,
    }
    begun = time.monotonic()
    time.sleep(0.05)
    second = read()
    elapsed = time.monotonic() - begun
    rate = second["nvlink_tx_bytes_per_second"]
    assert 0.5 * 1_024_000_000 / elapsed < rate < 1_024_000_000 / 0.04
    assert second["nvlink_rx_bytes_per_second"] == pytest.approx(2 * rate)


@pytest.mark.parametrize(
    ("absent", "names"),
    [
        ("utilization", {"gpu_utilization"}),
        ("memory", {"gpu_memory_bytes"}),
        ("power", {"gpu_power_watts"}),
        ("temperature", {"gpu_temperature_celsius"}),
        ("clock", {"gpu_sm_clock_mhz", "gpu_memory_clock_mhz"}),
    ],
)
def test_what_a_gpu_does_not_tell_is_left_out(absent: str, names: set[str]) -> None:
    every = GpuReader(Nvml(links=False), UUID)()
    assert set(GpuReader(Nvml(frozenset([absent]), links=False), UUID)()) == set(every) - names


def test_links_that_do_not_count_are_left_out() -> None:
    read = GpuReader(Nvml(links=False), UUID)
    assert not any("nvlink" in name for name in {**read(), **read()})


def test_a_cpu_has_no_gpu_reader() -> None:
    assert gpu_reader(torch.device("cpu")) is None


def test_the_host_is_read_in_bytes_and_fractions() -> None:
    read = HostReader()
    sum(range(10**5))
    reading = read()
    assert set(reading) == {"host_cpu_utilization", "host_memory_bytes", "process_memory_bytes"}
    assert 0 <= reading["host_cpu_utilization"] <= 1
    assert 1 << 20 < reading["process_memory_bytes"] < reading["host_memory_bytes"] * 2


def test_phases_of_a_step_are_timed_and_averaged() -> None:
    times = StepTimes(torch.device("cpu"))
    read = StepReader(times)
    assert read() == {}
    for pause in (0.02, 0.04):
        times.begin()
        times.enter("data")
        time.sleep(pause)
        times.enter("compute")
        assert times.activity.doing == "compute"
        times.enter("communication")
        times.enter("optimizer")
        time.sleep(0.01)
        times.enter("between steps")
        seconds = times.seconds(times.take())
        assert pause <= seconds["data_seconds"] < pause + 1
        assert 0.01 <= seconds["optimizer_seconds"] < 1
    means = read()
    assert 0.03 <= means["data_seconds"] < 1
    assert set(means) == {f"{p}_seconds" for p in ("data", "compute", "communication", "optimizer")}
    assert read() == {}


def test_a_step_given_up_leaves_no_time() -> None:
    times = StepTimes(torch.device("cpu"))
    times.begin()
    times.enter("data")
    time.sleep(0.05)
    times.begin()
    times.enter("between steps")
    assert sum(times.seconds(times.take()).values()) < 0.05


def test_the_sampler_reads_in_a_thread_of_its_own_until_closed() -> None:
    import threading

    threads: list[int] = []

    def read() -> dict[str, Any]:
        threads.append(threading.get_ident())
        return {"count": len(threads)}

    sampler = HardwareSampler([read, lambda: {"other": 1}], 0.01)
    deadline = time.monotonic() + 30
    while sampler.latest.get("count", 0) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sampler.close()
    assert sampler.latest["other"] == 1
    assert set(threads) != {threading.get_ident()}
    taken = len(threads)
    time.sleep(0.05)
    assert len(threads) == taken
    HardwareSampler([read], 0).close()
    assert len(threads) == taken
