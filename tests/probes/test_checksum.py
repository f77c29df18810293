"""Parameters that differ on one rank are caught, by one bit and whatever their type."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from largebatch._errors import RunFailure
from largebatch.probes.checksum import parameter_checksum, require_same_parameters
from largebatch.processes.environment import World, free_port
from largebatch.processes.group import process_group


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_one_bit_changes_the_sum(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 5), (8, 4, 3, 3), ())
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    whole = int(parameter_checksum(tensors))
    assert whole == int(parameter_checksum([t.clone() for t in tensors]))
    last = [t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
    assert whole == int(parameter_checksum(last))
    word = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensors[0].element_size()]
    for place in range(3):
        changed = [t.clone() for t in tensors]
        changed[place].view(word).view(-1)[:1] ^= 1
        assert int(parameter_checksum(changed)) != whole
    assert int(parameter_checksum(tensors[::-1])) != whole


def rank_main(rank: int, port: int, folder: str) -> None:
    here = World(rank, 3, rank, 3, "mpirun", port=port)
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    try:
        with process_group(here, "gloo", 60.0, torch.device("cpu")):
            require_same_parameters(model.parameters(), here, 10)
            if rank == 2:
                with torch.no_grad():
                    model.weight[0, 0] = torch.nextafter(model.weight[0, 0], torch.tensor(1.0))
            require_same_parameters(model.parameters(), here, 20)
    except RunFailure as failure:
        Path(folder, f"{rank}").write_text(str(failure))


def test_the_rank_that_differs_is_named_on_every_rank(tmp_path: Path) -> None:
    mp.start_processes(rank_main, (free_port(), str(tmp_path)), nprocs=3, start_method="forkserver")
    for rank in range(3):
        said = (tmp_path / f"{rank}").read_text()
        expected = f"after 20 steps rank 2 on {os.uname().nodename} holds other parameters than 2"
        assert said.startswith(expected)
