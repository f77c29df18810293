"""A rendezvous for torch's launcher with all ranks on one host.

torch's own rendezvous listens on every interface and unpickles data from its store. Here the
launcher keeps a store on the loopback interface, and nothing in it is ever unpickled.
"""

from __future__ import annotations

from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

from largebatch.processes.address import LOOPBACK
from largebatch.processes.environment import World
from largebatch.processes.rendezvous import serve

RENDEZVOUS = "largebatch"


class OneHost(RendezvousHandler):
    """A rendezvous of one agent; the ranks share the agent's store."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run, self._closed = parameters.run_id, False
        self._store = serve(World())

    @property
    def use_agent_store(self) -> bool:
        """Return True: ranks connect to the agent's store and keep none themselves."""
        return True

    def get_backend(self) -> str:
        """Return the name of the rendezvous for torch's launcher."""
        return RENDEZVOUS

    def next_rendezvous(self) -> RendezvousInfo:
        """Return the store at once, since no other agent can join."""
        meeting = RendezvousStoreInfo(LOOPBACK, self._store.port)
        return RendezvousInfo(self._store, 0, 1, meeting)

    def is_closed(self) -> bool:
        """Return whether the run is over."""
        return self._closed

    def set_closed(self) -> None:
        """Record that the run is over."""
        self._closed = True

    def num_nodes_waiting(self) -> int:
        """Return 0: no other agent may join."""
        return 0

    def get_run_id(self) -> str:
        """Return the name that the launcher gave this run."""
        return self._run

    def shutdown(self) -> bool:
        """Record that the run is over; the store ends with this process."""
        self._closed = True
        return True
