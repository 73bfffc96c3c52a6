"""The built-in Transformer: names, initial values, padding, word order and attention maps."""

import pytest
import torch

from fedattn_app.config import MODEL_SIZES, ModelConfig
from fedattn_app.models.batch import TextBatch
from fedattn_app.models.transformer import build_model

CONFIG = ModelConfig(layers=2, width=16, heads=2, feedforward=24, vocabulary=50, max_length=12)
LENGTHS = torch.tensor([3, 12, 1, 7], dtype=torch.int32)


@pytest.fixture(scope="module")
def model():
    return build_model(CONFIG, num_labels=3, seed=1).eval()


@pytest.fixture(scope="module")
def ids():
    """Four texts of 3, 12, 1 and 7 tokens, padded with 0."""
    drawn = torch.randint(1, 50, (4, 12), generator=torch.Generator().manual_seed(1))
    return torch.where(torch.arange(12) < LENGTHS[:, None], drawn, 0).int()


def test_the_parameter_names(model):
    linear = [
        *("attention.query", "attention.key", "attention.value", "attention.output"),
        *("attention_norm", "feedforward.expand", "feedforward.contract", "feedforward_norm"),
    ]
    names = {"embedding.weight"}
    for module in [f"layers.{i}.{name}" for i in (0, 1) for name in linear] + [
        "final_norm",
        "head",
    ]:
        names |= {f"{module}.weight", f"{module}.bias"}
    assert {name for name, _ in model.named_parameters()} == names
    assert set(model.state_dict()) == names


def test_the_parameters_depend_on_the_seed_only():
    torch.manual_seed(5)
    first = build_model(CONFIG, 3, seed=1).state_dict()
    torch.manual_seed(6)
    second = build_model(CONFIG, 3, seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_another_model():
    first, second = (build_model(CONFIG, 3, seed).state_dict() for seed in (1, 2))
    assert not torch.equal(first["head.weight"], second["head.weight"])


def test_building_does_not_change_the_global_generator():
    before = torch.get_rng_state()
    build_model(CONFIG, 3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "config",
    [
        *(ModelConfig(model=name, vocabulary=50) for name in MODEL_SIZES),
        ModelConfig(model="tiny", vocabulary=50, layers=3, heads=4),
        ModelConfig(vocabulary=50, layers=1, width=24, heads=3, feedforward=20),
    ],
)
def test_the_size_determines_every_shape(config):
    size = config.size
    shapes = {name: tuple(p.shape) for name, p in build_model(config, 5, 1).named_parameters()}
    assert shapes["embedding.weight"] == (50, size.width)
    assert shapes["head.weight"] == (5, size.width)
    assert {name.split(".")[1] for name in shapes if name.startswith("layers.")} == {
        str(layer) for layer in range(size.layers)
    }
    for layer in range(size.layers):
        assert shapes[f"layers.{layer}.attention.query.weight"] == (size.width, size.width)
        assert shapes[f"layers.{layer}.feedforward.expand.weight"] == (size.feedforward, size.width)


def test_a_text_scores_the_same_alone_and_padded_in_a_batch(model, ids):
    batch = model(TextBatch.of(ids, LENGTHS))
    assert batch.shape == (4, 3)
    for index, length in enumerate(LENGTHS):
        alone = model(TextBatch.of(ids[index : index + 1, :length], LENGTHS[index : index + 1]))
        torch.testing.assert_close(alone[0], batch[index], atol=1e-6, rtol=0)


def test_tokens_beyond_the_length_have_no_effect(model, ids):
    beyond = torch.where(torch.arange(12) < LENGTHS[:, None], ids, 7)
    torch.testing.assert_close(
        model(TextBatch.of(beyond, LENGTHS)), model(TextBatch.of(ids, LENGTHS)), atol=1e-6, rtol=0
    )


def test_an_empty_batch_gives_no_logits(model, ids):
    assert model(TextBatch.of(ids[:0], LENGTHS[:0])).shape == (0, 3)


def test_the_order_of_tokens_matters(model):
    ids, lengths = torch.tensor([[5, 6, 7, 8], [5, 7, 6, 8]]), torch.tensor([4, 4])
    first, swapped = model(TextBatch.of(ids, lengths))
    assert (first - swapped).abs().max() > 1e-4


def test_attention_is_a_distribution_over_the_real_tokens(model, ids):
    maps = model.attention_maps(TextBatch.of(ids, LENGTHS))
    assert len(maps) == CONFIG.size.layers
    for layer in maps:
        assert layer.shape == (4, CONFIG.size.heads, 12, 12)
        assert not layer.requires_grad
        torch.testing.assert_close(layer.sum(-1), torch.ones(4, CONFIG.size.heads, 12))
        for index, length in enumerate(LENGTHS):
            assert (layer[index, :, :, length:] == 0).all()
            assert (layer[index, :, :, :length] > 0).all()


def test_attention_maps_do_not_change_the_logits(model, ids):
    maps = []
    with_maps = model(TextBatch.of(ids, LENGTHS), maps)
    torch.testing.assert_close(with_maps, model(TextBatch.of(ids, LENGTHS)), atol=1e-6, rtol=0)
    for seen, returned in zip(maps, model.attention_maps(TextBatch.of(ids, LENGTHS)), strict=True):
        assert torch.equal(seen, returned)


def test_a_single_token_attends_to_itself_only(model):
    for layer in model.attention_maps(TextBatch.of(torch.tensor([[9]]), torch.tensor([1]))):
        assert (layer == 1).all()
