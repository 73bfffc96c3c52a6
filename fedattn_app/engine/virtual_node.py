"""How a node of a simulation differs from a real one: its context is of a class of its own.

A real node belongs to somebody who has not written the run, so what is missing in its node-config
must never make it look simulated.
"""

from flwr.app import Context

from fedattn_app.flower_compat import in_simulation_engine


class VirtualContext(Context):
    """The context of a node of the local engine; Flower's runtimes never make one."""


def is_simulated(context: Context) -> bool:
    """Return whether the node of `context` is one of a simulation, by our engine or by Flower's."""
    return isinstance(context, VirtualContext) or in_simulation_engine()
