"""The product B A of two LoRA factors, its singular values and directions, without ever forming it."""

import torch
from torch import Tensor

# The least singular value of a new A, as a share of the target's root mean square singular value.
_LEAST_SHARE = 0.1


def triplets(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """B A as a sum of rank-one terms: `left` [out, k], `right` [k, in] and `basis` [rank, k], k = min(rank, in).

    B A = left @ right. The rows of `right` are orthonormal and span those of A, A = basis @ right; the columns of
    `left` are orthogonal, of falling length: the singular values. By QR of the factors and an SVD of k x k at most. The
    sign of a term is fixed by its right vector, so that `left` and `right` depend on the product alone wherever its
    singular values differ from each other and from zero, whatever basis A and B are written in.

    `a` is [rank, in], `b` [out, rank].

    >>> left, right, _ = triplets(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0], [0.0]]))
    >>> left.norm(dim=0), right
    (tensor([10.]), tensor([[0.6000, 0.8000]]))
    """
    q_a, r_a = torch.linalg.qr(a.T)
    _, r_b = torch.linalg.qr(b)
    turn = torch.linalg.svd(r_b @ r_a.T).Vh  # full: also what the product leaves free
    right = turn @ q_a.T
    signs = right.gather(1, right.abs().argmax(dim=1, keepdim=True)).sign()
    basis = (turn @ r_a).T * signs.T
    return b @ basis, right * signs, basis


def truncate(stacked_a: Tensor, stacked_b: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The best rank-r approximation of stacked_b @ stacked_a, as factors whose A is near `target`.

    Shapes: stacked_a [m, in], stacked_b [out, m], target [r, in], whose rows must lie in the span of stacked_a's for A
    to come near them; returns A [r, in] and B [out, r].
    """
    rank = len(target)
    q_a, r_a = torch.linalg.qr(stacked_a.T)
    q_b, r_b = torch.linalg.qr(stacked_b)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)  # full matrices: vh also spans what the product leaves free
    kept = min(rank, int((s > 1e-12 * s[0]).sum()))
    # Directions the product does not need are taken where the target is largest, so that no part of A dies.
    free = vh[kept:]
    free = torch.linalg.svd((target @ q_a) @ free.T).Vh[: rank - kept] @ free
    basis = torch.cat((vh[:kept], free)) @ q_a.T  # orthonormal rows; fewer than r where in_features < r
    basis = _pad(basis, rank, dim=0)
    columns = _pad((q_b @ u[:, :kept]) * s[:kept], rank, dim=1)
    # The change of basis M that brings M @ basis nearest to the target is target @ basis.T (least squares). Its
    # singular values are bounded below, or M's inverse would blow B up where the target lies outside the basis.
    left, sizes, right = torch.linalg.svd(target @ basis.T)
    # A zero target has no size of its own: 1 / sqrt(3) is every singular value's RMS in PEFT's fresh A.
    typical = float(target.norm()) * rank**-0.5 or 3**-0.5
    sizes = sizes.clamp(min=_LEAST_SHARE * typical)
    return (left * sizes) @ (right @ basis), (columns @ right.T) / sizes @ left.T


def _pad(matrix: Tensor, size: int, *, dim: int) -> Tensor:
    shape = list(matrix.shape)
    shape[dim] = size - shape[dim]
    return torch.cat((matrix, matrix.new_zeros(shape)), dim=dim)
