"""The processes of a run: who they are, how they start, meet, agree, stay alive and end."""

from largebatch.processes.environment import World, detect

__all__ = ["World", "detect"]
