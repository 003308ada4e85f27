"""What a comparison's `compare.json` says to the reader of a report: verdicts with their tone, rows, points to draw.

The tone of a verdict is read off its words, which `study/verdict.py` writes; a test holds the two together.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_adapruner.errors import RunError

NAME = "compare.json"
_TONES = (
    (": better", "better"),
    (": within your margin", "within"),
    (": worse than", "worse"),
)
TITLES = {"better": "better", "within": "within the margin", "worse": "worse", "open": "not settled"}


@dataclass(frozen=True)
class Verdict:
    """A sentence about one arm, and its tone: better, within, worse or open."""

    line: str
    tone: str

    @property
    def title(self) -> str:
        """The tone in words."""
        return TITLES[self.tone]

    @property
    def head(self) -> str:
        """What was found, the sentence up to its colon, with a capital letter."""
        return _spoken(self.line.partition(": ")[0])

    @property
    def rest(self) -> str:
        """What that means, the sentence after its colon, with a capital letter and a full stop."""
        meaning = self.line.partition(": ")[2]
        return f"{_spoken(meaning)}." if meaning else ""


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        folder: where it lies.
        facts: the content of compare.json, see docs/compare-schema.md.
    """

    folder: Path
    facts: Mapping[str, Any]

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Its rows, an arm at a share and a budget each."""
        return self.facts["rows"]

    @property
    def full(self) -> float | None:
        """mAP50-95 of training on everything, mean over seeds, in [0, 1]."""
        values = [row["map50_95"] for row in self.rows if row["arm"] == "full"]
        return statistics.fmean(values[0]) if values and values[0] else None

    def verdicts(self, share: float | None = None) -> list[Verdict]:
        """Return the verdicts, the one on the learned choice against everything first, then that against random.

        Args:
            share: of several shares compared, the one to lead with; the first where it is not among them.
        """
        lines = [str(line) for line in self.facts.get("verdicts", ())]
        leading = [line for line in lines if _leads(line)]
        wanted = "" if share is None else f"dropping {100 * share:.3g} %"
        lead = next((line for line in leading if _doing(line) == wanted), leading[0] if leading else "")
        return [
            Verdict(line, tone(line)) for line in sorted(lines, key=lambda x: (x != lead, _doing(x) != _doing(lead)))
        ]

    def asides(self) -> list[str]:
        """Return what else it says: hours, and how far the seeds agree."""
        return [str(entry["line"]) for entry in self.facts.get("selection", ())]


def tone(line: str) -> str:
    """Return the tone of a verdict in words."""
    return next((name for words, name in _TONES if words in line), "open")


def _doing(line: str) -> str:
    """What a sentence is about, as "dropping 10 %"; of an arm beside the learned choice, with its name."""
    return re.split(" (?:costs|gains) ", line)[0]


def _leads(line: str) -> bool:
    """Whether a sentence is about the learned choice, by itself and against the full set."""
    return _doing(line) != line and "(" not in _doing(line) and "against a random choice" not in line


def _spoken(words: str) -> str:
    """With a capital letter, and a minus where one is meant."""
    return re.sub(r"(?<!\S)-(?=\d)|(?<=\[)-(?=\d)", "−", words[:1].upper() + words[1:])


def load(folder: str | Path) -> Comparison:
    """Return a comparison by its folder.

    Raises:
        RunError: it holds no finished comparison.
    """
    home = Path(folder).absolute()
    file = home / NAME
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        _check(facts)
    except FileNotFoundError:
        raise RunError(f"Expected a finished comparison in {home}, but it has no {NAME}: finish it first.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"Expected {file} as this package writes it, but it cannot be read ({error}).") from None
    return Comparison(home, facts)


def _check(facts: Mapping[str, Any]) -> None:
    """Raise a KeyError, TypeError or ValueError where something lacks that a report shows."""
    for row in facts["rows"]:
        if not {"arm", "share", "budget", "images", "updates", "map50_95", "versus_full", "versus_random"} <= {*row}:
            raise KeyError("rows")
        for versus in (row["versus_full"], row["versus_random"]):
            if not (versus is None or isinstance(versus, Mapping)):
                raise ValueError("it is of an earlier version, compare again")
    float(facts["margin"]), int(facts["seeds"]), facts["config"].get("data")
