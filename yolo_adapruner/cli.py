"""The command line: parse, dispatch, print. No logic; nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from yolo_adapruner import __version__, resources
from yolo_adapruner.errors import AdaPrunerError, ConfigError

PROGRAM = "yolo-adapruner"
INTERRUPTED = 130

_QUESTIONS = ("warmup", "terms", "scale", "shares", "transfer")
_RESUMABLE = "what is on disk can be resumed with --resume RUN"
_CELL_BY_CELL = "the same command in the same folder (--name) goes on after the trainings that are done"
_AGAIN = "give the same command again"
_FLAGS = ("data", "model", "epochs", "imgsz", "batch", "seed", "device", "name")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 2 bad input, 130 interrupted, 1 a defect of ours."""
    parser = _parser()
    # key=value settings may stand between flags, which argparse allows only for what it does not know itself.
    args, rest = parser.parse_known_args(argv)
    flags = [word for word in rest if word.startswith("-")]
    if flags or (rest and not hasattr(args, "config")):
        parser.error(f"unrecognized arguments: {' '.join(flags or rest)}")
    try:
        # Below as well: imports take seconds, in which somebody may change their mind.
        if hasattr(args, "config"):
            _sort_words(args, rest)
        from yolo_adapruner.engine.trouble import one_line_errors

        with one_line_errors(getattr(args, "data", None) or "of the run config"):
            args.run(args)
    except AdaPrunerError as error:
        print(f"{PROGRAM}: {_one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\n{PROGRAM}: interrupted; {args.interrupted}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes once more at its end, and would then complain.
        with suppress(OSError):  # one that is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"{PROGRAM}: whatever read the output has closed it before the end", file=sys.stderr)
        return 1
    except Exception as error:
        if os.environ.get("YOLO_ADAPRUNER_DEBUG"):
            raise
        line = _one_line(str(error)) or "no message"
        print(
            f"{PROGRAM}: unexpected {type(error).__name__}: {line} (set YOLO_ADAPRUNER_DEBUG=1 for the traceback)",
            file=sys.stderr,
        )
        return 1
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error of ours; argparse would print the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROGRAM}: {_one_line(message)}; {self.prog} --help says more\n")


