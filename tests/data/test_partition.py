"""The registry of partitioners."""

import pytest

from fedattn_app.config import PARTITIONERS, DataConfig
from fedattn_app.data.partition import rows_by_client
from fedattn_app.data.sources import Table


@pytest.mark.parametrize("name", PARTITIONERS)
def test_every_row_of_the_registry_names_a_partitioner(name):
    shares = {"label_shares": "50/50, 50/50, 50/50", "examples_per_client": 2, "labels": "a,b"}
    own = {"label-shares": shares, "natural": {"partition_by": "ward"}}.get(name, {})
    config = DataConfig(dataset="file", data_path="x.csv", partitioner=name, **own)
    groups = ["1", "2", "3"] * 7
    table = Table([f"text {k}" for k in range(21)], ["a", "b", "a"] * 7, "x.csv", groups)
    rows = [list(client) for client in rows_by_client(config, table, 3, 1)]
    used = [row for client in rows for row in client]
    assert len(rows) == 3
    assert len(used) == len(set(used)) <= 21


def test_rows_can_be_read_in_any_order_and_as_a_slice():
    table = Table([f"text {k}" for k in range(9)], ["a", "b", "c"] * 3, "nine rows")
    rows = rows_by_client(DataConfig(dataset="file", partitioner="iid"), table, 3, 1)
    assert len(rows) == 3
    assert list(rows[1:]) == [rows[1], rows[2]]
    assert sorted(row for client in rows for row in client) == list(range(9))


def test_a_natural_split_of_a_data_set_without_that_column_is_refused(refused):
    table = Table(["a text"] * 4, ["a", "b"] * 2, "colours")
    config = DataConfig(dataset="colours", partitioner="natural", partition_by="site")
    with refused('partition-by = "site"', 'dataset = "colours" has no such column'):
        rows_by_client(config, table, 2, 1)
