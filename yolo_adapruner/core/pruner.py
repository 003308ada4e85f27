"""The three stages of a run: warm-up on everything, joint learning of mask and model, training on what is kept.

Puts mask, signal and controller together, an epoch at a time. Samples are numbers 0..N-1; what they are, how a model is
trained on them and where anything is stored is the caller's business. An epoch can be opened again (after a NaN, an
out-of-memory restart): nothing moves before it is closed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core import controller
from yolo_adapruner.core.appearance import Appearance
from yolo_adapruner.core.floors import Constraints
from yolo_adapruner.core.history import EpochRecord, RunningMoments
from yolo_adapruner.core.layout import Layout
from yolo_adapruner.core.mask import Mask
from yolo_adapruner.core.redundancy import Graph, Redundancy
from yolo_adapruner.core.schedule import rank_agreement
from yolo_adapruner.core.selection import cut, in_order
from yolo_adapruner.core.signal import pressure, sample_loss, surprise
from yolo_adapruner.core.suspicion import Judge, Suspicion, doubtful, mean_probability

DRAW = "draw"
"""Samples that nothing speaks against go each by its lot; otherwise by what the objective makes of their signal."""
TASK, SELECTION, NEUTRAL, COMPRESSION = "task", "selection", "neutral", "compression"
TERMS = (TASK, SELECTION, NEUTRAL, COMPRESSION)
"""The objective's terms, sum_i y_i (l_i - log l_i - neutral) + N lambda (kept - target)^2, in this order."""
SHARES, LONGEST_WARMUP, JOINT = (0.1, 0.3), (0.55, 0.35), (0.3, 0.2)
"""Auto lengths of warm-up, at most, and joint stage at two shares that go, as parts of the epochs.

Where a tenth goes, the ranking is as good as the few images at its end, and good rankings take time. Where more goes,
wrong labels have to be told from right ones all the same, or good hard images go in their place; but each further epoch
on everything is time that pruning does not save.
"""
PATIENCE, WAIT = 3, 0.9
"""Least auto patience with a judge that learns, in epochs; and what it may cost a detector, in epochs on everything.

Another epoch of warm-up costs the part of it that pruning would have saved: where a tenth goes, nine cost as much as
three where three tenths go, and a judge is better the more its model knows (docs/results/ready.md).
"""
SURE = 0.8
"""Part of the share that goes, from the lowest logit up, about which the mask is sure: the rest is near the cut."""
DECIDED = 3
"""Joint epochs in a row that settle a decision."""
CHECKED = 0.1
"""Part of the decided samples that an epoch trains on all the same."""
EVEN = math.log(2)
"""-log P(the labels are right), nats, of a sample whose labels are as likely wrong as right."""
SPREAD = 10.0
"""Pressure between the highest lot and the lowest: enough for weights near 0 and 1 to both sides of the cut."""
BEHIND_SUSPECTS = 2.0
"""`redundancy` up to which, where lots are drawn, copies go behind all suspects; what is beyond it counts in nats."""
COPIES = 1.0
"""Pressure from the surest copy down to one that is as likely a picture of its own; the suspects lie above it.

A lot to the power of 1 - r tells copies of r = 0.999 from surer ones by less than a mask remembers of earlier epochs.
"""
SHARPNESS = 1
"""How steeply a lot rises with doubt about the labels below `suspicion.DOUBT`, see `draw_lots`.

At 4 the order finds more of the planted faults, and what is kept teaches less: doubtful images are the hard ones too
(docs/results/rest.md).
"""
AHEAD = 0.01
"""How far below the highest lot that of a doubtful sample lies, times how far it is from even odds."""
FALL = 0.1
"""Part by which the judge's doubt has to fall for an epoch of the warm-up to count as one that taught it something."""
SAME = 0.95
"""Part of the dropped samples in common from which on two epochs' cuts count as the same."""

_CHUNK = 1 << 18  # samples a stride: what is made on the way stays small however many there are
_LOTS = 0x107  # lots are drawn from numbers of their own


class Stage(IntEnum):
    """Where a run stands; the numbers are what results.csv shows."""

    WARMUP = 1
    JOINT = 2
    FINETUNE = 3


