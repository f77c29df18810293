"""Process groups dropped, and interpreters that end, while all-reduces are on their way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import largebatch.distributed
from largebatch.distributed import torus_face

SCRIPT = '''
"""Every case on two ranks, forked since that is quick; each then ends as an interpreter does."""
import os, sys, tempfile, time
import torch
import torch.distributed as dist
import largebatch.distributed
from largebatch._ops import torus_library
from largebatch.distributed.torus import Torus
from largebatch.distributed.torus_face import CompiledTorus

torch.set_num_threads(1)
torus_library.load()
SUM, AVG = dist.ReduceOp.SUM, dist.ReduceOp.AVG

def begin(count=6, numel=100_000, op=SUM, group=None, ones=torch.ones):
    return [dist.all_reduce(ones(numel), op, group, async_op=True) for _ in range(count)]

def listen(works, turns=0):
    for work in works:
        work.get_future().then(
            lambda done: ([tensor.sum() for tensor in done.value()], sum(range(turns)))
        )

def no_destroy():
    listen(begin())

def no_destroy_of_a_flat_mean():
    listen(begin(op=AVG))

def no_destroy_of_a_flat_sum():
    listen(begin(), turns=1_000_000)  # longer than a thread may hold the interpreter at a time

def no_destroy_of_a_flat_maximum_in_strides():
    listen(begin(op=dist.ReduceOp.MAX, ones=lambda numel: torch.ones(100, 100).t()), 1_000_000)

def a_callback_is_the_last_owner():
    [work] = begin(1, 4_000_000)
    group = dist.group.WORLD
    done = work.get_future().then(lambda done, group=group: (done.value(), group.size()))
    del work, group
    dist.destroy_process_group()
    done.wait()

def a_callback_is_the_last_owner_and_takes_its_time():
    for face in (CompiledTorus, Torus):
        def close(self, close=face.close):
            ended = close(self)
            time.sleep(0.5)  # its thread is still at it when the interpreter ends
            return ended
        face.close = close
    a_callback_is_the_last_owner()

def groups_come_and_go():
    for number in range(15):
        group = dist.new_group(range(2) if number % 2 else [0])
        if group is not dist.GroupMember.NON_GROUP_MEMBER:
            begin(1, 1000, AVG if number % 3 else SUM, group)
            dist.destroy_process_group(group)
    begin()
    dist.destroy_process_group()

def a_forked_child_ends():
    begin()
    child = os.fork()
    if child == 0:
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    dist.destroy_process_group()

CASES = [no_destroy, no_destroy_of_a_flat_mean, no_destroy_of_a_flat_sum,
         no_destroy_of_a_flat_maximum_in_strides, a_callback_is_the_last_owner,
         a_callback_is_the_last_owner_and_takes_its_time, groups_come_and_go, a_forked_child_ends]

for case in CASES:
    os.environ["LARGEBATCH_ALLREDUCE"] = "flat" if "flat" in case.__name__ else "torus"
    store = tempfile.mktemp(dir=sys.argv[1])
    pids = []
    for rank in range(2):
        pids.append(os.fork())
        if pids[-1] == 0:
            dist.init_process_group("torus", init_method="file://" + store, rank=rank, world_size=2)
            case()
            sys.exit(0)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(case.__name__, codes, flush=True)
'''


@pytest.mark.timeout(400)
@pytest.mark.parametrize("ops", ["auto", "reference"])
def test_ranks_end_in_good_order(tmp_path, ops):
    if ops == "auto" and torus_face.load()[0] is None:
        pytest.skip(f"the compiled schedule is absent: {torus_face.load()[1]}")
    variables = {key: value for key, value in os.environ.items() if key != "LARGEBATCH_OPS"}
    variables |= {"LARGEBATCH_OPS": "reference"} if ops == "reference" else {}
    variables |= {"LARGEBATCH_TORUS": "2x1", "LARGEBATCH_WIRE": "bf16", "OMP_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = str(Path(largebatch.distributed.__file__).parents[2])
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)],
        capture_output=True, text=True, timeout=380, env=variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8 and all(line.endswith("[0, 0]") for line in lines), (
        done.stdout + done.stderr
    )
