"""These tests need a GPU."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def gpu() -> str:
    """The name of the GPU; skips where there is none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.cuda.get_device_name()
