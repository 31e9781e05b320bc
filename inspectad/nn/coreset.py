"""Greedy k-centre selection: the few patches that leave no other patch far from the nearest one kept."""

import numpy as np
import numpy.typing as npt

from inspectad.records import FloatArray

_CANDIDATES = 2048  # how many of the farthest points one round looks at


def project(features: FloatArray, dimensions: int, seed: int) -> FloatArray:
    """Random projection that keeps distances approximately (Johnson-Lindenstrauss), to make the selection cheap.

    Args: features (N, D). Returns: (N, min(dimensions, D)) float32; the features themselves when D is no larger.
    """
    if features.shape[1] <= dimensions:
        return features
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((features.shape[1], dimensions), dtype=np.float32) / np.float32(dimensions**0.5)
    return np.asarray(features @ matrix, np.float32)


def greedy_coreset(points: FloatArray, size: int) -> npt.NDArray[np.intp]:
    """Indices of ``size`` points by farthest-point traversal, starting with point 0.

    At most twice the best covering radius (Gonzalez, 1985; Sener & Savarese, 2018, call it k-centre greedy).

    The plain algorithm updates every point's distance at each step. This one gives the same traversal with far
    fewer updates: distances only fall, so a point outside the current candidates can not be the farthest as long
    as some candidate is farther than all others were when the candidates were taken.

    Args:
        points: (N, D) float32.
        size: how many to choose; all of them when N is no larger.
    """
    count = len(points)
    if count <= size:
        return np.arange(count)
    squares = np.einsum("nd,nd->n", points, points)
    distances = _squared_distances(points, squares, np.array([0]))
    distances[0] = -np.inf  # a chosen point is never chosen again, however many copies of it there are
    chosen = [0]
    while len(chosen) < size:
        fresh = _extend(points, squares, distances, size - len(chosen))
        chosen += fresh
        np.minimum(distances, _squared_distances(points, squares, np.array(fresh)), out=distances)
        distances[fresh] = -np.inf
    return np.array(chosen, np.intp)


def _extend(points: FloatArray, squares: FloatArray, distances: FloatArray, wanted: int) -> list[int]:
    """The next points of the traversal, at least one, as far as the farthest candidates alone can tell."""
    count = min(_CANDIDATES, len(points))
    if count < len(points):
        order = np.argpartition(distances, len(points) - count - 1)
        candidates = np.sort(order[len(points) - count :])
        bound = float(distances[order[len(points) - count - 1]])
    else:
        candidates, bound = np.arange(len(points)), -np.inf
    near, near_squares, left = points[candidates], squares[candidates], distances[candidates].copy()
    fresh: list[int] = []
    while len(fresh) < wanted:
        i = int(left.argmax())
        if fresh and left[i] < bound:
            break
        fresh.append(int(candidates[i]))
        np.minimum(left, near_squares + near_squares[i] - 2.0 * (near @ near[i]), out=left)
        left[i] = -np.inf
    return fresh


def _squared_distances(points: FloatArray, squares: FloatArray, to: npt.NDArray[np.intp]) -> FloatArray:
    """Squared distance of each point to the nearest of ``points[to]``, (N,), in blocks that stay small."""
    best = np.full(len(points), np.inf, np.float32)
    for start in range(0, len(to), 256):
        block = to[start : start + 256]
        for low in range(0, len(points), 16384):
            rows = slice(low, low + 16384)
            product = points[rows] @ points[block].T
            np.minimum(best[rows], squares[rows] + (squares[block] - 2.0 * product).min(axis=1), out=best[rows])
    return best
