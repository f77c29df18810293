"""Decoupled greedy learning over ranks: each rank trains a layer, and none waits for a gradient.

Belilovsky, Eickenberg, Oyallon 2020, "Decoupled greedy learning of CNNs", algorithm 1: a layer
trains under its own classifier on what the layer below has just sent. Messages go upwards alone, so
the ranks work on several batches at once: a pipeline without a way back.
"""

from __future__ import annotations

from largebatch.lab.decoupled import AHEAD, HIDDEN, learn
from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.greedy import NEAR, end_to_end
from largebatch.lab.paired import exceeds
from largebatch.lab.pictures import Series, lines
from largebatch.lab.ranks import on_ranks


@experiments.register("dgl")
class DecoupledGreedyLearning(Experiment):
    """Two (quick) or three convolutions on as many real ranks, beside one process and backprop."""

    lecture = "Training in practice (lecture 3), optional: Local Parallel Learning"
    claim = "Simultaneously minimize each layer's own loss: strong results without end-to-end"
    source = "Belilovsky et al. 2020, algorithm 1"
    minutes = 1.0

    def measure(self, scale: Scale) -> Findings:
        """Compare weights and work with one process's, and accuracy with backpropagation."""
        count, epochs = scale.pick(2, 3), scale.pick(1, 12)
        ranks = on_ranks(count, learn, list(scale.seeds), epochs)
        rows = []
        for number, seed in enumerate(scale.seeds):
            runs = [rank[number] for rank in ranks]
            rows.append({
                "seed": seed, "ranks": count, "accuracy": round(runs[0]["accuracy"], 4),
                "backprop": round(end_to_end(seed, HIDDEN, epochs, count), 4),
                "seconds": round(runs[0]["seconds"], 2),
                "seconds of one process": round(runs[0]["seconds alone"], 2),
                "share waiting": round(max(r["waits"] / r["seconds"] for r in runs), 3),
                "work over the busiest rank's": round(
                    runs[0]["busy alone"] / max(r["busy"] for r in runs), 2
                ),
            })  # fmt: skip
        ours, theirs = ([float(row[key]) for row in rows] for key in ("accuracy", "backprop"))
        shares = [float(row["work over the busiest rank's"]) for row in rows]
        apart = max(row["apart"] for row in ranks[0])
        checks = [
            Check("weights over ranks and in one process", "equal", f"{apart:.1e} apart",
                  apart < 1e-9, exact=True),
            Check("accuracy as good as backpropagation's, to 1 point", "yes",
                  f"{spread(ours)} against {spread(theirs)}",
                  exceeds(ours, theirs, -NEAR)),
            Check(f"processor time of one process over that of the busiest of {count} ranks",
                  "above 1: the work is divided", spread(shares),
                  agreed(factor > 1 for factor in shares)),
        ]  # fmt: skip
        bars = [Series(key, list(scale.seeds), [float(row[key]) for row in rows], mode="markers")
                for key in ("accuracy", "backprop")]  # fmt: skip
        note = "each seed: layers on their own over ranks, and trained as one"
        picture = lines("seed", "held-out accuracy", bars)
        return Findings(checks, rows, [("Local losses and backpropagation", note, picture)], [
            "a rank sends its features upwards and receives no gradient; it may be "
            f"{AHEAD} batches ahead of the rank above",
            "seconds are of this machine as it was; processor time does not depend on its load",
        ])  # fmt: skip
