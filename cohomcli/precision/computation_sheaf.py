"""The linearised computation sheaf of a small graph, where first cohomology is output error.

Stalks are the tangent spaces T_v of the vertices' values and (d x)_v = x_v - sum_u J_vu x_u for every vertex v that is
not an input, with J_vu the Jacobian block of v by its operand u. So C^0 = sum over all T_v, C^1 = sum over the T_v of
non-inputs, and d x = 0 says that x is a tangent of the program's graph. Topological order makes d, restricted to the
non-inputs, block triangular with identities on the diagonal, hence invertible. Therefore
    all of C^0:                        H^0 = the input space, H^1 = 0;
    relative to the inputs (x = 0 there):  H^0 = H^1 = 0;
    relative to inputs and outputs:    H^0 = 0, H^1 = the output space,
the last by the long exact sequence 0 -> sum of output stalks -> H^1(relative to both) -> H^1(relative to inputs) = 0.
A rounding cochain (delta_v) in C^1, what storing v adds to v, perturbs the program by the x with d x = delta, and its
class is x on the outputs: the first-order output error sum_v J_(out <- v) delta_v. Its pairing with a covector on the
outputs is sum_v g_v . delta_v, with g the adjoint: reverse-mode differentiation. A weight or input that is itself
rounded is two vertices: the exact value, and its store, an operation with Jacobian 1. (Griewank and Walther,
Evaluating Derivatives, 2008, chapter 3, for the linear algebra; Hansen and Ghrist 2019 for cellular sheaves.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Cochain = Mapping[int, Vector]
Relative = Literal["nothing", "inputs", "inputs and outputs"]

# A Mersenne prime: products of two residues stay below 2^62 and fit int64.
PRIME = 2**31 - 1


@dataclass(frozen=True)
class ComputationSheaf:
    """Stalk dimensions `dims` (n,) in topological order and Jacobian `blocks`, (u, v) with u < v -> (dims[v], dims[u]).

    A vertex without operands is an input. `outputs` are vertices that are not inputs.

    Raises:
        ValueError: a block against the order or of the wrong shape or not finite, or an output that is an input.
    """

    dims: tuple[int, ...]
    blocks: Mapping[tuple[int, int], NDArray[np.float64]]
    outputs: tuple[int, ...]

    def __post_init__(self) -> None:
        for (u, v), block in self.blocks.items():
            if not 0 <= u < v < len(self.dims) or block.shape != (self.dims[v], self.dims[u]):
                raise ValueError(f"block {u} -> {v} of shape {block.shape} does not fit the dimensions {self.dims}")
            if not np.isfinite(block).all():
                raise ValueError(f"block {u} -> {v} is not finite")
        if not set(self.outputs) <= set(range(len(self.dims))) - set(self.inputs):
            raise ValueError(f"outputs {self.outputs} must be vertices that are not inputs {self.inputs}")

    @property
    def inputs(self) -> tuple[int, ...]:
        """The vertices no block leads to."""
        heads = {v for _, v in self.blocks}
        return tuple(v for v in range(len(self.dims)) if v not in heads)

    @property
    def operations(self) -> tuple[int, ...]:
        """The vertices that are not inputs: the rows of d."""
        return tuple(sorted({v for _, v in self.blocks}))


@dataclass(frozen=True)
class ComputationCohomology:
    """Dimensions of H^0 and H^1 and the rank of d, relative to a set of vertices."""

    relative: Relative
    h0: int
    h1: int
    rank: int


def coboundary(sheaf: ComputationSheaf, relative: Relative = "nothing") -> NDArray[np.float64]:
    """The matrix of d: rows are the operations' stalks, columns the stalks of the vertices not set to zero."""
    columns = _free(sheaf, relative)
    if not sheaf.operations or not columns:
        return np.zeros((_dim(sheaf, sheaf.operations), _dim(sheaf, columns)))
    return np.block([[_entry(sheaf, u, v) for u in columns] for v in sheaf.operations])


def cohomology(sheaf: ComputationSheaf, relative: Relative = "nothing") -> ComputationCohomology:
    """H^0 = ker d and H^1 = coker d by exact rank.

    Jacobian entries are floats, so elements of Z[1/2], which maps to the field of p = 2^31 - 1 elements. A minor that
    is not zero mod p is not zero, so the rank mod p is a lower bound of the rank; full rank is an upper bound, and a
    program's d reaches it, because its triangular part has determinant 1.

    Raises:
        ArithmeticError: the rank mod p is not full, so that it proves nothing (impossible for a valid sheaf).
    """
    d = coboundary(sheaf, relative)
    rank = _rank_mod_p(_residues(d))
    if rank != min(d.shape):
        raise ArithmeticError(f"d has rank {rank} mod p, not the full {min(d.shape)} of a program")
    return ComputationCohomology(relative, d.shape[1] - rank, d.shape[0] - rank, rank)


