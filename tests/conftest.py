"""Fixtures shared by the tests."""

import pytest
import torch


@pytest.fixture
def float64():
    """Oracles in double precision; training itself runs in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