def _one_line(message: str) -> str:
    """A message on one line, also where it quotes what the user typed."""
    return message if len(message.splitlines()) == 1 else " ".join(message.split())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM, description="Learn which training images a YOLO model really needs, and prune the rest."
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    settings = "key=value settings go to Ultralytics as they are, prune.key=value to the method (prune.warmup=0)"
    train = commands.add_parser("train", epilog=settings, help="train a model and prune its training set in one run")
    _add_run_arguments(train)
    train.add_argument("--prune", type=float, metavar="SHARE", help="share of the training images to remove, 0 to 0.95")
    train.add_argument(
        "--from", dest="start", metavar="RUN", help="begin with what this finished run found; new images begin neutral"
    )
    train.add_argument(
        "--dynamic",
        action="store_true",
        default=None,
        help="draw easy images in fewer epochs than hard ones; with --prune 0 none is dropped",
    )
    train.add_argument(
        "--budget",
        choices=("epochs", "updates"),
        help="what the run has as many of as plain training: epochs, shorter and shorter ones, which saves time "
        "(default), or updates, on what is kept, which saves none",
    )
    train.add_argument("--keep", metavar="LIST", help="file with the images that must stay, a path a line")
    train.add_argument("--resume", metavar="RUN", help="go on with the interrupted run in this folder")
    train.set_defaults(run=_train, interrupted=_RESUMABLE)

    compare = commands.add_parser(
        "compare", epilog=settings, help="train full, pruned, random and other arms alike, and say what comes of it"
    )
    _add_run_arguments(compare)
    compare.add_argument(
        "--prune",
        action=_Shares,
        nargs="+",
        metavar="SHARE",
        help="one or more shares to remove, or auto for the largest one that stays within the margin",
    )
    compare.add_argument(
        "--margin",
        type=float,
        default=0.5,
        metavar="POINTS",
        help="mAP, or a classifier's top-1, that may be lost, 0 to 100 (default 0.5)",
    )
    compare.add_argument(
        "--arms",
        type=lambda words: tuple(words.split(",")),
        default=("pruned", "random"),
        metavar="A,B",
        help="to train anew: pruned,random,class-random,lowest-loss,highest-loss,most-error,duplicates-only,el2n,"
        "forgetting,area-under-margin,infobatch,afss (default pruned,random)",
    )
    compare.add_argument("--kept", metavar="LIST", help="train on the images in this file as well, one path a line")
    compare.add_argument(
        "--budget",
        choices=("both", "epochs", "updates"),
        default="both",
        help="as many epochs as on everything, as many updates, or both, each a training of its own (default both)",
    )
    compare.add_argument(
        "--engine",
        choices=("pycocotools", "faster-coco-eval"),
        default="pycocotools",
        help="what computes mAP; both say the same (default pycocotools)",
    )
    compare.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="runs per arm, seeds SEED..SEED+N-1 (default 3)"
    )
    compare.add_argument("--jobs", type=int, default=1, metavar="N", help="cells trained side by side (default 1)")
    compare.add_argument(
        "--cells",
        action=_Files,
        nargs="+",
        default=(),
        metavar="FILE",
        help="compare.json of the same recipe and images: do not run again what it holds",
    )
    compare.add_argument("--ray", metavar="ADDRESS", help="train the cells on this Ray cluster, or local for one here")
    compare.add_argument("--cell-cpus", type=int, default=1, metavar="N", help="cores a cell on a cluster (default 1)")
    compare.add_argument(
        "--cell-gpus", type=float, default=0, metavar="F", help="GPUs a cell on a cluster; 0.25 puts four on a card"
    )
    compare.set_defaults(run=_compare, interrupted=_CELL_BY_CELL)

    study = commands.add_parser(
        "study", epilog=settings, help="answer a question about the method by variants of one recipe, trained alike"
    )
    study.add_argument(
        "question",
        choices=_QUESTIONS,
        metavar="QUESTION",
        help="warmup (with and without), terms (each of the objective's left out), scale (s and its schedule over a "
        "grid), shares (a tenth to eight tenths pruned), transfer (other models on what the config's model chose)",
    )
    _add_run_arguments(study)
    study.add_argument(
        "--prune",
        action=_Shares,
        nargs="+",
        metavar="SHARE",
        help="share or shares to remove; of shares 0.1 to 0.8 by default",
    )
    study.add_argument(
        "--vary",
        type=_varied,
        action="append",
        default=[],
        metavar="KEY=A,B",
        help="of scale: a setting of the method and its values; again for a grid (default s_end, s_start and ramp)",
    )
    study.add_argument(
        "--to",
        type=lambda words: tuple(words.split(",")),
        default=(),
        metavar="A,B",
        help="of transfer: the other models",
    )
    study.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="VARIANT",
        help="run this variant beside the first; again for more",
    )
    study.add_argument("--no-retrain", action="store_true", help="judge the runs' own networks alone, at half the cost")
    study.add_argument(
        "--margin", type=float, default=0.5, metavar="POINTS", help="mAP or top-1 that may be lost (default 0.5)"
    )
    study.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="runs per variant, seeds SEED..SEED+N-1 (default 3)"
    )
    study.add_argument("--jobs", type=int, default=1, metavar="N", help="cells trained side by side (default 1)")
    study.set_defaults(run=_study, interrupted=_CELL_BY_CELL)

    export = commands.add_parser(
        "export", help="write a finished run's files again, cut other shares from its scores, or hand it to other tools"
    )
    export.add_argument("folder", metavar="RUN", help="run folder")
    export.add_argument("--prune", type=float, nargs="+", default=[], metavar="SHARE", help="other shares to cut")
    export.add_argument(
        "--format",
        action="append",
        default=[],
        metavar="A,B",
        help="yolo (default: pruned.yaml), coco, coco-all, cvat, labelstudio, fiftyone, cleanlab",
    )
    export.set_defaults(run=_export, interrupted=_AGAIN)

    report = commands.add_parser("report", help="write a finished run's report.html: verdict, gallery, charts")
    report.add_argument("folder", metavar="RUN", help="run folder")
    report.add_argument("--compare", metavar="FOLDER", help="folder of a finished comparison to take the verdict from")
    report.set_defaults(run=_report, interrupted=_AGAIN)
    return parser


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    packaged = ", ".join(resources.available("cfg"))
    parser.add_argument("config", nargs="?", help=f"run config: a YAML file, or the name of a packaged one: {packaged}")
    parser.add_argument("--data", help="Ultralytics data file; of a classifier a folder of class folders")
    parser.add_argument("--model", help="Ultralytics architecture or checkpoint")
    parser.add_argument("--epochs", type=int, help="epoch budget of the whole run, all stages")
    parser.add_argument("--imgsz", type=int, help="input size in pixels")
    parser.add_argument("--batch", type=_number, help="images a batch; -1 has Ultralytics find one on a GPU")
    parser.add_argument("--seed", type=int, help="seed of everything that draws")
    parser.add_argument("--device", help="Ultralytics' device: cpu, 0, mps; 0,1 trains on both")
    parser.add_argument("--name", help="name of the run folder")


class _Shares(argparse.Action):
    """Takes the shares that follow the flag; argparse alone would take all words up to the next flag."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        if values[0] == "auto":
            setattr(namespace, self.dest, "auto")
            _leave(namespace, values[1:])
            return
        shares = list(itertools.takewhile(_is_number, values))
        if not shares:
            parser.error(f"argument --prune: expected one or more shares, but got {values[0]!r}")
        setattr(namespace, self.dest, [float(share) for share in shares])
        _leave(namespace, values[len(shares) :])


class _Files(argparse.Action):
    """Takes the files that follow the flag, up to the first key=value setting."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        from yolo_adapruner.config import SETTING

        files = list(itertools.takewhile(lambda word: not SETTING.match(word), values))
        if not files:
            parser.error(f"argument --{self.dest}: expected one or more files, but got {values[0]!r}")
        setattr(namespace, self.dest, files)
        _leave(namespace, values[len(files) :])


