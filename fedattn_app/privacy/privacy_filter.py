"""tmp"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedattn_app.privacy.accounting import RDP_ORDERS, _rdp_of_step


@dataclass(frozen=True)
class PrivacyFilter:
    max_epsilon: float
    delta: float

    @cached_property
    def _both(self):
        o = np.array(RDP_ORDERS)
        b = self.max_epsilon - ((math.log(1 / self.delta) - np.log(o)) / (o - 1) + np.log1p(-1 / o))
        k = int((b / o).argmax())
        return k, float(b[k])

    @property
    def budget(self):
        return self._both[1]

    def allows(self, history):
        k, b = self._both
        return (
            sum(s.count * _rdp_of_step(s.noise_multiplier, s.sample_rate)[k] for s in history) <= b
        )
