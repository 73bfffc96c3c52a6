"""The rule that docs/strategies.md writes."""

import re
from pathlib import Path

import numpy as np
from replying import after_round, random_arrays, reply

DOCS = Path(__file__).parents[2] / "docs" / "strategies.md"


def test_the_documented_rule_works_and_is_as_short_as_it_says():
    text = DOCS.read_text(encoding="utf-8")
    code = re.search(r"<!-- example -->\n```python\n(.*?)```", text, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    namespace = {}
    exec(compile(code, str(DOCS), "exec"), namespace)
    clients = [random_arrays(seed) for seed in (1, 2, 3)]
    replies = [reply(node, **arrays) for node, arrays in enumerate(clients)]
    after = after_round(namespace["Midrange"](), random_arrays(0), replies)
    for name, array in after.items():
        each = np.stack([client[name] for client in clients])
        np.testing.assert_allclose(array, (each.min(0) + each.max(0)) / 2, rtol=1e-6)
        assert array.dtype == np.float32
