"""A check that the scores of a text do not depend on its padding.

Padding has to reach every model in its own way. XLNet expects it on the left, because it classifies
by the last position. Decoders look for the id of the padding token, to find the last real one. A
model that mixes in its padding (by a convolution, or by a Fourier transform as FNet does) would
score one text differently beside every other text, and cannot be used.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedattn_app.models.batch import TextBatch
from fedattn_app.models.pretrained.classifier import PaddingSide, PretrainedClassifier

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Numbers of tokens: of a text alone, beside a longer one, and padded further, as private training
# pads texts.
WIDTHS = (3, 8, 16)
MAX_VOCABULARY = 5000  # token ids that the texts of the check are made from
TOLERANCE = 1e-4  # of a logit; relative to the largest one if that is above 1
SIDES: tuple[PaddingSide, ...] = ("right", "left")


@torch.no_grad()
def set_padding_side(
    model: PretrainedClassifier, architecture: "PreTrainedConfig", max_tokens: int
) -> None:
    """Set `padding_side` to the side where padding does not change the logits of a text.

    `architecture` is the configuration of the model, and `max_tokens` the largest number of tokens
    that it accepts. The model must be in evaluation mode. Raises `ValueError` if padding changes
    the logits on either side.
    """
    widths = [min(width, max_tokens) for width in WIDTHS]
    for side in SIDES:
        model.padding_side = side
        alone, beside, further = (_logits(model, architecture, widths, width) for width in widths)
        difference = max((alone - x).abs().max() for x in (beside, further))
        if difference <= TOLERANCE * alone.abs().max().clamp(min=1):
            return
    raise ValueError(
        "its scores for a text depend on the padding of the text, whether on the right or on the "
        "left, so they would depend on the other texts of a batch"
    )


def _logits(
    model: PretrainedClassifier, architecture: "PreTrainedConfig", widths: list[int], width: int
) -> Tensor:
    """Return the logits of the shortest text, alone or beside the longer one, in `width` tokens."""
    shortest, longest = widths[:2]
    lengths = torch.tensor([shortest] if width == shortest else [shortest, longest])
    ids = _ordinary_tokens(architecture, max(widths))[:, :width].repeat(len(lengths), 1)
    if (end := _end_of_text(architecture)) is not None:
        ids[torch.arange(len(lengths)), lengths - 1] = end
    logits: Tensor = model(TextBatch.of(ids.int(), lengths.int()))[:1]
    return logits


def _ordinary_tokens(architecture: "PreTrainedConfig", count: int) -> Tensor:
    """Return `count` different token ids (1, T), none of them special if there are enough."""
    special: set[int] = set()
    for key, value in architecture.to_dict().items():
        if key.endswith("_token_id"):
            special.update(value if isinstance(value, list) else [value])
    vocabulary = range(min(architecture.vocab_size, MAX_VOCABULARY))
    ordinary = [token for token in vocabulary if token not in special] or [0]
    spread = len(ordinary) // count or 1
    return torch.tensor([[ordinary[k * spread % len(ordinary)] for k in range(count)]])


def _end_of_text(architecture: "PreTrainedConfig") -> int | None:
    """Return the token that an encoder with a decoder needs at the end of each text."""
    end: int | None = architecture.eos_token_id if architecture.is_encoder_decoder else None
    return end
