"""A check that the scores of a text do not depend on its padding.

Padding has to reach every model in its own way. XLNet expects it on the left, because it classifies
by the last position. Decoders look for the id of the padding token, to find the last real one. A
model that mixes in its padding (by a convolution, or by a Fourier transform as FNet does) would
score one text differently beside every other text, and cannot be used.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PaddingSide = Literal["right", "left"]
# Token ids (B, T) padded on the right, their lengths (B,), and the side where the model gets the
# padding; returns the logits (B, K).
Scorer = Callable[[Tensor, Tensor, PaddingSide], Tensor]

# Numbers of tokens: of a text alone, beside a longer one, and padded further, as private training
# pads texts.
WIDTHS = (3, 8, 16)
MAX_VOCABULARY = 5000  # token ids that the texts of the check are made from
TOLERANCE = 1e-4  # of a logit; relative to the largest one if that is above 1
SIDES: tuple[PaddingSide, ...] = ("right", "left")


def padding_side_of(
    score: Scorer, architecture: "PreTrainedConfig", max_tokens: int
) -> PaddingSide:
    """Return the side where padding does not change the logits of a text.

    `score` calls a model in evaluation mode. `architecture` is the configuration of the model, and
    `max_tokens` the largest number of tokens that it accepts. Raises `ValueError` if padding
    changes the logits on either side.
    """
    shortest, longest, widest = (min(width, max_tokens) for width in WIDTHS)
    tokens = _ordinary_tokens(architecture, widest)
    end = _end_of_text(architecture)

    def logits(width: int, lengths: list[int], side: PaddingSide) -> Tensor:
        """Return the logits (K,) of the first text."""
        ids = tokens[:width].repeat(len(lengths), 1)
        if end is not None:
            ids[range(len(lengths)), [length - 1 for length in lengths]] = end
        with torch.no_grad():
            return score(ids.int(), torch.tensor(lengths).int(), side)[0]

    for side in SIDES:
        alone = logits(shortest, [shortest], side)
        padded = [logits(width, [shortest, longest], side) for width in (longest, widest)]
        difference = max((alone - x).abs().max() for x in padded)
        if difference <= TOLERANCE * alone.abs().max().clamp(min=1):
            return side
    raise ValueError(
        "its scores for a text depend on the padding of the text, whether on the right or on the "
        "left, so they would depend on the other texts of a batch"
    )


def _ordinary_tokens(architecture: "PreTrainedConfig", count: int) -> Tensor:
    """Return `count` different token ids (T,), none of them special if there are enough."""
    special: set[int] = set()
    for key, value in architecture.to_dict().items():
        if key.endswith("_token_id"):
            special.update(value if isinstance(value, list) else [value])
    vocabulary = range(min(architecture.vocab_size, MAX_VOCABULARY))
    ordinary = [token for token in vocabulary if token not in special] or [0]
    spread = len(ordinary) // count or 1
    return torch.tensor([ordinary[k * spread % len(ordinary)] for k in range(count)])


def _end_of_text(architecture: "PreTrainedConfig") -> int | None:
    """Return the token that an encoder with a decoder needs at the end of each text."""
    end: int | None = architecture.eos_token_id if architecture.is_encoder_decoder else None
    return end


def padding_id_of(architecture: "PreTrainedConfig") -> int:
    """Return the token id that fills up texts: the model's own, or that of another token.

    Some decoders were published without a padding token. With any token as padding, a mask hides
    it, and they find the last token before it. The end of a text is the one that texts do not hold.
    """
    text = architecture.get_text_config()
    for key in ("pad_token_id", "eos_token_id", "bos_token_id"):
        token = getattr(text, key, None)
        token = token[0] if isinstance(token, list) and token else token
        if type(token) is int and 0 <= token < text.vocab_size:
            return token
    return 0
