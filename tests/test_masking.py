"""No secret of a token is readable, wherever its text comes from."""

from __future__ import annotations

import pytest

from broker.errors import InvalidValue
from broker.masking import masked

TOKEN = "tb_0123456789ab_V2xsLW5v-dGhpbmc_x"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (TOKEN, "tb_0123456789ab_***"),
        (f"tcp://{TOKEN}@host:1", "tcp://tb_0123456789ab_***@host:1"),
        (f"Bearer {TOKEN}, and {TOKEN}.", "Bearer tb_0123456789ab_***, and tb_0123456789ab_***."),
        ("step_tb_ tb_ tb_xyz_1 table", "step_tb_ tb_ tb_xyz_1 table"),
        ("", ""),
    ],
)
def test_the_number_of_a_token_stays_and_its_secret_goes(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_an_argument_that_cannot_be_used_shows_no_token() -> None:
    error = InvalidValue("url", f"tcp://{TOKEN}@host:1", "no host name")
    assert "V2xs" not in str(error)
    assert "V2xs" not in repr(error)