@dataclass(frozen=True)
class Settings:
    """The method's settings; `PruneConfig` documents them and holds ranges and defaults.

    `floor` and `keep` reach the pruner as `Constraints`: only its caller knows groups and lists. What begins with
    `dynamic`, `validate_all`, `warmup_agree` and `budget` are the caller's alone.
    """

    share: float
    warmup: Literal["auto"] | int
    warmup_fit: float
    warmup_max: Literal["auto"] | float
    joint: Literal["auto"] | float
    ramp: float
    s_start: float
    s_end: float
    lambda_base: float
    lambda_gain: float
    tau: float
    rate: float
    clip: float
    tolerance: float
    match: float
    weight_min: float
    memory: float
    floor: float
    keep: str | None
    judge: bool = True
    redundancy: float = 0.0
    rest: Literal["draw", "rank"] = "rank"
    terms: Sequence[str] = TERMS
    dynamic: bool = False
    dynamic_share: float = 0.45
    dynamic_rest: int = 4
    dynamic_anneal: float = 0.15
    dynamic_rescale: float = 0.0
    validate_all: bool = False
    warmup_agree: float = 2.0
    warmup_patience: Literal["auto"] | int = 0
    budget: Literal["epochs", "updates"] = "epochs"

    @property
    def hurried(self) -> bool:
        """Whether a run is to save time: much goes, or epochs are to be shorter."""
        return self.dynamic or self.share >= SHARES[1]

    @property
    def lengths(self) -> tuple[float, float]:
        """Longest auto warm-up and joint stage, as parts of the epochs; auto goes by the share, between `SHARES`."""
        longest, joint = (float(np.interp(self.share, SHARES, parts)) for parts in (LONGEST_WARMUP, JOINT))
        return (
            longest if self.warmup_max == "auto" else self.warmup_max,
            joint if self.joint == "auto" else self.joint,
        )

    def schedule(self, epochs: int) -> controller.Schedule:
        """The controller's part, for a joint stage of `epochs` epochs."""
        return controller.Schedule(
            kept=1 - self.share,
            epochs=epochs,
            ramp=self.ramp,
            s_start=self.s_start,
            s_end=self.s_end,
            lambda_base=self.lambda_base if COMPRESSION in self.terms else 0.0,
            lambda_gain=self.lambda_gain if COMPRESSION in self.terms else 0.0,
            tolerance=self.tolerance,
            match=self.match,
        )


