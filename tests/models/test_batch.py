"""Selecting, padding and splitting the inputs of a model."""

import pytest
import torch

from fedattn_app.models.batch import Batch, TextBatch

LENGTHS = torch.tensor([1, 8, 9, 13]).int()


@pytest.fixture
def texts():
    """Four texts of the token 7, padded with the token 0."""
    beyond = torch.arange(13) >= LENGTHS[:, None]
    return TextBatch.of(torch.full((4, 13), 7).int().masked_fill(beyond, 0), LENGTHS, padding_id=3)


@pytest.fixture
def features():
    return Batch({"features": torch.arange(12.0).view(4, 3), "age": torch.arange(4)})


def indices(parts):
    return [part.tolist() for part in parts]


def test_a_selection_has_the_same_rows_of_every_tensor(features):
    selected = features.select(torch.tensor([3, 1]))
    assert (len(features), len(selected)) == (4, 2)
    assert selected["features"].tolist() == [[9, 10, 11], [3, 4, 5]]
    assert selected["age"].tolist() == [3, 1]


def test_examples_of_one_size_split_in_their_order(features):
    index = torch.tensor([3, 0, 2])
    assert indices(features.split_by_size(index, 2)) == [[3, 0], [2]]
    assert indices(features.split_by_equal_size(index, 2)) == [[3, 0], [2]]
    assert features.pad_independently(5) is features


def test_a_selection_of_texts_has_the_width_of_the_longest(texts):
    selected = texts.select(torch.tensor([2, 0]))
    assert selected.ids.tolist() == [[7] * 9, [7] + [0] * 8]
    assert selected.lengths.tolist() == [9, 1]
    assert texts.select(torch.arange(0)).ids.shape == (0, 1)


def test_texts_of_similar_length_pass_together(texts):
    index = torch.tensor([3, 0, 2, 1])
    assert indices(texts.split_by_size(index, 4)) == [[3, 0, 2, 1]]
    assert indices(texts.split_by_size(index, 2)) == [[0, 1], [2, 3]]
    assert texts.split_by_size(torch.arange(0), 2) == []


def test_the_padding_of_a_text_depends_on_no_other_text(texts):
    padded = texts.pad_independently(14)
    assert padded.ids.shape == (4, 14)
    assert torch.equal(padded.ids != 3, torch.arange(14) < LENGTHS[:, None])
    widths = [padded.select(torch.tensor([k])).ids.shape[1] for k in range(4)]
    assert widths == [8, 8, 14, 14]
    parts = padded.split_by_equal_size(torch.tensor([3, 1, 2, 0]), 1000)
    assert indices(parts) == [[1, 0], [3, 2]]
    assert [len(part) for part in padded.split_by_equal_size(torch.arange(4), 1)] == [1] * 4
    assert padded.split_by_equal_size(torch.arange(0), 5) == []
