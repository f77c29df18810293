"""Ten injected failures under torchrun with three ranks: what a user sees, and how soon.

    python benchmarks/failures.py --json benchmarks/results/failures.json [--only NAME]

Each run trains F1 on the digits. Once it is under way something is broken; measured are the seconds
until every process has ended, or trains again. Then the cause is removed and the same command is
given again: it has to end with the weights of a run that nothing disturbed, bit by bit, so no
checkpoint was lost. A failure whose message does not name the rank and the cause makes this fail.
Where the store is lost with rank 0, its address stands for its host, which cannot be asked.
With --only, the JSON keeps its other rows. The full disk is a small tmpfs: only root can mount it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
from PIL import Image

from largebatch.record import BenchmarkRecord, read_metrics, read_record, write_record

RANKS = 3
STEPS = 240
FORMULA = (
    "seconds = from the injection until the last process has ended, or until a rank trains again; "
    "afterwards = the same command's weights_sha256 against that of an undisturbed run"
)
TRAIN = [
    *("--model.name=f1", "--norm.kind=ghost", "--norm.ghost_size=32", "--batch.size=192"),
    *(f"--schedule.length={STEPS}st", "--checkpoint.every=20st", "--telemetry.hardware_every=0"),
    *("--distributed.heartbeat=8", "--distributed.timeout=60"),
]
SAME = "same bits"
# A rank whose command line differs, as where one host has another file.
ODD_RANK = """
import os, sys
from largebatch.cli import main
sys.argv += ["--optim.lr=0.3"] if os.environ["RANK"] == "1" else []
sys.exit(main())
"""


class NotRun(Exception):
    """This machine cannot show a failure, for the reason given."""


class Job:
    """A training command under torchrun, or rank by rank by hand."""

    running: ClassVar[list[Job]] = []

    def __init__(self, folder: Path, *options: str, restarts: int = 0, script: str = "") -> None:
        self.run, self.log = folder / "run", folder / "log.txt"
        program = ["-m", "largebatch"]
        if script:
            (folder / "odd_rank.py").write_text(script)
            program = [str(folder / "odd_rank.py")]
        command = [
            *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={RANKS}"),
            *(f"--max-restarts={restarts}", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"),
            *(*program, "train", f"--run.dir={self.run}", *TRAIN, *options),
        ]
        self.processes = [self._start(command, {})]
        Job.running.append(self)

    def _start(self, command: list[str], changes: dict[str, str]) -> subprocess.Popen[bytes]:
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **changes},
                start_new_session=True,
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def steps(self) -> int:
        path = self.run / "metrics.jsonl"
        return max((line["step"] for line in read_metrics(path)), default=0) if path.exists() else 0

    def until(self, step: int, seconds: float = 300) -> None:
        """Wait until the run has passed ``step``."""
        deadline = time.monotonic() + seconds
        while self.steps() < step:
            if self.ended() or time.monotonic() > deadline:
                raise SystemExit(f"never came: step {step}\n{self.output()}")
            time.sleep(0.05)

    def ended(self) -> bool:
        return all(process.poll() is not None for process in self.processes)

    def ranks(self) -> dict[int, psutil.Process]:
        """Return the live processes of the ranks."""
        found: dict[int, psutil.Process] = {}
        for process in self.processes:
            if process.poll() is not None:
                continue
            parent = psutil.Process(process.pid)
            for each in (parent, *parent.children(recursive=True)):
                try:
                    if "RANK" in each.environ() and "largebatch" in " ".join(each.cmdline()):
                        found.setdefault(int(each.environ()["RANK"]), each)
                except psutil.Error:
                    continue
        return found

    def end(self, seconds: float = 240) -> int:
        """Wait for the last process; return the first one's exit code."""
        ranks = list(self.ranks().values())
        for process in self.processes:
            process.wait(seconds)
        _, alive = psutil.wait_procs(ranks, timeout=30)
        if alive:
            raise SystemExit(f"outlived its launcher: {alive}\n{self.output()}")
        return self.processes[0].returncode

    def kill(self) -> None:
        ranks = self.ranks().values()
        for process in self.processes:  # first of all: a launcher would start its ranks again
            if process.poll() is None:
                process.kill()
                process.wait()
        for rank in ranks:
            if rank.is_running():
                rank.kill()


