"""One logit per sample: soft weights out, the objective's step in. Numpy only; serves any task and any domain.

The objective, over all N samples, with y = sigmoid(s * m) and f from `core.signal`:

    sum_i y_i * (f_i - neutral)  +  N * lam * (kept share - target)^2

The first sum is AdaPruner's task and selection term (arXiv 2312.05599) less a constant `neutral`, the pressure at which
a sample is neither pushed out nor pulled in. Without it f >= 1 pushes every sample out, and lambda has to lift the
whole set back. The second term is its compression term, over the data set rather than the batch.

The step is mirror descent with the entropy of a Bernoulli variable as mirror map (exponentiated gradient, Kivinen and
Warmuth 1997): the gradient by y moves the logit. A plain gradient by m carries a factor y(1 - y), which dies as a
decision hardens; here a sample whose weight is nearly 0 comes back as fast as it went. The logits have no momentum, so
that only a sample's own evidence moves it against the others.

A sum of all steps would not forget: the pressure has no upper bound, but no lower one than 1 either, so that a wrong
epoch pushes a sample out further than many right ones can bring it back. `memory` lets older steps fade, down to what
an earlier run left of its own (`base`), or to nothing.

The compression term has the same gradient for every sample: it moves all logits by one common amount and puts none
before another. So its step is one number, found by line search: as far as the target, not past it. A fixed step passes
it whenever many logits lie close together, and then the whole set is dropped and taken back in turn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MOST = 1e12  # of a pressure, infinite ones included
_CHUNK = 1 << 18  # samples a stride: what an update makes on the way stays small however many there are


class Mask:
    """Mask logits of N samples.

    Args:
        n: number of samples, >= 1.
        logit: where each logit starts; above 0, so that everything is kept until evidence says otherwise.

    Attributes:
        logits: (N,) float64. A sample counts as kept while its logit is at least 0 (weight at least 0.5).
        base: (N,) float64, what a logit fades to; 0, the cut, where nothing was known before the first step.
    """

    def __init__(self, n: int, logit: float = 1.0) -> None:
        if n < 1:
            raise ValueError(f"Expected at least one sample, but got {n}.")
        self.logits: NDArray[np.float64] = np.full(n, logit, np.float64)
        self.base: NDArray[np.float64] = np.zeros(n)

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def kept_share(self) -> float:
        """Share of the samples whose weight is at least 0.5, [0, 1]."""
        return float((self.logits >= 0).mean())

    def weights(self, s: float) -> NDArray[np.float32]:
        """Return sigmoid(s * logit) of every sample, (N,) float32 in [0, 1]."""
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
        clip: float = 20.0,
        evidence: NDArray[np.floating] | None = None,
        memory: float = 1.0,
    ) -> None:
        """Take one step for every sample that has evidence.

        Args:
            pressure: f of each sample, (N,); NaN for a sample outside the game, whose logit stays as it is.
            neutral: the pressure that moves nothing.
            lam: strength of the compression term, >= 0. It may move the logits by up to `lam` times what a sample's own
                evidence may; from 1 on, no evidence that all samples share can keep the target out of reach.
            target: kept share asked for now, (0, 1].
            rate: logit units per unit of pressure, > 0.
            clip: what |pressure - neutral| of one step stays below: x counts as x / (1 + |x| / clip), so that one
                epoch cannot decide alone, and yet no two pressures count the same.
            evidence: (N,) in [0, 1], the part of its own step that each sample takes; 1 each if None. At 0 a sample
                only goes along with the common step, which puts no sample before another: one that stayed behind
                would fall out, or stay in, for not having been looked at.
            memory: part of a logit that outlives the step, (0, 1]. It draws logits towards `base`, by default the cut,
                which puts no sample before another: only what moved them long ago comes to count for less. A sample
                forgets as far as it learns, by its `evidence`.

        Raises:
            ValueError: `pressure` or `evidence` has another length than the mask.
        """
        pressure = np.asarray(pressure, np.float64)
        if pressure.shape != self.logits.shape:
            raise ValueError(f"Expected one pressure for each of {len(self)} samples, but got shape {pressure.shape}.")
        share = np.broadcast_to(1.0, len(self)) if evidence is None else np.asarray(evidence, np.float64)
        if share.shape != self.logits.shape:
            raise ValueError(f"Expected the evidence of each of {len(self)} samples, but got shape {share.shape}.")
        seen = ~np.isnan(pressure)
        for begin in range(0, len(self), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            own = np.clip(pressure[part] - neutral, -_MOST, _MOST)
            own /= 1 + np.abs(own) / clip
            held = 1 - (1 - memory) * share[part]
            moved = held * self.logits[part] + (1 - held) * self.base[part] - rate * own * share[part]
            np.copyto(self.logits[part], moved, where=seen[part])
        reach = lam * rate * clip
        self.logits[seen] += np.clip(self._shift_to(target, seen), -reach, reach)

    def _shift_to(self, target: float, seen: NDArray[np.bool_]) -> float:
        """The common shift of the seen logits, by which the share kept of all samples comes to `target`."""
        # The kept share stands in for mean(y): at small s every y is near 0.5 and their mean says nothing about how
        # many samples would stay.
        moving = self.logits[seen]
        staying = int(np.count_nonzero(moving >= 0))
        wanted = round(target * len(self)) - (int(np.count_nonzero(self.logits >= 0)) - staying)
        if not len(moving) or wanted == staying:
            return 0.0
        cut = min(max(len(moving) - wanted, 0), len(moving) - 1)
        moving.partition([max(cut - 1, 0), cut])  # all that is asked of their order, at O(N)
        # 0 goes halfway between the last to go and the first to stay. Equal logits cannot be told apart and stay.
        return -float(moving[0] if cut == 0 else (moving[cut - 1] + moving[cut]) / 2)
