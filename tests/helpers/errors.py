"""What the user reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kd_methods.errors import UserError


def one_line(call: Callable[[], Any], *texts: str) -> None:
    """Assert that the call is refused in one line with these texts in it."""
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    for text in texts:
        assert text in str(error.value)
