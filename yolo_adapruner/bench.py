"""`python -m yolo_adapruner.bench attribution`: what the mask costs a training step, measured on this machine."""

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
        print(_attribution(args))
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
    return parser


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
