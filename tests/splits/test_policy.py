from importlib.resources import files

import pytest

from headwater.core.errors import InvalidError
from headwater.splits import Policy

TEXT = files("headwater.splits").joinpath("default_policy.toml").read_text()


def test_default_policy_is_valid_and_survives_json():
    """The shipped policy reads, stays under its own cap, and is the same policy after a JSON round trip."""
    policy = Policy.from_toml(TEXT)

    assert policy.take_bps == 2_600 <= policy.take_cap_bps
    assert Policy.from_json(policy.to_json()) == policy


def test_digest_ignores_comments_and_spacing_but_not_values():
    """The digest names the rules, not the file."""
    policy = Policy.from_toml(TEXT)

    assert Policy.from_toml("# a remark\n" + TEXT).digest == policy.digest
    assert Policy.from_toml(TEXT.replace("bps = 500", "bps = 501")).digest != policy.digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("take_cap_bps = 3500", "take_cap_bps = 2000"),
        ("bps = 2_000", "bps = -1"),
        ("bps = 2_000", "bps = true"),
        ("bps = 2_000", "bps = 0.5"),
        ('residual = "base_model"', 'residual = "operator"'),
        ('name = "platform"', 'name = "compute"'),
        ('name = "platform"', 'name = "residual"'),
        ('account = "operator:platform"', 'account = "payer:key_1"'),
        ("model_weight_ppm = 100_000", "model_weight_ppm = 1_000_001"),
        ("version = 1", "version = 1\nsurprise = 2"),
        ("version = 1\n", ""),
        ("B = 1_000", "D = 1_000"),
        ("[[lines]]", "[[lines"),
        ("headwater.policy/1", "headwater.policy/9"),
    ],
)
def test_a_wrong_policy_is_refused_with_a_fix(old, new):
    """Out-of-range, hidden or unknown cuts never load."""
    assert old in TEXT
    with pytest.raises(InvalidError) as caught:
        Policy.from_toml(TEXT.replace(old, new, 1))

    assert caught.value.code == "policy_invalid"
    assert caught.value.fix
