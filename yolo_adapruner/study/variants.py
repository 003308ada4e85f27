"""The questions that a study answers, each as variants of one recipe and the trainings they take. Trains nothing.

A variant is the run config with some settings of the method, or the model, changed. It is compared with another one of
the same study, seed by seed. Knows no files and no figures.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yolo_adapruner.config import PruneConfig, RunConfig, load
from yolo_adapruner.core.pruner import COMPRESSION, NEUTRAL, SELECTION, TASK, TERMS
from yolo_adapruner.errors import ConfigError
from yolo_adapruner.study.arms import FULL, PRUNED, RANDOM, RUN
from yolo_adapruner.study.table import EPOCHS, UPDATES, Cell

WARMUP, TERMS_OUT, SCALE, SHARES, TRANSFER = "warmup", "terms", "scale", "shares", "transfer"
QUESTIONS = (WARMUP, TERMS_OUT, SCALE, SHARES, TRANSFER)
MANY_SHARES = tuple(round(0.1 * k, 1) for k in range(1, 9))
GRID: Mapping[str, Sequence[float]] = {"s_end": (1, 5, 20), "s_start": (0.1, 1), "ramp": (0.3, 0.6)}
"""What `scale` varies by default: the final scale, where s begins, and in which part of the joint stage it rises."""
_NOT_VARIED = ("share", "keep")


@dataclass(frozen=True)
class Variant:
    """One way to run the recipe.

    Attributes:
        name: in tables; `slug` is its folder.
        settings: of the method, over the run config's.
        model: in place of the run config's, None for that.
        arms: trained at each share, in this order; `full` beside them, once a seed.
        beside: the variant it is compared with.
        chosen_by: the variant whose runs chose the images it trains on; None for its own.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    arms: tuple[str, ...] = (RUN, PRUNED)
    full: bool = False
    beside: str = ""
    chosen_by: str | None = None

    @property
    def slug(self) -> str:
        """The name as a folder has it."""
        return re.sub(r"[^\w.]+", "-", self.name).strip("-") or "method"

    def config(self, config: RunConfig) -> RunConfig:
        """Return the run config of this variant; what cannot be is refused as everywhere."""
        content = config.model_dump()
        content["prune"] |= self.settings
        content["model"] = self.model or content["model"]
        return load(content)


@dataclass(frozen=True)
class Trial(Cell):
    """A cell of a variant."""

    variant: str = ""

    @property
    def name(self) -> str:
        """The cell's name after its variant's."""
        return f"{self.variant}: {super().name}" if self.variant else super().name

    @property
    def cell(self) -> Cell:
        """The cell within its variant."""
        return Cell(self.arm, self.share, self.budget, self.seed)


def variants(
    question: str,
    config: RunConfig,
    *,
    vary: Mapping[str, Sequence[Any]] | None = None,
    to: Sequence[str] = (),
    only: Sequence[str] = (),
    retrain: bool = True,
) -> list[Variant]:
    """Return a question's variants, first the one that others are compared with.

    Args:
        question: one of `QUESTIONS`.
        config: the recipe.
        vary: for `scale`, settings of the method and their values; every combination is a variant.
        to: for `transfer`, models to train on what the config's model chose.
        only: names of the variants to run beside the first; none for all.
        retrain: with networks trained anew on what was kept, and on a random choice; False for the runs' own alone.

    Raises:
        ConfigError: the question is unknown, or what it asks for cannot be varied.
    """
    if question not in QUESTIONS:
        raise ConfigError(f"Expected a question out of {', '.join(QUESTIONS)}, but got {question}.")
    for given, name, place in ((vary, "--vary", SCALE), (to, "--to", TRANSFER)):
        if given and question != place:
            raise ConfigError(f"Expected {name} with study {place}, but got it with study {question}: leave it out.")
    made = {
        WARMUP: lambda: _warmup(config),
        TERMS_OUT: _terms,
        SCALE: lambda: _grid(config.prune, vary or GRID),
        SHARES: lambda: [Variant("", arms=(RUN, PRUNED, RANDOM), full=True)],
        TRANSFER: lambda: _transfer(config.model, to),
    }[question]()
    if question == TRANSFER and (only or not retrain):
        raise ConfigError(
            "Expected study transfer whole, but got --only or --no-retrain: its variants build on each other."
        )
    return [variant if retrain else replace(variant, arms=(RUN,)) for variant in _some(made, only)]


