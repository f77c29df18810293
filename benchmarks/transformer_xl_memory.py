"""Transformer-XL with and without its memory: the validation loss.

python benchmarks/transformer_xl_memory.py --data=FILE --folder RUNS --json FILE
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from largebatch._paths import UserPath
from largebatch.cli import main
from largebatch.study.grid import GridStudy


class Memory(GridStudy):
    """Windows of 32 characters, 16 streams, and memories of different lengths."""

    def __init__(
        self,
        data: UserPath,
        memories: Sequence[int] = (0, 32, 96),
        seeds: Sequence[int] = (0, 1, 2),
        steps: int = 1500,
    ) -> None:
        super().__init__(
            {f"memory {memory}": [f"--model.memory={memory}"] for memory in memories},
            seeds,
            base=[
                *("--task.name=causal_lm", "--model.name=transformer_xl", "--data.name=text"),
                *(f"--data.root={data}", "--data.tokenizer=characters", "--data.context=32"),
                *("--data.streams=16", "--batch.size=16"),
                *("--model.layers=2", "--model.heads=4", "--model.width=96"),
                *("--optim.name=adamw", "--optim.lr=0.002", "--optim.clip_norm=1"),
                *(f"--schedule.length={steps}st", "--schedule.warmup=5%", "--evaluate.every=100%"),
            ],
            figure="loss",
            column="memory",
            name="transformer-xl-memory",
        )


if __name__ == "__main__":
    sys.exit(main(["study", "transformer_xl_memory:Memory", *sys.argv[1:]]))
