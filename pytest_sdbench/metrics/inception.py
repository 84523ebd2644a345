"""Compute the Inception score with torch-fidelity's splits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pytest_sdbench.metrics.moments import Array, Rows


class InceptionScore:
    """The Inception score of n images whose logits arrive in batches, in the order of the images.

    exp(E KL(p(y|x) || p(y))) per split (Salimans et al. 2016), averaged over the splits. As in torch-fidelity
    the images are shuffled first, with numpy's legacy generator; since the permutation follows from n alone,
    the logits need not be kept.
    """

    def __init__(self, n: int, *, splits: int = 10, shuffle_seed: int | None = 2020) -> None:
        if not 1 <= splits <= n:
            raise ValueError(f"{n} images cannot be split in {splits}")
        order = np.arange(n) if shuffle_seed is None else np.random.RandomState(shuffle_seed).permutation(n)
        self._split_of: npt.NDArray[np.intp] = np.empty(n, np.intp)
        for split in range(splits):
            self._split_of[order[split * n // splits : (split + 1) * n // splits]] = split
        self._count = np.bincount(self._split_of, minlength=splits)
        self._negentropy = np.zeros(splits)
        self._marginal: Array | None = None
        self._seen = 0

    def update(self, logits: Rows) -> None:
        """Add the logits of the next images, [B, classes]; raises ValueError for more images than
        announced."""
        if self._seen + len(logits) > len(self._split_of):
            raise ValueError(f"more than the announced {len(self._split_of)} images")
        log_p = np.asarray(logits, np.float64)
        log_p = log_p - log_p.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        splits = self._split_of[self._seen : self._seen + len(logits)]
        if self._marginal is None:
            self._marginal = np.zeros((len(self._count), logits.shape[1]))
        np.add.at(self._negentropy, splits, (p * log_p).sum(axis=1))
        np.add.at(self._marginal, splits, p)
        self._seen += len(logits)

    def split_scores(self) -> Array:
        """Return the score of each split; raises ValueError before all images were seen."""
        if self._seen != len(self._split_of) or self._marginal is None:
            raise ValueError(f"{self._seen} of {len(self._split_of)} images seen")
        q = self._marginal / self._count[:, None]
        # The mean over x of p(y|x) log p(y) is p(y) log p(y), and 0 log 0 is 0.
        entropy = np.where(q > 0, q * np.log(np.where(q > 0, q, 1.0)), 0.0).sum(axis=1)
        return np.asarray(np.exp(self._negentropy / self._count - entropy))

    def score(self) -> float:
        """Return the mean over the splits; their spread is no standard error and is not offered as one."""
        return float(self.split_scores().mean())


def inception_score(logits: Rows, *, splits: int = 10, shuffle_seed: int | None = 2020) -> float:
    """Return the Inception score of logits, [n, classes] (see InceptionScore)."""
    whole = InceptionScore(len(logits), splits=splits, shuffle_seed=shuffle_seed)
    whole.update(logits)
    return whole.score()
