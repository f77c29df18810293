"""The rendezvous of torch's launcher for ranks of one host: nobody has to be found.

torch's own listens on every interface and unpickles what it finds in its store. Here the launcher
keeps a store on the loopback interface, and nothing in it is ever unpickled.
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
    """A rendezvous of one agent, whose store its ranks share."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run, self._closed = parameters.run_id, False
        self._store = serve(World())

    @property
    def use_agent_store(self) -> bool:
        """Return True: ranks connect to the agent's store and keep none themselves."""
        return True

    def get_backend(self) -> str:
        """Return the name under which torch's launcher finds it."""
        return RENDEZVOUS

    def next_rendezvous(self) -> RendezvousInfo:
        """Return the store at once: nobody else is to come."""
        meeting = RendezvousStoreInfo(LOOPBACK, self._store.port)
        return RendezvousInfo(self._store, 0, 1, meeting)

    def is_closed(self) -> bool:
        """Return whether the run is over."""
        return self._closed

    def set_closed(self) -> None:
        """Take note that the run is over."""
        self._closed = True

    def num_nodes_waiting(self) -> int:
        """Return 0: no other agent may join."""
        return 0

    def get_run_id(self) -> str:
        """Return the name that the launcher gave this run."""
        return self._run

    def shutdown(self) -> bool:
        """Take note that the run is over; the store goes with this process."""
        self._closed = True
        return True
