"""Instruments that watch a live run without changing any bit of the run, and further evaluations.

A config names instruments in ``probes`` and further evaluations in ``evaluate.also``. Instruments
measure, for example, the gradient noise scale, curvature, sharpness or the distance of the weights
from their start. Their figures join ``metrics.jsonl``.
"""

from __future__ import annotations

from largebatch.probes import knn, linear_evaluation  # noqa: F401
from largebatch.probes.checksum import ParameterChecksum
from largebatch.probes.curvature import Curvature
from largebatch.probes.doubling import Doubling, control_terms
from largebatch.probes.further import EVALUATION_OFFERS, Run, check_also, evaluations, short_name
from largebatch.probes.instrument import MOMENTS, Instrument, Moment
from largebatch.probes.layers import LayerRecord
from largebatch.probes.listed import Listed, check_list, make
from largebatch.probes.mc_dropout import DropoutPasses
from largebatch.probes.noise import NoiseScale
from largebatch.probes.noise_estimate import NoiseEstimate, estimate_noise
from largebatch.probes.noise_layers import layerwise_noise_scale
from largebatch.probes.noise_terms import noise_terms, noise_terms_of
from largebatch.probes.panel import Panel
from largebatch.probes.rank_cosine import RankCosine
from largebatch.probes.registry import OFFERS, build_probes, check_probes, probes
from largebatch.probes.replay import Forward, Replay, Side
from largebatch.probes.sharpness import Sharpness
from largebatch.probes.spectrum import SpectrumRecord
from largebatch.probes.step_room import StepRoom
from largebatch.probes.tail_index import TailIndex, tail_index
from largebatch.probes.weight_average import WeightAverage
from largebatch.probes.weight_distance import WeightDistance

__all__ = [
    "EVALUATION_OFFERS",
    "MOMENTS",
    "OFFERS",
    "Curvature",
    "Doubling",
    "DropoutPasses",
    "Forward",
    "Instrument",
    "LayerRecord",
    "Listed",
    "Moment",
    "NoiseEstimate",
    "NoiseScale",
    "Panel",
    "ParameterChecksum",
    "RankCosine",
    "Replay",
    "Run",
    "Sharpness",
    "Side",
    "SpectrumRecord",
    "StepRoom",
    "TailIndex",
    "WeightAverage",
    "WeightDistance",
    "build_probes",
    "check_also",
    "check_list",
    "check_probes",
    "control_terms",
    "estimate_noise",
    "evaluations",
    "layerwise_noise_scale",
    "make",
    "noise_terms",
    "noise_terms_of",
    "probes",
    "short_name",
    "tail_index",
]
