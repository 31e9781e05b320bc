"""Ridge logistic regression of many dimensions on few examples, exactly. Pure."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_STEPS = 50
_LONGEST = 10.0  # a Newton step may move no example's logit by more
_BIAS_RIDGE = 1e-9  # the bias is free, but for what keeps the equations solvable


def fit_logistic(examples: Floats, shares: Floats, is_positive: npt.NDArray[np.bool_], strength: float) -> Floats:
    """Minimise strength * sum_i shares_i * log(1 + exp(-y_i (w . x_i + b))) + |w|^2 / 2 by Newton's method.

    It is solved in the span of the examples, in which w lies, so that 26 examples of 1,700 dimensions cost what 26
    dimensions do. (Hastie, Tibshirani & Friedman, The Elements of Statistical Learning, 2nd ed., 4.4.1 and 18.3.5.)

    Args:
        examples: (N, D).
        shares: (N,) weight of each example in the loss.
        is_positive: (N,), both kinds among them.
        strength: inverse of the penalty, scikit-learn's ``C``.

    Returns: (D + 1,): w, then b.
    """
    centre = examples.mean(axis=0)
    left, lengths, directions = np.linalg.svd(examples - centre, full_matrices=False)
    x = np.column_stack([left * lengths, np.ones(len(examples))])
    penalty = np.diag([1.0] * len(lengths) + [_BIAS_RIDGE]) / strength
    found = np.zeros(x.shape[1])
    for _ in range(_STEPS):
        chance = 0.5 * (1 + np.tanh(x @ found / 2))
        gradient = x.T @ (shares * (chance - is_positive)) + penalty @ found
        curvature = (x * (shares * chance * (1 - chance) + 1e-12)[:, None]).T @ x + penalty
        step = np.linalg.solve(curvature, gradient)
        step *= min(1.0, _LONGEST / max(float(np.abs(x @ step).max()), 1e-12))
        found -= step
        if np.abs(x @ step).max() < 1e-8:
            break
    weights: Floats = found[:-1] @ directions
    return np.append(weights, found[-1] - float(weights @ centre))


def balanced(is_positive: npt.NDArray[np.bool_], shares: Floats | None = None) -> Floats:
    """Shares that let both kinds weigh the same, their sum the number of examples. Args, returns: (N,)."""
    given = np.ones(len(is_positive)) if shares is None else shares.astype(np.float64)
    half = len(is_positive) / 2
    totals = [given[~is_positive].sum(), given[is_positive].sum()]
    return np.asarray(np.where(is_positive, given * half / totals[1], given * half / totals[0]), np.float64)
