"""The command line: parse, dispatch, print. No logic; nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from yolo_adapruner import __version__
from yolo_adapruner.errors import AdaPrunerError, ConfigError

PROGRAM = "yolo-adapruner"
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 2 bad input, 130 interrupted, 1 a defect of ours."""
    parser = _parser()
    # key=value settings may stand between flags, which argparse allows only for what it does not know itself.
    args, rest = parser.parse_known_args(argv)
    flags = [word for word in rest if word.startswith("-")]
    if flags or (rest and not hasattr(args, "config")):
        parser.error(f"unrecognized arguments: {' '.join(flags or rest)}")
    args.settings = rest
    try:
        args.run(args)
    except AdaPrunerError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\n{PROGRAM}: interrupted; what is on disk can be resumed with --resume RUN", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("YOLO_ADAPRUNER_DEBUG"):
            raise
        line = " ".join(str(error).split()) or "no message"
        print(
            f"{PROGRAM}: unexpected {type(error).__name__}: {line} (set YOLO_ADAPRUNER_DEBUG=1 for the traceback)",
            file=sys.stderr,
        )
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Learn which training images a YOLO detector really needs, and prune the rest."
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    settings = "key=value settings are handed to Ultralytics as they are"
    train = commands.add_parser("train", epilog=settings, help="train a detector and prune its training set in one run")
    _add_run_arguments(train)
    train.add_argument("--prune", type=float, metavar="SHARE", help="share of the training images to remove, 0 to 0.95")
    train.add_argument("--resume", metavar="RUN", help="go on with the interrupted run in this folder")
    train.set_defaults(run=_train)

    compare = commands.add_parser(
        "compare", epilog=settings, help="train full, pruned and random arms alike and compare their mAP"
    )
    _add_run_arguments(compare)
    compare.add_argument("--prune", type=float, nargs="+", metavar="SHARE", help="one or more shares to remove")
    compare.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="runs per arm, seeds SEED..SEED+N-1 (default 3)"
    )
    compare.set_defaults(run=_compare)

    export = commands.add_parser(
        "export", help="write a finished run's files again, or cut other shares from its scores"
    )
    export.add_argument("folder", metavar="RUN", help="run folder")
    export.add_argument("--prune", type=float, nargs="+", default=[], metavar="SHARE", help="other shares to cut")
    export.set_defaults(run=_export)
    return parser


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", help="run config: a YAML file, or the name of a packaged one: yolov3-tiny")
    parser.add_argument("--data", help="Ultralytics data file")
    parser.add_argument("--model", help="Ultralytics architecture or checkpoint")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--imgsz", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device")
    parser.add_argument("--name", help="name of the run folder")


def _run_config(args: argparse.Namespace, share: float | None) -> Any:
    if args.config is None:
        raise ConfigError("Expected a run config, but got none: name a file, or a packaged one such as yolov3-tiny.")
    from yolo_adapruner.api import resolve

    flags = {k: getattr(args, k) for k in ("data", "model", "epochs", "imgsz", "batch", "seed", "device", "name")}
    given = {k: v for k, v in flags.items() if v is not None}
    return resolve(args.config, **{**_key_values(args.settings), **given, "prune": share})


def _key_values(settings: Sequence[str]) -> dict[str, Any]:
    """`key=value` settings as a dict, values read as YAML (3 is a number, true a bool)."""
    wrong = [s for s in settings if "=" not in s or s.startswith("=")]
    if wrong:
        raise ConfigError(f"Expected settings as key=value, but got {' '.join(wrong)}.")
    try:
        return {key: yaml.safe_load(value) for key, _, value in (s.partition("=") for s in settings)}
    except yaml.YAMLError as error:
        raise ConfigError(f"Expected values that YAML can read, but: {' '.join(str(error).split())}.") from None


def _train(args: argparse.Namespace) -> None:
    from yolo_adapruner.study.summary import run_summary

    if args.resume is not None:
        from yolo_adapruner.engine.run import resume

        result = resume(args.resume)
    else:
        config = _run_config(args, args.prune)
        from yolo_adapruner.engine.run import train

        result = train(config)
    print(run_summary(result))


def _compare(args: argparse.Namespace) -> None:
    config = _run_config(args, None)
    from yolo_adapruner.study.compare import compare

    result = compare(config, prune=args.prune or [config.prune.share], seeds=args.seeds)
    print(result.table())
    print(f"\nsaved in {result.folder}")


def _export(args: argparse.Namespace) -> None:
    from yolo_adapruner.data.export import export

    for path in export(args.folder, args.prune):
        print(path)
