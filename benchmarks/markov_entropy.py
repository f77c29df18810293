"""A source of known entropy: the causal model's loss against it.

    python benchmarks/markov_entropy.py [--tokens 600000] --json FILE

The source is a Markov chain of order two over eight letters, its transitions drawn once from a
Dirichlet distribution. Its entropy rate is computed from the transitions and their stationary
distribution, not estimated. Windows begin without what came before, so that the best model's loss
lies above the rate by what the first two tokens of a window cost: that is computed too.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from largebatch.record import BenchmarkRecord, write_record
from largebatch.train import run
from largebatch.train.parse import parse

FORMULA = (
    "loss = mean over all tokens of the held-out tenth, nats; entropy = - sum over states of"
    " stationary share x sum p ln p; excess = loss / entropy - 1; least = loss of the source itself"
    " as the model, over windows"
)
LETTERS, CONTEXT = 8, 64


class Markov:
    """A chain of order two.

    Attributes:
        rate, first, second: entropy of a token, given all before it, none, and one, in nats.
    """

    def __init__(self, seed: int, concentration: float = 0.3) -> None:
        self._rng = np.random.default_rng(seed)
        shape = [concentration] * LETTERS
        self.rows = self._rng.dirichlet(shape, size=(LETTERS, LETTERS))
        pairs = np.full((LETTERS, LETTERS), LETTERS**-2.0)
        for _ in range(2000):  # (a, b) -> (b, c)
            pairs = np.einsum("ab,abc->bc", pairs, self.rows)
        self.rate = float((pairs * _entropy(self.rows)).sum())
        single = pairs.sum(axis=0)
        self.first = float(_entropy(single))
        self.second = float((single * _entropy(pairs / pairs.sum(axis=1, keepdims=True))).sum())

    def least(self, context: int) -> float:
        """Return the loss of the best model of windows: its second token sees one, others two."""
        return (self.second + (context - 1) * self.rate) / context

    def text(self, tokens: int) -> bytes:
        """Draw a text, a letter a byte."""
        draws, cumulated = self._rng.random(tokens), self.rows.cumsum(axis=2)
        found, a, b = bytearray(tokens), 0, 0
        for at, draw in enumerate(draws):
            c = min(int(np.searchsorted(cumulated[a, b], draw)), LETTERS - 1)
            found[at] = 97 + c
            a, b = b, c
        return bytes(found)


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=600_000)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", help="write the record here")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            source = Markov(seed)
            path = Path(folder, f"{seed}.txt")
            path.write_bytes(source.text(options.tokens))
            config = parse(
                [
                    *("--task.name=causal_lm", "--data.name=text", f"--data.root={path}"),
                    *("--data.tokenizer=characters", f"--data.context={CONTEXT}"),
                    *("--model.layers=2", "--model.heads=4", "--model.width=64"),
                    *("--batch.size=32", "--optim.name=adamw", "--optim.lr=0.003"),
                    *(f"--schedule.length={options.steps}st", "--schedule.warmup=5%"),
                    *("--evaluate.every=100%", f"--run.seed={seed}", f"--run.dir={folder}/{seed}"),
                ]
            )
            summary = run(config).summary
            assert summary is not None
            loss = float(summary["loss"])
            rows.append(
                {
                    "seed": seed,
                    "loss": round(loss, 4),
                    "entropy": round(source.rate, 4),
                    "excess": round(loss / source.rate - 1, 4),
                    "least": round(source.least(CONTEXT), 4),
                }
            )
            print(rows[-1], flush=True)
    notes = [f"largest excess {max(row['excess'] for row in rows):.2%}; bar: 2%"]
    record = BenchmarkRecord("markov-entropy", FORMULA, rows, notes=notes)
    print(record.table())
    if options.json:
        write_record(options.json, record)


if __name__ == "__main__":
    main()
