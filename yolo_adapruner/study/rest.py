"""What goes beyond the suspects: by lot, or the hardest first? On small digits, with and without planted wrong labels.

    python -m yolo_adapruner.study.rest --out docs/results/rest

A network of three convolutions is trained on a part of scikit-learn's digits. At each share a run with the mask
chooses by lot (`rest=draw`) and another by rank, and where stages are shorter because much goes, both again with long
ones. Then new networks train on what each kept, on a random choice, and on what an oracle leaves that takes the
planted labels out first and draws the rest, all for equally many updates. Each seed splits the set anew. Results go
to OUT.json as they come, so that a study that was interrupted goes on, and its tables to OUT.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from yolo_adapruner.config import PruneConfig
from yolo_adapruner.core.pruner import Pruner, Settings
from yolo_adapruner.core.selection import drop_count, random_kept
from yolo_adapruner.engine.classloss import CHANNELS, Answer, class_channels, fit, rehearsed_labels
from yolo_adapruner.engine.judge import CLASSES, FaultJudge
from yolo_adapruner.study.command import one_line, write
from yolo_adapruner.study.interval import paired

TRAIN, VAL, CLASSES_OF_SET = 500, 200, 10
EPOCHS, BATCH, LEARNING_RATE = 20, 32, 3e-3
NOISES, SHARES = (0.0, 0.1, 0.2), (0.1, 0.3, 0.6)
RESTS: tuple[Literal["draw", "rank"], ...] = ("draw", "rank")
LONG, LENGTHS = ", long stages", {"warmup_max": 0.55, "joint": 0.3}
ARMS = ("random", *RESTS, *(rest + LONG for rest in RESTS), "oracle")

Arms = dict[str, dict[str, float]]


@dataclass(frozen=True, eq=False)
class Part:
    """Digits: pictures (N, 1, 8, 8) in [0, 1], labels (N,) as given, and which of those are wrong, (N,)."""

    pictures: Tensor
    labels: Tensor
    wrong: NDArray[np.bool_]

    def only(self, rows: NDArray[np.bool_]) -> Part:
        """Return some of them."""
        return Part(self.pictures[rows], self.labels[rows], self.wrong[rows])


def parts(noise: float, seed: int) -> tuple[Part, Part, Part]:
    """Return train, with the share `noise` of its labels wrong, and val and test, whose labels are as they are."""
    found = load_digits()
    rng = np.random.default_rng([seed, 11])
    order = rng.permutation(len(found.target))
    pictures = torch.from_numpy(found.images[order][:, None] / 16).float()
    labels, wrong = found.target[order].astype(np.int64), np.zeros(len(order), bool)
    wrong[: round(noise * TRAIN)] = True
    labels[wrong] = rehearsed_labels(labels[wrong], CLASSES_OF_SET, seed + 1000)
    cuts = (slice(0, TRAIN), slice(TRAIN, TRAIN + VAL), slice(TRAIN + VAL, None))
    train, val, test = (Part(pictures[cut], torch.from_numpy(labels[cut]), wrong[cut]) for cut in cuts)
    return train, val, test


class Training:
    """A network and how it is trained: AdamW down a straight line, pictures shifted by up to a pixel.

    Args:
        updates: steps of the whole training.
        seed: of weights, order and shifts.
    """

    def __init__(self, updates: int, seed: int) -> None:
        torch.manual_seed(seed)
        widths = (1, 16, 32, 32)
        layers: list[nn.Module] = []
        for before, after, stride in zip(widths, widths[1:], (1, 2, 2), strict=False):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES_OF_SET))
        self.network = nn.Sequential(*layers, *head)
        self._optimizer = torch.optim.AdamW(self.network.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: 1 - 0.99 * step / updates)
        self._random = torch.Generator().manual_seed(seed)

    def epoch(self, part: Part, rows: Tensor, weights: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Train on some rows once, weighted where told, and give each batch's rows and logits."""
        self.network.train()
        order = rows[torch.randperm(len(rows), generator=self._random)]
        for ids in order.split(BATCH):
            if len(ids) == 1:
                continue  # batch normalisation needs two
            shift = torch.randint(-1, 2, (2,), generator=self._random).tolist()
            logits = self.network(torch.roll(part.pictures[ids], shift, (2, 3)))
            each = functional.cross_entropy(logits, part.labels[ids], reduction="none")
            loss = (each if weights is None else each * weights[ids]).mean()
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            self._schedule.step()
            yield ids, logits.detach()

    @torch.no_grad()
    def accuracy(self, part: Part) -> float:
        """Share of the pictures that are taken for what they are, [0, 1]."""
        self.network.eval()
        return float((self.network(part.pictures).argmax(1) == part.labels).float().mean())