def _leave(namespace: argparse.Namespace, words: list[str]) -> None:
    """Leave what a flag has not taken for `_sort_words`."""
    namespace.words = [*getattr(namespace, "words", ()), *words]


def _varied(word: str) -> tuple[str, list[Any]]:
    from yolo_adapruner.config import parse_yaml

    key, equals, values = word.partition("=")
    found = [parse_yaml(value) for value in values.split(",")]
    if not equals or None in found:
        raise argparse.ArgumentTypeError(f"expected KEY=A,B with a value or more, but got {word!r}")
    return key.removeprefix("prune."), found


def _number(word: str) -> int | float:
    return int(word) if word.lstrip("+-").isdecimal() else float(word)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _sort_words(args: argparse.Namespace, rest: Sequence[str]) -> None:
    """Tell the run config from the key=value settings; both may stand anywhere between the flags."""
    from yolo_adapruner.config import SETTING

    words = [word for word in (args.config, *getattr(args, "words", ()), *rest) if word is not None]
    others = [word for word in words if not SETTING.match(word)]
    args.config = others[0] if others else None
    args.settings = [word for word in words if SETTING.match(word)] + others[1:]


def _run_config(args: argparse.Namespace, share: float | None, **more: Any) -> Any:
    if args.config is None:
        raise ConfigError("Expected a run config, but got none: name a file, or a packaged one such as yolov3-tiny.")
    from yolo_adapruner.config import key_values, load

    flags = {k: getattr(args, k) for k in _FLAGS}
    given = {k: v for k, v in {**flags, "prune": share, **more}.items() if v is not None}
    return load(args.config, {**key_values(args.settings), **given})


def _train(args: argparse.Namespace) -> None:
    from yolo_adapruner.study.closing import report_run
    from yolo_adapruner.study.terminal import show_run

    if args.resume is not None:
        _refuse_beside_resume(args)
        from yolo_adapruner.engine.run import resume

        result = resume(args.resume)
    else:
        own = {"keep": args.keep, "dynamic": args.dynamic, "prune.budget": args.budget}
        config = _run_config(args, args.prune, **own, start=args.start)
        from yolo_adapruner.engine.run import train

        result = train(config)
    try:
        report_run(result.folder)
    except KeyboardInterrupt:
        print(f"\n{PROGRAM}: no report, the run is whole: {PROGRAM} report {result.folder} writes it", file=sys.stderr)
        raise
    show_run(result)


def _refuse_beside_resume(args: argparse.Namespace) -> None:
    """A run goes on as it was started; a setting that would be passed over in silence is refused."""
    others = [args.config, *args.settings] + [
        f"--{name}" for name in (*_FLAGS, "prune", "keep", "dynamic", "budget") if getattr(args, name) is not None
    ]
    others += ["--from"] if args.start is not None else []
    if given := [word for word in others if word is not None]:
        raise ConfigError(
            f"Expected --resume RUN alone, but got {' '.join(given)} as well: leave it out or start anew."
        )


def _compare(args: argparse.Namespace) -> None:
    config = _run_config(args, None)
    from yolo_adapruner.study.cluster import Cluster
    from yolo_adapruner.study.compare import compare
    from yolo_adapruner.study.terminal import show_comparison

    result = compare(
        config,
        prune=args.prune or [config.prune.share],
        seeds=args.seeds,
        jobs=args.jobs,
        arms=args.arms,
        kept=args.kept,
        budget=args.budget,
        margin=args.margin,
        engine=args.engine,
        ray=None if args.ray is None else Cluster(args.ray, args.cell_cpus, args.cell_gpus),
        cells=args.cells,
    )
    show_comparison(result)


def _study(args: argparse.Namespace) -> None:
    if args.prune == "auto":
        raise ConfigError("Expected shares to study at, but got --prune auto: compare searches for one.")
    config = _run_config(args, None)
    from yolo_adapruner.study.questions import study
    from yolo_adapruner.study.terminal import show_comparison

    result = study(
        args.question,
        config,
        prune=args.prune,
        seeds=args.seeds,
        jobs=args.jobs,
        vary=dict(args.vary),
        to=args.to,
        only=args.only,
        retrain=not args.no_retrain,
        margin=args.margin,
    )
    show_comparison(result)


def _export(args: argparse.Namespace) -> None:
    from yolo_adapruner.formats import YOLO, export_formats

    formats = [name.strip() for words in args.format for name in words.split(",")] or [YOLO]
    for written in export_formats(args.folder, formats, args.prune):
        for path in written.files:
            print(path)
        if written.note:
            print(f"{PROGRAM}: {written.note}", file=sys.stderr)


def _report(args: argparse.Namespace) -> None:
    from yolo_adapruner.report import write

    print(write(args.folder, args.compare))
