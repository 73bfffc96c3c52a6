"""Apply any scope to any Flower strategy: only the selected parameters are shared.

    w[shared] ← inner strategy over the replies' shared arrays;   w[rest] stays

The scope is a predicate over parameter names, passed in as data. With the names of the attention
projections only attention is shared; with a predicate that is always true the inner strategy gets
the whole model. Selecting parameters saves bytes, and noise where noise is added. It is not a
privacy measure: Petrov et al., 2024, arXiv 2405.15586, reconstruct text from the gradients of
attention parameters.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from strategies.common.arrays import as_dtype
from strategies.common.replies import valid_replies
from strategies.wrappers.base import StrategyWrapper


class AttentionOnly(StrategyWrapper):
    """Lets the inner strategy see, send and combine only the arrays that `shared` selects.

    The inner strategy gets the valid replies of clients that have examples, in the order of node
    ids. Flower's own strategies for differential privacy skip a round in which a reply has failed,
    and do not see such replies here; use `ClientLevelDP`, which accounts for them. What the inner
    strategy returns is merged into the global model, in which each array keeps its dtype.

    Args:
        inner: The strategy that combines the shared arrays.
        shared: Function that takes a parameter's full dotted name and returns whether the parameter
            is shared.
        needs_no_replies: Whether to call the inner strategy in a round without any such reply. If
            false, the model does not change in that round.
        with_rest: Whether to send the other arrays too, in a record ``rest``, for nodes that cannot
            compute them.
    """

    def __init__(
        self,
        inner: Strategy,
        shared: Callable[[str], bool],
        needs_no_replies: bool = False,
        with_rest: bool = False,
    ) -> None:
        super().__init__(inner)
        self.shared = shared
        self.needs_no_replies = needs_no_replies
        self.with_rest = with_rest
        self._global = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's training messages, made from the shared arrays only.

        With `with_rest` each message also has the other arrays, in a record ``rest``.
        """
        self._global = arrays
        selected = self._select(arrays)
        messages = super().configure_train(server_round, selected, config, grid)
        return self._completed(messages, arrays)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the model with the shared arrays combined, and the inner strategy's metrics.

        The other arrays are unchanged. The model is None if the inner strategy returns no arrays.
        Returns (None, None) if no valid reply is from a client with examples, unless
        `needs_no_replies` is set.
        """
        usable = _with_examples(replies)
        first = [reply for reply in (next(usable, None),) if reply is not None]
        if not first and not self.needs_no_replies:
            return None, None
        arrays, metrics = self.inner.aggregate_train(server_round, chain(first, usable))
        return (None if arrays is None else self._merge(arrays)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's evaluation messages, made from the shared arrays only.

        With `with_rest` each message also has the other arrays, in a record ``rest``.
        """
        selected = self._select(arrays)
        messages = super().configure_evaluate(server_round, selected, config, grid)
        return self._completed(messages, arrays)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the inner strategy's combined metrics.

        Returns None if no valid reply is from a client with examples.
        """
        usable = list(_with_examples(replies))
        return super().aggregate_evaluate(server_round, usable) if usable else None

    def _select(self, arrays: ArrayRecord) -> ArrayRecord:
        return ArrayRecord({name: array for name, array in arrays.items() if self.shared(name)})

    def _completed(self, messages: Iterable[Message], arrays: ArrayRecord) -> Iterable[Message]:
        """Return `messages`. If `with_rest` is set, add the unshared `arrays` to each one."""
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
    """Yield the valid replies of clients that have examples, ordered by node id.

    A reply without a metric ``num-examples`` counts as one of a client with examples if it has any
    metrics.
    """
    for reply in valid_replies(replies):
        if any(record.get("num-examples", 1) for record in reply.content.metric_records.values()):
            yield reply


def _like(before: Array, array: Array) -> Array:
    return array if array.dtype == before.dtype else as_dtype(array.numpy(), before.dtype)
