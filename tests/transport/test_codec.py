"""Codecs: what a node encodes, the server decodes."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fedattn_app.config import CODECS, Config
from fedattn_app.simulation import simulate
from fedattn_app.transport.codec import Float16, Float32, codec_of

RNG = np.random.default_rng(0)
ARRAYS = {
    "weight": RNG.normal(size=(5, 3)).astype(np.float32),
    "bias": np.zeros(3, dtype=np.float32),
    "counts": np.arange(4, dtype=np.int64),
    "scalar": np.asarray(1.5, dtype=np.float32),
}
SENT = ArrayRecord({name: Array(np.asarray(array)) for name, array in ARRAYS.items()})


def roundtrip(codec, arrays=ARRAYS):
    decoded = codec.decode(codec.encode(arrays), SENT)
    return {name: array.numpy() for name, array in decoded.items()}


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_gives_back_names_shapes_and_dtypes(name):
    codec = codec_of(Config.from_run_config({"codec": name}))
    decoded = roundtrip(codec)
    assert list(decoded) == list(ARRAYS)
    for key, array in ARRAYS.items():
        assert (decoded[key].shape, decoded[key].dtype) == (array.shape, array.dtype)
        largest = np.abs(array).max(initial=0.0)
        np.testing.assert_allclose(decoded[key], array, atol=1e-2 * largest)


def test_float32_changes_no_bit():
    for name, array in roundtrip(Float32()).items():
        assert array.tobytes() == ARRAYS[name].tobytes()


def test_float16_rounds_to_the_nearest_and_leaves_integers_alone():
    for name, array in roundtrip(Float16()).items():
        expected = ARRAYS[name]
        if expected.dtype.kind == "f":
            expected = expected.astype(np.float16).astype(np.float32)
        assert array.tobytes() == expected.tobytes()


def test_float16_makes_what_it_cannot_hold_infinite():
    decoded = roundtrip(Float16(), ARRAYS | {"bias": np.float32([1e6, -1e6, 1])})
    assert decoded["bias"].tolist() == [np.inf, -np.inf, 1.0]


def test_half_precision_is_not_decoded_to_whole_numbers():
    """A NaN would become a number that no check refuses."""
    hostile = Float32().encode({"counts": np.float16([np.nan] * 4)})
    assert Float16().decode(hostile, SENT)["counts"].numpy().dtype == np.float16


@pytest.mark.parametrize("privacy", ["none", "dp-sgd"])
def test_half_precision_halves_the_bytes_up_and_trains_alike(tiny, tmp_path, privacy):
    private = {"privacy": "dp-sgd", "noise-multiplier": 0.5, "reproducible-noise": True}
    settings = tiny | (private if privacy == "dp-sgd" else {})
    whole = simulate(settings, 3, quiet=True)
    half = simulate(
        settings | {"codec": "float16", "output-dir": str(tmp_path / "half")}, 3, quiet=True
    )
    before, after = (r.summary["bytes_up_per_client_round"] for r in (whole, half))
    assert 0.5 < after / before < 0.6  # names, shapes and metrics are not halved
    for name, array in half.arrays.items():
        assert array.dtype == whole.arrays[name].dtype
        np.testing.assert_allclose(array, whole.arrays[name], atol=0.02)
    assert half.history[-1]["failures"] == 0
