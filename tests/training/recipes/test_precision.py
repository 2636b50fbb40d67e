"""What is prepared once for all protocols is computed in fp32, whatever one of them says."""

from __future__ import annotations

import pytest
import torch

from benchmarks.common.process.settings import settings_restored
from benchmarks.training.precision import without_tf32


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_off_inside_and_afterwards_as_before(allowed: bool) -> None:
    with settings_restored():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        with pytest.raises(ZeroDivisionError), without_tf32(torch.device("cuda")):
            assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
            _ = 1 / 0
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed
