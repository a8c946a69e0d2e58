"""Images as matrices: a row for each pixel of the batch, a column for each channel.

An image (B, K, H, W) in torch's channels_last order is a matrix (P, K), P = B·H·W, without a copy; where K = E·C holds
the channels of E edges, each with C of its own, it is E matrices (E, P, C).
"""

import torch
from torch import Tensor


def to_rows(image: Tensor) -> Tensor:
    """(B, K, H, W) -> (P, K): a view of an image in channels_last order, else a copy."""
    return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])


def size_of(image: Tensor) -> tuple[int, int, int]:
    """(B, H, W)."""
    return image.shape[0], *image.shape[2:]


def to_image(rows: Tensor, size: tuple[int, int, int]) -> Tensor:
    """(P, K) -> (B, K, H, W) in channels_last order, of the size (B, H, W): a view."""
    return rows.view(*size, rows.shape[1]).permute(0, 3, 1, 2)


def by_edge(rows: Tensor, edges: int) -> Tensor:
    """(P, E·C) -> (E, P, C): a view."""
    return rows.view(rows.shape[0], edges, -1).transpose(0, 1)


def mixed(x: Tensor, weight: Tensor) -> Tensor:
    """Pointwise convolution of every edge, y_e = x_e · w_eᵀ: (E, P, I), (E, O, I) -> rows (P, E·O)."""
    edges, pixels, _ = x.shape
    out = x.new_empty(pixels, edges, weight.shape[1])
    torch.bmm(x, weight.transpose(1, 2), out=out.transpose(0, 1))
    return out.view(pixels, -1)


def products(x: Tensor, y: Tensor) -> Tensor:
    """Sums of products over all pixels, x_eᵀ · y_e: (E, P, I), (E, P, J) -> (E, I, J)."""
    if not x.is_cuda:
        return torch.bmm(x.transpose(1, 2), y)
    # One small matrix from a long sum would keep a single multiprocessor busy, so each edge's sum is cut in parts.
    parts = next(n for n in (128, 64, 32, 16, 8, 4, 2, 1) if x.shape[1] % n == 0)
    pairs = (tuple(one.unflatten(0, (parts, -1)) for one in pair) for pair in zip(x, y, strict=True))
    return torch.stack([torch.bmm(left.transpose(1, 2), right).sum(0) for left, right in pairs])
