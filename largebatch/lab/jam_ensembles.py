"""Averaging the outputs of networks from several starts helps most where training just jams."""

from __future__ import annotations

from largebatch.lab.experiment import (
    Check,
    Experiment,
    Findings,
    Scale,
    agreed,
    experiments,
    spread,
)
from largebatch.lab.jam_generalization import mislabelled
from largebatch.lab.jamming import hinge, parity_data, scan, threshold
from largebatch.lab.pictures import lines, over_seeds

WRONG = 0.1


@experiments.register("ens-jam")
class JamEnsembles(Experiment):
    """Compares single networks with the mean of their outputs, from below N* to far above."""

    lecture = "An overview of empirical studies in NNs (Sagun)"
    claim = "Ensembling improves generalization; is ensembling after jamming the best one can get?"
    source = "Geiger et al. 2019, arXiv:1901.01608"
    minutes = 2.0

    def measure(self, scale: Scale) -> Findings:
        """Train all on the same data; the loss being convex, that of the mean can only be lower."""
        count, steps, nets = scale.pick((200, 500, 5), (600, 2500, 16))
        widths = scale.pick((3, 4, 6, 8, 32), (3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 48, 96))
        rows, single, mean, gains, scatters = [], [], [], [], []
        jensen, places, reached = True, [], []
        for seed in scale.seeds:
            data, held_out = parity_data(count, seed)
            data = mislabelled(data, WRONG, seed)
            scanned = scan([(h, h) for h in widths], data, nets, steps, seed, held_out)
            critical, sizes = threshold(scanned), [each.size for each in scanned]
            alone, together, wide = [], [], []
            for each in scanned:
                average = each.outputs.mean(0)
                loss, own = (hinge(held_out.y * f).mean() for f in (average, each.outputs))
                jensen &= bool(loss <= own * (1 + 1e-5))
                alone.append(float((held_out.y * each.outputs <= 0).float().mean()))
                together.append(float((held_out.y * average <= 0).float().mean()))
                wide.append(float(each.outputs.std(0).square().mean().sqrt()))
            single.append(alone)
            mean.append(together)
            gains.append([a - b for a, b in zip(alone, together, strict=True)])
            scatters.append(wide)
            if critical is not None:
                places.append(sizes[gains[-1].index(max(gains[-1]))] / critical)
                beyond = [i for i, n in enumerate(sizes) if n >= critical]
                after = min(together[i] for i in beyond[: max(1, len(beyond) // 2)])
                reached.append(after / alone[-1])
            for n, a, b, w in zip(sizes, alone, together, wide, strict=True):
                rows.append(
                    {
                        "seed": seed,
                        "N": n,
                        "N*": critical,
                        "error of one": round(a, 4),
                        "of the mean": round(b, 4),
                        "spread of outputs": round(w, 3),
                    }
                )
        worse = [min(g) for g in gains]
        checks = [
            Check(
                "error of one less that of the mean, least over N",
                "above 0: it improves",
                spread(worse),
                agreed(w > 0 for w in worse),
            ),
            Check(
                "N of the largest gain, of N*",
                "near 1",
                spread(places, 2),
                agreed(0.5 <= p <= 2 for p in places),
            ),
            Check(
                "error of the mean just above N*, of a single widest network's",
                "at most 1",
                spread(reached),
                agreed(r <= 1.05 for r in reached),
            ),
            Check(
                "held-out hinge loss of the mean at most the mean loss",
                "always (convex)",
                str(jensen),
                jensen,
                True,
            ),
        ]
        curves = [
            over_seeds("one network", sizes, single, "lines+markers"),
            over_seeds(f"mean of {nets}", sizes, mean, "lines+markers"),
        ]
        marks = {f"N* {r['seed']}": r["N*"] for r in rows if r["N*"] is not None}
        charts = [
            ("Test error", "range over seeds", lines("N", "", curves, "x", marks, percent=True)),
            (
                "Spread of outputs over starts",
                "standard deviation over networks, root mean square over held-out images",
                lines("N", "", [over_seeds("spread", sizes, scatters, "lines+markers")], "xy"),
            ),
        ]
        return Findings(checks, rows, charts, [f"P = {count}, a tenth of the labels wrong"])
