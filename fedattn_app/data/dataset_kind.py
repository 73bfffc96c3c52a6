"""What a kind of data set is: see `dataset_kinds` for those that there are."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from fedattn_app.config import DataConfig
from fedattn_app.data.sources import Table


class DatasetKind(ABC):
    """Where the examples of a data set come from.

    Every method raises `UserError` for data that cannot be read. The same arguments give the same
    examples in every process.
    """

    # Whether the rows are computed from the settings, so that a run cannot name what is read.
    # A real node refuses all other kinds, unless it has a file of its own.
    generated = False

    @abstractmethod
    def label_names(self, config: DataConfig) -> tuple[str, ...]:
        """Return the label names in the order of the model's outputs.

        They are used, normalised, if the key `labels` is empty.
        """

    @abstractmethod
    def training_table(self, config: DataConfig, seed: int, num_clients: int) -> Table:
        """Return the training rows that a simulation splits over `num_clients` clients.

        Repeated calls return the same object until the data change: it is part of a cache's key.
        """

    def training_fingerprint(self, config: DataConfig) -> str:
        """Return the SHA-256 (hex) of the training rows that a simulation splits.

        Empty if the rows cannot change during a run, because they are computed from the seed.
        """
        return ""

    def training_labels(self, config: DataConfig) -> Sequence[str]:
        """Return the label of each training row; empty if the number of clients decides about it.

        They are counted, to warn of labels that are not meant.
        """
        return ()

    def test_table(self, config: DataConfig, seed: int) -> Table | None:
        """Return the rows that the server evaluates on; None if there are none.

        A run does not use test rows of which none has a label.
        """
        return None

    def server_has_data(self, config: DataConfig) -> bool:
        """Whether the server can read the data set, so that a simulation can split it."""
        return True

    def has_client_tables(self, config: DataConfig) -> bool:
        """Whether each client's rows come from `client_table`, so that nothing is split."""
        return False

    def client_table(self, seed: int, client: int) -> Table:
        """Return the training rows of client number `client` ≥ 0."""
        raise NotImplementedError

    def client_table_size(self, seed: int, client: int) -> int:
        """Return the number of rows of `client_table`."""
        return len(self.client_table(seed, client))
