"""`python -m yolo_adapruner.bench`: what the mask costs a training step and what a whole run saves, on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from yolo_adapruner.errors import AdaPrunerError

_FLAGS = ("model", "data", "imgsz", "batch", "device", "seed")
_MIXING = {"mosaic": 1.0, "mixup": 0.5}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return 0, or 2 for bad input, with one line that says what to do."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except AdaPrunerError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m yolo_adapruner.bench", description=(__doc__ or "").partition(": ")[2]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "attribution",
        help="a stock training step against one with mask and attribution, mosaic and mixup on, loader included",
        epilog="key=value settings go to both sides' Ultralytics: mosaic=0",
    )
    command.add_argument("settings", nargs="*", metavar="key=value")
    command.add_argument("--config", default="yolov3-tiny", help="run config: a YAML file, or a packaged one")
    command.add_argument("--model", help="Ultralytics architecture or checkpoint")
    command.add_argument("--data", help="Ultralytics data file")
    command.add_argument("--imgsz", type=int, default=160, help="input size in pixels (default 160)")
    command.add_argument("--batch", type=int, help="images a batch")
    command.add_argument("--device", help="Ultralytics' device: cpu, 0, mps")
    command.add_argument("--seed", type=int, help="seed of both sides")
    command.add_argument("--steps", type=int, default=10, metavar="N", help="steps a side in a round (default 10)")
    command.add_argument("--repeats", type=int, default=15, metavar="N", help="rounds (default 15)")
    command.add_argument("--json", action="store_true", help="print one line of JSON")
    command.set_defaults(run=lambda args: print(_attribution(args)))
    _add_wall(commands)
    return parser


def _add_wall(commands: Any) -> None:
    command = commands.add_parser(
        "wall",
        help="whole commands, stock against --prune and --dynamic: wall time, images trained on, test mAP",
        epilog="key=value settings go to all arms' runs; a folder's finished cells are not run again",
    )
    command.add_argument("settings", nargs="*", metavar="key=value")
    command.add_argument("--config", default="yolov3-tiny", help="run config: a YAML file, or a packaged one")
    command.add_argument("--model", help="Ultralytics architecture or checkpoint")
    command.add_argument("--data", help="Ultralytics data file; its test split is reported on, else val")
    command.add_argument("--imgsz", type=int, help="input size in pixels")
    command.add_argument("--batch", type=int, help="images a batch")
    command.add_argument("--device", help="Ultralytics' device: cpu, 0, mps")
    command.add_argument("--arms", help="comma-separated: stock, prune-SHARE, dynamic, dynamic-SHARE")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="default 0 1 2")
    command.add_argument("--work", required=True, metavar="FOLDER", help="where cells are kept")
    command.add_argument("--json", action="store_true", help="print one line of JSON")
    command.set_defaults(run=_wall, seed=None)


def _wall(args: argparse.Namespace) -> None:
    from pathlib import Path

    from yolo_adapruner.config import key_values, load
    from yolo_adapruner.study import wall

    config = load(args.config, {**key_values(args.settings), **{key: getattr(args, key) for key in _FLAGS}})
    arms = wall.ARMS if args.arms is None else tuple(args.arms.split(","))
    cells = []
    for cell in wall.Bench(config, Path(args.work), arms, tuple(args.seeds)).run():
        cells.append(cell)
        print(f"{cell['arm']}, seed {cell['seed']}: {cell['seconds']:.0f} s, {wall.machine()}", file=sys.stderr)
    rows = wall.summary(cells)
    print(json.dumps({"bench": "wall", "arms": rows}) if args.json else wall.table(rows))


def _attribution(args: argparse.Namespace) -> str:
    from yolo_adapruner.config import key_values, load

    given = {key: getattr(args, key) for key in _FLAGS}
    config = load(args.config, {**_MIXING, **key_values(args.settings), **given})
    from yolo_adapruner.engine import stepcost

    cost, beside = stepcost.measure(config, steps=args.steps, repeats=args.repeats), stepcost.facts(config)
    if args.json:
        return json.dumps({"bench": "attribution", **asdict(cost), **beside})
    return _text(asdict(cost), beside)


def _text(cost: dict[str, Any], beside: dict[str, Any]) -> str:
    mixing = ", ".join(f"{key} {value:g}" for key, value in beside["mixing"].items())
    lines = [
        f"masked / stock step: {cost['ratio']:.3f}, quartiles {_pair(cost['quartiles'])}, 95 % interval of the median "
        f"{_pair(cost['interval'])}, {cost['rounds']} rounds of {cost['steps']} steps a side",
        f"median step: stock {cost['stock_ms']:.1f} ms, masked {cost['masked_ms']:.1f} ms",
        f"{beside['model']}, {beside['imgsz']} px, batch {beside['batch']}, {mixing}, seed {beside['seed']}",
        beside["hardware"],
        ", ".join(f"{name} {version}" for name, version in beside["versions"].items()),
    ]
    if not cost["same_input"]:
        lines.insert(1, "the sides were given different pictures: this compares recipes, not attribution alone")
    return "\n".join(lines)


def _pair(values: Sequence[float]) -> str:
    return f"{values[0]:.3f} to {values[1]:.3f}"


if __name__ == "__main__":
    sys.exit(main())
