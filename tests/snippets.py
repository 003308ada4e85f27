"""The code blocks of README and docs, and a small world to run them in as they stand. Asserts nothing about the docs.

A block is ```bash or ```python, which runs; or ```text, ```math, ```yaml, ```json, which is shown. A block that cannot
run here says why in its first line, for the reader to see: `# not run by the tests: needs two GPUs`. Its commands must
still parse.

The world makes commands cheap without changing them: a packaged config of 3 epochs at 64 px, an architecture of the
name yolov3-tiny.yaml that is a fortieth of it, sets of two dozen images under the names the docs use, one finished and
one interrupted run. Only numbers that would make a run long are capped, see `CAPS`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import classes, helpers
from yolo_adapruner import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "data" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
RUN, SHOWN = ("bash", "python"), ("text", "math", "yaml", "json")
NOT_RUN = "# not run by the tests: "

CAPS = {"epochs": 3, "imgsz": 64, "seeds": 1, "jobs": 1, "train": 24, "repeats": 1}
"""Largest value of a flag, a key=value setting or a keyword of these names; larger ones are lowered to it."""

ELSEWHERE = {
    r"python3 -m venv --without-pip \.venv": "the first line of both README commands; .ci/run runs it",
    r"python3 -m pip install --target \.venv/lib/python3\*/site-packages pip": ".ci/run runs it",
    r"\.venv/bin/python -m pip install -e '\.\[(dev|docs)\]'": ".ci/run runs it with dev, which holds docs",
    r"\.venv/bin/python -m pip install \.": "tests/test_packaging.py installs the wheel in a new environment",
    r"\.venv/bin/python tests/check\.py.*": ".ci/run runs it, and this is run by it",
    r"python docs/site/(build|reference)\.py": "tests/test_docs.py builds the site and compares the pages",
    r"python tests/gpu/check_gpu\.py": "needs a GPU; without one it skips every line",
    r'pip install "yolo-adapruner\[(loggers|ray)\]"': "tests/test_packaging.py knows the extras; dev holds both",
    r"yolo settings tensorboard=True mlflow=True": "tests/test_loggers.py turns each on, in settings of its own",
}
"""Commands that are run by something else -> by what."""

SHELL = ("cat", "column", "cp", "cut", "echo", "grep", "head", "ls", "mkdir", "sort", "tail", "wc")
"""What is handed to bash as it is, pipes between these included."""


@dataclass(frozen=True)
class Snippet:
    """A fenced block: `reason` is why it is not run, empty where it is."""

    page: str
    number: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}-{self.number}"

    @property
    def reason(self) -> str:
        first = self.text.partition("\n")[0]
        return first.removeprefix(NOT_RUN).strip() if first.startswith(NOT_RUN) else ""


def snippets(page: Path) -> list[Snippet]:
    """Return the fenced blocks of a page, in its order."""
    found = re.findall(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```\s*$", page.read_text(encoding="utf-8"), re.M | re.S)
    name = page.relative_to(ROOT).as_posix()
    return [Snippet(name, i, language, text) for i, (_, language, text) in enumerate(found)]


def commands(text: str) -> list[str]:
    """Return the commands of a bash block: continued lines joined, comments and && between lines gone."""
    text = re.sub(r"&&\s*$", "", re.sub(r"\s*\\\n\s*", " ", text), flags=re.MULTILINE)
    lines = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def inline_commands(page: Path) -> list[str]:
    """Return what stands between backticks within the text of a page and is a command of ours."""
    prose = re.sub(r"^ *```.*?^ *```\s*$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    code = re.findall(r"`([^`\n]+)`", prose)
    return [c for c in code if re.match(r"(\.venv/bin/)?(yolo-adapruner|python -m yolo_adapruner\.\S+) \S", c)]


def cap_words(words: list[str]) -> list[str]:
    """Lower what would make a command long."""
    out = list(words)
    for i, word in enumerate(out):
        key, equals, value = word.partition("=")
        if equals and key in CAPS and value.isdigit():
            out[i] = f"{key}={min(int(value), CAPS[key])}"
        if word.startswith("--") and word[2:] in CAPS and i + 1 < len(out) and out[i + 1].isdigit():
            out[i + 1] = str(min(int(out[i + 1]), CAPS[word[2:]]))
    if words[:1] == ["compare"]:  # of several shares the first
        text = re.sub(r"(--prune\x00[\d.]+)(\x00[\d.]+)+", r"\1", "\x00".join(out))
        out = text.split("\x00")
    return out


def cap_python(text: str) -> str:
    """Lower what would make a block of Python long."""
    text = re.sub(r"(compare\([^)]*prune=\[[\d.]+)[^\]]*\]", r"\1]", text)
    return re.sub(rf"\b({'|'.join(CAPS)})=(\d+)", lambda m: f"{m[1]}={min(int(m[2]), CAPS[m[1]])}", text)


# Parsing without running


class _Parsed(Exception):
    """A parser took the words; nothing was run."""


def parses(line: str) -> str:
    """Return what is wrong with a command of ours, "" for nothing; other commands are not looked at."""
    words = shlex.split(line)
    program = Path(words[0]).name
    if program == "yolo-adapruner":
        return _cli_parses(words[1:])
    if program == "python" and words[1:2] == ["-m"] and words[2].startswith("yolo_adapruner."):
        return _module_parses(words[2], words[3:])
    return ""


def _cli_parses(words: list[str]) -> str:
    if "COMMAND" in words:  # the placeholder of a sentence on all commands
        return ""
    error = io.StringIO()
    try:
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
            _, rest = cli._parser().parse_known_args(words)
    except SystemExit as end:
        return "" if end.code == 0 else error.getvalue()
    unknown = [word for word in rest if word.startswith("-")]
    return f"unknown {unknown}" if unknown else ""


def _module_parses(module: str, words: list[str]) -> str:
    """Run a module up to where its words are parsed."""
    original, error = argparse.ArgumentParser.parse_args, io.StringIO()

    def stop(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        raise _Parsed

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(error):
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [module, *words])
        try:
            runpy.run_module(module, run_name="__main__")
        except _Parsed:
            return ""
        except (SystemExit, ImportError) as end:
            return error.getvalue() or str(end)
    return f"{module} parses no words"


# The world


class World:
    """A folder as the docs suppose it, one for all blocks of a page, which run in their order."""

    def __init__(self, folder: Path, shared: Path) -> None:
        self.folder, self.shared = folder, shared
        self.names: dict[str, Any] = {"__name__": "__snippet__"}
        shutil.copytree(shared / "home", folder)
        self.hold_run("finished")

    def hold_run(self, kind: str) -> None:
        """Put the finished or the interrupted run where the docs have theirs."""
        target = self.folder / "runs" / "adaprune" / "train"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.shared / kind, target)
        for file in target.rglob("*.yaml"):  # the shared run knows its own folder
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace(str(self.shared / kind), str(target)), encoding="utf-8")

    def run(self, snippet: Snippet) -> None:
        """Run a block; what goes wrong in it is raised."""
        with helpers.working_directory(self.folder), pytest.MonkeyPatch.context() as patch:
            small_world(patch, self.shared)
            if snippet.language == "python":
                exec(compile(cap_python(snippet.text), snippet.name, "exec"), self.names)
                return
            for line in commands(snippet.text):
                self.run_command(line)

    def run_command(self, line: str) -> None:
        """Run one command by the first rule that covers it.

        Raises:
            AssertionError: no rule does, or it failed, or it did not leave what it is there for.
        """
        if any(re.fullmatch(pattern, line) for pattern in ELSEWHERE):
            return
        words = shlex.split(line)
        program = Path(words[0]).name
        if program == "yolo-adapruner":
            self._ours(cap_words(words[1:]))
        elif program == "yolo":
            _ultralytics(cap_words(words[1:]))
        elif program == "python" and words[1] == "-m" and words[2].startswith("yolo_adapruner."):
            _module(cap_words(words[3:]), words[2])
        elif program == "python" and words[1].startswith("docs/site/"):
            _script(cap_words(words[2:]), self.folder / words[1])
        elif all(part.split()[0] in SHELL for part in line.split("|")):
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", line], capture_output=True, text=True)
            assert done.returncode == 0, f"{line}: {done.stderr}"
        else:
            raise AssertionError(
                f"no rule covers {line!r}: add one to tests/snippets.py, or begin the block with {NOT_RUN!r} and why"
            )

    def _ours(self, words: list[str]) -> None:
        if "--resume" in words:
            self.hold_run("interrupted")
        runs = self.folder / "runs"
        before = set(runs.rglob("manifest.json"))
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = cli.main(words)
        assert code == 0, f"yolo-adapruner {' '.join(words)} ended with {code}: {error.getvalue()}"
        made = sorted(set(runs.rglob("manifest.json")) - before) or [runs / "adaprune" / "train" / "manifest.json"]
        for needed in LEAVES.get(words[0], lambda *_: ())(words, out.getvalue(), made[0].parent):
            assert needed.exists(), f"yolo-adapruner {' '.join(words)} left no {needed}"


def _train_leaves(words: list[str], out: str, run: Path) -> list[Path]:
    assert "training images, dropped" in out
    pruned = "pruned" if (run / "pruned").is_dir() else "pruned.yaml"  # of a classifier a folder
    names = ("weights/best.pt", pruned, "kept.txt", "dropped.txt", "scores.csv", "report.html")
    if "--from" in words:
        assert json.loads((run / "manifest.json").read_text(encoding="utf-8"))["start"]["carried"]
    if "--keep" in words:
        keep = set(helpers.read_list(Path(words[words.index("--keep") + 1])))
        assert keep
        assert not keep & set(helpers.read_list(run / "dropped.txt"))
    return [run / name for name in names]


def _export_leaves(words: list[str], out: str, run: Path) -> list[Path]:
    named = [Path(line) for line in out.splitlines() if " " not in line and Path(line).suffix]
    assert named, f"export named no file: {out}"
    return named


def _compare_leaves(words: list[str], out: str, run: Path) -> list[Path]:
    folder = Path(out.rpartition("saved in ")[2].splitlines()[0].strip())
    return [folder / "compare.json", folder / "compare.md", folder / "report.html"]


def _study_leaves(words: list[str], out: str, run: Path) -> list[Path]:
    folder = Path(out.rpartition("saved in ")[2].splitlines()[0].strip())
    return [folder / "study.json", folder / "study.md", folder / "study.svg"]


def _report_leaves(words: list[str], out: str, run: Path) -> list[Path]:
    page = Path(out.strip())
    assert ("Nothing has been compared yet" in page.read_text(encoding="utf-8")) == ("--compare" not in words)
    return [page]


LEAVES: dict[str, Callable[[list[str], str, Path], list[Path]]] = {
    "train": _train_leaves,
    "export": _export_leaves,
    "compare": _compare_leaves,
    "study": _study_leaves,
    "report": _report_leaves,
}
"""What a command must have left; a command that is not here has to end well, and no more."""


def _ultralytics(words: list[str]) -> None:
    from ultralytics.cfg import entrypoint

    entrypoint(" ".join(["yolo", *words]))


def _module(words: list[str], module: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *words])
        _ends_well(lambda: runpy.run_module(module, run_name="__main__"))


def _script(words: list[str], path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *words])
        _ends_well(lambda: runpy.run_path(str(path), run_name="__main__"))


def _ends_well(run: Callable[[], object]) -> None:
    code = None
    try:
        run()
    except SystemExit as end:
        code = end.code
    assert not code, f"ended with {code}"


def small_world(patch: pytest.MonkeyPatch, shared: Path) -> None:
    """Let the names that come with the package and with Ultralytics mean the small ones."""
    from ultralytics.utils import DEFAULT_CFG, DEFAULT_CFG_DICT

    from yolo_adapruner import resources

    small = {"epochs": CAPS["epochs"], "imgsz": CAPS["imgsz"], "workers": 0, "plots": False, "device": "cpu"}
    for key, value in small.items():  # where a snippet leaves them to Ultralytics' own defaults
        patch.setattr(DEFAULT_CFG, key, value)
        patch.setitem(DEFAULT_CFG_DICT, key, value)
    patch.setattr(resources, "_PACKAGE", shared / "package")


def build_shared(shared: Path) -> Path:
    """Make what all worlds are copied from: the folder a reader works in, the packaged files, two runs."""
    home, share = shared / "home", shared / "package" / "share"
    digits = _small_digits(shared / "digits")
    for kind in ("cfg", "data"):
        shutil.copytree(ROOT / kind, share / kind)
    folders = classes.build_folders(shared / "classes")
    _shrink_config(share / "cfg" / "yolov3-tiny.yaml")
    for config in (share / "cfg").glob("resnet*.yaml"):
        _shrink_config(config, data=str(folders))
    content = yaml.safe_load((share / "data" / "digits.yaml").read_text(encoding="utf-8"))
    (share / "data" / "digits.yaml").write_text(yaml.safe_dump({**content, "path": str(digits)}), encoding="utf-8")
    for architecture in (share / "cfg" / "models").glob("*.yaml"):
        classes.write_architecture(architecture)
    for kind in ("cfg", "data"):
        shutil.copytree(share / kind, home / kind)
    shutil.copytree(ROOT / "docs", home / "docs")  # its scripts write into the docs they lie in
    helpers.write_architecture(home / "yolov3-tiny.yaml")
    data = helpers.build_set(shared / "set")
    for name in ("path/to/data.yaml", "my_set/data.yaml", "coco128.yaml"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data, home / name)
    shutil.copytree(folders, home / "path" / "to" / "classes")
    _make_runs(shared)
    shutil.copyfile(shared / "finished" / "weights" / "best.pt", home / "best.pt")
    return shared


def _small_digits(root: Path) -> Path:
    from yolo_adapruner.data.digits import build

    return build(root, train=40, val=8, test=8, size=64)


def _shrink_config(path: Path, **settings: Any) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content |= {"epochs": CAPS["epochs"], "imgsz": CAPS["imgsz"], "batch": 8, "device": "cpu", **settings}
    content["train"] |= {"workers": 0}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _make_runs(shared: Path) -> None:
    """Train once, and once up to an interruption."""
    from yolo_adapruner.engine.detect import AdaPruneTrainer

    save = AdaPruneTrainer.save_model

    def and_interrupt(self: Any) -> None:
        save(self)
        if self.epoch == 1:
            raise KeyboardInterrupt

    words = ["train", "yolov3-tiny", "--prune", "0.1", f"project={shared}", "--name"]
    with helpers.working_directory(shared / "home"), pytest.MonkeyPatch.context() as patch:
        small_world(patch, shared)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert cli.main([*words, "finished"]) == 0
            patch.setattr(AdaPruneTrainer, "save_model", and_interrupt)
            assert cli.main([*words, "interrupted"]) == cli.INTERRUPTED
