"""How many replies a round needs, so that one client's update never passes as an average of many.

One number holds for every rule: that of the key `min-replies`, or what the rule itself needs if
that is more.
"""

from dataclasses import dataclass

from fedattn_app.config import Config, num_selected
from fedattn_app.errors import UserError

AUTOMATIC_MIN_REPLIES = 2


@dataclass(frozen=True)
class Quorum:
    """The numbers of replies below which a round of training or of evaluation does not count.

    Attributes:
        config: the settings of the run.
        fraction_evaluate: the fraction of the clients that evaluate after a round, 0 to 1.
        num_clients: the number of clients that were connected when the run, or the resumed run,
            began.
    """

    config: Config
    fraction_evaluate: float
    num_clients: int

    @property
    def usual(self) -> int:
        """The number of updates that a round asks for, from the clients connected at the start."""
        if self.config.aggregation.strategy == "fedbuff":
            return self.config.aggregation.fedbuff_buffer_size
        return num_selected(self.num_clients, self.config.federation.fraction_train)

    def of_updates(self, num_asked: int = 0) -> int:
        """Return how many updates a round needs that has asked `num_asked` clients for one.

        Where a round usually asks only one client, one is enough until a round asks more.
        """
        wanted = self._wanted(max(self.usual, num_asked))
        return max(wanted, self.config.aggregation.min_updates)

    def of_scores(self, num_asked: int) -> int:
        """Return how many clients' scores a round needs that has asked `num_asked` clients."""
        usual = num_selected(self.num_clients, self.fraction_evaluate)
        num_asked = max(usual, num_asked)
        return min(self._wanted(num_asked), num_asked)

    def score_fault(self, num_scored: int, num_valid: int, num_asked: int) -> str:
        """Return why a round has no scores from clients, given that there are too few of them.

        Args:
            num_scored: the number of clients that reported scores on held-out examples.
            num_valid: the number of valid replies.
            num_asked: the number of clients that were asked to evaluate.
        """
        if not num_scored and num_valid == num_asked:
            fraction = self.config.data.validation_fraction
            return (
                "no client has held-out examples, so there are no scores of clients "
                f"(validation-fraction = {fraction:g})"
            )
        return (
            f"{num_scored} of {num_asked} clients report scores on held-out examples, "
            f"{self.of_scores(num_asked)} are needed (min-replies), so they are not used"
        )

    @property
    def num_connected(self) -> int:
        """The number of clients that must be connected so that a round can ask enough of them."""
        needed, fraction = self.of_updates(), self.config.federation.fraction_train
        enough = (n for n in range(needed, self.num_clients) if num_selected(n, fraction) >= needed)
        return next(enough, self.num_clients)

    def fault(self, what: str, num_asked: int) -> str:
        """Return `what`, and how many updates a round needs that has asked `num_asked` clients."""
        return f"{what}, {self.of_updates(num_asked)} are needed ({self.reason(num_asked)})"

    def reason(self, num_asked: int = 0) -> str:
        """Return the setting that `of_updates` follows, as ``key = value``."""
        needed = self.of_updates(num_asked)
        if needed > self._wanted(max(self.usual, num_asked)):
            return f'strategy = "{self.config.aggregation.strategy}"'
        return f"min-replies = {needed}"

    def check(self) -> None:
        """Raise `UserError` if a round asks too few clients."""
        settings = self.config.aggregation
        if self.usual < settings.min_updates:
            given = [f"{key} = {value}" for key, value in settings.min_updates_settings.items()]
            because = f" with {' and '.join(given)}" if given else ""
            raise UserError(
                f'strategy = "{settings.strategy}": needs {settings.min_updates} clients in a '
                f"round{because}, there are {self.usual}"
            )
        if self.usual < self.config.federation.min_replies:
            raise UserError(
                f"{self.reason()}: must be at most the number of clients that a round asks, "
                f"{self.usual} of {self.num_clients}"
            )

    def _wanted(self, num_asked: int) -> int:
        """Return `min-replies`, or if it is 0, two, or one where there is only one to ask."""
        return self.config.federation.min_replies or min(AUTOMATIC_MIN_REPLIES, num_asked)