def plan(
    found: Sequence[Variant], shares: Sequence[float], seeds: Sequence[int], run_budget: str = EPOCHS
) -> list[list[Trial]]:
    """Return the trainings as chains, seed by seed; a trial builds on earlier ones of its own chain only.

    Args:
        found: the variants.
        shares: prune shares.
        seeds: of the runs.
        run_budget: of the runs that choose; all else is judged at equal updates, so that what is measured is the set.
    """
    budgets = {RUN: run_budget, PRUNED: UPDATES, RANDOM: UPDATES}
    chained = any(v.chosen_by is not None for v in found)
    chains = []
    for seed in seeds:
        chains += [[Trial(FULL, 0.0, EPOCHS, seed, v.name)] for v in found if v.full]
        for share in shares:
            of_each = [[Trial(arm, share, budgets[arm], seed, v.name) for arm in v.arms] for v in found]
            chains += [[trial for trials in of_each for trial in trials]] if chained else of_each
    return chains


_FIRST: dict[str, Any] = {"arms": (RUN, PRUNED, RANDOM), "full": True}


def _warmup(config: RunConfig) -> list[Variant]:
    if config.prune.warmup == 0:
        raise ConfigError(
            "Expected a run config with a warm-up to study it, but prune.warmup is 0: set auto or epochs."
        )
    return [Variant("warm-up", **_FIRST), Variant("no warm-up", {"warmup": 0}, beside="warm-up")]


def _terms() -> list[Variant]:
    def without(*terms: str) -> Variant:
        left = [term for term in TERMS if term not in terms]
        return Variant(f"no {', no '.join(terms)}", {"terms": left}, beside="all terms")

    first = Variant("all terms", {"terms": list(TERMS)}, **_FIRST)
    singles = [without(term) for term in (TASK, SELECTION, COMPRESSION, NEUTRAL)]
    return [first, *singles, without(COMPRESSION, NEUTRAL)]


def _grid(method: PruneConfig, vary: Mapping[str, Sequence[Any]]) -> list[Variant]:
    known = [name for name in PruneConfig.model_fields if name not in _NOT_VARIED]
    if unknown := [name for name in vary if name not in known]:
        raise ConfigError(
            f"Expected settings of the method to vary, but got {', '.join(unknown)}: docs/settings.md lists them under "
            "prune."
        )
    own = ", ".join(f"{name} {_word(getattr(method, name))}" for name in vary)
    made = {own: Variant(own, **_FIRST)}
    for values in itertools.product(*vary.values()):
        settings = dict(zip(vary, values, strict=True))
        name = ", ".join(f"{key} {_word(value)}" for key, value in settings.items())
        made.setdefault(name, Variant(name, settings, beside=own))
    return list(made.values())


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _transfer(model: str, to: Sequence[str]) -> list[Variant]:
    if not to:
        raise ConfigError("Expected another model to train on what the run config's chose, but got none: set --to.")
    names = [Path(name).stem for name in (model, *to)]
    if len(set(names)) < len(names):
        raise ConfigError(f"Expected models of different names, but got {', '.join(names)}.")
    made = [Variant(names[0], arms=(RUN,))]
    for path, name in zip(to, names[1:], strict=True):
        made.append(Variant(name, model=path, **_FIRST))
        by = f"{name}, chosen by {names[0]}"
        made.append(Variant(by, model=path, arms=(PRUNED,), beside=name, chosen_by=names[0]))
    return made


def _some(found: list[Variant], only: Sequence[str]) -> list[Variant]:
    names = [v.name for v in found[1:]]
    if unknown := [name for name in only if name not in names]:
        raise ConfigError(
            f"Expected variants out of {'; '.join(names) or 'none'}, but got {'; '.join(unknown)}: check the names."
        )
    return [v for v in found if not only or v is found[0] or v.name in only]