def perturbation(sheaf: ComputationSheaf, cochain: Cochain) -> dict[int, Vector]:
    """The x with d x = cochain that vanishes on the inputs: forward accumulation, one vector per vertex.

    `cochain` maps operations to vectors (dims[v],); missing ones are zero.

    Raises:
        ValueError: the cochain has a value on an input or of a wrong shape.
    """
    for v, value in cochain.items():
        if v not in sheaf.operations or value.shape != (sheaf.dims[v],):
            raise ValueError(f"a 1-cochain has no value of shape {value.shape} at vertex {v}")
    x = {v: np.array(cochain.get(v, np.zeros(d)), dtype=np.float64) for v, d in enumerate(sheaf.dims)}
    for u, v in sorted(sheaf.blocks, key=lambda edge: edge[1]):
        x[v] += sheaf.blocks[u, v] @ x[u]
    return x


def class_of(sheaf: ComputationSheaf, cochain: Cochain) -> Vector:
    """The class of a cochain in H^1 relative to inputs and outputs, in output coordinates: the first-order error.

    Shape (sum of the outputs' dims,), in the order of `outputs`. It is zero exactly when the cochain is d of an x that
    vanishes on inputs and outputs: when the roundings cancel.
    """
    x = perturbation(sheaf, cochain)
    return np.concatenate([x[v] for v in sheaf.outputs])


def adjoint(sheaf: ComputationSheaf, covector: Vector) -> dict[int, Vector]:
    """g_v = J_(out <- v)^T covector for every vertex: reverse accumulation.

    `covector` (sum of the outputs' dims,) lies in the dual of H^1.

    Raises:
        ValueError: the covector has another shape.
    """
    ends = np.cumsum([sheaf.dims[v] for v in sheaf.outputs])
    if covector.shape != (int(ends[-1]) if len(ends) else 0,):
        raise ValueError(f"a covector on the outputs does not have shape {covector.shape}")
    g = {v: np.zeros(d) for v, d in enumerate(sheaf.dims)}
    for v, part in zip(sheaf.outputs, np.split(covector, ends[:-1]), strict=True):
        g[v] += part
    for u, v in sorted(sheaf.blocks, key=lambda edge: edge[1], reverse=True):
        g[u] += sheaf.blocks[u, v].T @ g[v]
    return g


def pairing(sheaf: ComputationSheaf, covector: Vector, cochain: Cochain) -> float:
    """<covector, class of the cochain> as sum_v g_v . delta_v, without computing the class."""
    g = adjoint(sheaf, covector)
    return float(sum(g[v] @ value for v, value in cochain.items()))


def _free(sheaf: ComputationSheaf, relative: Relative) -> tuple[int, ...]:
    zero = set() if relative == "nothing" else set(sheaf.inputs)
    if relative == "inputs and outputs":
        zero |= set(sheaf.outputs)
    return tuple(v for v in range(len(sheaf.dims)) if v not in zero)


def _dim(sheaf: ComputationSheaf, vertices: Sequence[int]) -> int:
    return sum(sheaf.dims[v] for v in vertices)


def _entry(sheaf: ComputationSheaf, u: int, v: int) -> NDArray[np.float64]:
    if u == v:
        return np.eye(sheaf.dims[v])
    block = sheaf.blocks.get((u, v))
    return np.zeros((sheaf.dims[v], sheaf.dims[u])) if block is None else -block


def _residues(matrix: NDArray[np.float64]) -> NDArray[np.int64]:
    """The image of a matrix of finite floats m * 2^e under the ring homomorphism Z[1/2] -> Z/p."""
    mantissa, exponent = np.frexp(matrix)
    whole = (mantissa * 2.0**53).astype(np.int64) % PRIME
    power = np.vectorize(lambda e: pow(2, int(e) - 53, PRIME), otypes=[np.int64])(exponent)
    residues: NDArray[np.int64] = whole * power % PRIME
    return residues


def _rank_mod_p(a: NDArray[np.int64]) -> int:
    """Rank over Z/p by Gaussian elimination; O(rows * columns * rank), so for graphs of some hundred dimensions."""
    a, rank = a.copy(), 0
    for column in range(a.shape[1]):
        candidates = np.flatnonzero(a[rank:, column])
        if not len(candidates):
            continue
        pivot = rank + candidates[0]
        a[[rank, pivot]] = a[[pivot, rank]]
        a[rank] = a[rank] * pow(int(a[rank, column]), -1, PRIME) % PRIME
        a[rank + 1 :] = (a[rank + 1 :] - a[rank + 1 :, column, None] * a[rank]) % PRIME
        rank += 1
    return rank
