"""Instruments on a live run: they watch it and change no bit of it."""

from __future__ import annotations

from largebatch.probes.checksum import ParameterChecksum
from largebatch.probes.instrument import MOMENTS, Instrument, Moment
from largebatch.probes.layers import LayerRecord
from largebatch.probes.listed import Listed, check_list, make
from largebatch.probes.panel import Panel
from largebatch.probes.registry import OFFERS, build_probes, check_probes, probes
from largebatch.probes.weight_average import WeightAverage
from largebatch.probes.weight_distance import WeightDistance

__all__ = [
    "MOMENTS",
    "OFFERS",
    "Instrument",
    "LayerRecord",
    "Listed",
    "Moment",
    "Panel",
    "ParameterChecksum",
    "WeightAverage",
    "WeightDistance",
    "build_probes",
    "check_list",
    "check_probes",
    "make",
    "probes",
]
