"""The number formats of a run: default type, autocast, loss scaling."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch

from largebatch._errors import UserError
from largebatch.train.config import PrecisionConfig
from largebatch.train.wide_autocast import WideAutocast, is_emulated

T = TypeVar("T")
LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The meaning of ``precision.compute`` on a device.

    Attributes:
        dtype: type of parameters and inputs: float64 under fp64, else float32.
        scaler: torch's loss scaler under fp16, else None.

    Raises:
        UserError: the device does not support this arithmetic.
    """

    def __init__(self, config: PrecisionConfig, device: torch.device) -> None:
        self.dtype = torch.float64 if config.compute == "fp64" else torch.float32
        self._low = LOW.get(config.compute)
        self._device = device
        self._wide = config.compute == "bf16" and device.type == "cpu" and is_emulated()
        if config.compute == "fp64" and device.type != "cpu":
            raise UserError(
                "precision.compute='fp64' is for proofs on CPU; on a GPU choose fp32, bf16 or fp16"
            )
        if (
            config.compute == "bf16"
            and device.type == "cuda"
            and not torch.cuda.is_bf16_supported()
        ):
            raise UserError(
                "precision.compute='bf16': this GPU has no bfloat16; choose fp32 or fp16"
            )
        self.scaler: torch.amp.GradScaler | None = None
        if config.compute == "fp16":
            dynamic = config.loss_scale == "dynamic"
            initial = 65536.0 if dynamic else float(config.loss_scale)
            # A fixed scale is a dynamic one that never grows; it still backs off from overflow.
            self.scaler = torch.amp.GradScaler(
                device.type, init_scale=initial, growth_interval=2000 if dynamic else 2**31 - 1
            )

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context for forward passes."""
        if self._low is None:
            return nullcontext()
        return WideAutocast() if self._wide else torch.autocast(self._device.type, self._low)

    def wrap(self, forward: Callable[..., T]) -> Callable[..., T]:
        """Return ``forward`` wrapped in autocast; unchanged if there is no autocast."""
        if self._low is None:
            return forward

        def cast(*arguments: Any) -> T:
            with self.autocast():
                return forward(*arguments)

        return cast
