"""The page: a run and perhaps a comparison in, one HTML file out, which needs nothing else to be read.

File and class names are a stranger's words: the template escapes all it is given, the script's data have no `<` in
them, and the page's own policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from yolo_adapruner import __version__
from yolo_adapruner.data.export import replace_file, shown
from yolo_adapruner.errors import RunError
from yolo_adapruner.report import charts, comparison, run
from yolo_adapruner.report.comparison import Comparison
from yolo_adapruner.report.drift import drift
from yolo_adapruner.report.rows import Limits, island
from yolo_adapruner.report.run import Run

NAME = "report.html"
MOST_BYTES = 25_000_000
"""No page is larger."""
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def write(folder: str | Path, compare: str | Path | None = None, *, target: Path | None = None) -> Path:
    """Write a run's report and return its path.

    Args:
        folder: a finished run's folder.
        compare: the folder of a finished comparison of it.
        target: the file to write, `report.html` in the run folder by default.

    Raises:
        RunError: a folder holds no finished run or comparison, or the file cannot be written.
    """
    found = run.load(folder)
    file = target or found.folder / NAME
    text = page(found, None if compare is None else comparison.load(compare), title=file.absolute().parent.name)
    try:
        with replace_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"Expected to write {file}, but {error.strerror}: make room, or write it elsewhere.") from None
    return file


def page(found: Run, compared: Comparison | None = None, limits: Limits | None = None, *, title: str = "") -> str:
    """Return a report as HTML of less than `MOST_BYTES` bytes in UTF-8.

    Args:
        found: the run.
        compared: a comparison of it.
        limits: what the page may hold.
        title: what it is called, the run folder's name by default.
    """
    limits = limits or Limits()
    labels = {int(i): found.labels(int(i)) for i in found.order()[: limits.rows]}
    view = _view(found, compared)
    view["title"] = shown(title or found.folder.name)
    while True:
        text = _render(view, island(found, labels, limits))
        if len(text.encode("utf-8")) < MOST_BYTES:
            return text
        limits = limits.halved()


def _view(found: Run, compared: Comparison | None) -> dict[str, Any]:
    """What the template is given beside the gallery."""
    outcome, manifest = found.outcome, found.manifest
    total, kept = len(outcome.paths), int(outcome.kept.sum())
    return {
        "version": __version__,
        "name": shown(found.folder.name),
        "folder": shown(str(found.folder)),
        "total": total,
        "kept": kept,
        "dropped": total - kept,
        "share": (total - kept) / total if total else 0.0,
        "compared": compared,
        "mismatch": None if compared is None else _mismatch(found, compared),
        "reasons": _reasons(manifest),
        "commands": _commands(found),
        "facts": _facts(found),
        "accuracy": [] if compared is None else charts.against_share(compared),
        "epochs": charts.by_epoch(found.epochs),
        "weights": charts.weights(found.history, outcome.columns["weight"]) if kept < total else None,
        "drift": drift(manifest),
        "imgsz": manifest.get("train", {}).get("imgsz"),
        "classify": found.task == "classify",
        "versions": manifest.get("versions", {}),
        "hardware": manifest.get("hardware"),
        "settings": manifest.get("prune", {}),
    }


def _facts(found: Run) -> list[tuple[str, str]]:
    manifest = found.manifest
    trained, best = manifest.get("train", {}), manifest.get("best_validation") or {}
    metric = next((best[name] for name in charts.METRICS if name in best), None)
    facts = [
        ("model", trained.get("model")),
        ("data", manifest["data"]["source"]),
        ("epochs", trained.get("epochs")),
        ("image size", trained.get("imgsz") and f"{trained['imgsz']} px"),
        ("seed", manifest.get("seed")),
        ("labels that look wrong", _wrong_labels(manifest)),
        ("took", manifest.get("seconds") and f"{manifest['seconds'] / 60:.1f} min"),
        ("validation", metric is not None and f"{100 * metric:.1f} (it chose this checkpoint, so it is no result)"),
    ]
    return [(name, shown(str(value))) for name, value in facts if value not in (None, False)]


def _reasons(manifest: Mapping[str, Any]) -> str:
    """How many images were dropped for each reason, in words; "" where no reason is known."""
    return ", ".join(f"{n:,} {name}" for name, n in manifest.get("reasons", {}).items() if n)


def _wrong_labels(manifest: Mapping[str, Any]) -> str | None:
    """The share of images whose labels look wrong, in words; None where no judge learned."""
    share = manifest.get("wrong_labels")
    return None if share is None else f"of about {share:.1%} of the images" if share >= 0.001 else "hardly any"


def _commands(found: Run) -> list[str]:
    """The commands that compare this run with the full and a random set, and put what comes of it here."""
    folder = shlex.quote(shown(str(found.folder)))
    config = found.folder / "adaprune.yaml"
    source = shlex.quote(shown(str(config))) if config.is_file() else "RUN_CONFIG.yaml"
    name = shlex.quote(shown(f"{found.folder.name}-compare"))
    beside = shlex.quote(shown(str(found.folder.parent / f"{found.folder.name}-compare")))
    share = found.manifest["prune"]["share"]
    return [
        f"yolo-adapruner compare {source} --prune {share:g} --seeds 3 --name {name}",
        f"yolo-adapruner report {folder} --compare {beside}",
    ]


def _mismatch(found: Run, compared: Comparison) -> str | None:
    """What of a comparison is not this run's, in words."""
    share, shares = found.manifest["prune"]["share"], compared.facts.get("shares", [])
    if share and share not in shares:
        listed = " and ".join(f"{100 * s:.3g} %" for s in shares)
        return f"The comparison was made at {listed}; this run prunes {100 * share:.3g} %."
    models = found.manifest.get("train", {}).get("model"), _config(compared, "model")
    model, other = (Path(str(m)).name for m in models)
    if None not in models and model != other:
        return f"The comparison was made with {other}; this run trained {model}."
    sets = found.manifest["data"]["source"], _config(compared, "data")
    # A comparison's own runs train on a data file that it made of that set, with halves of its validation images.
    own = compared.folder.resolve() in found.folder.resolve().parents
    if not own and None not in sets and not _may_be_one(*(Path(str(s)) for s in sets)):
        return f"The comparison was made on {shown(str(sets[1]))}; this run is of {shown(str(sets[0]))}."
    return None


def _may_be_one(source: Path, named: Path) -> bool:
    """Whether two data files may be the same, for all that their names say; a project may have been moved."""
    parents = source.parent.name, named.parent.name
    return source.stem == named.stem and (not all(parents) or parents[0] == parents[1])


def _config(compared: Comparison, key: str) -> Any:
    return compared.facts["config"].get(key)


def _render(view: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    env = _environment()
    script, style = (_text(name) for name in ("report.js", "report.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return env.get_template("report.html").render(
        **view,
        listed=len(content["paths"]),
        script=Markup(script),
        style=Markup(style),
        digest=Markup(digest),
        island=Markup(
            json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)
        ),
    )


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


@cache
def _environment() -> Environment:
    loader = PackageLoader("yolo_adapruner.report")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["percent"] = _percent
    return made


@cache
def _text(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]
