"""`python -m yolo_adapruner.bench COMMAND`: what the mask costs, measured on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from yolo_adapruner.errors import AdaPrunerError

if TYPE_CHECKING:
    from yolo_adapruner.config import RunConfig

_FLAGS = ("model", "data", "imgsz", "batch", "device", "seed")
_MIXING = {"mosaic": 1.0, "mixup": 0.5}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return 0, or 2 for bad input, with one line that says what to do."""
    args = _parser().parse_args(argv)
    try:
        print(args.bench(args))
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
    command.set_defaults(bench=_attribution)
    _recipe(command)
    _rounds(command)
    command = commands.add_parser(
        "step",
        help="the same without mosaic and mixup, part by part: mask alone, with the judge, with redundancy, with both",
        epilog="key=value settings go to all sides' Ultralytics: nbs=8",
    )
    command.set_defaults(bench=_step)
    _recipe(command)
    _rounds(command)
    return parser


def _recipe(command: argparse.ArgumentParser) -> None:
    """Take a run config and what stands over it."""
    command.add_argument("settings", nargs="*", metavar="key=value")
    command.add_argument("--config", default="yolov3-tiny", help="run config: a YAML file, or a packaged one")
    command.add_argument("--model", help="Ultralytics architecture or checkpoint")
    command.add_argument("--data", help="Ultralytics data file")
    command.add_argument("--imgsz", type=int, default=160, help="input size in pixels (default 160)")
    command.add_argument("--batch", type=int, help="images a batch")
    command.add_argument("--device", help="Ultralytics' device: cpu, 0, mps")
    command.add_argument("--seed", type=int, help="seed of all sides")
    command.add_argument("--json", action="store_true", help="print one line of JSON")


def _rounds(command: argparse.ArgumentParser) -> None:
    command.add_argument("--steps", type=int, default=10, metavar="N", help="steps a side in a round (default 10)")
    command.add_argument("--repeats", type=int, default=15, metavar="N", help="rounds (default 15)")
    command.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: count this process's CPU seconds (CPU runs only)"
    )


def _config(args: argparse.Namespace, mixing: dict[str, float]) -> RunConfig:
    from yolo_adapruner.config import key_values, load

    given = {key: getattr(args, key) for key in _FLAGS}
    return load(args.config, {**mixing, **key_values(args.settings), **given})


def _attribution(args: argparse.Namespace) -> str:
    config = _config(args, _MIXING)
    from yolo_adapruner.engine import stepcost

    cost = stepcost.measure(config, steps=args.steps, repeats=args.repeats, clock=args.clock)
    beside = stepcost.facts(config) | {"clock": args.clock}
    if args.json:
        return json.dumps({"bench": "attribution", **asdict(cost), **beside})
    return _text(asdict(cost), beside)


def _step(args: argparse.Namespace) -> str:
    config = _config(args, dict.fromkeys(_MIXING, 0.0))
    from yolo_adapruner.engine import stepcost

    found = stepcost.measure_parts(config, steps=args.steps, repeats=args.repeats, clock=args.clock)
    beside = stepcost.facts(config) | {"clock": args.clock}
    if args.json:
        return json.dumps({"bench": "step", "parts": {k: asdict(v) for k, v in found.items()}, **beside})
    first = next(iter(found.values()))
    lines = [f"stock step: {first.stock_ms:.1f} ms, {first.rounds} rounds of {first.steps} steps a side"]
    lines += [
        f"{name} / stock: {cost.ratio:.3f}, quartiles {_pair(cost.quartiles)}, 95 % interval of the median "
        f"{_pair(cost.interval)}" + ("" if cost.same_input else "; its pictures were others")
        for name, cost in found.items()
    ]
    return "\n".join([*lines, *_beside(beside)])


def _text(cost: dict[str, Any], beside: dict[str, Any]) -> str:
    lines = [
        f"masked / stock step: {cost['ratio']:.3f}, quartiles {_pair(cost['quartiles'])}, 95 % interval of the median "
        f"{_pair(cost['interval'])}, {cost['rounds']} rounds of {cost['steps']} steps a side",
        f"median step: stock {cost['stock_ms']:.1f} ms, masked {cost['masked_ms']:.1f} ms",
        *_beside(beside),
    ]
    if not cost["same_input"]:
        lines.insert(1, "the sides were given different pictures: this compares recipes, not attribution alone")
    return "\n".join(lines)


def _beside(facts: dict[str, Any]) -> list[str]:
    """What a measurement was made on, in lines."""
    mixing = ", ".join(f"{key} {value:g}" for key, value in facts["mixing"].items())
    return [
        f"{facts['model']}, {facts['imgsz']} px, batch {facts['batch']}, {mixing}, seed {facts['seed']}, "
        f"{facts['clock']} seconds",
        facts["hardware"],
        ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    ]


def _pair(values: Sequence[float]) -> str:
    return f"{values[0]:.3f} to {values[1]:.3f}"


if __name__ == "__main__":
    sys.exit(main())
