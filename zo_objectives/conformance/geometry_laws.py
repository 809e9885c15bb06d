"""Laws 1 and 2 of geometries: noise is a pure function of key, tensor and element; E[z z^T] = I."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zo_objectives.conformance.toy import CPU, DTYPES
from zo_objectives.search.geometry import Geometry, Leaf
from zo_objectives.search.keys import direction_keys

LEAVES = (Leaf("a.weight", (3, 4)), Leaf("b.weight", (3, 4)), Leaf("c.bias", (5,)))


def drawn(geometry: Geometry, keys: Sequence[int], leaves: Sequence[Leaf] = LEAVES) -> Tensor:
    """[len(keys), all elements]: directions in several tensors side by side."""
    return torch.cat([geometry.directions(keys, leaf, range(math.prod(leaf.shape)), CPU) for leaf in leaves], dim=1)


def check_geometry(geometry: Geometry, leaves: Sequence[Leaf] = LEAVES) -> None:
    """Laws 1 and 2, on `leaves`, two of which at least should have the same shape."""
    _check_slices(geometry, leaves)
    _check_axpy(geometry, leaves)
    _check_moments(geometry, leaves)
    for leaf in leaves:
        assert geometry.probe_gain(leaf.name) > 0 and geometry.step_gain(leaf.name) > 0
        if (factors := geometry.factors([3, 4], leaf, CPU)) is not None:
            whole = geometry.directions([3, 4], leaf, range(math.prod(leaf.shape)), CPU)
            products = (factors.left @ factors.right.transpose(1, 2)).flatten(1)
            torch.testing.assert_close(products, whole)


def _check_slices(geometry: Geometry, leaves: Sequence[Leaf]) -> None:
    """A slice of a direction is the slice of the whole; a direction does not depend on what else is asked for."""
    for leaf in leaves:
        n = math.prod(leaf.shape)
        whole = geometry.directions([5, 2**63], leaf, range(n), CPU)
        assert whole.shape == (2, n) and whole.dtype == torch.float32
        for start, stop in itertools.combinations(range(n + 1), 2):
            assert torch.equal(geometry.directions([5, 2**63], leaf, range(start, stop), CPU), whole[:, start:stop])
        assert torch.equal(geometry.directions([2**63], leaf, range(n), CPU), whole[1:])


def _check_axpy(geometry: Geometry, leaves: Sequence[Leaf]) -> None:
    """axpy is the same in pieces, in place and in every dtype: the rounded float32 result."""
    for leaf, dtype in itertools.product(leaves, DTYPES):
        n = math.prod(leaf.shape)
        base = torch.linspace(-1, 1, n).to(dtype)
        z = geometry.directions([5], leaf, range(n), CPU)[0]
        expected = (base.float() + z * torch.tensor(0.3)).to(dtype)
        for cut in range(n):
            out, inside = torch.empty(n, dtype=dtype), base.clone()
            for start, stop in ((0, cut), (cut, n)):
                geometry.axpy(out[start:stop], base[start:stop], 5, leaf, 0.3, start)
                geometry.axpy(inside[start:stop], inside[start:stop], 5, leaf, 0.3, start)
            assert torch.equal(out, expected) and torch.equal(inside, expected)


def _check_moments(geometry: Geometry, leaves: Sequence[Leaf], count: int = 20_000) -> None:
    """Mean 0 and E[z z^T] = I on the elements that move at all: within a tensor, across tensors and across keys."""
    z = drawn(geometry, direction_keys(1, count), leaves).double()
    moves = (z != 0).any(0)
    assert moves.any()
    bound = 5.5 * math.sqrt(3 / count)  # products of two elements have variance 3 at most
    assert (z.T @ z / count - torch.diag(moves.double())).abs().max() < bound
    assert z.mean(0).abs().max() < bound
    assert (z[:-1].T @ z[1:] / count).abs().max() < bound
    if geometry.signs:
        assert torch.equal(z[:, moves].abs(), torch.ones_like(z[:, moves]))
