"""Light augmentation of image batches, drawn from a given generator."""

import torch
from torch import Tensor
from torch.nn import functional as F

from amcsearch.core import BadInputError

__all__ = ["random_shift"]


def random_shift(images: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Move each image of (B, C, H, W) by up to ``max_shift`` pixels along both axes; edge pixels fill the gap.

    Raises:
        BadInputError: the inputs are no images.
    """
    if max_shift == 0:
        return images
    if images.ndim != 4:
        raise BadInputError(
            f"max_shift = {max_shift} needs images (B, C, H, W), inputs are {tuple(images.shape)}; set it to 0"
        )
    batch, _, height, width = images.shape
    padded = F.pad(images, (max_shift,) * 4, mode="replicate")
    offset = torch.randint(0, 2 * max_shift + 1, (2, batch, 1), generator=generator).to(images.device)
    rows = offset[0] + torch.arange(height, device=images.device)  # (B, H)
    columns = offset[1] + torch.arange(width, device=images.device)  # (B, W)
    sample = torch.arange(batch, device=images.device)[:, None, None]
    # advanced indices around the channel axis put it last: (B, H, W, C)
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
