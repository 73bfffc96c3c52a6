"""The run-config keys of the data: their source, and how a simulation splits them."""

from dataclasses import dataclass

from fedattn_app.config.schema import Section, names_in, setting
from fedattn_app.errors import UserError

# Settings that only one partitioner has.
_PARTITIONERS_OF = {
    "partition_by": ("natural",),
    "alpha": ("dirichlet",),
    "classes_per_client": ("pathological",),
    "label_shares": ("label-shares",),
    "examples_per_client": ("label-shares",),
}


@dataclass(frozen=True)
class DataConfig(Section):
    """Where the examples come from and how a simulation splits them over its clients."""

    dataset: str = setting(
        "triage", "`triage` (built in), `file` (with `data-path`), or the id of a hub data set"
    )
    data_path: str = setting(
        "", "CSV, JSON Lines or Parquet file, or a folder with train.* and test.*"
    )
    text_column: str = setting("text", "column that holds the text")
    label_column: str = setting("label", "column that holds the label")
    labels: str = setting(
        "", "the label names, comma-separated; empty: those that the data set has"
    )
    partitioner: str = setting(
        "auto",
        "how a simulation splits the data; `auto`: `natural` for triage, else `iid`",
        choices=(
            "auto",
            "iid",
            "dirichlet",
            "pathological",
            "natural",
            "linear",
            "square",
            "label-shares",
        ),
    )
    partition_by: str = setting("", "column of the `natural` partitioner")
    alpha: float = setting(0.5, "concentration of the `dirichlet` partitioner", above=0)
    classes_per_client: int = setting(2, "labels of a `pathological` client", minimum=1)
    label_shares: str = setting(
        "50/50, 30/70, 20/80",
        "for each `label-shares` client, as many as there are clients and comma-separated, the "
        "shares of the labels in per cent, with / between them, in the order of `labels`",
    )
    examples_per_client: int = setting(
        100, "examples of a `label-shares` client, held out ones included", minimum=1
    )
    validation_fraction: float = setting(
        0.1, "share of its examples that a client holds out", minimum=0, maximum=0.9
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_unowned("partitioner", _PARTITIONERS_OF)
        if self.partitioner == "label-shares":
            self._check_shares()
        if self.partitioner == "natural" and not self.partition_by and self.dataset != "triage":
            raise UserError(
                'partition-by = "": partitioner = "natural" needs the name of a column here'
            )
        twice = [name for name in self.label_names if self.label_names.count(name) > 1]
        if twice:
            raise UserError(f"labels = {self.labels!r}: names {twice[0]!r} twice")
        if not self.dataset:
            raise UserError('dataset = "": must be triage, file, or the id of a hub data set')
        if self.data_path and self.dataset != "file":
            raise UserError(
                f'data-path = {self.data_path!r}: is read with dataset = "file" only, '
                f"not with dataset = {self.dataset!r}"
            )

    def _check_shares(self) -> None:
        for shares in self.shares_per_client or [()]:
            if not shares or abs(sum(shares) - 100) > 1e-6 or min(shares) < 0:
                raise UserError(
                    f"label-shares = {self.label_shares!r}: must give each client shares of the "
                    "labels that sum to 100, such as 50/50, 20/80"
                )

    @property
    def shares_per_client(self) -> list[tuple[float, ...]]:
        """For each `label-shares` client the shares in per cent; none where they are no numbers."""
        try:
            return [tuple(map(float, of.split("/"))) for of in names_in(self.label_shares)]
        except ValueError:
            return []

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names given by `labels`, or none when they come from the data."""
        return names_in(self.labels)
