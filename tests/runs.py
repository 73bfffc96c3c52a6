"""What two runs are compared by."""


def settled(result):
    """Everything a run wrote but its clocks."""
    keep = [{**row, "seconds": None} for row in (*result.history, *result.clients)]
    return keep, {**result.summary, "seconds": None}


def same_arrays(left, right):
    assert left.arrays.keys() == right.arrays.keys()
    return all(left.arrays[k].tobytes() == right.arrays[k].tobytes() for k in left.arrays)


# A run that takes a second: the smallest model, four rounds, no evaluation by clients.
QUICK = {
    "model": "tiny",
    "vocabulary": 512,
    "max-length": 16,
    "num-rounds": 4,
    "learning-rate": 0.01,
    "fraction-evaluate": 0.0,
}
