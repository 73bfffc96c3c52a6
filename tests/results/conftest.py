"""Fixtures of the tests of a run's folder."""

from contextlib import suppress

import pytest
from helpers.run_folders import ARRAYS, LATER, begun, clients, make_config, row


@pytest.fixture
def interrupted(tmp_path):
    """The folder of a run of 5 rounds that was stopped between the third and its checkpoint."""
    config = make_config(output_dir=str(tmp_path / "run"), num_rounds=5, dropout=0.25)
    with suppress(KeyboardInterrupt), begun(config) as folder:
        for number in range(4):
            folder.add_round(row(number), clients(number))
            if number < 3:
                folder.write_checkpoint(number, LATER if number == 2 else ARRAYS)
        raise KeyboardInterrupt
    return folder.path