def updates_of(images: int) -> int:
    """Return the steps of `EPOCHS` epochs on so many images."""
    return EPOCHS * math.ceil(images / BATCH)


def train(part: Part, updates: int, test: Part, seed: int) -> float:
    """Train on a part for so many steps and return the accuracy on the test part."""
    training, rows, left = Training(updates, seed), torch.arange(len(part.labels)), updates
    while left > 0:
        for _ in training.epoch(part, rows):
            left -= 1
            if not left:
                break
    return training.accuracy(test)


def choose(
    part: Part, val: Part, share: float, rest: Literal["draw", "rank"], seed: int, lengths: dict[str, Any] | None = None
) -> Pruner:
    """Return the pruner of a run that has chosen, judged as an image classifier is; `lengths` are of its stages."""
    n = len(part.labels)
    others = torch.from_numpy(rehearsed_labels(part.labels.numpy(), CLASSES_OF_SET, seed))
    judge = FaultJudge(np.array(CLASSES.kinds * n), seed, torch.device("cpu"), CLASSES)
    settings = Settings(**PruneConfig(share=share, rest=rest, **(lengths or {})).model_dump())
    pruner = Pruner(n, len(CHANNELS), EPOCHS, settings, seed, judge=judge)
    training = Training(updates_of(n), seed)
    while pruner.kept is None:
        pruner.open_epoch()
        active, weights = pruner.active, pruner.weights()
        rows = torch.arange(n) if active is None else torch.from_numpy(np.flatnonzero(active))
        for ids, logits in training.epoch(part, rows, None if weights is None else torch.from_numpy(weights)):
            read, spoilt = (class_channels(Answer(logits, given[ids])).numpy() for given in (part.labels, others))
            pruner.observe(ids.numpy(), read, rehearsed=spoilt if pruner.rehearses else None)
        works = fit(pruner.record.means()) >= settings.warmup_fit
        pruner.close_epoch(training.accuracy(val), works=works, rested=None if active is None else ~active)
    return pruner


def cell(noise: float, seed: int, shares: Sequence[float] = SHARES) -> Arms:
    """Return one seed's arms: `full`, and by share those of `ARMS`.

    Each has its test accuracy, [0, 1], and the planted share among the dropped, `wrong`; what a run chose also the
    share of labels that it takes for wrong, `told`.
    """
    part, val, test = parts(noise, seed)
    updates = updates_of(len(part.labels))
    found: Arms = {"full": {"test": train(part, updates, test, seed)}}
    for share in shares:
        kept = {"random": random_kept(TRAIN, share, seed=seed)}
        told = {}
        longer = PruneConfig(share=share), PruneConfig(share=share, **LENGTHS)
        same = len({Settings(**config.model_dump()).lengths for config in longer}) == 1
        for rest, lengths in itertools.product(RESTS, (None,) if same else (None, LENGTHS)):
            pruner = choose(part, val, share, rest, seed, lengths)
            assert pruner.kept is not None
            arm = rest + (LONG if lengths else "")
            kept[arm], told[arm] = pruner.kept, pruner.suspicion.share
        kept["oracle"] = _oracle(part.wrong, share, seed)
        for arm in kept:
            figures = {
                "wrong": float(part.wrong[~kept[arm]].mean()),
                "test": train(part.only(kept[arm]), updates, test, seed),
            }
            found[f"{arm} {share:g}"] = {**figures, **({"told": told[arm]} if arm in told else {})}
    return found


