"""Gather everything that a run needs to continue into one nested dict, and restore it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from largebatch.engine import Engine
from largebatch.nn import load_rank_statistics, merged_running_stats, rank_statistics
from largebatch.probes import Panel
from largebatch.processes import World
from largebatch.train import fit
from largebatch.train.streams import StreamMemory

REQUIRED = ("position", "model", "optimizer", "scaler", "ranks")


class RunState:
    """The parts of a run that change during training.

    The states of instruments are stored by name. If the run's results depend on an instrument
    (``average``, ``snapshots``), its state lies beside the other parts, otherwise in
    ``instruments``. Random generators are not part of the state: order, augmentation and dropout
    are functions of the seed and of the samples seen.
    """

    def __init__(
        self, engine: Engine, panel: Panel, world: World, streams: StreamMemory | None = None
    ) -> None:
        self.engine, self.model = engine, engine.model
        self.panel, self.world, self.streams = panel, world, streams

    def capture(self, position: dict[str, Any]) -> dict[str, Any] | None:
        """Return the whole state on rank 0, None on other ranks; every rank must call this.

        Args:
            position: samples seen, steps taken and the trainer's other counters.
        """
        merged = merged_running_stats(self.model)
        kept = [(instrument, instrument.state()) for instrument in self.panel]
        kept = [(instrument, own) for instrument, own in kept if own is not None]
        state = {
            "position": position,
            "model": {**self.engine.weights(), **merged},
            "optimizer": self.engine.optimizer_state(),
            "scaler": self.engine.scaler_state(),
            "exchange": self.engine.exchange_state(),
            "ranks": self._gather(rank_statistics(self.model)),
            "carry": self.streams.capture() if self.streams else None,
            **{instrument.name: own for instrument, own in kept if instrument.resumes},
            "instruments": {i.name: own for i, own in kept if not i.resumes},
        }
        return state if self.world.is_main else None

    def restore(self, state: dict[str, Any], fresh: dict[str, Any], total: int) -> dict[str, Any]:
        """Restore ``state`` on every rank and return its position.

        On the same number of ranks as at the save, each rank gets its own part of the running
        statistics back bit by bit. On another number, all ranks start from the merged statistics.

        Args:
            fresh: the position of a new run, for entries that the saved position lacks.
            total: samples in the run.

        Raises:
            UserError: the state does not fit this run; nothing has been restored then.
        """
        for part in REQUIRED:
            if part not in state:
                raise fit.misfit(part, "is missing")
        position = fit.check_position(state["position"], fresh, total)
        fit.check_tensors("model", state["model"], self.model.state_dict())
        fit.check_optimizer(state["optimizer"], self.engine)
        fit.check_scaler(state["scaler"], self.engine.scaler_state())
        fit.check_exchange(state.get("exchange"))
        states = self._states(state)
        fit.check_instruments(states, self.panel)
        fit.check_ranks(state["ranks"], self.world.world_size, rank_statistics(self.model))
        try:
            self._load(state, states)
        except (
            *(RuntimeError, ValueError, KeyError, TypeError, AttributeError),
            *(IndexError, AssertionError, ArithmeticError),
        ) as error:
            raise fit.misfit(type(error).__name__, str(error)) from error
        return position

    def _states(self, state: dict[str, Any]) -> Any:
        """Return the states of instruments by name."""
        others = state.get("instruments", {})
        own = {i.name: state[i.name] for i in self.panel if i.resumes and i.name in state}
        return {**others, **own} if isinstance(others, dict) else others

    def _load(self, state: dict[str, Any], states: dict[str, Any]) -> None:
        self.engine.load_weights(state["model"])
        self.engine.load_optimizer_state(state["optimizer"])
        if state["scaler"]:
            self.engine.load_scaler_state(state["scaler"])
        if state.get("exchange"):
            self.engine.load_exchange_state(state["exchange"])
        for instrument in self.panel:
            if instrument.name in states:
                instrument.load(states[instrument.name])
        if self.streams is not None:
            self.streams.restore(state.get("carry"))
        ranks = state["ranks"]
        if ranks is not None and len(ranks) == self.world.world_size:
            load_rank_statistics(self.model, ranks[self.world.rank])

    def _gather(self, own: torch.Tensor | None) -> torch.Tensor | None:
        """Stack every rank's own running statistics on rank 0, (ranks, numbers)."""
        if own is None or self.world.world_size == 1:
            return None
        rows = [torch.empty_like(own) for _ in range(self.world.world_size)]
        dist.gather(own, rows if self.world.is_main else None)
        return torch.stack(rows) if self.world.is_main else None
