"""One logit per sample: soft weights out, the objective's step in. Numpy only; serves any task and any domain.

The objective, over all N samples, with y = sigmoid(s * m) and f from `core.signal`:

    sum_i y_i * (f_i - neutral)  +  N * lam * (kept share - target)^2

The first sum is AdaPruner's task and selection term (arXiv 2312.05599) less a constant `neutral`, the pressure at which
a sample is neither pushed out nor pulled in. Without it f >= 1 pushes every sample out, and lambda has to lift the
whole set back. The second term is its compression term, over the data set rather than the batch.

The step is mirror descent with the entropy of a Bernoulli variable as mirror map (exponentiated gradient, Kivinen and
Warmuth 1997): the gradient by y moves the logit. A plain gradient by m carries a factor y(1 - y), which dies as a
decision hardens; here a sample whose weight is nearly 0 comes back as fast as it went. The logits have no momentum and
no decay, so that only a sample's own evidence moves it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Mask:
    """Mask logits of N samples.

    Args:
        n: number of samples, >= 1.
        logit: where each logit starts; above 0, so that everything is kept until evidence says otherwise.

    Attributes:
        logits: (N,) float64. A sample counts as kept while its logit is at least 0 (weight at least 0.5).
    """

    def __init__(self, n: int, logit: float = 1.0) -> None:
        if n < 1:
            raise ValueError(f"Expected at least one sample, but got {n}.")
        self.logits: NDArray[np.float64] = np.full(n, logit, np.float64)

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def kept_share(self) -> float:
        """Share of the samples whose weight is at least 0.5, [0, 1]."""
        return float((self.logits >= 0).mean())

    def weights(self, s: float) -> NDArray[np.float32]:
        """Return sigmoid(s * logit) of every sample, (N,) float32 in (0, 1)."""
        # tanh does not overflow where exp would.
        return (0.5 * (1 + np.tanh(0.5 * s * self.logits))).astype(np.float32)

    def update(
        self,
        pressure: NDArray[np.floating],
        *,
        neutral: float,
        lam: float,
        target: float,
        rate: float = 0.5,
        clip: float = 4.0,
    ) -> None:
        """Take one step for every sample that has evidence.

        Args:
            pressure: f of each sample, (N,); NaN for a sample that was not seen, whose logit stays as it is.
            neutral: the pressure that moves nothing.
            lam: strength of the compression term, >= 0.
            target: kept share asked for now, (0, 1].
            rate: logit units per unit of pressure, > 0.
            clip: largest |pressure - neutral + compression| taken in one step; one wild epoch decides nothing alone.

        Raises:
            ValueError: `pressure` has another length than the mask.
        """
        pressure = np.asarray(pressure, np.float64)
        if pressure.shape != self.logits.shape:
            raise ValueError(f"Expected one pressure for each of {len(self)} samples, but got shape {pressure.shape}.")
        # The kept share stands in for mean(y) with y's own gradient (straight-through): at small s every y is near
        # 0.5 and their mean says nothing about how many samples would stay.
        compression = 2 * lam * (self.kept_share - target)
        gradient = np.clip(pressure - neutral + compression, -clip, clip)
        self.logits -= rate * np.where(np.isfinite(gradient), gradient, 0.0)
