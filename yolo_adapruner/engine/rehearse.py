"""What an image's readings would be if its labels were wrong: faults planted in memory, beside the training forward.

The labels of a batch are spoilt by a known fault, the assigner is asked again on the same predictions, and the readings
are taken as from true labels; nothing is trained on the spoilt ones. Each image keeps one kind and one draw for the
whole run, so that its readings can be averaged over epochs as the true ones are. Where images are mixed, a part of one
is spoilt within its own part of the picture. Draws from streams of its own, never from those of the training. Knows no
files and no mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolo_adapruner.data.labels import Labels
from yolo_adapruner.engine.attribution import Sources
from yolo_adapruner.engine.channels import CHANNELS, detection_channels, every_object, mean_by
from yolo_adapruner.engine.dataset import identity
from yolo_adapruner.engine.faults import FAULTS, Peers
from yolo_adapruner.engine.losses import Assignment, LossTap
from yolo_adapruner.engine.owners import Accounts
from yolo_adapruner.engine.readings import OBJECT, TOP, Predicted, objects, predicted, unlabelled
from yolo_adapruner.engine.sight import Sight
from yolo_adapruner.engine.together import by_entry, owners_before, rows_together, together

FEATURES = (
    *CHANNELS,
    "unseen",
    "unlabelled",
    "contest",
    "worst localisation",
    "worst presence",
    "worst unseen",
    "worst contest",
    "extra",
    "extras",
    "count",
)
"""Columns of `features`: the channels; means and worst over objects; the unexplained predictions; number of labels."""
OBJECTS = CHANNELS[:3]
"""The channels that are means over objects."""
MOST_PEERS = 10_000
"""So many images of the set at most are drawn from, a seeded sample."""
MIXED_EVERY = 3
"""Of batches whose images are mixed every so manyth is rehearsed: in an epoch an image is in several, by parts."""
MOST_REHEARSED = 20_000
"""Images that are rehearsed at most, a seeded sample of the set: as many as a judge learns from."""
TRIED = 2000
"""So many images an epoch, about, tell whether the judge is ready; where there are twice as many, not all are asked."""
_FEW_ANCHORS = 1000
"""So many anchors at most are read under both sets of labels at once on a CPU: with more, copying the predictions takes
longer than twice as many operations. A GPU waits for its next operation however small it is, so there always."""
_EPS = 1e-4
_TRIES = 40  # beside a training step there is no time for the fullest pictures
_WHOLE = np.array([0.0, 0, 1, 1])


READINGS = 2 * len(FEATURES) + len(OBJECTS)
"""What `Rehearsal.readings` gives of an owner: as its labels are, under a fault, and `OBJECTS` over all classes."""


@torch.no_grad()
def features(
    seen: Assignment, by: Predicted | None = None, *, sight: Sight | None = None, noted: int | None = None
) -> Tensor:
    """Return each owner's readings, (K, 14) float32, NaN where there is no label or no anchor.

    - unseen, unlabelled: -log of the best confidence at a label's place in any class, in its own; mean over labels.
    - contest: how far another class wins over the labelled one there, in [-1, 1]; mean.
    - extra, extras: confidence of the surest prediction that no label explains, and the sum over the ten surest.

    Where the images are not mixed, an owner is an entry of the batch, K = B. Where they are, its labels are read
    wherever in the batch they went, and the predictions at its places are its own, of a blend both owners'. What is a
    sum, `extras` and `count`, is by the area that is its own, in whole pictures, so that a part of an image tells of
    the whole.

    Args:
        seen: the batch's assignment.
        by: what `readings.predicted` says of it, where that is known already.
        sight: which classes are not seen as yet, whose objects have no part in means and worst, and where it is noted
            how well these are; None: all have one.
        noted: of the first so many entries, whose labels are as they are; None: of all.
    """
    by = predicted(seen) if by is None else by
    each = dict(zip(OBJECT, objects(seen, by).unbind(2), strict=True))
    count, owner, area = _owners(seen)
    unseen, unlabelled_ = (-(each[name] + _EPS).log() for name in ("support", "labelled"))
    labels, classes, silent = seen.gt_valid[..., 0], seen.gt_labels[..., 0].long(), None
    if sight is not None:
        sight.note(classes[:noted], unseen[:noted], labels[:noted])
        silent = sight.unheard(unseen.device)
    valid = (labels if silent is None else labels & ~silent[classes]).flatten()

    def mean(values: Tensor) -> Tensor:
        return mean_by(owner, values.flatten(), count, valid.float())

    def worst(values: Tensor) -> Tensor:
        known = valid & values.flatten().isfinite()
        none = values.new_full((count,), torch.nan)
        return none.scatter_reduce_(0, owner[known], values.flatten()[known], "amax", include_self=False)

    contest = each["other"] - each["labelled"]
    columns = [mean(v) for v in (unseen, unlabelled_, contest)]
    columns += [worst(v) for v in (each["localisation"], each["presence"], unseen, contest)]
    extra, extras = _extras(seen, by, count)
    number = torch.zeros_like(area).index_add_(0, owner, labels.flatten().float())
    columns += [torch.where(area > 0, v, torch.nan) for v in (extra, extras / area, number / area)]
    return torch.cat((detection_channels(seen, silent), torch.stack(columns, 1)), 1)


def _owners(seen: Assignment) -> tuple[int, Tensor, Tensor]:
    """Number of owners K, the owner of each label row (B * M,), and the whole pictures each owner has a place in."""
    batch, padded = seen.gt_boxes.shape[:2]
    device = seen.scores.device
    if seen.owned is None:
        owner = torch.arange(batch, device=device).repeat_interleave(padded)
        return batch, owner, torch.ones(batch, device=device)
    area = torch.zeros(seen.owned.count, device=device)
    area.index_add_(0, seen.owned.anchors.flatten(), seen.owned.shares().float().flatten())
    return seen.owned.count, seen.owned.labels.flatten(), area / seen.owned.anchors.shape[2]


def _extras(seen: Assignment, by: Predicted, count: int) -> tuple[Tensor, Tensor]:
    """Each owner's surest prediction that no label explains, and the sum over its ten surest of each entry, (K,)."""
    free, _ = unlabelled(seen, by)
    entry, candidate = free.nonzero(as_tuple=True)  # surest first in each entry
    anchor = by.anchor[entry, candidate]
    confidence, share = by.first[entry, anchor], torch.ones_like(entry, dtype=torch.float32)
    owner = entry
    if seen.owned is not None:
        owner = seen.owned.anchors[:, entry, anchor]
        share = seen.owned.shares().float()[:, entry, anchor]
        layer, place = (share > 0).nonzero(as_tuple=True)
        owner, share = owner[layer, place], share[layer, place]
        entry, confidence = entry[place], confidence[place]
    order = (entry * count + owner).argsort(stable=True)
    entry, owner, confidence, share = (v[order] for v in (entry, owner, confidence, share))
    account = entry * count + owner
    rank = torch.arange(len(account), device=account.device) - torch.searchsorted(account, account)
    confidence = torch.where(rank < TOP, confidence, 0.0)
    none = torch.zeros(count, device=confidence.device)
    return none.scatter_reduce(0, owner, confidence, "amax"), none.index_add(0, owner, confidence * share)