def _oracle(wrong: NDArray[np.bool_], share: float, seed: int) -> NDArray[np.bool_]:
    """The planted labels out first, others drawn: kept, (N,)."""
    order = np.random.default_rng([seed, 13]).permutation(len(wrong))
    order = order[np.argsort(~wrong[order], kind="stable")]
    kept = np.ones(len(wrong), bool)
    kept[order[: drop_count(len(wrong), share)]] = False
    return kept


def study(seeds: Sequence[int], path: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Compute the cells that `path` lacks, writing it after each, and return what is in it."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cells": []}
    done = {(c["noise"], c["seed"]) for c in found["cells"]}
    packages = ("numpy", "torch", "scikit-learn")
    found["versions"] = {"python": platform.python_version(), **{p: version(p) for p in packages}}
    for seed, noise in itertools.product(seeds, NOISES):
        if (noise, seed) in done:
            continue
        start = time.perf_counter()
        arms = cell(noise, seed)
        seconds = round(time.perf_counter() - start, 1)
        found["cells"].append({"noise": noise, "seed": seed, "seconds": seconds, "arms": arms})
        write(path, json.dumps(found, indent=1))
        say(f"{noise:.0%} planted, seed {seed}: {seconds:.0f} s")
    return found


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Return the table at one noise in Markdown: a row an arm, paired differences with 95 % intervals."""
    arms: list[Arms] = [c["arms"] for c in cells]
    lines = [
        "| arm | pruned | accuracy | against full | against random | planted among the dropped | taken for wrong |",
        "|---|---|---|---|---|---|---|",
        f"| full | – | {100 * _mean(arms, 'full', 'test'):.1f} | – | – | – | – |",
    ]
    for name in sorted(set(arms[0]) - {"full"}, key=_place):
        arm, share = name.rsplit(" ", 1)
        told = f"{_mean(arms, name, 'told'):.1%}" if "told" in arms[0][name] else "–"
        against = "–" if arm == "random" else _difference(arms, name, f"random {share}")
        row = (
            *(arm, f"{float(share):.0%}", f"{100 * _mean(arms, name, 'test'):.1f}", _difference(arms, name, "full")),
            *(against, f"{_mean(arms, name, 'wrong'):.0%}", told),
        )
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _place(name: str) -> tuple[float, int]:
    arm, share = name.rsplit(" ", 1)
    return float(share), ARMS.index(arm)


def _mean(arms: Sequence[Arms], arm: str, figure: str) -> float:
    return statistics.fmean(one[arm][figure] for one in arms)


def _difference(arms: Sequence[Arms], arm: str, other: str) -> str:
    found = paired([one[arm]["test"] for one in arms], [one[other]["test"] for one in arms])
    interval = f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]" if found.known else ""
    return f"{100 * found.mean:+.1f}{interval}"


def report(found: dict[str, Any]) -> str:
    """Return all tables of a study in Markdown, with what they were made by."""
    text = []
    for noise in NOISES:
        cells = [c for c in found["cells"] if c["noise"] == noise]
        if cells:
            text += [f"## {noise:.0%} of the labels planted wrong, {len(cells)} seeds", table(cells)]
    said = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    minutes = sum(c["seconds"] for c in found["cells"]) / 60
    text.append(
        f"Points of accuracy on the {len(load_digits().target) - TRAIN - VAL} digits that chose nothing; {TRAIN} to "
        f"train on, {EPOCHS} epochs or as many updates; 95 % intervals of the paired differences over seeds, which "
        f"draw the split as well. {said}; one thread, {minutes:.0f} minutes in all."
    )
    return "\n\n".join(text)


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Run the study and write its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="SEED")
    parser.add_argument("--out", type=Path, required=True, help="path of the results without .json and .md")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    tables = report(study(args.seeds, args.out.with_suffix(".json"), lambda line: print(line, flush=True)))
    print(tables)
    write(args.out.with_suffix(".md"), tables)


if __name__ == "__main__":
    sys.exit(main())
