from __future__ import annotations

import pytest

from largebatch._errors import UserError
from largebatch.processes.environment import (
    World,
    detect,
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
    [
        ("gpu[03-07,11],login1", "gpu03"),
        ("rack[1-2]node[01-04]", "rack1node01"),
        ("cn[01-04]-ib0", "cn01-ib0"),
        ("n[1-3].cluster.local", "n1.cluster.local"),
    ],
)
def test_the_first_host_of_a_step_has_its_whole_name(nodes, first):
    assert detect({**SLURM, "SLURM_STEP_NODELIST": nodes}).address == first


SHELL = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "0",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
    "SLURM_STEP_NODELIST": "gpu03",
    "SLURM_NTASKS": "4",
}


@pytest.mark.parametrize(
    "shell",
    [
        SHELL,  # srun --pty bash, in an salloc of four tasks
        {**SHELL, "PMI_RANK": "0", "PMI_SIZE": "1"},  # with --mpi=pmi2
        {**SHELL, "PMIX_RANK": "0", "PMIX_NAMESPACE": "slurm.pmix.77.0"},  # with --mpi=pmix
        # salloc's own interactive step, and a batch script's
        {**SHELL, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "4"},
        {**SHELL, "SLURM_STEP_ID": "4294967291", "SLURM_STEP_NUM_TASKS": "4"},
        {"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "1", "PMI_RANK": "0", "PMI_SIZE": "1"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_a_shell_of_one_task_is_no_launch(shell):
    assert detect(shell) == World()


def test_tasks_of_an_salloc_are_a_launch():
    """Also with the variables that Slurm sets for MPI: its own tell more."""
    step = {**SHELL, "SLURM_PROCID": "2", "SLURM_LOCALID": "2", "SLURM_STEP_NUM_TASKS": "4"}
    step |= {"SLURM_STEP_TASKS_PER_NODE": "4", "PMI_RANK": "2", "PMI_SIZE": "4"}
    world = detect(step)
    assert world == World(2, 4, 2, 4, "srun", "127.0.0.1", world.port)
    assert world.on_one_host
    # mpiexec starts one proxy a node by srun, and ranks from there
    inner = {**SHELL, "PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"}
    world = detect({**inner, "MPI_LOCALNRANKS": "2"})
    assert world == World(1, 2, 1, 2, "mpiexec", "127.0.0.1", world.port)


def named(prefix: str) -> dict[str, str]:
    names = {"RANK": "3", "SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
    return {prefix + name: value for name, value in names.items()}


PMI = {"PMI_RANK": "3", "PMI_SIZE": "4"}
HYDRA = {**PMI, "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
FLUX = {"FLUX_TASK_RANK": "3", "FLUX_JOB_SIZE": "4", "FLUX_TASK_LOCAL_ID": "1"}


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        (HYDRA, "mpiexec"),  # MPICH, Intel MPI
        ({**PMI, "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "2"}, "mpiexec"),  # PALS
        ({**named("MV2_COMM_WORLD_"), **PMI}, "mpirun"),
        (named("MVP_COMM_WORLD_"), "mpirun"),
        (named("JSM_NAMESPACE_"), "jsrun"),
        (named("HOROVOD_"), "horovodrun"),
        ({**FLUX, "FLUX_JOB_NNODES": "2", **PMI}, "flux"),
    ],
)
def test_every_launcher_tells_the_place(environment, launcher):
    world = detect({**environment, "MASTER_ADDR": "node0"})
    assert world == World(3, 4, 1, 2, launcher, "node0", world.port)
    assert not world.on_one_host
    assert detect(environment).address == ""  # MPI is asked for it, or the user
    assert detect({**environment, "MASTER_PORT": "7"}).port == 7


def test_ranks_of_one_job_agree_where_they_meet():
    """Also where nothing names the job: ranks of one host share the process that started them."""
    here = {"PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}
    first, second = (
        detect({**here, "PMI_RANK": rank, "MPI_LOCALRANKID": rank}) for rank in ("0", "1")
    )
    assert (first.address, first.port) == (second.address, second.port)
    assert first.address == "127.0.0.1" and 20000 <= first.port < 40000
    # On several hosts nothing is shared but torch's usual port.
    assert detect({**HYDRA, "MASTER_ADDR": "node0"}).port == 29500
    assert detect({**HYDRA, "MASTER_ADDR": "node0", "PBS_JOBID": "3"}).port != 29500


@pytest.mark.parametrize(
    "environment",
    [
        PMI,
        {**PMI, "MASTER_ADDR": "node0"},
        {"PMI_RANK": "0"},
        {"PMIX_RANK": "0", "PMIX_NAMESPACE": "prterun-host-1@1"},
        {"PALS_RANKID": "1"},
        {"ALPS_APP_PE": "1"},
        {"OMPI_COMM_WORLD_RANK": "0"},
        {"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"},
        {"RANK": "1", "MASTER_ADDR": "node0"},
        {"WORLD_SIZE": "2"},
    ],
)
def test_never_several_runs_of_one_rank(environment):
    with pytest.raises(UserError, match=next(iter(environment)).partition("_")[0]):
        detect(environment)


def test_ranks_by_hand_on_one_host_have_a_device_each():
    """Without LOCAL_*: those of one address that is every host's own, else one rank a host."""
    hand = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    assert detect(hand) == World(1, 2, 1, 2, "torchrun", "127.0.0.1", 29500)
    assert detect({**hand, "MASTER_ADDR": "host0"}) == World(1, 2, 0, 1, "torchrun", "host0", 29500)


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({**TORCHRUN, "RANK": "one"}, ["RANK", "one"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["MASTER_ADDR", "torchrun"]),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "x"}, ["SLURM_STEP_TASKS_PER_NODE"]),
        ({**MPIRUN, "OMPI_COMM_WORLD_SIZE": "two"}, ["OMPI_COMM_WORLD_SIZE", "two"]),
        ({**TORCHRUN, "RANK": "5", "WORLD_SIZE": "2"}, ["RANK='5'", "from 0 to 1"]),
        ({**TORCHRUN, "RANK": "-1"}, ["RANK='-1'"]),
        ({**TORCHRUN, "WORLD_SIZE": "0"}, ["WORLD_SIZE='0'", "1 or more"]),
        ({**TORCHRUN, "WORLD_SIZE": ""}, ["WORLD_SIZE=''"]),
        ({**TORCHRUN, "WORLD_SIZE": "4_0"}, ["WORLD_SIZE='4_0'"]),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "0"}, ["LOCAL_WORLD_SIZE='0'"]),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "x"}, ["LOCAL_WORLD_SIZE='x'"]),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "9"}, ["LOCAL_WORLD_SIZE='9'", "from 1 to 4"]),
        ({**TORCHRUN, "LOCAL_RANK": "-2"}, ["LOCAL_RANK='-2'"]),
        ({**TORCHRUN, "MASTER_PORT": "99999"}, ["MASTER_PORT='99999'", "65535"]),
        ({**TORCHRUN, "MASTER_ADDR": " "}, ["MASTER_ADDR"]),
        ({**MPIRUN, "OMPI_COMM_WORLD_RANK": "2"}, ["OMPI_COMM_WORLD_RANK='2'", "from 0 to 1"]),
        ({**MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "0"}, ["OMPI_COMM_WORLD_LOCAL_SIZE='0'"]),
        ({**HYDRA, "PMI_RANK": "4"}, ["PMI_RANK='4'", "from 0 to 3"]),
        ({**SLURM, "SLURM_PROCID": "7"}, ["SLURM_PROCID='7'", "from 0 to 6"]),
        ({**SLURM, "SLURM_NODEID": "3"}, ["SLURM_NODEID=3", "3 hosts"]),
        ({**SLURM, "SLURM_STEP_NODELIST": "gpu[03"}, ["gpu[03", "MASTER_ADDR"]),
        ({**SLURM, "SLURM_STEP_NODELIST": ""}, ["SLURM_STEP_NODELIST", "MASTER_ADDR"]),
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