class Pruner:
    """Mask, controller and record of one run over N samples.

    Args:
        n: number of samples.
        channels: number of readings a sample gives in a forward by which it is judged without a judge, C.
        epochs: epoch budget of the run, all stages together.
        settings: the method's settings.
        seed: decides ties in the final selection.
        constraints: what the final selection must not lose. Required samples are outside the game: their weight is 1,
            their logit stays where it starts, and the rest bears the whole share.
        judge: learns in each joint epoch which samples read like spoilt ones; None leaves the surprise.
        readings: number of readings a sample gives in a joint epoch, the channels first, R >= C; None: no others.
        features: length of the vector by which samples are compared with each other; 0 compares none.
        layout: where each sample's boxes lie, for that comparison; None where samples have none.
        ends_early: the joint stage may end before its time, once the whole share is asked for and `DECIDED` epochs in a
            row would have dropped the same.

    Attributes:
        stage: the stage of the epoch that runs now or comes next.
        signal: (N,) nats, what each sample is judged by: by the judge, -log P(its labels are right) from the mean log
            odds over the joint epochs so far; where none has learned anything, the surprise of its mean channels; NaN
            before.
        suspicion: what the judge says.
        moments: mean and spread over the joint epochs; columns are the channels and then one epoch's surprise. An
            epoch counts by what was seen of the sample in it, up to one whole view.
        seen: (N,) whole views that each sample was judged on over the joint epochs, >= 0; 0 where nothing is known.
        kept: (N,) bool once the fine-tune stage has begun, None before.
        trace: (joint epochs, N) uint8, round(255 * weight) after each joint epoch so far, at that epoch's s; 0 beyond.
        appearance: what each sample looks like, over all epochs so far, the warm-up's too; None without features.
        redundancy: which samples are there already in others.
        doubts: by epoch of the warm-up, the mean probability of wrong labels that a judge gives who learns in it alone.
        agreement: rank correlation of the surprise in the last two epochs of the warm-up; NaN before.
        absent: (N,) joint epochs in a row after which the mask would have dropped a sample for sure.
        checked: (N,) the last joint epoch that saw the sample, from 1; 0 for none.
    """

    def __init__(
        self,
        n: int,
        channels: int,
        epochs: int,
        settings: Settings,
        seed: int = 0,
        constraints: Constraints | None = None,
        *,
        judge: Judge | None = None,
        readings: int | None = None,
        features: int = 0,
        layout: Layout | None = None,
        ends_early: bool = False,
    ) -> None:
        self.ends_early = ends_early
        self.settings, self.seed = settings, seed
        self.constraints = constraints or Constraints()
        self.channels, self.readings = channels, readings or channels
        self.suspicion = Suspicion(n, judge)
        taught = self.suspicion.taught
        self._rehearsed_row: NDArray[np.int32] | None = None  # None: each sample's own
        if judge is not None and len(taught) < n:
            self._rehearsed_row = np.full(n, -1, np.int32)
            self._rehearsed_row[taught] = np.arange(len(taught))
        self.appearance = Appearance(n, features, layout) if features and settings.redundancy else None
        self.redundancy = Redundancy(n)
        draws = settings.rest == DRAW and judge is not None
        self._uniform = np.random.default_rng([seed, n, _LOTS]).random(n) if draws else None
        self.mask = Mask(n)
        self.moments = RunningMoments(n, channels + 1)
        self.signal: NDArray[np.float64] = np.full(n, np.nan)
        self.seen: NDArray[np.float64] = np.zeros(n)
        self.kept: NDArray[np.bool_] | None = None
        # At least one epoch for each stage that is wanted, whatever the budget and the shares.
        longest_warmup, joint = settings.lengths
        self.joint_epochs = max(1, round(joint * epochs))
        longest = round(longest_warmup * epochs) if settings.warmup == "auto" else settings.warmup
        self.warmup_limit = max(0, min(longest, epochs - self.joint_epochs - 1))
        self.stage = Stage.WARMUP if self.warmup_limit else Stage.JOINT
        self.trace: NDArray[np.uint8] = np.zeros((self.joint_epochs, n), np.uint8)
        self.schedule = settings.schedule(self.joint_epochs)
        self.state = controller.start(self.schedule, metric=0.0)
        self._warm_epochs = 0
        self._best_logits: NDArray[np.float64] | None = None
        self.agreement = math.nan
        self.doubts: list[float] = []
        self._surprise: NDArray[np.float64] = np.full(n, np.nan)
        self.absent: NDArray[np.int64] = np.zeros(n, np.int64)
        self.checked: NDArray[np.int64] = np.zeros(n, np.int64)
        self._dropped: NDArray[np.bool_] | None = None  # by a cut after the last joint epoch
        self._same = 0  # joint epochs in a row, since the ramp's end, that have hardly changed that
        self._record: EpochRecord | None = None
        self._rehearsed: EpochRecord | None = None

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.mask)

    @property
    def history(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Joint epochs closed so far, (E,), counted from 1 over the whole run, and their part of `trace`, (E, N)."""
        closed = self.state.epoch
        return self._warm_epochs + 1 + np.arange(closed), self.trace[:closed]

    @property
    def warm_epochs(self) -> int:
        """Epochs of the warm-up closed so far; the joint stage begins with the epoch of this number, from 0."""
        return self._warm_epochs

    @property
    def record(self) -> EpochRecord:
        """What was read in the epoch that is open.

        Raises:
            RuntimeError: none is.
        """
        if self._record is None:
            raise RuntimeError("observe() or close_epoch() before open_epoch()")
        return self._record

    @property
    def totals(self) -> tuple[NDArray[Any], ...]:
        """The sums behind all that was read in the open epoch; where processes share one, theirs are added up."""
        return self.record.totals + (() if self._rehearsed is None else self._rehearsed.totals)

    @property
    def rehearses(self) -> bool:
        """Whether this epoch's judge wants readings of samples under faults.

        In the warm-up to see when it is ready, where that could end it.
        """
        if self.suspicion.judge is None or self.stage is Stage.FINETUNE:
            return False
        asked = self.settings.warmup == "auto" and 0 < self.patience < self.warmup_limit
        return self.stage is Stage.JOINT or asked

    @property
    def patience(self) -> int:
        """Epochs of an auto warm-up without a new low of the judge's doubt that end it; 0: they never do."""
        if self.settings.warmup_patience != "auto":
            return self.settings.warmup_patience
        if not self._waits:
            return PATIENCE
        # No more than the longest warm-up has, or nobody would be waited for.
        return max(PATIENCE, min(math.ceil(WAIT / max(self.settings.share, 0.01)), self.warmup_limit - 1))

    @property
    def _waits(self) -> bool:
        """Whether the warm-up waits for its judge: it saves little to begin sooner, and what is wrong keeps showing.

        A classifier soon knows its wrong labels by heart.
        """
        judge = self.suspicion.judge
        return judge is not None and judge.worsens and not self.settings.hurried

    def carry(self, logits: NDArray[np.floating], seen: NDArray[np.floating]) -> None:
        """Begin with what an earlier run learned, before the first epoch.

        All of it counts at first, and the part `memory` of it to the end: an earlier run is forgotten as an earlier
        step is. So runs that follow each other do not add up to a verdict that no evidence could overturn.

        Args:
            logits: (N,) to add to the common start, 0 being neutral (`warm.start_logits`); NaN for a new sample.
            seen: (N,) whole views that they rest on, >= 0.
        """
        known = np.isfinite(logits)
        self.mask.logits[known] += logits[known]
        self.mask.base[known] = self.settings.memory * logits[known]
        self.seen = np.where(known, seen, 0.0)

    def open_epoch(self) -> None:
        """Begin an epoch, or begin it again."""
        self._record = EpochRecord(self.n, self.readings if self.rehearses else self.channels)
        self._rehearsed = EpochRecord(len(self.suspicion.taught), self.readings) if self.rehearses else None
        if self.appearance is not None:
            self.appearance.open_epoch()

    @property
    def active(self) -> NDArray[np.bool_] | None:
        """Which samples the epoch trains on, (N,); None: all.

        In the joint stage without those that the mask has decided on: the lowest `SURE` of the share that goes, floors
        heeded, `DECIDED` epochs in a row. Of these the `CHECKED` part that was not seen for longest is trained on all
        the same, so that each is read again in its turn, and comes back for good once its logit says so.
        """
        if self.kept is not None or self.stage is not Stage.JOINT:
            return self.kept
        gone = np.flatnonzero(self.absent >= DECIDED)
        if not len(gone):
            return None
        active = np.ones(self.n, bool)
        active[gone] = False
        turn = gone[np.argsort(self.checked[gone], kind="stable")]
        active[turn[: math.ceil(CHECKED * len(gone))]] = True
        return active

    def weights(self) -> NDArray[np.float32] | None:
        """Return each sample's loss weight in this epoch, (N,), or None where the loss is the stock one.

        Without the task term of the objective, in which weight and loss meet, that is so in the joint stage as well.
        None lies below `weight_min`: what is not learned at all reads ever worse, and could not be taken back.
        """
        if self.stage is not Stage.JOINT or not self.settings.share or TASK not in self.settings.terms:
            return None
        least = np.float32(self.settings.weight_min)
        weights = least + (1 - least) * self.mask.weights(self.state.s)
        if self.constraints.required is not None:
            weights[self.constraints.required] = 1
        return weights

    def observe(
        self,
        ids: NDArray[np.integer],
        readings: NDArray[np.floating],
        area: NDArray[np.floating] | None = None,
        *,
        rehearsed: NDArray[np.floating] | None = None,
    ) -> None:
        """Note a batch.

        Args:
            ids: (B,); a sample may stand there several times, as in a mosaic of several parts of it.
            readings: (B, C), or (B, R) where this epoch `rehearses`; NaN where a sample gives none.
            area: (B,) in whole views, finite and >= 0: how much of what this sample shows when it is alone.
                A quarter of it in a mosaic is 0.25; the caller divides, the core knows no pixels. None:
                a whole view each.
            rehearsed: (B, R), the same under each sample's fault, rows of NaN where it carries none; what is said of
                samples that teach no judge is not asked for.

        Raises:
            ValueError: an area is negative or no number, or there is not one for each of `ids`.
        """
        self.record.add(ids, readings, area)
        if rehearsed is None or self._rehearsed is None:
            return
        if self._rehearsed_row is not None:
            rows = self._rehearsed_row[ids]
            own = rows >= 0
            ids, rehearsed, area = rows[own], rehearsed[own], None if area is None else area[own]
        self._rehearsed.add(ids, rehearsed, area)

    def close_epoch(
        self,
        metric: float,
        *,
        works: bool = False,
        agree: float = math.inf,
        rested: NDArray[np.bool_] | None = None,
        fresh: bool = True,
    ) -> dict[str, float]:
        """End the epoch: move the mask, let the controller step, change stage when it is time.

        Args:
            metric: validation metric of the epoch, higher is better.
            works: the model is good enough to judge samples; ends an automatic warm-up.
            agree: `agreement` from which on it is as well.
            rested: (N,) samples that were left out of the epoch on purpose. Their readings stand: each takes the step
                that its mean asks for, as one that was looked at does, so that no decision fades for being acted on.
            fresh: the metric was measured in this epoch; if not it is the last one that was.

        Returns:
            What the epoch ran under and what share was kept after it: stage, kept, target, s, lambda.
        """
        ran = {"stage": float(self.stage), "target": self.state.target, "s": self.state.s, "lambda": self.state.lam}
        if self.appearance is not None:
            self.appearance.close_epoch()
        if self.stage is Stage.WARMUP:
            ran |= {"target": 1.0, "s": 0.0, "lambda": 0.0}
            self._close_warmup(metric, works, agree, fresh=fresh)
        elif self.stage is Stage.JOINT:
            self._close_joint(metric, np.zeros(self.n, bool) if rested is None else rested, fresh=fresh)
        self._record = self._rehearsed = None
        kept = self.mask.kept_share if self.kept is None else float(self.kept.mean())
        return {"stage": ran["stage"], "kept": kept, **{k: ran[k] for k in ("target", "s", "lambda")}}

    def _close_warmup(self, metric: float, works: bool, agree: float, *, fresh: bool) -> None:
        self._warm_epochs += 1
        if fresh:
            self.state = replace(self.state, recent=controller.measured(*self.state.recent, metric))
        means = self.record.close()
        now = surprise(means[:, : self.channels])
        self.agreement = rank_agreement(self._surprise, now)
        self._surprise = np.where(np.isnan(now), self._surprise, now)
        ready = False
        if self.rehearses:
            self.doubts.append(self._doubt(means))
            ready = stalled(self.doubts, self.patience)
            # What a model knows of its training images says less about a judge than the judge does.
            works &= not self._waits or math.isnan(self.doubts[-1])
        early = (works or ready or self.agreement >= agree) and self.settings.warmup == "auto"
        if early or self._warm_epochs >= self.warmup_limit:
            self.stage = Stage.JOINT
            self.state = controller.start(self.schedule, metric, self.state.recent)

    def _doubt(self, readings: NDArray[np.floating]) -> float:
        """What a judge that learns in this epoch alone takes for wrong, [0, 1], a mean over those it was rehearsed on.

        It learns where right and wrong are equally frequent, and so begins at 1/2. As the model gets better at telling
        labels from faults it falls, to the share of labels that really are wrong and those it will never be sure of.
        """
        assert self.suspicion.judge is not None
        assert self._rehearsed is not None
        rehearsed, evidence = self._rehearsed.close(), np.zeros(self.n)
        taught = self.suspicion.taught
        evidence[taught] = np.where(np.isfinite(rehearsed).any(1), np.minimum(self.record.area[taught], 1), 0)
        said = self.suspicion.judge(readings, rehearsed, evidence, np.ones(self.n, bool))
        return math.nan if said is None else mean_probability(said[:, 0])

    def _close_joint(self, metric: float, rested: NDArray[np.bool_], *, fresh: bool) -> None:
        readings = self.record.close()
        # More than a whole view makes an epoch no surer: what is left between epochs is the model's, not the crop's.
        evidence = np.minimum(self.record.area, 1)
        channels = readings[:, : self.channels]
        rehearsed = None if self._rehearsed is None else self._rehearsed.close()
        judgement = None if rehearsed is None else self.suspicion.learn(readings, rehearsed, evidence)
        self.moments.add_columns((channels, surprise(channels) if judgement is None else judgement), evidence)
        self.seen += self.record.area
        # Judged on the mean over the epochs so far: one epoch's reading is half augmentation.
        suspected = self.suspicion.signal
        self.signal = self._surprise_so_far() if suspected is None else suspected
        wrong = None if self._uniform is None else self.suspicion.wrong
        taken, certainty = self._redundant(wrong)
        f = self._pressure(wrong, taken, certainty)
        # Neutral is the pressure that divides the share to go from the rest: what lies above it is to go. It does not
        # follow the target's ramp, at whose beginning it would be the largest pressure of all and tell nothing apart.
        neutral = self._neutral(f) if NEUTRAL in self.settings.terms else math.nan
        if math.isnan(neutral):
            neutral = 0.0
        elif wrong is not None:
            self._spare(f, neutral, wrong, taken, certainty)
        f[np.isnan(f)] = neutral
        if self.constraints.required is not None:
            f[self.constraints.required] = np.nan
        standing = rested & (self.seen > 0) & (evidence == 0)
        if evidence.any():
            # What was seen of a sample in earlier epochs has moved it then; in this one it has moved by what it shows.
            self.mask.update(
                f,
                neutral=neutral,
                lam=self.state.lam,
                target=self.state.target,
                rate=self.settings.rate,
                clip=self.settings.clip,
                evidence=np.where(standing, 1.0, evidence),
                memory=self.settings.memory,
            )
        self.trace[self.state.epoch] = np.rint(255 * self.mask.weights(self.state.s))
        state = controller.step(self.state, self.mask.kept_share, metric, self.schedule, fresh=fresh)
        if state.best_epoch != self.state.best_epoch:
            self._best_logits = self._scores()
            self.redundancy.remember()
        self.state = state
        self.checked[evidence > 0] = state.epoch
        lots = None if wrong is None else self._lots(wrong)
        limits = self._limits(wrong)
        # at ten million samples room for the cut
        del readings, channels, rehearsed, judgement, evidence, standing, wrong, taken, certainty, f
        self._look_ahead(lots, limits)
        if state.epoch >= self.joint_epochs or (self.ends_early and self._same >= DECIDED):
            self.decide()

    def _pressure(
        self,
        wrong: NDArray[np.float64] | None,
        taken: NDArray[np.float64] | float = 0.0,
        certainty: NDArray[np.float64] | float = 0.0,
    ) -> NDArray[np.float64]:
        """What the objective weighs each sample by besides the compression term, (N,), NaN where nothing is known.

        Args:
            wrong: `suspicion.wrong`, (N,) nats; None where no lots are drawn.
            taken: how much of each is there already, (N,) in [0, 1].
            certainty: how sure it is that its twin shows the same, (N,) in [0, 1].
        """
        lots = None if wrong is None else self._lots(wrong)
        if wrong is None or lots is None:
            redundant = self.settings.redundancy * taken
            return pressure(sample_loss(self.signal + redundant, self.settings.tau), **self._terms)
        # Up to even odds the signal says how hard a sample is, not that it is wrong: there all weigh 1, less their lot.
        # That another one shows the same raises the lot, so that copies come behind the suspects; what the term is
        # stronger than `BEHIND_SUSPECTS` puts them before the milder of these.
        harder = max(self.settings.redundancy - BEHIND_SUSPECTS, 0.0)
        nats = np.maximum(wrong + harder * np.asarray(taken), EVEN)
        calm = wrong <= EVEN
        lots = np.where(calm, lots ** self._alone(taken), 1)
        return (
            pressure(nats / EVEN, **self._terms)
            - SPREAD * (1 - lots)
            + np.where(calm, self._sure(taken, certainty), self._room)
        )

    @property
    def _room(self) -> float:
        """How far the suspects lie above even odds, to leave room for the copies."""
        return 0.0 if self.appearance is None else COPIES * min(self.settings.redundancy / BEHIND_SUSPECTS, 1.0)

    def _sure(self, taken: NDArray[np.float64] | float, certainty: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Where in that room each copy lies, (N,): the surer, the higher; 0 where none that stays shows the same."""
        return np.asarray(self._room * np.maximum(2 * np.asarray(taken) - 1, 0) * certainty)

    def _alone(self, taken: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """What the exponent of each sample's lot shrinks to for being there already, (N,) in [0, 1]."""
        return np.asarray((1 - np.asarray(taken)) ** self.settings.redundancy)

    def _spare(
        self,
        f: NDArray[np.float64],
        neutral: float,
        wrong: NDArray[np.float64],
        taken: NDArray[np.float64] | float,
        certainty: NDArray[np.float64] | float = 0.0,
    ) -> None:
        """Put the samples that the lot spares in the order of their doubt, in place.

        A lot says who goes. Of those that stay it says nothing, and there the likelier wrong one is to weigh less.
        """
        alone, sure = (np.broadcast_to(each, self.n) for each in (self._alone(taken), self._sure(taken, certainty)))
        even = float(pressure(np.ones(1), **self._terms)[0])
        for begin in range(0, self.n, _CHUNK):
            part = slice(begin, begin + _CHUNK)
            by_doubt = even - SPREAD * (1 - near_even(wrong[part])) * alone[part] + sure[part]
            np.copyto(f[part], np.minimum(by_doubt, neutral), where=(f[part] < neutral) & (wrong[part] <= EVEN))

    @property
    def _terms(self) -> dict[str, bool]:
        return {"task": TASK in self.settings.terms, "selection": SELECTION in self.settings.terms}

    @property
    def lots(self) -> NDArray[np.float64] | None:
        """The lot of each sample whose labels are likelier right than wrong, (N,) in [0, 1], NaN for others.

        See `draw_lots`. None where none are drawn: by the settings, or because no labels were judged right.
        """
        return None if self._uniform is None else self._lots(self.suspicion.wrong)

    def _lots(self, wrong: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """The same, by `suspicion.wrong`, (N,) nats."""
        assert self._uniform is not None
        return draw_lots(self._uniform, wrong) if (wrong <= EVEN).any() else None

    def _surprise_so_far(self) -> NDArray[np.float64]:
        """The surprise of each sample's mean channels over the joint epochs, (N,)."""
        return surprise(self.moments.mean[:, :-1], self.moments.count[:, :-1] > 0)

    def _look_ahead(self, lots: NDArray[np.float64] | None, limits: Constraints) -> None:
        """Note which samples a cut would drop for sure now, and whether the whole cut is the one of the last epoch."""
        share = self.settings.share
        # Who was never seen is not decided on.
        order = self._in_order(self._scores(), lots)
        sure = ~cut(order, SURE * share, limits)
        sure &= self.seen > 0
        self.absent += 1
        self.absent[~sure] = 0
        dropped = ~cut(order, share, limits)
        before, self._dropped = self._dropped, dropped
        done = self.state.progress >= 1  # before, the mask is not asked for the whole share
        alike = done and before is not None and (before & dropped).sum() >= SAME * dropped.sum()
        self._same = self._same + 1 if alike else 0

    def _redundant(
        self, wrong: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64] | float, NDArray[np.float64] | float]:
        """How much of each sample is there already and how surely its twin shows it, (N,) in [0, 1], or 0 for all."""
        if self.appearance is None:
            return 0.0, 0.0
        own = self._pressure(wrong)
        likeness = self.appearance.likeness()
        graph = Graph.of(*self.appearance.pairs(likeness), likeness)
        ranking = self._for_its_labels(own, wrong)
        # What goes for its labels cannot stand in for a copy.
        stays = self._weights_at(self._neutral(own), own)
        if wrong is not None:
            # Nor what the lot takes, but copies go before any lot is drawn: so first all that is no suspect stands in,
            # and then all that the share does not reach once the copies are gone.
            stays[wrong <= EVEN] = 1
            first = self.redundancy.account(graph, ranking, self._required_too(stays))
            f = self._pressure(wrong, first.taken, first.certainty)
            neutral = self._neutral(f)
            if not math.isnan(neutral):
                self._spare(f, neutral, wrong, first.taken, first.certainty)
            stays = self._weights_at(neutral, f)
        stays = self._required_too(stays)
        taken = self.redundancy.step(graph, ranking, stays, self.appearance.known, counted=wrong is not None)
        return taken, self.redundancy.certainty

    def _for_its_labels(self, own: NDArray[np.float64], wrong: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """What speaks against each of several copies, (N,): where lots are drawn its doubt and not its lot."""
        against = own.copy()
        if wrong is not None and (calm := wrong <= EVEN).any():
            against[calm] = (float(pressure(np.ones(1), **self._terms)[0]) - SPREAD * (1 - near_even(wrong)))[calm]
        if self.constraints.required is not None:
            against[self.constraints.required] = -np.inf
        return against

    def _required_too(self, stays: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weights, (N,), with 1 for who stays whatever speaks against it; in place."""
        if self.constraints.required is not None:
            stays[self.constraints.required] = 1
        return stays

    def _neutral(self, f: NDArray[np.float64]) -> float:
        """The pressure that divides the share to go from the rest, NaN where none is known."""
        game, share = self._in_the_game()
        judged = f[game & np.isfinite(f)]
        return float(np.quantile(judged, 1 - share, overwrite_input=True)) if len(judged) else math.nan

    def _weights_at(self, neutral: float, f: NDArray[np.float64]) -> NDArray[np.float32]:
        """What each sample comes to weigh under a pressure, (N,) in [0, 1]; 1/2 where it is unknown."""
        mask = Mask(self.n)
        mask.logits = self.settings.rate * np.nan_to_num(neutral - f, nan=0.0)
        return mask.weights(self.settings.s_end)

    def decide(self) -> NDArray[np.bool_]:
        """End the joint stage: cut the exact share off the best matching mask, or off the last if none matched.

        A sample that no epoch up to that mask has seen has no score: its logit becomes NaN, and it goes after all
        others. A run that was stopped before any sample was judged keeps them all: ties are no reason to drop one.
        """
        self.mask.logits = self._scores() if self._best_logits is None else self._best_logits
        if self._best_logits is not None:
            self.redundancy.recall()
        share = self.settings.share if self.seen.any() else 0.0
        wrong = None if self._uniform is None else self.suspicion.wrong
        lots = None if wrong is None else self._lots(wrong)
        self.kept = cut(self._in_order(self.mask.logits, lots), share, self._limits(wrong))
        self.stage = Stage.FINETUNE
        return self.kept

    @property
    def limits(self) -> Constraints:
        """`constraints` with floors that count what the judge takes for right, see `Constraints.trusting`."""
        return self._limits(None)

    def _limits(self, wrong: NDArray[np.float64] | None) -> Constraints:
        """The same, by `suspicion.wrong`, (N,) nats, if that is at hand."""
        if self.constraints.groups is None or not self.constraints.floor or self.suspicion.judge is None:
            return self.constraints
        return self.constraints.trusting(self.suspicion.wrong if wrong is None else wrong)

    def _in_the_game(self) -> tuple[NDArray[np.bool_], float]:
        """Which samples may go, (N,), and the share of them that shall, [0, 1]."""
        if self.constraints.required is None:
            return np.ones(self.n, bool), self.settings.share
        game = ~self.constraints.required
        return game, min(self.settings.share * self.n / max(int(game.sum()), 1), 1.0)

    def _in_order(self, scores: NDArray[np.floating], lots: NDArray[np.float64] | None) -> NDArray[np.int64]:
        """The samples in the order in which they go, (N,), by scores that are NaN where there is none."""
        return in_order(scores, self.settings.share, lots, self.redundancy.twin, seed=self.seed)

    def _scores(self) -> NDArray[np.float64]:
        """The logits as they are now, (N,), NaN where nothing of the sample was ever seen."""
        return np.where(self.seen > 0, self.mask.logits, np.nan)

    def state_dict(self) -> dict[str, Any]:
        """Return everything an interrupted run needs to go on, as arrays and plain values."""
        return {
            "stage": int(self.stage),
            "logits": self.mask.logits.copy(),
            "base": self.mask.base.copy(),
            "best_logits": self._best_logits,
            "signal": self.signal.copy(),
            "seen": self.seen.copy(),
            "kept": self.kept,
            "moments": self.moments.state_dict(),
            "suspicion": self.suspicion.state_dict(),
            "controller": asdict(self.state),
            "warm_epochs": self._warm_epochs,
            "trace": self.history[1].copy(),
            "appearance": None if self.appearance is None else self.appearance.state_dict(),
            "redundancy": self.redundancy.state_dict(),
            "surprise": self._surprise.copy(),
            "absent": self.absent.copy(),
            "checked": self.checked.copy(),
            "dropped": self._dropped,
            "same": self._same,
            "doubts": np.array(self.doubts, np.float64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: the state is of another number of samples, or lacks a part, as one that knows no areas does.
        """
        if missing := self.state_dict().keys() - state.keys():
            raise ValueError(f"Expected a state with {', '.join(sorted(missing))}, but this one has none.")
        if len(state["logits"]) != self.n:
            raise ValueError(f"Expected the state of {self.n} samples, but got one of {len(state['logits'])}.")
        self.suspicion.load_state_dict(state["suspicion"])
        self.stage = Stage(state["stage"])
        self.mask.logits = np.array(state["logits"], np.float64)
        self.mask.base = np.array(state["base"], np.float64)
        self._best_logits = None if state["best_logits"] is None else np.array(state["best_logits"], np.float64)
        self.signal = np.array(state["signal"], np.float64)
        self.seen = np.array(state["seen"], np.float64)
        self.kept = None if state["kept"] is None else np.array(state["kept"], bool)
        self.moments.load_state_dict(state["moments"])
        self.redundancy.load_state_dict(state["redundancy"])
        if self.appearance is not None:
            self.appearance.load_state_dict(state["appearance"])
        self._surprise = np.array(state["surprise"], np.float64)
        self.absent = np.array(state["absent"], np.int64)
        self.checked = np.array(state["checked"], np.int64)
        self._dropped = None if state["dropped"] is None else np.array(state["dropped"], bool)
        self._same = int(state["same"])
        self.doubts = [float(doubt) for doubt in state["doubts"]]
        self.state = replace(self.state, **state["controller"])
        self._warm_epochs = int(state["warm_epochs"])
        self.trace[: self.state.epoch] = state["trace"]
        self._record = self._rehearsed = None


def draw_lots(
    uniform: NDArray[np.float64], wrong: NDArray[np.float64], sharpness: float = SHARPNESS
) -> NDArray[np.float64]:
    """Return the lot of each sample, (N,) in [0, 1]; the highest go first.

    u^((1 - 2 P)^sharpness), P being how probable it is that its labels are wrong: the bare number at P = 0. Keys
    u^(1 / w) draw without replacement by weights w (Efraimidis and Spirakis 2006, doi:10.1016/j.ipl.2005.11.003), here
    (1 - 2 P)^-sharpness. From P = `suspicion.DOUBT` on 1 - `AHEAD` (1 - 2 P): before all but the luckiest, the
    likelier wrong first, up to 1 at even odds. NaN beyond these, where no lot decides.

    Args:
        uniform: numbers u drawn evenly from [0, 1), (N,).
        wrong: -log(1 - P), nats, (N,); NaN, where nobody judged, counts as 0.
        sharpness: > 0.
    """
    odds_left = 2 * np.exp(-np.nan_to_num(wrong, nan=0.0)) - 1  # 1 - 2 P
    calm = odds_left >= 0
    lots = np.where(calm, uniform ** np.where(calm, odds_left, 1) ** sharpness, np.nan)
    return np.where(calm & doubtful(wrong), 1 - AHEAD * odds_left, lots)


def near_even(wrong: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how near even odds come labels that are likelier right than wrong, (N,) in [0, 1]: 1 / (1 - log odds).

    1 at even odds, 0 where the labels are surely right. It tells one in a thousand from one in ten thousand, which the
    probability itself does not.

    Args:
        wrong: -log(1 - P), nats, (N,); beyond log 2, even odds, the result is 1 as well.
    """
    with np.errstate(divide="ignore"):
        log_odds = np.log(np.expm1(np.minimum(wrong, EVEN)))
    return np.asarray(1 / (1 - np.minimum(log_odds, 0)))


def stalled(values: Sequence[float], patience: int, fall: float = FALL) -> bool:
    """Return whether the last `patience` values have brought no new low, each less than the one before by `fall`.

    Args:
        values: one an epoch, > 0; NaN, of an epoch that says nothing, begins anew.
        patience: epochs, >= 1.
        fall: part of the last low that a new one has to be below it, [0, 1).
    """
    low, since = math.inf, 0
    for value in values:
        if math.isnan(value) or value < (1 - fall) * low:
            low, since = (math.inf if math.isnan(value) else value), 0
        else:
            since += 1
    return since >= patience
