"""Evaluate the network with other weights, over all ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from largebatch._errors import UserError
from largebatch.data import Batch, Delivery, EpochOrder, Request, StreamOrder
from largebatch.landscape.networks import Networks
from largebatch.landscape.settings import Settings
from largebatch.models import swapped_in
from largebatch.processes import World
from largebatch.train.evaluate import LARGEST_BATCH, evaluating
from largebatch.train.reopen import largest_batch
from largebatch.weight_space import Weights, norm_statistics, recompute_statistics


class Judge:
    """Evaluates weights: every sample once, over any number of ranks.

    Attributes:
        count: number of samples in an evaluation.
        statistics_count: number of samples for recomputed running statistics.

    Raises:
        UserError: ``--samples`` for data read in streams.
    """

    def __init__(self, settings: Settings, networks: Networks, world: World) -> None:
        self._run, self._world = networks.run, world
        run = self._run
        source = run.source(settings.split)
        self.count = len(source)
        order = None
        if settings.samples is not None and settings.samples < self.count:
            if isinstance(source.order(0), StreamOrder):
                raise UserError("--samples: the data are streams, which are read whole")
            self.count = settings.samples
            order = EpochOrder(len(source), settings.seed)
        self._evaluator = run.evaluator(source, world, self.count, order)
        self._statistics, self.statistics_count = None, 0
        if settings.statistics == "recomputed" and norm_statistics(run.model):
            self._statistics = StatisticsBatches(settings, networks, world)
            self.statistics_count = self._statistics.count

    @torch.no_grad()
    def __call__(self, weights: Weights) -> dict[str, float]:
        """Return the task's figures, the loss among them; every rank must call it alike.

        Args:
            weights: by name; what they do not name is the run's own.
        """
        model = self._run.model
        with swapped_in(model, weights):
            found: Weights = {} if self._statistics is None else self._statistics(model)
            with swapped_in(model, found):
                sums = self._evaluator.sums(model)
        if self._world.world_size > 1:
            dist.all_reduce(sums)
        return self._run.task.read(sums.tolist())


class StatisticsBatches:
    """Training samples, without augmentation, for recomputing the statistics of norms.

    The batches consist of whole ghosts, and their size does not depend on the number of ranks.
    """

    def __init__(self, settings: Settings, networks: Networks, world: World) -> None:
        run = self._run = networks.run
        config = run.config
        source = run.source("train")
        delivery = Delivery(
            config.run.seed, run.device, False, run.precision.dtype, config.model.channels_last
        )
        self._reader = source.reader(config.data, delivery)
        self._order = EpochOrder(len(source), settings.seed)
        micro = config.batch.micro if isinstance(config.batch.micro, int) else LARGEST_BATCH
        count = min(settings.statistics_samples, len(source))
        size = min(micro, largest_batch(config), LARGEST_BATCH, count)
        ghost = config.norm.ghost_size or 1
        self.size = max(size // ghost * ghost, min(ghost, len(source)))
        batches = max(1, count // self.size)
        self.count = batches * self.size
        self._mine = range(
            batches * world.rank // world.world_size, batches * (world.rank + 1) // world.world_size
        )

    def __call__(self, model: nn.Module) -> Weights:
        """Return the running statistics under the model's weights as they are."""
        run = self._run
        with evaluating(model, run.device, run.precision), run.task.undisturbed():
            return recompute_statistics(model, self._batches(), run.task.evaluate)

    def _batches(self) -> Iterator[Batch]:
        def requests() -> Iterator[Request]:
            for number in self._mine:
                start, stop = number * self.size, (number + 1) * self.size
                yield Request(0, self._order.indices(0, start, stop), np.arange(start, stop))

        return iter(self._reader.read(requests()))