class ByHand(Job):
    """The same ranks without a launcher: rank 0 holds the rendezvous."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.run, self.log = folder / "run", folder / "log.txt"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-m", "largebatch", "train", f"--run.dir={self.run}", *TRAIN]
        self.processes = [
            self._start([*command, *options], {**shared, "RANK": str(rank)})
            for rank in range(RANKS)
        ]
        Job.running.append(self)


def finished(folder: Path, *options: str) -> str:
    """Give the same command once more; return the hash of the weights it ends with."""
    job = Job(folder, *options)
    if job.end() != 0:
        raise SystemExit(f"could not go on:\n{job.output()}")
    return str(json.loads((job.run / "summary.json").read_text())["weights_sha256"])


def said(job: Job, pattern: str) -> str:
    """Return the line that names the cause; fail if none does."""
    for line in job.output().splitlines():
        if re.search(pattern, line):
            return line.replace(str(job.run.parent), "RUNS").strip()
    raise SystemExit(f"nothing says {pattern!r}:\n{job.output()}")


Outcome = tuple[str, float, str]  # what happened, seconds, the line


def killed_with_restart(folder: Path) -> Outcome:
    job = Job(folder, restarts=1)
    job.until(60)
    victim = job.ranks()[1]
    begun, before = time.monotonic(), job.steps()
    victim.kill()
    while job.steps() <= before or 1 not in job.ranks() or job.ranks()[1].pid == victim.pid:
        time.sleep(0.05)
    seconds = time.monotonic() - begun
    code = job.end()
    return (
        f"torchrun starts again, the run goes on and ends ({code})",
        seconds,
        said(job, "continuing at"),
    )


def killed(folder: Path) -> Outcome:
    job = Job(folder)
    job.until(60)
    begun = time.monotonic()
    job.ranks()[1].kill()
    code = job.end()
    return f"ends ({code})", time.monotonic() - begun, said(job, r"rank 1 .*(lost|ended|gone|kill)")


def stopped(folder: Path) -> Outcome:
    job = Job(folder)
    job.until(60)
    victim = job.ranks()[2]
    begun = time.monotonic()
    victim.suspend()
    code = job.end()
    return f"ends ({code})", time.monotonic() - begun, said(job, r"rank 2 .*no sign of life")


def launcher_killed(folder: Path) -> Outcome:
    job = Job(folder)
    job.until(60)
    ranks = list(job.ranks().values())
    begun = time.monotonic()
    job.processes[0].kill()
    _, alive = psutil.wait_procs(ranks, timeout=30)
    if alive:
        raise SystemExit("ranks outlived their launcher")
    return "no rank outlives it", time.monotonic() - begun, "(nobody is left to speak)"


def terminated(folder: Path) -> Outcome:
    job = Job(folder)
    job.until(60)
    begun = time.monotonic()
    for process in (*job.ranks().values(), psutil.Process(job.processes[0].pid)):
        process.send_signal(signal.SIGTERM)
    job.end()
    return "finishes the step and saves", time.monotonic() - begun, said(job, "the same command")


def corrupt(folder: Path) -> Outcome:
    job = Job(folder)
    job.until(60)
    job.kill()
    job.end()
    newest = sorted((folder / "run" / "checkpoints").glob("*"))[-1]
    file = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    job = Job(folder)
    begun = time.monotonic()
    job.until(80)
    seconds = time.monotonic() - begun
    code = job.end()
    return f"the one before is taken, the run ends ({code})", seconds, said(job, "damaged|checksum")


def full_disk(folder: Path) -> Outcome:
    disk = folder / "run"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        raise NotRun(f"no small disk can be mounted here ({done.stderr.strip()})")
    job = Job(folder)
    job.until(60)
    begun = time.monotonic()
    with open(disk / "filler", "wb") as filler:
        try:
            while True:
                filler.write(bytes(2**20))
        except OSError:
            pass
    code = job.end()
    (disk / "filler").unlink()
    line = said(job, r"rank 0 on .*No space left")
    return f"ends ({code})", time.monotonic() - begun, line


def images(folder: Path) -> list[str]:
    """Make a folder of images; return the settings that train on it."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 400), ("val", 20)):
        for number in range(count):
            path = folder / "images" / split / f"class{number % 4}"
            path.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / f"{number}.jpg")
    return ["--data.name=imagefolder", f"--data.root={folder / 'images'}", "--data.image_size=32"]


