"""The codec: fields <-> latent tokens, by kernels in relative coordinates.

A token at centre c gathers the field at the lattice nodes of its cell, z_c = sum_j K_j u(c + o_j); a point x gathers
the tokens around it, u(x) = sum_{c,j} phi(x - c - o_j) W_j z_c, with phi the six-point Lagrange cardinal kernel. As phi
is 1 at its own node, 0 at every other, and sums to one, decoding on the lattice itself is a strided transposed
convolution (the fast path) and agrees with the point path to rounding.

When `latent_dim` is at least the number of values in a cell the codec is an isometry: it loses nothing. Otherwise `fit`
starts it at the best linear subspace of the training data (principal components), and training takes it from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

POINTS = 6  # of the interpolation kernel, per axis
NEAR_VALUES = 2**24  # grid values gathered around points at once, at most, but those of one point: memory stays small
FITTED = 4096  # samples that a lossy codec's principal components are taken of, at most
ROUNDING = 2e-6  # largest entry of what an isometry in float32 is from one


class Codec(nn.Module):
    """Encoder and decoder of one task's fields.

    Args:
        channels: number of fields.
        latent_dim: width of a token.
        patch: lattice cells per token and axis.
        periodic: per axis; a field is wrapped where periodic, mirrored elsewhere, when points near an end are decoded.
    """

    def __init__(self, channels: int, latent_dim: int, patch: int, periodic: Sequence[bool]) -> None:
        super().__init__()
        self.axes, self.patch, self.periodic = len(periodic), patch, tuple(periodic)
        self.channels, self.latent_dim = channels, latent_dim
        self.values: int = channels * patch**self.axes
        names = "xyz"[: self.axes]
        self._outer, self._inner = " ".join(names), " ".join(f"{name}p" for name in names)
        self._grid = " ".join(f"({name} {name}p)" for name in names)
        self._sizes = {f"{name}p": patch for name in names}
        basis = torch.linalg.qr(torch.randn(max(latent_dim, self.values), min(latent_dim, self.values))).Q
        basis = basis if latent_dim >= self.values else basis.T
        weight = basis.reshape(latent_dim, channels, *[patch] * self.axes)
        self.encoder, self.decoder = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
        for kernel in (self.encoder, self.decoder):
            kernel.no_muon = True  # type: ignore[attr-defined]  # starts at its optimum; orthogonalised steps would leave it

    @property
    def lossless(self) -> bool:
        """Whether a token has room for every value of its cell."""
        return self.latent_dim >= self.values

    @property
    def exact(self) -> bool:
        """Whether decoding undoes encoding to rounding, by the weights as they are."""
        both = self.decoder.detach().flatten(1).double().T @ self.encoder.detach().flatten(1).double()
        return bool((both - torch.eye(self.values).to(both)).abs().max() < ROUNDING)

    # A convolution whose stride is its kernel's width is one matrix product over cells: several times as fast on a CPU.

    def encode(self, u: Float[Tensor, "batch channel *grid"]) -> Float[Tensor, "batch latent *tokens"]:
        cells = rearrange(u, f"b c {self._grid} -> b (c {self._inner}) {self._outer}", **self._sizes)
        return torch.einsum("lv,bv...->bl...", self.encoder.flatten(1), cells)

    def decode(self, z: Float[Tensor, "batch latent *tokens"]) -> Float[Tensor, "batch channel *grid"]:
        """The field at every lattice node."""
        cells = torch.einsum("lv,bl...->bv...", self.decoder.flatten(1), z)
        return rearrange(cells, f"b (c {self._inner}) {self._outer} -> b c {self._grid}", **self._sizes)

    def decode_at(
        self, z: Float[Tensor, "batch latent *tokens"], points: Float[Tensor, "point axis"]
    ) -> Float[Tensor, "batch channel point"]:
        """The field at any points, given in lattice cells: node i of an axis lies at i.

        The whole lattice is decoded, then interpolated at the points.
        """
        return self.interpolate(self.decode(z), points)

    def interpolate(
        self, u: Float[Tensor, "batch channel *grid"], points: Float[Tensor, "point axis"]
    ) -> Float[Tensor, "batch channel point"]:
        """The Lagrange interpolation of a field on the lattice at points in lattice cells, some points at a time."""
        most = max(1, NEAR_VALUES // max(1, u.shape[0] * u.shape[1] * POINTS**self.axes))
        return torch.cat([self._interpolate(u, some) for some in points.split(most)], dim=2)

    def _interpolate(
        self, u: Float[Tensor, "batch channel *grid"], points: Float[Tensor, "point axis"]
    ) -> Float[Tensor, "batch channel point"]:
        index: Tensor | None = None
        weight: Tensor | None = None
        for axis, size in enumerate(u.shape[2:]):
            nodes, weights = lagrange_stencil(points[:, axis], size, self.periodic[axis])
            index = (
                nodes if index is None else rearrange(index * size, "n k -> n k 1") + rearrange(nodes, "n k -> n 1 k")
            )
            weight = (
                weights if weight is None else rearrange(weight, "n k -> n k 1") * rearrange(weights, "n k -> n 1 k")
            )
            index, weight = index.flatten(1), weight.flatten(1)
        if index is None or weight is None:
            raise ValueError("a field needs at least one axis")
        near: Tensor = u.flatten(2)[:, :, index.flatten()].unflatten(2, tuple(index.shape))
        return (near * weight.to(u.dtype)).sum(-1)

    @torch.no_grad()
    def fit(self, samples: Float[Tensor, "batch channel *grid"]) -> None:
        """Starts a lossy codec at the principal components of the cells of `samples` (normalised fields)."""
        if self.lossless:
            return
        cells = samples.double()
        for axis in range(self.axes):
            cells = cells.unfold(2 + axis, self.patch, self.patch)
        order = [0, *range(2, 2 + self.axes), 1, *range(2 + self.axes, 2 + 2 * self.axes)]
        cells = cells.permute(order).reshape(-1, self.values)
        covariance = cells.T @ cells / len(cells)
        components = torch.linalg.eigh(covariance).eigenvectors[:, -self.latent_dim :].T
        weight = components.reshape(self.encoder.shape).to(self.encoder.dtype)
        self.encoder.copy_(weight)
        self.decoder.copy_(weight)

    def fit_first(self, batches: Iterable[Float[Tensor, "batch channel *grid"]]) -> None:
        """As `fit`, by the first `FITTED` of the samples; a lossless codec reads none of them."""
        samples: list[Tensor] = []
        wanted = 0 if self.lossless else FITTED
        for batch in batches if wanted else ():
            samples.append(batch[:wanted])
            wanted -= len(samples[-1])
            if wanted == 0:
                break
        if samples:
            self.fit(torch.cat(samples))


def lagrange_stencil(position: Float[Tensor, " point"], size: int, periodic: bool) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the six-point Lagrange interpolation at `position` (in cells) on an axis of `size` nodes.

    Returns:
        node indices (point, 6), wrapped or mirrored into the axis, and weights (point, 6) that sum to one (float64).
    """
    position = position.double()
    first = torch.floor(position) - (POINTS // 2 - 1)
    offset = (position - first)[:, None]
    knots = torch.arange(POINTS, dtype=torch.float64, device=position.device)
    weights = torch.ones(len(position), POINTS, dtype=torch.float64, device=position.device)
    for other in range(POINTS):
        factor = (offset - other) / torch.where(knots == other, torch.ones_like(knots), knots - other)
        weights = torch.where(knots == other, weights, weights * factor)
    nodes = (first[:, None] + knots).long()
    if periodic:
        return nodes % size, weights
    nodes = nodes % (2 * size)
    return torch.where(nodes >= size, 2 * size - 1 - nodes, nodes), weights
