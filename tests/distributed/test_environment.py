from __future__ import annotations

import pytest

from largebatch._errors import UserError
from largebatch.distributed.environment import (
    World,
    detect,
    first_host,
    free_port,
    tasks_per_node,
)

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "1234",
}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-host-1@1",
}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),1",
    "SLURM_STEP_NODELIST": "gpu[03-04,11]",
}


def test_alone():
    assert detect({}) == World()
    assert World().is_main and World().launcher == "alone"


def test_torchrun_comes_first():
    assert detect({**SLURM, **MPIRUN, **TORCHRUN}) == World(3, 4, 1, 2, "torchrun", "node0", 1234)


def test_mpirun_on_one_host_needs_no_address():
    world = detect({**SLURM, **MPIRUN})
    assert (world.rank, world.world_size, world.launcher) == (1, 2, "mpirun")
    assert world.address == "127.0.0.1"
    other = detect({**MPIRUN, "OMPI_COMM_WORLD_RANK": "0"})
    assert other.port == world.port and 20000 <= world.port < 40000
    assert detect({**MPIRUN, "PMIX_NAMESPACE": "another@1"}).port != world.port


def test_an_address_given_to_mpirun_is_taken():
    world = detect({**MPIRUN, "MASTER_ADDR": "10.0.0.9", "MASTER_PORT": "4"})
    assert (world.address, world.port) == ("10.0.0.9", 4)


def test_srun_step():
    world = detect(SLURM)
    assert world == World(5, 7, 2, 3, "srun", "gpu03", world.port)
    assert detect({**SLURM, "SLURM_PROCID": "0"}).port == world.port


def test_a_batch_script_is_no_step():
    script = {key: value for key, value in SLURM.items() if "STEP" not in key}
    assert detect({**script, "SLURM_PROCID": "0"}) == World()


@pytest.mark.parametrize(
    ("text", "sizes"), [("4", [4]), ("2(x3),1", [2, 2, 2, 1]), ("1,2(x2)", [1, 2, 2])]
)
def test_tasks_per_node(text, sizes):
    assert tasks_per_node(text) == sizes


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu03", "gpu03"), ("gpu[03-07,11],login1", "gpu03"), ("a,b", "a"), ("n[7,9]", "n7")],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({**TORCHRUN, "RANK": "one"}, ["RANK", "one"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["MASTER_ADDR", "torchrun"]),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "x"}, ["SLURM_STEP_TASKS_PER_NODE"]),
        ({**MPIRUN, "OMPI_COMM_WORLD_SIZE": "two"}, ["OMPI_COMM_WORLD_SIZE", "two"]),
    ],
)
def test_broken_launchers_are_named(environment, names):
    with pytest.raises(UserError) as caught:
        detect(environment)
    assert all(name in str(caught.value) for name in names)


def test_free_port_is_free():
    import socket

    with socket.socket() as server:
        port = free_port()
        server.bind(("127.0.0.1", port))
        assert server.getsockname()[1] == port
