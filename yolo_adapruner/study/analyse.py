"""Which way to judge an image finds which planted defect: candidates compared on recordings, offline.

    python -m yolo_adapruner.study.analyse rec.npz [rec.npz ...]

Reads recordings of `record.py` and trains nothing. A candidate turns the readings of a window of epochs into one number
an image; the table gives its AUROC for each kind against the clean images, the mean over recordings. `--by-epoch` shows
how the judge of rehearsed faults gets ready instead: what it says from each epoch alone. `--verdicts` shows what it
makes of the window as a joint stage does: how many labels it takes for wrong, and how many of them are. `--lots` shows
whom a cut by that would take, by how steeply lots rise with doubt. `--over-epochs` asks what else the epochs of the
window say of an image beside their mean: how far they spread, and whether they rise or fall.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from yolo_adapruner.core.pruner import draw_lots
from yolo_adapruner.core.signal import channel_surprise, surprise
from yolo_adapruner.core.suspicion import Suspicion, mean_probability, probability, softplus
from yolo_adapruner.engine.channels import CHANNELS
from yolo_adapruner.engine.judge import BOXES, FaultJudge, judge
from yolo_adapruner.engine.readings import OBJECT
from yolo_adapruner.engine.rehearse import FEATURES
from yolo_adapruner.errors import ConfigError, DataError
from yolo_adapruner.study.command import one_line
from yolo_adapruner.study.planted import auroc
from yolo_adapruner.study.truth import CLEAN, COPY_KINDS, LABEL_KINDS

Array = NDArray[np.float64]
WINDOW = (0.5, 1.0)
SHARPNESSES, DRAWS = (1, 2, 4, 8), 50
_EPS = 1e-4  # of a confidence, below which an object is not seen at all


@dataclass(frozen=True, eq=False)
class Recording:
    """What a recording says, the mean over a window of epochs; N images, O objects.

    Attributes:
        kinds: (N,) of "clean" or a planted kind.
        channels: (N, 4); objects: (O, 8), columns `readings.OBJECT`; NaN where there was no reading.
        owner, classes: each object's image and class, (O,).
        unexplained: (N, 10) confidences, falling.
        metric: validation mAP50-95 after the last epoch.
        features, rehearsed, rehearsed_kinds: what `judge` takes, or None where nothing was rehearsed.
    """

    kinds: NDArray[np.str_]
    channels: Array
    objects: Array
    owner: NDArray[np.int64]
    classes: NDArray[np.int64]
    unexplained: Array
    metric: float
    meta: Mapping[str, Any]
    features: Array | None = None
    rehearsed: Array | None = None
    rehearsed_kinds: NDArray[np.str_] | None = None

    def told(self) -> Suspicion | None:
        """Return what the judge learned from rehearsed faults says, or None where nothing was rehearsed."""
        if self.features is None or self.rehearsed is None or self.rehearsed_kinds is None:
            return None
        return learned(self.rehearsed_kinds, [(self.features, self.rehearsed)])

    def object(self, name: str) -> Array:
        """Return one reading of every object, (O,)."""
        return self.objects[:, OBJECT.index(name)]

    def over_objects(self, values: Array, how: Callable[[Array], float]) -> Array:
        """Return what `how` makes of the values of each image's objects, (N,); NaN where there are none."""
        result = np.full(len(self.kinds), np.nan)
        for i, own in enumerate(np.split(values, np.searchsorted(self.owner, np.arange(1, len(result))))):
            if len(own := own[np.isfinite(own)]):
                result[i] = how(own)
        return result


def load(file: Path, window: tuple[float, float] = WINDOW, *, clean: bool = False) -> Recording:
    """Read a recording.

    Args:
        file: an .npz of `record.py`.
        window: first and last epoch to take the mean over, as shares of the run.
        clean: take the looks of the averaged model at the images as they are instead, those in the window.

    Raises:
        DataError: it is no recording, or nothing was recorded in the window.
    """
    try:
        with np.load(file) as found:
            epochs = np.arange(len(found["metric"]))
            low, high = (share * len(epochs) for share in window)
            at = found["clean_epochs"] if clean else epochs
            rows = np.flatnonzero((at >= round(low)) & (at < round(high)))
            if not len(rows):
                raise DataError(f"Expected readings from {window[0]:g} to {window[1]:g} of {file}, but it has none.")
            prefix = "clean_" if clean else ""
            means = {
                name: _mean(found[prefix + name][rows].astype(float)) for name in ("channels", "objects", "unexplained")
            }
            return Recording(
                kinds=found["kind"],
                channels=means["channels"],
                objects=means["objects"],
                owner=found["object_image"],
                classes=found["object_class"],
                unexplained=means["unexplained"][..., 0],
                metric=float(found["metric"][-1]),
                meta=json.loads(str(found["meta"])),
                **_rehearsal(found, rows, clean),
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"Expected a recording, but {file} cannot be read as one: {error}.") from None


