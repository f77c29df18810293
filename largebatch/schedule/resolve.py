"""Resolve the config to a batch plan: convert durations to samples, in order of dependence."""

from __future__ import annotations

from dataclasses import replace

from largebatch._errors import UserError
from largebatch.schedule.clock import Clock
from largebatch.schedule.config import BatchConfig, PhaseConfig, ScheduleConfig
from largebatch.schedule.duration import Duration
from largebatch.schedule.plan import BatchPlan, Phase


def regime_factor(schedule: ScheduleConfig, batch: BatchConfig) -> int:
    """Return the factor by which ``schedule.regime=steps`` stretches the run: ceil(B / reference).

    Raises:
        UserError: there is no reference batch, or the plan changes the batch.

    Source: Hoffer et al. 2017, "Train longer, generalize better" (regime adaptation).
    """
    if schedule.regime == "epochs":
        return 1
    if batch.reference is None:
        raise UserError("schedule.regime=steps: needs batch.reference, whose updates it keeps")
    if batch.control != "none":
        raise UserError(
            f"schedule.regime=steps: needs one batch size, and batch.control={batch.control} has"
            " several"
        )
    sizes = {phase.size or batch.size for phase in batch.plan} or {batch.size}
    if len(sizes) > 1:
        raise UserError(
            "schedule.regime=steps: needs one batch size, but batch.plan has "
            + ", ".join(map(str, sorted(sizes)))
        )
    return -(-sizes.pop() // batch.reference)


def stretch(duration: Duration, factor: int) -> Duration:
    """Return a duration under regime adaptation; steps and shares of the run do not change."""
    return duration * factor if duration.unit in ("ep", "sa") else duration


def resolve_plan(
    schedule: ScheduleConfig, batch: BatchConfig, epoch_samples: int, minimum: int = 1
) -> BatchPlan:
    """Return the batch plan of the whole run.

    A length in steps needs the plan, and a phase that ends at a percentage needs the length. So
    both together are refused, unless all phases have one batch size.

    Raises:
        UserError: in the case above, or as for ``BatchPlan``.
    """
    factor = regime_factor(schedule, batch)
    length = stretch(schedule.length, factor)
    if length.unit == "st" and batch.control != "none":
        raise UserError(
            f"schedule.length={schedule.length}: batch.control={batch.control} decides how many"
            " samples that is; write it in ep or sa"
        )
    configs = batch.plan or [PhaseConfig()]
    sizes = {config.size or batch.size for config in configs}
    if length.unit != "st":
        total = length.samples(Clock(epoch_samples))
        if total < 1:
            raise UserError(f"schedule.length={schedule.length}: less than one sample")
    elif len(sizes) == 1:
        total = BatchPlan([Phase(sizes.pop())], epoch_samples, minimum).samples_after(
            int(length.value)
        )
    else:
        for index, config in enumerate(configs):
            if config.until is not None and config.until.unit == "%":
                raise UserError(
                    f"batch.plan[{index}].until={config.until}: no % with schedule.length="
                    f"{schedule.length}, because the plan decides how long that is"
                )
        endless = _phases(configs, batch, factor, epoch_samples, None, minimum)
        total = BatchPlan(
            [*endless[:-1], replace(endless[-1], end=None)], epoch_samples, minimum
        ).samples_after(int(length.value))
    phases = _phases(configs, batch, factor, epoch_samples, total, minimum)
    return BatchPlan(phases, epoch_samples, minimum, total)


def _phases(
    configs: list[PhaseConfig],
    batch: BatchConfig,
    factor: int,
    epoch_samples: int,
    total: int | None,
    minimum: int,
) -> list[Phase]:
    """Place the phases one after another: an end in steps counts those of the phases before."""
    phases: list[Phase] = []
    for config in configs:
        phase = Phase(
            size=config.size or batch.size,
            micro=config.micro or batch.micro,
            extent=config.extent,
            lr_multiplier=config.lr_multiplier,
            noise_scale=config.noise_scale,
            second_moment=tuple((config.second_moment or {}).items()),
        )
        if config.until is not None:
            until = stretch(config.until, factor)
            so_far = BatchPlan([*phases, phase], epoch_samples, minimum)
            phase = replace(phase, end=until.samples(Clock(epoch_samples, total, so_far)))
        if config.warmup is not None and total is not None:
            climb = stretch(config.warmup, factor)
            phase = replace(phase, warmup=_warmup(climb, phase.size, epoch_samples, total))
        phases.append(phase)
    return phases


def _warmup(duration: Duration, size: int, epoch_samples: int, total: int) -> int:
    """Return the samples of a phase's warm-up; a step is one of the phase."""
    if duration.unit == "st":
        return int(duration.value) * size
    return duration.samples(Clock(epoch_samples, total))
