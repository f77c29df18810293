"""The effects of weight decay besides shrinking: effective rate, Jacobian, training loss.

Zhang et al. 2018: before a batch norm only the direction of weights counts, and rate / |w|^2 is the
rate of the direction, which decay keeps up; without one it lowers the norm of the input-output
Jacobian. Hoffer et al. 2018: a rate corrected by |w|^2 / |w_decayed|^2 in place of decay gives the
same directions; exactly, with 1 - rate x decay in the denominator.
"""

from __future__ import annotations

from operator import gt, lt

from largebatch.lab.decay_as_rate import directions
from largebatch.lab.decayed_training import EVERY, walk
from largebatch.lab.experiment import (
    Check,
    Drawing,
    Experiment,
    Findings,
    Scale,
    experiments,
    spread,
)
from largebatch.lab.paired import compared
from largebatch.lab.pictures import lines, over_seeds

DECAY = 2e-3


@experiments.register("wd-mech")
class WeightDecay(Experiment):
    """A perceptron on digits, with and without batch norm, with and without a decay of 0.002."""

    lecture = "Training in practice (lecture 3)"
    claim = "Decay: greater effective rate, smaller input-output Jacobian, better training accuracy"
    source = "Zhang et al. 2018, Three mechanisms; Krizhevsky et al. 2012; Hoffer et al. 2018"
    minutes = 0.5

    def measure(self, scale: Scale) -> Findings:
        """Compare the ends of the trainings seed by seed."""
        steps = scale.pick(240, 1500)
        found = {
            (norm, decay): [walk(norm == "batch norm", decay, s, steps) for s in scale.seeds]
            for norm in ("batch norm", "none")
            for decay in (0.0, DECAY)
        }
        apart, cosine = map(max, zip(*(directions(seed) for seed in scale.seeds), strict=True))
        checks = []
        for words, claimed, norm, what, order in (
            ("effective rate at the end", "greater", "batch norm", "rate", gt),
            ("Jacobian at the end, batch norm", "smaller", "batch norm", "jacobian", lt),
            ("Jacobian at the end, no norm", "smaller", "none", "jacobian", lt),
            ("loss of the last epoch, batch norm", "smaller", "batch norm", "loss", lt),
            ("loss of the last epoch, no norm", "smaller", "none", "loss", lt),
        ):
            ours, theirs = ([p.at_end(what) for p in found[norm, d]] for d in (DECAY, 0.0))
            checks.append(compared(f"{words}, with decay", claimed, ours, theirs, order))
        checks += [
            Check("before a batch norm: cosine of weights and gradient",
                  "0: only the direction counts", f"{cosine:.1e}", cosine < 1e-9, True),
            Check("directions under decay and under the corrected rate", "the same",
                  f"{apart:.1e} apart after 30 steps", apart < 1e-9, True),
        ]  # fmt: skip
        rows = [
            {"norm": norm, "decay": decay,
             "rate / |w|^2": spread([p.at_end("rate") for p in paths]),
             "Jacobian": spread([p.at_end("jacobian") for p in paths]),
             "training loss": spread([p.at_end("loss") for p in paths]),
             "training accuracy": spread([p.train for p in paths], 4),
             "held-out accuracy": spread([p.held for p in paths], 4)}
            for (norm, decay), paths in found.items()
        ]  # fmt: skip
        places = [*range(0, steps, EVERY)]
        places += [steps - 1] if (steps - 1) % EVERY else []

        def chart(title: str, note: str, what: str) -> tuple[str, str, Drawing]:
            curves = [
                over_seeds(f"{norm}, decay {decay:g}", places, [getattr(p, what) for p in paths])
                for (norm, decay), paths in found.items()
            ]
            return title, note, lines("step", title.lower(), curves, log="y")

        charts = [
            chart("Effective rate", "rate over the mean |w|^2 of a hidden layer", "rate"),
            chart("Jacobian", "norm of the logits' derivatives by pixels, held-out", "jacobian"),
        ]
        return Findings(checks, rows, charts)