def vanished(folder: Path) -> Outcome:
    settings = images(folder)
    job = Job(folder, *settings)
    job.until(30)
    begun = time.monotonic()
    (folder / "images").rename(folder / "elsewhere")
    code = job.end()
    seconds = time.monotonic() - begun
    (folder / "elsewhere").rename(folder / "images")
    return f"ends ({code})", seconds, said(job, r"rank \d on .*data\.root=.* is gone")


def other_config(folder: Path) -> Outcome:
    begun = time.monotonic()
    job = Job(folder, script=ODD_RANK)
    code = job.end()
    return f"refused ({code})", time.monotonic() - begun, said(job, r"optim\.lr=0\.3 on rank 1")


def store_lost(folder: Path) -> Outcome:
    job = ByHand(folder)
    job.until(60)
    begun = time.monotonic()
    job.processes[0].kill()
    job.end()
    return "ends", time.monotonic() - begun, said(job, r"rank 0 .*rendezvous")


FAILURES: dict[str, tuple[str, Callable[[Path], Outcome]]] = {
    "killed, restarted": ("kill -9 of a rank, torchrun --max-restarts=1", killed_with_restart),
    "killed": ("kill -9 of a rank, no restart", killed),
    "stopped": ("kill -STOP of a rank", stopped),
    "launcher": ("kill -9 of torchrun, which holds the rendezvous store", launcher_killed),
    "terminated": ("SIGTERM to all", terminated),
    "corrupt": ("a bit of the newest checkpoint flipped", corrupt),
    "disk": ("the disk is full", full_disk),
    "data": ("the data folder vanishes", vanished),
    "config": ("a rank with another config", other_config),
    "store": ("rank 0 lost, which holds the rendezvous store", store_lost),
}


def inject(name: str, folder: Path, undisturbed: str) -> dict[str, Any]:
    """Break one run, mend it, and return its row."""
    title, failure = FAILURES[name]
    folder.mkdir()
    Job.running.clear()
    try:
        outcome, seconds, line = failure(folder)
        settings = images_of(folder)
        found = finished(folder, *settings)
        expected = finished(folder / "again", *settings) if settings else undisturbed
        same = SAME if found == expected else f"{found} instead of {expected}"
    except NotRun as reason:
        return {"failure": title, "outcome": f"not run: {reason}"}
    finally:
        for job in Job.running:  # also after Ctrl-C: what this has broken ends with it
            job.kill()
        if os.path.ismount(folder / "run"):
            subprocess.run(["umount", str(folder / "run")], check=True)
    return {
        "failure": title,
        "outcome": outcome,
        "seconds": round(seconds, 1),
        "said": line,
        "afterwards": same,
    }


def images_of(folder: Path) -> list[str]:
    """Return the settings of a run on images, whose own undisturbed run is made beside it."""
    if not (folder / "images").exists():
        return []
    (folder / "again").mkdir()
    return images(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=FAILURES, default=list(FAILURES))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="largebatch-failures-"))
    record = BenchmarkRecord("failures", FORMULA, [], notes=[f"{RANKS} ranks on one host, gloo"])
    if options.json and options.json.exists() and options.only != list(FAILURES):
        now, record = record.environment, read_record(options.json)
        record.notes.append(
            f"{', '.join(options.only)}: again at {now['git_commit']}, {now['date']}"
        )
    rows = {row["failure"]: row for row in record.rows}
    good = True
    try:
        (folder / "undisturbed").mkdir()
        undisturbed = finished(folder / "undisturbed")
        for name in options.only:
            row = inject(name, folder / name.replace(", ", "-"), undisturbed)
            print(json.dumps(row), flush=True)
            rows[row["failure"]] = row
            good = good and row.get("afterwards", SAME) == SAME
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    record.rows = [rows[title] for title, _ in FAILURES.values() if title in rows]
    if options.json:
        write_record(options.json, record)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
