"""Why a sample went: each dropped one gets one reason, worked out from the numbers in its row and nothing else.

Any of the numbers may be missing: a task without label judge, a run without neighbours. Knows no files and no labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.signal import channel_surprise
from yolo_adapruner.core.suspicion import doubtful, softplus

SUSPECT, DUPLICATE, DOUBTFUL, DRAWN = "label suspect", "duplicate", "doubtful", "drawn"
EASY, OUTLIER = "easy", "outlier"
REASONS = (SUSPECT, DUPLICATE, DOUBTFUL, DRAWN, EASY, OUTLIER)
KINDS = {"localisation": "shifted", "classification": "swapped", "presence": "spurious", "missing": "missing"}
"""The fault that each channel speaks of when it is the loudest."""
_LEAST = 1e-6


@dataclass(frozen=True, eq=False)
class Evidence:
    """The numbers behind a reason, each of N samples.

    Attributes:
        signal: nats, NaN where nothing was seen of a sample.
        suspicion: log odds that its labels are wrong, NaN unknown; None where nobody judged labels.
        kind: the likeliest kind of fault, "" unknown; with `suspicion`.
        twin: the sample it is a duplicate of, -1 none; None where nobody looked for any.
        lot: what it was ranked by for want of anything against it, NaN for others; None where no lots were drawn.
    """

    signal: NDArray[np.floating]
    suspicion: NDArray[np.floating] | None = None
    kind: NDArray[np.str_] | None = None
    twin: NDArray[np.integer] | None = None
    lot: NDArray[np.floating] | None = None


def explain(
    kept: NDArray[np.bool_], evidence: Evidence
) -> tuple[NDArray[np.str_], NDArray[np.str_], NDArray[np.int64]]:
    """Return each sample's reason, what kind of fault is suspected, and the kept sample it duplicates.

    The first that holds:

    1. *label suspect*: the suspicion is above 0, so that its labels are likelier wrong than right. Whether it has a
       twin does not matter then: a wrong label is one wherever it stands.
    2. *duplicate*: it has a twin that was kept, or that has one in turn.
    3. *doubtful*: more had to go, and its labels are wrong with a probability of `suspicion.DOUBT` or more, which is
       before any lot.
    4. *drawn*: nothing spoke against it, more had to go, and it drew a high lot.
    5. *easy*: its signal is at or below the median. Half of the set at least is harder, and what its classes keep
       is for the floors to see to: nothing it shows is lost with it.
    6. *outlier*: harder than most, and nothing says that its labels are to blame; or nothing was ever seen of it.

    Args:
        kept: (N,) bool.
        evidence: the numbers.

    Returns:
        reason: (N,), one of `REASONS`, "" where kept. kind: (N,), "" unless suspect or doubtful. twin: (N,), -1 unless
            duplicate.
    """
    signal = np.asarray(evidence.signal, np.float64)
    seen = np.isfinite(signal)
    median = np.median(signal[seen]) if seen.any() else np.inf
    twin = kept_twin(kept, evidence.twin)
    unknown = np.full(len(kept), np.nan)
    suspicion = unknown if evidence.suspicion is None else np.asarray(evidence.suspicion, np.float64)
    drawn = np.zeros(len(kept), bool) if evidence.lot is None else np.isfinite(evidence.lot)
    reason = np.select(
        [kept, suspicion > 0, twin >= 0, drawn & doubtful(softplus(suspicion)), drawn, seen & (signal <= median)],
        ["", SUSPECT, DUPLICATE, DOUBTFUL, DRAWN, EASY],
        OUTLIER,
    )
    kind = np.full(len(kept), "") if evidence.kind is None else np.asarray(evidence.kind)
    named = (reason == SUSPECT) | (reason == DOUBTFUL)
    return reason, np.where(named, kind, ""), np.where(reason == DUPLICATE, twin, -1)


def kept_twin(kept: NDArray[np.bool_], twin: NDArray[np.integer] | None) -> NDArray[np.int64]:
    """Return for each sample the first kept one along its chain of twins, (N,); -1 where the chain leads to none."""
    if twin is None:
        return np.full(len(kept), -1, np.int64)
    at = np.asarray(twin, np.int64)
    # Each round follows a link of every chain that has not arrived; a chain that runs in a circle never does.
    for _ in range(len(kept)):
        lost = (at >= 0) & ~kept[at]
        if not lost.any():
            return at
        further = np.where(lost, twin[at], at)
        if (further == at).all():
            break
        at = further
    return np.where((at >= 0) & kept[at], at, -1)


def suspicion_of_channels(
    readings: NDArray[np.floating], channels: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Return suspicion and kind by the channels alone, for where no judge was trained on faults.

    The loudest channel names the kind. How many samples as loud there are, against how many there would be if all
    labels were right, is the suspicion: the false discovery rate q of Benjamini and Hochberg (1995) over the samples,
    each with Bonferroni's P over its channels, as log odds (1 - q) / q. Above 0, more than half of those that are as
    loud or louder have something wrong. On a set without faults hardly one comes above it.

    Args:
        readings: (N, C), >= 0, NaN where there is none.
        channels: names of the C columns; those in `KINDS` name a kind.

    Returns:
        suspicion: (N,) log odds, NaN where nothing was read. kind: (N,), "" where the loudest names none.
    """
    nats = channel_surprise(readings)
    known = np.isfinite(nats)
    seen = known.any(1)
    loud = np.where(known, nats, -np.inf)
    log_p = np.log(np.maximum(known.sum(1), 1)) - loud.max(1)
    suspicion = np.full(len(nats), np.nan)
    suspicion[seen] = _log_odds_of_discovery(log_p[seen])
    kinds = np.array([KINDS.get(name, "") for name in channels])
    return suspicion, np.where(seen, kinds[loud.argmax(1)], "")


def _log_odds_of_discovery(log_p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log odds (1 - q) / q with q the false discovery rate of the samples at least as improbable, (N,)."""
    order = np.argsort(log_p)
    rates = log_p[order] + np.log(max(len(log_p), 1)) - np.log(np.arange(1, len(log_p) + 1))
    log_q = np.minimum.accumulate(rates[::-1])[::-1].clip(max=-_LEAST)
    result = np.empty(len(log_p))
    result[order] = np.log1p(-np.exp(log_q)) - log_q
    return result
