"""A panel of a chart as SVG text: axes, ticks, words, marks. Colours are the page's CSS classes; knows no data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

MARKS = 8
"""Colours, and shapes, of marks; `mark(kind)` with kind 0 to 63 gives each kind a pair of its own."""


@dataclass
class Panel:
    """A panel that is drawn on: y grows upwards in data units.

    Attributes:
        title: what is shown; also what a screen reader says first.
        description: the same in a sentence, for those who cannot see it.
        x, y: ranges of the axes, in data units.
        width, height: of the whole, in the units of the drawing; text is 11 of them high.
        left, right, top, bottom: margins.
        parts: what was drawn.
        named_to: where the last band's name ends.
    """

    title: str
    description: str
    x: tuple[float, float]
    y: tuple[float, float]
    width: float = 360
    height: float = 236
    left: float = 40
    right: float = 14
    top: float = 30
    bottom: float = 34
    parts: list[Markup] = field(default_factory=list)
    named_to: float = 0.0

    def px(self, x: float) -> float:
        """Return where a value of x lies."""
        low, high = self.x
        return round(self.left + (x - low) / ((high - low) or 1) * (self.width - self.left - self.right), 1)

    def py(self, y: float) -> float:
        """Return where a value of y lies."""
        low, high = self.y
        return round(self.height - self.bottom - (y - low) / ((high - low) or 1) * self._inner, 1)

    @property
    def _inner(self) -> float:
        return self.height - self.top - self.bottom

    def add(self, template: str, *values: object) -> None:
        """Add a piece of SVG; `values` are escaped into the places of the template."""
        self.parts.append(Markup(template).format(*values))

    def y_axis(self, ticks: Sequence[float], digits: int, label: str) -> None:
        """Draw grid lines with their values, and say above them what they are."""
        for tick in ticks:
            y = self.py(tick)
            self.add('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>', self.left, self.width - self.right, y, y)
            self.add(
                '<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>', self.left - 6, y + 4, _n(tick, digits)
            )
        self.add('<text class="tick" x="{}" y="{}">{}</text>', 0, 10, label)

    def x_axis(self, ticks: Sequence[tuple[float, str]], label: str) -> None:
        """Write values below, and what they are."""
        for value, words in ticks:
            place = (self.px(value), self.height - self.bottom + 15)
            self.add('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>', *place, words)
        middle = (self.left + self.width - self.right) / 2
        self.add('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>', middle, self.height - 3, label)

    def band(self, low: float, high: float, kind: str, words: str) -> None:
        """Tint a range of x and write its name above it, a long one to its left, if no other stands there."""
        x, width = self.px(low), self.px(high) - self.px(low)
        self.add(
            '<rect class="band {}" x="{}" y="{}" width="{:.1f}" height="{}"/>', kind, x, self.top, width, self._inner
        )
        room = 5.5 * len(words)
        end = x + width if width < room else x + (width + room) / 2
        if end - room >= self.named_to:
            place = (round(end - room / 2, 1), self.top - 5)
            self.add('<text class="stage" x="{}" y="{}" text-anchor="middle">{}</text>', *place, words)
            self.named_to = end + 6

    def line(self, xs: Sequence[float], ys: Sequence[float], kind: str) -> None:
        """Draw a line through the points that are numbers; a lone one becomes a dot."""
        pieces: list[list[str]] = [[]]
        for x, y in zip(xs, ys, strict=True):
            if math.isfinite(y):
                pieces[-1].append(f"{self.px(x)} {self.py(y)}")
            elif pieces[-1]:
                pieces.append([])
        for piece in pieces:
            if len(piece) == 1:
                self.add('<circle class="dot {}" cx="{}" cy="{}" r="2"/>', kind, *piece[0].split())
            elif piece:
                self.add('<path class="line {}" d="M{}"/>', kind, "L".join(piece))

    def level(self, y: float, kind: str) -> None:
        """Draw a line across at a value of y."""
        self.add(
            '<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>',
            *(kind, self.left, self.width - self.right, self.py(y), self.py(y)),
        )

    def mark(self, x: float, y: float, kind: int, words: str) -> None:
        """Put a mark of a kind at a place of the drawing, x and y as `px` and `py` give them."""
        self.parts.append(mark(x, y, kind, words))

    def svg(self) -> Markup:
        """Return the panel as an SVG element."""
        head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">')
        label = f"{self.title}. {self.description}"
        return head.format(self.width, self.height, label) + Markup("").join(self.parts) + Markup("</svg>")


def mark(x: float, y: float, kind: int, words: str = "") -> Markup:
    """Return the mark of a kind, its centre at x, y; `words` appear where a mouse points at it."""
    shapes = (
        "M-4 0A4 4 0 1 1 4 0A4 4 0 1 1 -4 0Z",
        "M-3.6-3.6H3.6V3.6H-3.6Z",
        "M0-5L5 0L0 5L-5 0Z",
        "M0-5L4.6 3.4H-4.6Z",
        "M0 5L4.6-3.4H-4.6Z",
        "M-5-1.5H-1.5V-5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5Z",
        "M-5-3.5H0L5 3.5H0Z",
        "M-2-5H2V5H-2Z",
    )
    title = Markup("<title>{}</title>").format(words) if words else ""
    body = Markup('<path class="mark m{}" transform="translate({} {})" d="{}">{}</path>')
    shape = (kind + 3 * (kind // MARKS)) % MARKS  # where colours come again, with other shapes
    return body.format(kind % MARKS, x, y, shapes[shape], title)


def ticks(low: float, high: float, about: int = 5) -> tuple[list[float], int]:
    """Return round values from `low` to `high` and the digits that tell them apart."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low], 0
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9)
    values = [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return values, max(0, -math.floor(math.log10(step) + 1e-9))


def _n(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")
