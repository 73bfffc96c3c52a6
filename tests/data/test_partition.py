"""The registry of partitioners."""

import pytest

from fedattn_app.config import DataConfig
from fedattn_app.data.partition import PARTITIONERS, rows_by_client
from fedattn_app.data.sources import Table
from fedattn_app.errors import UserError


def test_the_names_are_those_that_the_config_allows():
    with pytest.raises(UserError, match="one of ") as refused:
        DataConfig(partitioner="?")
    names = str(refused.value).split("one of ")[1].split(", ")
    assert set(names) == {"auto", *PARTITIONERS}


def test_rows_can_be_read_in_any_order_and_as_a_slice():
    table = Table([f"text {k}" for k in range(9)], ["a", "b", "c"] * 3, "nine rows")
    rows = rows_by_client(DataConfig(dataset="file", partitioner="iid"), table, 3, 1)
    assert len(rows) == 3
    assert list(rows[1:]) == [rows[1], rows[2]]
    assert sorted(row for client in rows for row in client) == list(range(9))
