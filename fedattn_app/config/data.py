"""The run-config keys of the data, and the registry of partitioners."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedattn_app.config.schema import Registered, Section, as_toml, setting, split_names
from fedattn_app.errors import UserError
from fedattn_app.label_text import normalise_label, split_labels

PARTITIONERS: Mapping[str, Registered] = {
    "iid": Registered("fedattn_app.data.partition:iid"),
    "dirichlet": Registered("fedattn_app.data.partition:dirichlet", ("alpha",)),
    "pathological": Registered("fedattn_app.data.partition:pathological", ("classes_per_client",)),
    "natural": Registered("fedattn_app.data.partition:natural", ("partition_by",)),
    "linear": Registered("fedattn_app.data.partition:linear"),
    "square": Registered("fedattn_app.data.partition:square"),
    "label-shares": Registered(
        "fedattn_app.data.partition:label_shares", ("label_shares", "examples_per_client")
    ),
}

PER_CENT_TOLERANCE = 1e-6  # by which a client's shares of the labels may miss 100


def partitioner_choices() -> tuple[str, ...]:
    """Return the choices of the key ``partitioner``."""
    return ("auto", *PARTITIONERS)


@dataclass(frozen=True)
class DataConfig(Section):
    """The source of the examples, and how a simulation splits them over its clients."""

    title: ClassVar[str] = "Data"

    dataset: str = setting(
        "triage",
        "where the examples come from: `triage`, the built-in synthetic corpus; `file`, the files "
        "of `data-path`; or the id of a data set on the Hugging Face hub",
    )
    data_path: str = setting(
        "",
        "CSV, JSON Lines or Parquet file, or a folder with `train.*` and, if present, `test.*`; "
        "empty: each node has a `data-path` of its own",
    )
    text_column: str = setting("text", "name of the column that holds the text")
    label_column: str = setting("label", "name of the column that holds the label")
    labels: str = setting(
        "",
        "names of the labels, separated by commas; a name with a comma is in double quotes, as in "
        '`"yes, surely", no`; empty: the labels of the training rows',
    )
    partitioner: str = setting(
        "auto",
        "how a simulation splits the data over its clients; `auto`: `natural` for `triage`, else "
        "`iid`",
        choices=partitioner_choices,
    )
    partition_by: str = setting(
        "", "name of the column whose values are the clients; empty: the sites of `triage`"
    )
    alpha: float = setting(
        0.5,
        "concentration of the Dirichlet distribution: the smaller, the more the clients' labels "
        "differ",
        above=0,
    )
    classes_per_client: int = setting(2, "number of different labels of each client", minimum=1)
    label_shares: str = setting(
        "50/50, 30/70, 20/80",
        "shares of the labels at each client, in per cent: clients are separated by commas, "
        "labels by `/` in the order of `labels`",
    )
    examples_per_client: int = setting(
        100,
        "number of examples of each client, including those held out",
        minimum=1,
        maximum=2**31 - 1,
    )
    validation_fraction: float = setting(
        0.1,
        "fraction of a client's examples that it holds out for evaluation; 0: none",
        minimum=0,
        maximum=0.9,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.partitioner == "label-shares":
            self._check_shares()
        self._check_labels()
        if self.text_column == self.label_column:
            raise UserError(
                f"text-column = {as_toml(self.text_column)}: must not be the label-column too, "
                "because the text would give the label away"
            )
        if not self.dataset:
            raise UserError('dataset = "": must be triage, file, or the id of a hub data set')

    def _check_shares(self) -> None:
        for shares in self.shares_per_client or [()]:
            right_sum = abs(sum(shares) - 100) <= PER_CENT_TOLERANCE  # False for NaN
            if not shares or not right_sum or min(shares) < 0:
                raise UserError(
                    f"label-shares = {as_toml(self.label_shares)}: must give each client shares of "
                    "the labels that sum to 100, such as 50/50, 20/80"
                )

    def _check_labels(self) -> None:
        try:
            names = split_labels(self.labels)
        except ValueError as error:
            raise UserError(
                f"labels = {as_toml(self.labels)}: must be names separated by commas, one with a "
                f'comma in double quotes, such as "yes, surely", no ({error})'
            ) from None
        earlier: dict[str, str] = {}  # each name as it is written, by its normalised form
        for name in names:
            label = normalise_label(name)
            if label in earlier:
                same = f"{earlier[label]} and {name}, which are the same"
                both = f"{name} twice" if name == earlier[label] else same
                raise UserError(
                    f"labels = {as_toml(self.labels)}: must name each label once, not {both}"
                )
            earlier[label] = name

    @property
    def shares_per_client(self) -> list[tuple[float, ...]]:
        """The shares of the labels in per cent, one tuple per client of `label-shares`.

        Empty if `label_shares` holds something that is not a number.
        """
        try:
            return [
                tuple(map(float, client.split("/"))) for client in split_names(self.label_shares)
            ]
        except ValueError:
            return []

    @property
    def label_names(self) -> tuple[str, ...]:
        """The normalised names in the key `labels`; empty if they come from the data."""
        return tuple(map(normalise_label, split_labels(self.labels)))
