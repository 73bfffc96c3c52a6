"""When a reply leaves the node: on a grid of seconds that the owner sets.

How long a node computes tells of the lengths of its texts, at no ε. A reply that is ready early
waits, so that only the number of the grid's step can be seen.
"""

import math
import time


def wait_for_release(began: float, every: float) -> None:
    """Wait until a whole multiple of `every` seconds has passed since `began`.

    Args:
        began: when the message came, by `time.monotonic`.
        every: the length of a step in seconds; 0: do not wait.
    """
    if every:
        elapsed = time.monotonic() - began
        time.sleep(max(0.0, math.ceil(elapsed / every) * every - elapsed))