def _rehearsal(found: Mapping[str, NDArray[Any]], rows: NDArray[np.int64], clean: bool) -> dict[str, Any]:
    if clean or "rehearsed" not in found:
        return {}
    means = {name: _mean(found[name][rows].astype(float)) for name in ("features", "rehearsed")}
    return {**means, "rehearsed_kinds": found["rehearsed_kind"]}


def _mean(values: Array) -> Array:
    """Mean over the first axis of what was read, NaN where nothing was."""
    seen = np.isfinite(values)
    return np.where(seen.any(0), np.where(seen, values, 0).sum(0) / np.maximum(seen.sum(0), 1), np.nan)


# ---------------------------------------------------------------------------------------------------- candidates


def nats(values: Array, groups: NDArray[np.int64] | None = None) -> Array:
    """Return -log P(as high or higher) of each value, NaN kept, each group by itself; see `core.signal`."""
    if groups is None:
        return channel_surprise(values[:, None])[:, 0]
    result = np.full(len(values), np.nan)
    for group in np.unique(groups):
        result[groups == group] = nats(values[groups == group])
    return result


def fisher(own: Array) -> float:
    """Return -log P(a sum of as many surprises this large), in nats (Fisher 1925): the sum of n has the law Gamma(n).

    Unlike their mean it does not shrink where one of many is bad, and unlike their maximum it does not grow with n.
    """
    # log P = log sum_{k < n} x^k e^-x / k!, in logarithms: scipy's gamma.logsf underflows to -inf from 745 nats on.
    x, k = max(float(own.sum()), 1e-300), np.arange(len(own))
    return max(0.0, x - float(logsumexp(k * np.log(x) - gammaln(k + 1))))


def norm(*columns: Array) -> Array:
    """Return the Euclidean norm of surprises, (N,); one that is lacking counts as read at the median."""
    return np.asarray(np.sqrt(sum(np.where(np.isfinite(c), c, np.log(2)) ** 2 for c in columns)))


def contest(rec: Recording) -> Array:
    """Return, for each object, how far another class wins over the labelled one there: exp(p other - p labelled)."""
    return np.asarray(np.exp(rec.object("other") - rec.object("labelled")))


def unseen(rec: Recording, name: str = "support") -> Array:
    """Return, for each object, -log of the best confidence at its place, in any class or in the labelled one."""
    return np.asarray(-np.log(rec.object(name) + _EPS))


def candidates(rec: Recording) -> dict[str, Array]:
    """Return name -> score (N,), high where an image's labels are suspect; NaN where it says nothing."""
    channel = {name: nats(rec.channels[:, i]) for i, name in enumerate(CHANNELS)}
    missing = channel["missing"]

    def pooled(values: Array, groups: NDArray[np.int64] | None = None) -> Array:
        return nats(rec.over_objects(nats(values, groups), fisher))

    def mean(values: Array) -> Array:
        return nats(rec.over_objects(values, lambda own: float(own.mean())))

    localisation = rec.object("localisation")
    told = rec.told()
    return {
        **{f"{name} alone": values for name, values in channel.items()},
        "today: norm of four": surprise(rec.channels),
        "largest of four": np.nanmax(channel_surprise(rec.channels), 1),
        "worst object's localisation": nats(rec.over_objects(localisation, lambda own: float(own.max()))),
        "localisation pooled": pooled(localisation),
        "the same by class": pooled(localisation, rec.classes),
        "unseen pooled": pooled(unseen(rec)),
        "contest pooled": pooled(contest(rec)),
        "unseen, contest, missing": norm(pooled(unseen(rec)), pooled(contest(rec)), missing),
        "the same, image means": norm(mean(unseen(rec)), mean(contest(rec)), missing),
        "labelled class unseen, missing": norm(pooled(unseen(rec, "labelled")), missing),
        **({} if told is None else {"judge of rehearsed faults": told.posterior}),
    }


