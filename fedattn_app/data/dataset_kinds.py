"""The kinds of data set that the key `dataset` can name.

To add a kind, write a subclass of `DatasetKind` and add an instance to `DATASET_KINDS`.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from fedattn_app.cache import PROCESS_CACHE
from fedattn_app.config import DataConfig, as_toml
from fedattn_app.data import triage
from fedattn_app.data.dataset_kind import DatasetKind
from fedattn_app.data.sources import Splits, Table, load_files, load_hub
from fedattn_app.errors import UserError

# With more labels than this, a column where more than half of the rows have a label of their own
# holds texts or numbers of rows.
MAX_LABELS_OF_FEW_ROWS = 20


class TriageCorpus(DatasetKind):
    """The built-in corpus. By default each client is one hospital that writes its own notes."""

    generated = True

    def label_names(self, config: DataConfig) -> tuple[str, ...]:
        """Return the names of the departments."""
        return triage.LABELS

    def training_table(self, config: DataConfig, seed: int, num_clients: int) -> Table:
        """Return the training notes of `num_clients` hospitals in one table."""
        return _all_notes(seed, num_clients)

    def test_table(self, config: DataConfig, seed: int) -> Table:
        """Return the test notes, which come from hospitals that no client has."""
        return _notes_table(triage.test_notes(seed))

    def has_client_tables(self, config: DataConfig) -> bool:
        """Whether each client has the notes of exactly one hospital."""
        return config.partitioner in ("auto", "natural")

    def client_table(self, seed: int, client: int) -> Table:
        """Return the training notes of the hospital with the number `client`."""
        return _notes_table(triage.site_notes(seed, client))

    def client_table_size(self, seed: int, client: int) -> int:
        """Return the number of notes of a hospital, which is the same for all."""
        return triage.NOTES_PER_SITE


class SplitsDataset(DatasetKind):
    """A data set that is loaded as a training and a test table."""

    @abstractmethod
    def splits(self, config: DataConfig) -> Splits:
        """Load the tables. Repeated calls return the same object until the data change."""

    def label_names(self, config: DataConfig) -> tuple[str, ...]:
        """Return the labels of the training rows: numbers by value, then others by alphabet.

        Raises `UserError` if there are so many that the column does not hold labels.
        """
        splits = self.splits(config)
        if splits.train is not None and not config.label_names:
            _check_label_column(config, splits.train, len(splits.labels))
        return splits.labels

    def training_table(self, config: DataConfig, seed: int, num_clients: int) -> Table:
        """Return the training rows, which do not depend on `seed` or `num_clients`."""
        return self.splits(config).training()

    def training_labels(self, config: DataConfig) -> Sequence[str]:
        """Return the label of each training row; empty if the server has none."""
        train = self.splits(config).train if self.server_has_data(config) else None
        return train.labels if train else ()

    def training_fingerprint(self, config: DataConfig) -> str:
        """Return the SHA-256 (hex) of the training rows; empty if the server has none."""
        train = self.splits(config).train if self.server_has_data(config) else None
        return train.fingerprint if train else ""

    def test_table(self, config: DataConfig, seed: int) -> Table | None:
        """Return the test rows; None if there are none."""
        return self.splits(config).test if self.server_has_data(config) else None


class FileDataset(SplitsDataset):
    """A file or folder at `data-path`. Without one, each node has its own file."""

    def splits(self, config: DataConfig) -> Splits:
        """Load the file or folder."""
        return load_files(config)

    def server_has_data(self, config: DataConfig) -> bool:
        """Whether the run has a `data-path`."""
        return bool(config.data_path)

    def label_names(self, config: DataConfig) -> tuple[str, ...]:
        """Return the labels of the training rows: numbers by value, then others by alphabet.

        Raises `UserError` if there are so many that the column does not hold labels, and without a
        `data-path`: the key `labels` must then name them.
        """
        if not self.server_has_data(config):
            raise UserError(
                'labels = "": with dataset = "file" and no data-path, name the labels, '
                'for example labels = "negative,positive"'
            )
        return super().label_names(config)


class HubDataset(SplitsDataset):
    """A data set of the Hugging Face hub."""

    def splits(self, config: DataConfig) -> Splits:
        """Load the data set from the hub."""
        return load_hub(config)


def _check_label_column(config: DataConfig, table: Table, num_labels: int) -> None:
    if num_labels > MAX_LABELS_OF_FEW_ROWS and 2 * num_labels > len(table):
        raise UserError(
            f"label-column = {as_toml(config.label_column)}: {table.source} has {num_labels} "
            f"different labels in {len(table)} rows; name the column that holds the labels, or, if "
            "this is the one, name all labels in the key labels"
        )


# By the value of `dataset`. Every other value is the id of a hub data set.
DATASET_KINDS: Mapping[str, DatasetKind] = {"triage": TriageCorpus(), "file": FileDataset()}
HUB_DATASET = HubDataset()


def kind_of(config: DataConfig) -> DatasetKind:
    """Return the kind of the data set that the key `dataset` names."""
    return DATASET_KINDS.get(config.dataset, HUB_DATASET)


@PROCESS_CACHE.keep(max_entries=2)
def _all_notes(seed: int, num_sites: int) -> Table:
    return _notes_table(
        [note for site in range(num_sites) for note in triage.site_notes(seed, site)]
    )


def _notes_table(notes: Sequence[triage.Note]) -> Table:
    return Table(
        [note.text for note in notes],
        [note.label for note in notes],
        "triage",
        [str(note.site) for note in notes],
    )