@dataclass(frozen=True)
class Spoilt:
    """A batch's labels under the faults it is rehearsed with, on the CPU; B entries, M padded labels, K owners.

    Attributes:
        classes, boxes, valid: (B, M, 1), (B, M, 4) x1 y1 x2 y2 in pixels of the input, (B, M, 1) 0 or 1; float32.
        owners: owner of each row, (B, M).
        carried: which owners carry their fault, (K,) bool.
    """

    classes: Tensor
    boxes: Tensor
    valid: Tensor
    owners: Tensor
    carried: Tensor

    @classmethod
    def together(cls, parts: Sequence[Spoilt]) -> Spoilt:
        """Return the labels of several batches as those of one, as `together.together` does their assignments."""
        if len(parts) == 1:
            return parts[0]
        classes, boxes, valid, owners = (
            rows_together([getattr(part, name) for part in parts]) for name in ("classes", "boxes", "valid", "owners")
        )
        counts, entries = [len(part.carried) for part in parts], [len(part.owners) for part in parts]
        before = by_entry(owners_before(counts), entries, owners.device)
        return cls(classes, boxes, valid, owners + before[:, None], torch.cat([part.carried for part in parts]))


class Rehearsal:
    """Spoils batches of labels and reads what the detector then says of them.

    Args:
        peers: labels of the set's images, or of a sample of them, from which sizes, classes and donors are drawn.
        n: number of images, N.
        classes: number of classes.
        seed: decides each image's kind and draw.

    Attributes:
        kinds: (N,) the fault each image is rehearsed with, "" where it never is.
        sight: which classes the detector does not see as yet, by the epoch before; what the caller opens and closes.
    """

    def __init__(self, peers: Sequence[Labels], n: int, classes: int, seed: int) -> None:
        self.seed, self.peers = seed, Peers(peers, classes, tries=_TRIES)
        self.sight = Sight(classes)
        names = [name for name in FAULTS if name != "swapped" or classes > 1]
        order = np.random.default_rng([seed, n]).permutation(n)
        self.kinds: NDArray[np.str_] = np.array(names)[order % len(names)]
        self.kinds[order >= MOST_REHEARSED] = ""

    @classmethod
    def of(cls, dataset: Any, numbers: Mapping[str, int], classes: int, seed: int) -> Rehearsal:
        """Return the rehearsal of an Ultralytics dataset, whose images go by `numbers` outside."""
        row_of = {numbers[identity(file)]: row for row, file in enumerate(dataset.im_files)}
        drawn = np.random.default_rng([seed, len(row_of), 1]).permutation(len(row_of))[:MOST_PEERS]
        peers = []
        for number in np.sort(drawn):
            label = dataset.labels[row_of[int(number)]]
            peers.append(Labels(label["cls"].reshape(-1).astype(np.int64), _corners(label["bboxes"])))
        return cls(peers, len(row_of), classes, seed)

    def spoil(
        self, batch: Mapping[str, Any], shape: tuple[int, int], accounts: Accounts, sources: Sources | None = None
    ) -> Spoilt | None:
        """Return a batch's labels under each owner's fault, None where it has no owner that is rehearsed.

        Args:
            batch: as the loader gives it, on the CPU: `batch_idx` (N,), `cls` (N, 1), `bboxes` (N, 4) centre and size
                as shares of the input, `im_file` B names.
            shape: height and width of the input in pixels.
            accounts: whose accounts the batch goes onto.
            sources: what came with it; wanted where images are mixed.
        """
        if not (self.kinds[accounts.numbers] != "").any():
            return None
        entry = batch["batch_idx"].long().cpu().numpy()
        classes = batch["cls"].reshape(-1).long().cpu().numpy()
        boxes = _corners(batch["bboxes"].cpu().numpy())
        entries = len(batch["im_file"])
        carried = np.zeros(len(accounts.numbers), bool)
        rows: list[tuple[int, int, Labels]] = []
        for at, owner, own, region in _parts(entry, boxes, accounts, sources, entries):
            true = Labels(classes[own], boxes[own])
            wrong = self._spoil(int(accounts.numbers[owner]), true, region)
            carried[owner] |= wrong is not None
            rows.append((at, owner, true if wrong is None else wrong))
        return _padded(rows, entries, shape, torch.from_numpy(carried))

    @torch.no_grad()
    def readings(self, tap: LossTap, spoilt: Spoilt | None, seen: Assignment | None = None) -> Tensor:
        """Return a batch's features, beside them those under spoilt labels, and `OBJECTS` of all classes, (K, 31).

        NaN in the second part where an owner does not carry its fault, or nothing is spoilt.

        Args:
            tap: has watched the batch's forward.
            spoilt: the batch's labels under faults; None where this batch is not rehearsed.
            seen: a batch watched before, or several together; None: the last one.
        """
        seen = tap.assignment if seen is None else seen
        assert seen is not None
        by, device = predicted(seen), seen.scores.device
        if spoilt is None:
            true = features(seen, by, sight=self.sight)
            return self._beside(true, torch.full_like(true, torch.nan), seen)
        asked = (spoilt.classes, spoilt.boxes, spoilt.valid, spoilt.owners)
        classes, boxes, valid, owners = (part.to(device, non_blocking=True) for part in asked)
        again = tap.again(classes, boxes, valid, owners, seen)
        if device.type != "cpu" or seen.boxes.shape[1] <= _FEW_ANCHORS:
            both = together((seen, again))
            true, wrong = features(both, by.twice(), sight=self.sight, noted=len(seen.scores)).chunk(2)
        else:
            true, wrong = features(seen, by, sight=self.sight), features(again, by, sight=self.sight, noted=0)
        untouched = ~spoilt.carried.to(device, non_blocking=True)
        return self._beside(true, wrong.masked_fill(untouched[:, None], torch.nan), seen)

    def _beside(self, true: Tensor, wrong: Tensor, seen: Assignment) -> Tensor:
        all_seen = self.sight.unheard(true.device) is None
        return torch.cat((true, wrong, true[:, : len(OBJECTS)] if all_seen else every_object(seen)), 1)

    def _spoil(self, image: int, labels: Labels, region: NDArray[np.float64]) -> Labels | None:
        if not self.kinds[image]:
            return None
        low, size = region[:2], region[2:] - region[:2]
        whole = bool((size == 1).all())
        rng = np.random.default_rng([self.seed, image])
        fault = FAULTS[str(self.kinds[image])]
        if whole:
            return fault(labels, rng, self.peers)
        offset, scale = np.tile(low, 2), np.tile(size, 2)
        peers = self.peers.within((float(size[0]), float(size[1])))
        wrong = fault(Labels(labels.classes, (labels.boxes - offset) / scale), rng, peers)
        return None if wrong is None else Labels(wrong.classes, wrong.boxes * scale + offset)


