"""Type aliases that several packages share."""

from typing import Any

import numpy as np
import numpy.typing as npt

NDArray = npt.NDArray[np.generic]

# One JSON object of a run's folder.
Row = dict[str, Any]
