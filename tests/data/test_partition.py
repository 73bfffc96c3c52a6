"""The registry of partitioners."""

from fedattn_app.config import PARTITIONERS, DataConfig
from fedattn_app.data.partition import PARTITION_FUNCTIONS, rows_by_client
from fedattn_app.data.sources import Table


def test_every_partitioner_of_the_config_has_a_function():
    assert set(PARTITION_FUNCTIONS) == set(PARTITIONERS)


def test_rows_can_be_read_in_any_order_and_as_a_slice():
    table = Table([f"text {k}" for k in range(9)], ["a", "b", "c"] * 3, "nine rows")
    rows = rows_by_client(DataConfig(dataset="file", partitioner="iid"), table, 3, 1)
    assert len(rows) == 3
    assert list(rows[1:]) == [rows[1], rows[2]]
    assert sorted(row for client in rows for row in client) == list(range(9))