def _corners(boxes: NDArray[Any]) -> NDArray[np.float64]:
    """Boxes (n, 4) of centre and size as x1 y1 x2 y2, cut at the border."""
    centre, half = boxes[:, :2].astype(np.float64), boxes[:, 2:4].astype(np.float64) / 2
    return np.concatenate((centre - half, centre + half), 1).clip(0, 1)


def _parts(
    entry: NDArray[np.int64], boxes: NDArray[np.float64], accounts: Accounts, sources: Sources | None, entries: int
) -> Iterator[tuple[int, int, NDArray[np.int64], NDArray[np.float64]]]:
    """Entry, owner, rows of its labels and region, as shares of the picture, of each owner's part of each entry."""
    if accounts.ownership is None or sources is None:
        for at in range(entries):
            yield at, at, np.flatnonzero(entry == at), _WHOLE
        return
    table, of_label = accounts.table, accounts.labels
    assert table is not None
    assert of_label is not None
    held = sources.rows.numpy() >= 0
    found = _regions(sources.planes.numpy(), table.shape[1])
    for at in range(entries):
        inside = np.flatnonzero(entry == at)
        for owner in np.unique(table[at, held[at]]):
            own = inside[of_label[inside] == owner]
            mine = np.concatenate((found[at, held[at] & (table[at] == owner)], boxes[own]))
            mine = mine[np.isfinite(mine).all(1)]
            if not len(mine):
                continue  # wholly covered by others, or cut away
            low, high = mine[:, :2].min(0), mine[:, 2:].max(0)
            if (high > low).all():
                yield at, int(owner), own, np.concatenate((low, high))