def course(values: Array) -> dict[str, Array]:
    """Return what a window of epochs says of each image, by one reading an epoch, (E, N): name -> (N,).

    The slope is that of least squares, an epoch. NaN where nothing was read, a slope also where it was read once.
    """
    seen = np.isfinite(values)
    count = seen.sum(0)
    mean = _mean(values)
    away = np.where(seen, values - mean, 0)
    time = np.where(seen, np.arange(len(values))[:, None], 0.0)
    time = np.where(seen, time - time.sum(0) / np.maximum(count, 1), 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (time * away).sum(0) / (time**2).sum(0)
    spread = np.where(count > 0, np.sqrt((away**2).sum(0) / np.maximum(count, 1)), np.nan)
    return {
        "mean": mean,
        "spread": spread,
        "slope": slope,
        "mean and spread": norm(nats(mean), nats(spread)),
        "mean and slope": norm(nats(mean), nats(slope)),
    }


def over_epochs(files: Sequence[Path], window: tuple[float, float] = WINDOW) -> str:
    """Return the figures of what epochs say beside their mean, in Markdown: the mean over recordings.

    Of the surprise of each epoch's readings, and where faults were rehearsed of the log odds of a judge that learns in
    that epoch alone. High is suspect throughout: a slope counts where readings rise, or fall less than others do.

    Raises:
        DataError: see `load`.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for file in files:
        rec = load(file, window)
        with np.load(file) as recorded:
            low, high = (round(share * len(recorded["metric"])) for share in window)
            readings = {"surprise": [surprise(epoch.astype(float)) for epoch in recorded["channels"][low:high]]}
            if "rehearsed" in recorded:
                pairs = zip(recorded["features"][low:high], recorded["rehearsed"][low:high], strict=True)
                planted = recorded["rehearsed_kind"]
                readings["judge"] = [
                    judge(true.astype(float), wrong.astype(float), planted).suspicion for true, wrong in pairs
                ]
        for reading, epochs in readings.items():
            for name, score in course(np.array(epochs)).items():
                found.setdefault(f"{reading}: {name}", []).append(figures(rec, score))
    return "\n".join(_rows(found))


# ---------------------------------------------------------------------------------------------------- the table


def figures(rec: Recording, score: Array) -> dict[str, float]:
    """Return the AUROC of each kind of wrong label against clean images, of any of them, and the hits.

    Hits: share of the wrongly labelled among as many images with the highest score. Copies take no part; an image that
    a score says nothing of stands at its median.
    """
    part = ~np.isin(rec.kinds, COPY_KINDS)
    kinds, score = rec.kinds[part], score[part]
    score = np.nan_to_num(score, nan=float(np.nanmedian(score)))
    wrong = np.isin(kinds, LABEL_KINDS)
    found = {}
    for kind in LABEL_KINDS:
        among = (kinds == kind) | ~wrong
        found[kind] = auroc(score[among], kinds[among] == kind)
    top = np.argsort(-score, kind="stable")[: int(wrong.sum())]
    return {**found, "any": auroc(score, wrong), "hits": float(wrong[top].mean()) if len(top) else float("nan")}


def table(recs: Sequence[Recording]) -> str:
    """Return the table in Markdown: a row a candidate, the mean over the recordings that hold the kind."""
    by_recording = [{name: figures(rec, score) for name, score in candidates(rec).items()} for rec in recs]
    names = {name: None for by_name in by_recording for name in by_name}
    lines = _rows({name: [by_name[name] for by_name in by_recording if name in by_name] for name in names})
    planted = ", ".join(f"{(rec.kinds != CLEAN).sum()} of {len(rec.kinds)}" for rec in recs)
    reached = ", ".join(f"{rec.metric:.3f}" for rec in recs)
    return "\n".join(
        [*lines, "", f"{len(recs)} recordings; planted {planted}; validation mAP50-95 at the end {reached}."]
    )


def _rows(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """A row a score, the mean over the recordings that hold the kind."""
    columns = (*LABEL_KINDS, "any", "hits")
    lines = [f"| score | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    for name, by_recording in found.items():
        cells = []
        for column in columns:
            known = [each[column] for each in by_recording if np.isfinite(each[column])]
            cells.append(f"{statistics.fmean(known):.3f}" if known else "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def confusion(recs: Sequence[Recording]) -> str:
    """Return which kind the judge of rehearsed faults names for each planted kind, in Markdown, summed over recordings.

    Of the images that rank among as many as were planted wrong; the rest count as not named.
    """
    lines = [f"| planted | images | {' | '.join(LABEL_KINDS)} | not named |", "|" + "---|" * (len(LABEL_KINDS) + 3)]
    named: dict[str, list[str]] = {}
    for rec in recs:
        told = rec.told()
        assert told is not None
        wrong = int(np.isin(rec.kinds, LABEL_KINDS).sum())
        top = np.isin(np.arange(len(rec.kinds)), np.argsort(-told.posterior, kind="stable")[:wrong])
        for kind, said in zip(rec.kinds, np.where(top, told.kind, ""), strict=True):
            named.setdefault(str(kind), []).append(str(said))
    for kind, said in sorted(named.items()):
        cells = [str(said.count(k)) for k in (*LABEL_KINDS, "")]
        lines.append(f"| {kind} | {len(said)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_epoch(file: Path) -> str:
    """Return how a recording's judge gets ready, in Markdown, a row an epoch; it learns from that epoch alone.

    Doubt is the mean probability of wrong labels that it gives, which ends an automatic warm-up
    (`core.pruner.stalled`); the AUROC is that for the planted, which a run does not know.

    Raises:
        DataError: nothing was rehearsed in it.
    """
    load(file)  # refuses what is no recording
    with np.load(file) as found:
        metrics = found["metric"].astype(float)
    lines = [
        "| epoch | doubt | AUROC of planted | clean taken for wrong | validation mAP50-95 |",
        "|---|---|---|---|---|",
    ]
    for epoch, metric in enumerate(metrics):
        rec = load(file, (epoch / len(metrics), (epoch + 1) / len(metrics)))
        told = rec.told()
        if told is None or rec.features is None or rec.rehearsed is None or rec.rehearsed_kinds is None:
            raise _unrehearsed(file)
        doubt = mean_probability(judge(rec.features, rec.rehearsed, rec.rehearsed_kinds).suspicion)
        auc, mistaken = figures(rec, told.posterior)["any"], (told.posterior[rec.kinds == CLEAN] > 0).mean()
        lines.append(f"| {epoch + 1} | {doubt:.3f} | {auc:.3f} | {100 * mistaken:.0f} % | {100 * metric:.1f} |")
    return "\n".join(lines)


def verdicts(files: Sequence[Path], window: tuple[float, float] = WINDOW) -> str:
    """Return what the judge makes of recordings, in Markdown, a row each; it learns in each epoch of the window.

    Log loss is that of the probability it gives to each image's labels being wrong, in nats an image; clean ones count
    as right, copies not at all.

    Raises:
        DataError: nothing was rehearsed in one, or there was too little to learn from.
    """
    lines = [
        "| recording | images | planted wrong | said to be wrong | planted found | clean taken for wrong | AUROC "
        "| log loss | surest clean one |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for file in files:
        kinds, odds = _judged(file, window)
        part = ~np.isin(kinds, COPY_KINDS)
        odds, wrong = odds[part], np.isin(kinds[part], LABEL_KINDS)
        known = np.isfinite(odds)
        loss = softplus(np.where(wrong, -odds, odds))[known].mean()
        suspect = odds > 0
        found = f"{100 * suspect[wrong].mean():.0f} %" if wrong.any() else "–"
        told = f"{auroc(odds[known], wrong[known]):.3f}" if wrong.any() else "–"
        surest = probability(np.array([np.nanmax(odds[~wrong])]))[0]
        shares = wrong.mean(), mean_probability(odds), suspect[~wrong].mean()
        planted, said, mistaken = (f"{100 * share:.1f} %" for share in shares)
        cells = (file.stem, len(odds), planted, said, found, mistaken, told, f"{loss:.3f}", f"{surest:.2f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def drawn(
    files: Sequence[Path], window: tuple[float, float] = WINDOW, share: float | None = None, draws: int = DRAWS
) -> str:
    """Return whom a cut after `verdicts` would take, in Markdown, by how steeply lots rise with doubt, mean over draws.

    Suspects come before lots, the surest first, as `core.pruner` has it; copies take no part. Doubtful clean ones: the
    tenth of the clean images whose labels are most suspect, the hard ones among them.

    Args:
        files: recordings.
        window: the joint stage, as shares of the run.
        share: what is dropped; None for the share planted wrong, or a tenth where none was.
        draws: numbers drawn for each image, one after the other.

    Raises:
        DataError: see `verdicts`.
    """
    lines = [
        "| recording | dropped | sharpness | AUROC of the order | planted among the dropped | planted dropped "
        "| doubtful clean ones dropped |",
        "|---|---|---|---|---|---|---|",
    ]
    for file in files:
        kinds, odds = _judged(file, window)
        part = ~np.isin(kinds, COPY_KINDS) & np.isfinite(odds)
        odds, planted = odds[part], np.isin(kinds[part], LABEL_KINDS)
        count = round(len(odds) * (share if share is not None else planted.mean() or 0.1))
        clean = np.flatnonzero(~planted)
        doubtful = clean[np.argsort(-odds[clean], kind="stable")[: round(len(clean) / 10)]]
        for sharpness in SHARPNESSES:
            rows = []
            for seed in range(draws):
                lots = draw_lots(np.random.default_rng(seed).random(len(odds)), softplus(odds), sharpness)
                order = np.where(np.isnan(lots), 1 + softplus(odds), lots)  # suspects first
                gone = np.isin(np.arange(len(odds)), np.argsort(-order, kind="stable")[:count])
                found = gone[planted].mean() if planted.any() else math.nan
                rows.append((auroc(order, planted), planted[gone].mean(), found, gone[doubtful].mean()))
            area, hits, found, hard = np.mean(rows, 0)
            shares = (f"{100 * part:.0f} %" if np.isfinite(part) else "–" for part in (hits, found, hard))
            cells = (file.stem, count, sharpness, f"{area:.3f}" if np.isfinite(area) else "–", *shares)
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _judged(file: Path, window: tuple[float, float]) -> tuple[NDArray[np.str_], Array]:
    """Kinds of a recording's images, and the log odds that their labels are wrong by the epochs of the window."""
    first = load(file, window)
    with np.load(file) as found:
        if "rehearsed" not in found:
            raise _unrehearsed(file)
        low, high = (round(share * len(found["metric"])) for share in window)
        epochs = zip(found["features"][low:high], found["rehearsed"][low:high], strict=True)
        told = learned(found["rehearsed_kind"], epochs)
    if np.isnan(told.share):
        raise DataError(f"Expected images enough to learn from, but {file} has too few.")
    return first.kinds, told.posterior


def _unrehearsed(file: Path) -> DataError:
    return DataError(f"Expected a recording with rehearsed faults, but {file} has none: record it anew.")


def learned(planted: NDArray[np.str_], epochs: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> Suspicion:
    """Return what a run knows after epochs with these readings, as they are and under the faults `planted`."""
    told = Suspicion(len(planted), FaultJudge(planted, 0, torch.device("cpu")))
    for readings, rehearsed in epochs:
        seen = np.isfinite(readings[:, FEATURES.index(BOXES.first)])
        told.learn(readings.astype(float), rehearsed.astype(float), seen.astype(float))
    return told


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of the recordings named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recordings", nargs="+", type=Path, metavar="REC.npz")
    parser.add_argument(
        "--window", type=float, nargs=2, default=WINDOW, metavar=("FROM", "TO"), help="shares of the run"
    )
    parser.add_argument("--clean", action="store_true", help="judge by the averaged model without augmentation")
    parser.add_argument("--by-epoch", action="store_true", help="show how the judge gets ready, epoch by epoch")
    parser.add_argument("--verdicts", action="store_true", help="show what the judge takes for wrong, by recording")
    parser.add_argument(
        "--lots", action="store_true", help="show whom a cut takes, by how steeply lots rise with doubt"
    )
    parser.add_argument(
        "--over-epochs", action="store_true", help="show what epochs say beside their mean: spread and slope"
    )
    parser.add_argument("--share", type=float, help="of the images to drop with --lots (default: the share planted)")
    args = parser.parse_args(argv)
    low, high = args.window
    if not 0 <= low < high <= 1:
        raise ConfigError(f"Expected a window of two rising shares in [0, 1], but got {low:g} {high:g}.")
    if args.by_epoch:
        print("\n\n".join(by_epoch(file) for file in args.recordings))
        return
    if args.verdicts:
        print(verdicts(args.recordings, (low, high)))
        return
    if args.over_epochs:
        print(over_epochs(args.recordings, (low, high)))
        return
    if args.share is not None and not 0 < args.share < 1:
        raise ConfigError(f"Expected a share in (0, 1), but got {args.share:g}.")
    if args.lots:
        print(drawn(args.recordings, (low, high), args.share))
        return
    recs = [load(file, (low, high), clean=args.clean) for file in args.recordings]
    print(table(recs))
    if all(rec.rehearsed is not None for rec in recs):
        print(f"\n{confusion(recs)}")


if __name__ == "__main__":
    sys.exit(main())
