"""The example in docs/strategies.md, which the conformance suite tests too."""

import numpy as np
from helpers.replying import after_round, documented_rule, random_arrays, reply


def test_the_documented_rule_works_and_is_short():
    code, midrange = documented_rule()
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    clients = [random_arrays(seed) for seed in (1, 2, 3)]
    replies = [reply(node, **arrays) for node, arrays in enumerate(clients)]
    after = after_round(midrange(), random_arrays(0), replies)
    for name, array in after.items():
        each = np.stack([client[name] for client in clients])
        np.testing.assert_allclose(array, (each.min(0) + each.max(0)) / 2, rtol=1e-6)
        assert array.dtype == np.float32