def _regions(planes: NDArray[np.uint8], sources: int) -> NDArray[np.float64]:
    """Box around the pixels of each source of each entry, (B, S, 4) as shares, NaN where it has none."""
    batch, _, height, width = planes.shape
    found = np.full((batch, sources, 4), np.nan)
    for number in range(1, sources + 1):
        here = planes == number  # padding has a mark in its number
        across, down = here.any((1, 2)), here.any((1, 3))
        some = across.any(1)
        ends = [
            across.argmax(1) / width,
            down.argmax(1) / height,
            1 - across[:, ::-1].argmax(1) / width,
            1 - down[:, ::-1].argmax(1) / height,
        ]
        found[some, number - 1] = np.stack(ends, 1)[some]
    return found


def _padded(rows: Sequence[tuple[int, int, Labels]], entries: int, shape: tuple[int, int], carried: Tensor) -> Spoilt:
    count = np.zeros(entries, np.int64)
    for at, _, labels in rows:
        count[at] += len(labels)
    most = int(count.max(initial=0))
    classes, boxes = np.zeros((entries, most, 1), np.float32), np.zeros((entries, most, 4), np.float32)
    valid, owners = np.zeros((entries, most, 1), np.float32), np.zeros((entries, most), np.int64)
    filled = np.zeros(entries, np.int64)
    pixels = np.tile(shape[::-1], 2)
    for at, owner, labels in rows:
        own = slice(filled[at], filled[at] + len(labels))
        classes[at, own, 0], owners[at, own], valid[at, own] = labels.classes, owner, 1
        boxes[at, own] = labels.boxes * pixels
        filled[at] += len(labels)
    return Spoilt(
        torch.from_numpy(classes), torch.from_numpy(boxes), torch.from_numpy(valid), torch.from_numpy(owners), carried
    )
