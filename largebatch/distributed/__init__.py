"""The ranks of a run: who they are, how they start and how they end."""

from largebatch.distributed.environment import World, detect

__all__ = ["World", "detect"]
