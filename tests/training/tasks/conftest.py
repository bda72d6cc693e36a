"""torchmetrics imports torchvision where it is there; one that does not fit torch lacks its compiled operators."""

import importlib.util

import pytest
import torch

_OPERATORS = ("nms", "qnms", "roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d")


@pytest.fixture(scope="session", autouse=True)
def _torchvision() -> object:
    """Declare the operators that plain torch code of torchvision only names."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in (*_OPERATORS, *(f"_{name}_backward" for name in _OPERATORS[2:])):
            library.define(f"{name}(Tensor x) -> Tensor")
        return library
    return None
