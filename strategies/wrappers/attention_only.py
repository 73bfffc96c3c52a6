"""Share a part of the model under any Flower strategy.

    w[shared] ← inner strategy over the replies' shared arrays;   w[rest] stays

The part is a predicate over parameter names, passed in as data: with the names of the attention
projections only attention travels; with a predicate that is always true the inner strategy decides
alone. Selecting parameters is not a privacy measure (Petrov et al., 2024, arXiv 2405.15586, read
text from attention gradients); it saves bytes, and noise where noise is added.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from strategies.common.arrays import as_dtype
from strategies.common.replies import in_order


class AttentionOnly(Strategy):
    """Wraps `inner`, which sees, sends and combines only the arrays that `shared` selects.

    `shared` maps a parameter's full dotted name to whether it travels. The inner strategy gets the
    replies in the order of node ids, failed ones too, but none that rests on no examples: where
    there is no other, the model stays, unless the inner strategy `needs_no_replies`. The aggregate
    is merged back into the whole global model with each array's own dtype. `with_rest` sends the
    other arrays along, in a record ``rest``, for nodes that cannot know them.
    """

    def __init__(
        self,
        inner: Strategy,
        shared: Callable[[str], bool],
        needs_no_replies: bool = False,
        with_rest: bool = False,
    ) -> None:
        self.inner = inner
        self.shared = shared
        self.needs_no_replies = needs_no_replies
        self.with_rest = with_rest
        self._global = ArrayRecord()

    def summary(self) -> None:
        """Log the inner strategy's settings."""
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the inner strategy send the shared arrays."""
        self._global = arrays
        chosen = self._select(arrays)
        messages = self.inner.configure_train(server_round, chosen, config, grid)
        return self._completed(messages, arrays)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the inner strategy combine the replies, and merge what it returns."""
        usable = _with_examples(replies)
        first = _up_to_the_first_sound(usable)
        if not self.needs_no_replies and all(reply.has_error() for reply in first):
            return None, None
        arrays, metrics = self.inner.aggregate_train(server_round, chain(first, usable))
        return (None if arrays is None else self._merge(arrays)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the inner strategy send the shared arrays."""
        chosen = self._select(arrays)
        messages = self.inner.configure_evaluate(server_round, chosen, config, grid)
        return self._completed(messages, arrays)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the inner strategy combine the replies."""
        usable = list(_with_examples(replies))
        if all(reply.has_error() for reply in usable):
            return None
        return self.inner.aggregate_evaluate(server_round, usable)

    def _select(self, arrays: ArrayRecord) -> ArrayRecord:
        return ArrayRecord({name: array for name, array in arrays.items() if self.shared(name)})

    def _completed(self, messages: Iterable[Message], arrays: ArrayRecord) -> Iterable[Message]:
        """Add to `messages` those of the `arrays` that are not shared, if they are to go along."""
        if not self.with_rest:
            return messages
        rest = ArrayRecord({k: array for k, array in arrays.items() if not self.shared(k)})
        return self._with_rest(messages, rest)

    def _with_rest(self, messages: Iterable[Message], rest: ArrayRecord) -> Iterator[Message]:
        for message in messages:
            message.content["rest"] = rest  # most messages of a round have the same content
            yield message

    def _merge(self, aggregated: ArrayRecord) -> ArrayRecord:
        return ArrayRecord(
            {
                name: _like(array, aggregated[name]) if name in aggregated else array
                for name, array in self._global.items()
            }
        )


def _with_examples(replies: Iterable[Message]) -> Iterator[Message]:
    """Yield the replies that rest on data or have failed, in the order of node ids."""
    for reply in in_order(replies):
        if reply.has_error() or any(
            record.get("num-examples", 1) for record in reply.content.metric_records.values()
        ):
            yield reply


def _up_to_the_first_sound(replies: Iterator[Message]) -> list[Message]:
    first = []
    for reply in replies:
        first.append(reply)
        if not reply.has_error():
            break
    return first


def _like(before: Array, array: Array) -> Array:
    return array if array.dtype == before.dtype else as_dtype(array.numpy(), before.dtype)
