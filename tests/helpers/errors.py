"""What the user reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kd_methods.errors import UserError


def one_line(call: Callable[[], Any], *parts: str) -> None:
    """Assert that the call is refused in one line with these parts."""
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)
