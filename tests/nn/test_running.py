"""Running statistics over micro-batches and ranks equal those of one process and one forward."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from largebatch.nn import (
    GhostBatchNorm,
    discard_step,
    ghost_place,
    ghost_sizes,
    merge_running_stats,
    step_end,
)
from largebatch.processes.ending import end_group

CHANNELS, GHOST = 3, 4
MODES = [("sequential", 0.1), ("averaged", 0.1), ("last", 0.1), ("sequential", None)]
STEPS = [
    41,
    16,
    5,
    23,
    9,
    2,
]  # samples: a shorter last ghost, a joined one, fewer ghosts than ranks


def steps():
    """The samples of each step, cut into ghosts."""
    generator = torch.Generator().manual_seed(0)
    for number, samples in enumerate(STEPS):
        x = torch.randn(samples, CHANNELS, dtype=torch.float64, generator=generator)
        yield (x * (1 + number) + 10 * number).split(ghost_sizes(samples, GHOST, 2))


def model(running, momentum):
    return nn.Sequential(
        GhostBatchNorm(CHANNELS, GHOST, running=running, momentum=momentum, dtype=torch.float64),
        nn.Identity(),
    )


def take(norm, ghosts, start, stop, micro):
    """Run ghosts start to stop of a step, ``micro`` ghosts a forward."""
    for first in range(start, stop, micro):
        with ghost_place(first, len(ghosts)):
            norm(torch.cat(ghosts[first : min(first + micro, stop)]))


def one_process(running, momentum):
    norm = model(running, momentum)
    for ghosts in steps():
        norm(torch.cat(ghosts))
    return norm.state_dict()


@pytest.mark.parametrize(("running", "momentum"), MODES)
@pytest.mark.parametrize("micro", [1, 2, 3])
def test_micro_batches_equal_one_forward(running, momentum, micro):
    norm = model(running, momentum)
    for ghosts in steps():
        take(norm, ghosts, 0, len(ghosts), micro)
        step_end(norm, len(ghosts))
    expected = one_process(running, momentum)
    torch.testing.assert_close(norm.state_dict(), expected, rtol=1e-12, atol=1e-12)


def test_a_place_bounds_the_ghosts():
    """A step cut for a stricter norm ends in a ghost of one more sample, for every norm."""
    norm = GhostBatchNorm(2, 4).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    with ghost_place(1, 2):
        joined = norm(x)
    torch.testing.assert_close(joined, nn.BatchNorm1d(2).double()(x))
    with ghost_place(1, 2), pytest.raises(ValueError, match="more than 1 ghosts of 4"):
        norm(torch.cat((x, x)))
    with pytest.raises(ValueError, match="first=2"), ghost_place(2, 2):
        pass


def test_a_discarded_step_leaves_no_trace():
    norm, expected = model("sequential", 0.1), model("sequential", 0.1)
    for ghosts in steps():
        take(norm, ghosts, 0, len(ghosts), 2)
        discard_step(norm)
        for one in (norm, expected):
            take(one, ghosts, 0, len(ghosts), 3)
            step_end(one, len(ghosts))
    torch.testing.assert_close(norm.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_state_is_torchs_and_copies_are_apart():
    norm = GhostBatchNorm(3, 2)
    assert list(norm.state_dict()) == list(nn.BatchNorm1d(3).state_dict())
    with ghost_place(0, 2):
        norm(torch.randn(4, 3))
    twin = copy.deepcopy(norm)
    step_end(norm, 2)
    assert not torch.equal(twin.running_mean, norm.running_mean)
    step_end(twin, 2)
    torch.testing.assert_close(twin.state_dict(), norm.state_dict(), rtol=0, atol=0)
    norm.load_state_dict(nn.BatchNorm1d(3).state_dict())
    assert not norm.local.any()
    norm.reset_running_stats()
    assert torch.equal(norm.running_var, torch.ones(3))


def test_merging_alone_does_nothing():
    norm = model("sequential", 0.1)
    norm(torch.randn(8, CHANNELS, dtype=torch.float64))
    before = copy.deepcopy(norm.state_dict())
    merge_running_stats(norm)
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)


def rank_main(rank, address, results):
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=3)
    pair = dist.new_group([0, 1])
    for world, group in ((2, pair), (3, dist.group.WORLD)):
        if rank >= world:
            continue
        for mode in MODES:
            norm = model(*mode)
            shares = torch.Generator().manual_seed(world)
            for number, ghosts in enumerate(steps()):
                cuts = torch.randint(len(ghosts) + 1, (world - 1,), generator=shares).sort()[0]
                if number == 1:
                    cuts[:] = 0  # all for the last rank, none for the others
                bounds = [0, *cuts.tolist(), len(ghosts)]
                take(norm, ghosts, bounds[rank], bounds[rank + 1], 2)
                step_end(norm, len(ghosts))
                if number in (2, 3):
                    merge_running_stats(norm, group)
            merge_running_stats(norm, group)
            if rank == world - 1:
                torch.save(norm.state_dict(), results / f"{world}-{mode[0]}-{mode[1]}.pt")
    # Norms without a place: torch's own, and ours when one rank has seen nothing.
    torch_norm, alone = nn.BatchNorm1d(CHANNELS).double(), GhostBatchNorm(CHANNELS, GHOST).double()
    both = nn.Sequential(torch_norm, alone)
    x = torch.full((4, CHANNELS), float(rank), dtype=torch.float64)
    torch_norm(x)
    if rank:
        alone(x)
    merge_running_stats(both)
    assert torch.allclose(torch_norm.running_mean, torch.full_like(torch_norm.running_mean, 0.1))
    assert torch.allclose(alone.running_mean, torch.full_like(alone.running_mean, 0.15))
    calls = []
    plain_all_reduce = dist.all_reduce

    def counted(tensor, **kwargs):
        calls.append(tensor.numel())
        return plain_all_reduce(tensor, **kwargs)

    dist.all_reduce = counted
    merge_running_stats(both)
    assert calls == [2 + 2 * 2 * CHANNELS]
    end_group()


def test_ranks_equal_one_process(tmp_path):
    mp.start_processes(
        rank_main, (tmp_path / "store", tmp_path), nprocs=3, start_method="forkserver"
    )
    for world in (2, 3):
        for running, momentum in MODES:
            merged = torch.load(tmp_path / f"{world}-{running}-{momentum}.pt")
            expected = one_process(running, momentum)
            torch.testing.assert_close(merged, expected, rtol=1e-12, atol=1e-12)
