"""What a node's owner writes: the keys, their values, and the policy file."""

import math
import re
from dataclasses import fields
from pathlib import Path

import pytest

from fedattn_app.config.schema import key_of
from fedattn_app.policy.owner_policy import (
    DEFAULT_MAX_EPSILON,
    NODE_KEYS,
    OWNER_KEYS,
    OwnerPolicy,
    read_policy,
)
from fedattn_app.policy.reasons import Reason, RefusalError

# Key, a value beyond an end of its range or of a wrong type, and a part of what is allowed.
NOT_ALLOWED = [
    *[("max-epsilon", value, "0") for value in (0, -1.0, math.nan, math.inf, "8", True, False)],
    *[("max-delta", value, "> 0") for value in (0, -1e-5, math.nan, "1e-5", True)],
    ("max-delta", 1.0, "<= 0.999"),
    ("max-tokens", 0, ">= 1"),
    ("max-parameters", 0, ">= 1"),
    ("max-parameters", 1e6, "a whole number"),
    ("max-local-epochs", 0, ">= 1"),
    ("max-batch-size", -1, ">= 1"),
    ("reply-every", -1, ">= 0"),
    ("reply-every", 3601, "<= 3600"),
    ("allow-unprotected", 1, "true or false"),
    ("allow-unprotected", "true", "true or false"),
    *[
        ("ledger", name, "a name of letters")
        for name in ("", "../x", "a/b", "a.json", "a b", "a\n")
    ],
    ("state-dir", "state", "an absolute path"),
    ("state-dir", "", "must not be empty"),
    ("data-path", "", "must not be empty"),
    ("data-path", 7, "text"),
    ("model-path", "", "must not be empty"),
    ("max-epsilon", 1e-9, "too small for any noise"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), NOT_ALLOWED)
def test_a_value_that_is_not_allowed_is_named(refused, key, value, allowed):
    with refused(key, allowed):
        OwnerPolicy.of_node({key: value})


def test_every_key_with_a_range_is_tried():
    checked = {key for key, *_ in NOT_ALLOWED}
    assert checked == OWNER_KEYS


def test_the_server_learns_only_that_the_node_config_has_a_mistake():
    with pytest.raises(RefusalError) as caught:
        OwnerPolicy.of_node({"data-path": "/home/jane doe", "max-epsilon": 0})
    assert caught.value.reason == Reason.NODE_CONFIG


@pytest.mark.parametrize(
    ("key", "near"), [("max_epsilonn", "max-epsilon"), ("statedir", "state-dir")]
)
def test_a_misspelled_key_is_refused(refused, key, near):
    with refused(f"did you mean {near}"):
        OwnerPolicy.of_node({key: 1.0})


def test_keys_of_other_apps_are_ignored():
    assert OwnerPolicy.of_node({"rack": "7b", "partition-id": 3}) == OwnerPolicy()


def test_a_limit_of_epsilon_contradicts_unprotected_runs(refused):
    with refused("allow-unprotected = true", "max-epsilon = 4"):
        OwnerPolicy.of_node({"max-epsilon": 4.0, "allow-unprotected": True})


@pytest.mark.parametrize(
    ("keys", "limit"),
    [
        ({"data-path": "/d"}, DEFAULT_MAX_EPSILON),
        ({"data-path": "/d", "max-epsilon": 2}, 2.0),
        ({"data-path": "/d", "max-epsilon": 20}, 20.0),
        ({"data-path": "/d", "allow-unprotected": True}, math.inf),
        ({"max-epsilon": 2}, 2.0),
        ({}, math.inf),
    ],
)
def test_a_node_with_a_file_has_a_limit_unless_its_owner_wants_none(keys, limit):
    assert OwnerPolicy.of_node(keys).epsilon_limit == limit


# The policy file


def test_a_policy_file_may_hold_every_key(tmp_path):
    values = {
        "data-path": "/d",
        "state-dir": "/s",
        "model-path": "/m",
        "ledger": "ward-3",
        "allow-unprotected": False,
        "max-epsilon": 3.0,
        "max-delta": 1e-6,
        "max-tokens": 128,
        "max-parameters": 10**7,
        "max-local-epochs": 2,
        "max-batch-size": 64,
        "reply-every": 30.0,
    }
    assert values.keys() == {key_of(entry) for entry in fields(OwnerPolicy)}
    lines = [f"{key} = {str(v).lower() if v is False else repr(v)}" for key, v in values.items()]
    path = tmp_path / "policy.toml"
    path.write_text("\n".join(lines))
    assert OwnerPolicy.of_node({"policy": str(path), "partition-id": 0}) == OwnerPolicy.of_node(
        values
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("max-epsilonn = 1", "did you mean max-epsilon"),
        ("colour = 1", "the keys are allow-unprotected"),
        ("max-epsilon", "not a TOML file"),
        (b"\xff\xfe", "not a TOML file"),
        ("max-epsilon = 0", "max-epsilon = 0"),
        ("max-epsilon = [1]", "max-epsilon = [1]"),
        ("max-delta = 2026-11-27", "max-delta"),
        ("data-path = 'x'", "data-path: is in node-config and in policy"),
    ],
)
def test_a_mistake_in_a_policy_file_is_named(refused, tmp_path, content, said):
    path = tmp_path / "policy.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(said):
        OwnerPolicy.of_node({"policy": str(path), "data-path": "/d"})


@pytest.mark.parametrize("name", ["absent.toml", "", "a\0b"])
def test_a_policy_file_that_cannot_be_read_is_named(refused, tmp_path, name):
    with refused("policy ="):
        read_policy(str(tmp_path / name))


def test_a_policy_file_that_others_can_write_is_refused(refused, tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text("max-epsilon = 1.0")
    path.chmod(0o666)
    with refused(str(path), "others can write to it"):
        OwnerPolicy.of_node({"policy": str(path)})


def test_a_node_has_the_keys_of_its_owner_and_flowers():
    assert {*OWNER_KEYS, "policy", "partition-id", "num-partitions"} == NODE_KEYS


def test_the_deployment_guide_has_a_row_for_every_key():
    page = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(NODE_KEYS)
