"""Settings: every default is valid, and every refusal says what was given, which rule it breaks, and what to do."""

from dataclasses import FrozenInstanceError, fields

import pytest

from unmask.decode.settings import POLICIES, REFERENCE_POLICIES, DecodeSettings
from unmask.errors import SettingsError


def test_every_default_is_valid_alone_and_with_every_policy():
    DecodeSettings()
    for policy in POLICIES:
        DecodeSettings(policy=policy)
    for policy in REFERENCE_POLICIES:
        DecodeSettings(mode="reference", policy=policy)
    for field in fields(DecodeSettings):
        DecodeSettings(**{field.name: field.default})


@pytest.mark.parametrize(
    "given",
    [
        {"max_new_tokens": 1, "steps": 1, "block_length": 1, "top_k": 1},
        {"top_p": 1.0},
        {"policy": "threshold", "threshold": 1.0, "steps": 4},
        {"policy": "factor", "factor": 0.5},
        {"policy": "entropy", "policy_temperature": 0.1, "temperature": 0.2, "temperature_role": "content"},
        {"mode": "reference", "policy": "origin", "eps": 0.1, "top_k": 4, "temperature": 0.2},
        {"mode": "reference", "policy": "topk_margin", "policy_temperature": 0.5},
        {"seed": 2**63},
    ],
)
def test_combinations_that_go_together_are_taken(given):
    settings = DecodeSettings(**given)
    assert all(getattr(settings, name) == value for name, value in given.items())


NOT_A_COUNT = [
    ({name: value}, f"--{name.replace('_', '-')} {value} is not a count; it must be at least 1")
    for name in ("max_new_tokens", "steps", "block_length", "top_k")
    for value in (0, -3)
]
NOT_A_TEMPERATURE = [
    ({name: value}, f"--{name.replace('_', '-')} {value} is not a temperature; it must be 0 (greedy) or more")
    for name in ("temperature", "policy_temperature")
    for value in (-0.1, float("inf"), float("nan"))
]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *NOT_A_COUNT,
        *NOT_A_TEMPERATURE,
        ({"policy": "entropie"}, "--policy 'entropie' is not known; did you mean entropy or entropy_bound?"),
        ({"policy": "maskgit"}, "did you mean maskgit_plus?"),
        ({"mode": "dream"}, "--mode 'dream' is not known; known: exact, reference"),
        ({"temperature_role": "token"}, "--temperature-role 'token' is not known"),
        ({"top_p": 0.0}, "--top-p 0.0 lies outside (0, 1]; 1 keeps everything"),
        ({"top_p": 1.2}, "--top-p 1.2 lies outside (0, 1]; 1 keeps everything"),
        ({"top_p": float("nan")}, "--top-p nan lies outside (0, 1]"),
        ({"policy": "threshold", "threshold": 1.5}, "--threshold 1.5 lies outside (0, 1]; 0.9 is usual"),
        ({"policy": "threshold", "threshold": 0.0}, "--threshold 0.0 lies outside (0, 1]; 0.9 is usual"),
        ({"mode": "reference", "eps": 0.0}, "--eps 0.0 lies outside (0, 1]; 0.001 is usual"),
        ({"policy": "factor", "factor": 0.0}, "--factor 0.0 is not positive; 1.0 is the bound"),
        ({"policy": "factor", "factor": float("inf")}, "--factor inf is not positive"),
        ({"threshold": 0.9}, "--threshold 0.9 has no effect with the policy 'entropy'; give `--policy threshold`"),
        ({"factor": 1.0, "policy": "threshold"}, "--factor 1.0 has no effect with the policy 'threshold'"),
        ({"lenience": 0.0}, "--lenience 0.0 lies outside (0, 1]; 0.5 keeps what is half as likely as the best"),
        ({"lenience": 0.5, "temperature": 1.0}, "--lenience 0.5 is for greedy decoding"),
        ({"lenience": 0.5, "decoder": "diffusion"}, "--lenience 0.5 is for `--decoder speculative`"),
        *[
            (
                {"policy": policy, "policy_temperature": 0.5},
                f"--policy-temperature 0.5 has no effect with the policy {policy!r}",
            )
            for policy in ("origin", "threshold", "factor", "left_to_right", "random")
        ],
        ({"temperature_role": "content"}, "--temperature-role content has no effect at temperature 0"),
        ({"temperature_role": "order"}, "give a --temperature above 0"),
        ({"eps": 0.1}, "--eps belongs to the reference schedule; give `--mode reference`"),
        *[
            ({"mode": "reference", "policy": policy}, f"the reference mode has no policy {policy!r}; it has origin, ")
            for policy in ("threshold", "factor", "left_to_right", "random")
        ],
        ({"mode": "reference", "block_length": 8}, "the reference mode has no blocks, and --block-length 8 was given"),
        (
            {"mode": "reference", "temperature": 0.5, "temperature_role": "order"},
            "in the reference mode the temperature acts on content and order both; leave --temperature-role out",
        ),
    ],
)
def test_what_breaks_a_rule_is_refused_with_a_way_out(given, message):
    with pytest.raises(SettingsError) as caught:
        DecodeSettings(**given)
    assert message in str(caught.value)


def test_settings_cannot_be_changed_and_take_no_unknown_names():
    with pytest.raises(FrozenInstanceError):
        DecodeSettings().steps = 3
    with pytest.raises(TypeError, match="alg"):
        DecodeSettings(alg="entropy")
