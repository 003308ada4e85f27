"""Writes the reference pages from the code: settings by config model, commands by argparse, names by docstring.

    python docs/site/reference.py

writes docs/settings.md (its tables only; the text round them is by hand), docs/cli.md and docs/api.md. A test compares
them with what this would write. Knows no setting, command or name by itself.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import yolo_adapruner
from yolo_adapruner import cli
from yolo_adapruner.config import PruneConfig, RunConfig

DOCS = Path(__file__).resolve().parent.parent
RETURNED = {
    "RunResult": "yolo_adapruner.engine.run",
    "Comparison": "yolo_adapruner.study.conclude",
}
"""Classes that users are handed and do not make, and where they are defined."""
_NOTE = "<!-- Written by docs/site/reference.py from the code: change it there. -->"
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):$", re.MULTILINE)


def main() -> None:
    """Write the pages."""
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path)


def pages() -> dict[Path, str]:
    """Return each page's text as the code has it now."""
    return {DOCS / "settings.md": _settings_page(), DOCS / "cli.md": _cli_page(), DOCS / "api.md": _api_page()}


# Settings


def _settings_page() -> str:
    """The page as it is, with the tables between its marks made anew."""
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    for name, model in {"prune": PruneConfig, "run": RunConfig}.items():
        opening, closing = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
        before, _, rest = text.partition(opening)
        _, found, after = rest.partition(closing)
        if not found:
            raise SystemExit(f"expected docs/settings.md to hold {opening.strip()} and {closing}, but one is missing")
        text = f"{before}{opening}\n{settings_table(model)}\n{closing}{after}"
    return text


def settings_table(model: type[BaseModel]) -> str:
    """Return a table of a config model's settings; those that are sections of their own are left out."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if name in ("prune", "train"):
            continue
        default = "required" if field.is_required() else "–" if field.default is None else f"`{field.default}`"
        rows.append(f"| `{name}` | {default} | {_cell(field.description or '')} |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# The command line


def _cli_page() -> str:
    parser = cli._parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {choice.dest: choice.help or "" for choice in commands._choices_actions}
    parts = [
        "# Command line",
        _NOTE,
        f"{parser.description} `{parser.prog} COMMAND --help` says the same as this page. Exit codes: 0 done, 2 bad "
        "input, 130 interrupted, 1 a defect of ours.",
        _options(parser),
    ]
    for name, command in commands.choices.items():
        parts += [f"## {name}", _sentence(helps.get(name, "")), f"```text\n{_usage(command)}\n```", _options(command)]
        if command.epilog:
            parts.append(re.sub(r"[\w.]*=\w+", r"`\g<0>`", _sentence(command.epilog)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    start = "" if re.match(r"[\w.]*=", text) else text[:1].upper()  # key=value stays as it is typed
    return text and (start + text[len(start) :]).rstrip(".") + "."


def _shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    hidden = (argparse._HelpAction, argparse._SubParsersAction)
    return [a for a in parser._actions if not isinstance(a, hidden) and a.help != argparse.SUPPRESS]


def _usage(parser: argparse.ArgumentParser) -> str:
    words = [parser.prog]
    for action in _shown(parser):
        if not action.option_strings:
            words.append(f"[{action.dest}]" if action.nargs == "?" else action.metavar or action.dest)
    if any(action.option_strings for action in _shown(parser)):
        words.append("[options]")
    if parser.epilog and "key=value" in parser.epilog:
        words.append("[key=value ...]")
    return " ".join(str(word) for word in words)


def _options(parser: argparse.ArgumentParser) -> str:
    rows = ["| argument | meaning |", "|---|---|"]
    for action in _shown(parser):
        what = action.metavar or action.dest.upper()
        value = "" if action.nargs == 0 else f" {what}" + (" …" if action.nargs in ("+", "*") else "")
        flags = ", ".join(action.option_strings)
        shown = f"{flags}{value}" if flags else f"{action.metavar or action.dest}"
        rows.append(f"| `{shown}` | {_cell(str(action.help or ''))} |")
    return "\n".join(rows)


# The Python names


def _api_page() -> str:
    parts = [
        "# Python",
        _NOTE,
        "What has a heading here is imported from `yolo_adapruner`, which loads neither torch nor Ultralytics until a "
        "name is used. Errors are `ConfigError`, `DataError` and `RunError` of `yolo_adapruner.errors`, with one line.",
    ]
    public = {name: getattr(yolo_adapruner, name) for name in yolo_adapruner.__all__ if not name.startswith("_")}
    for name, thing in sorted(public.items(), key=lambda item: (inspect.isclass(item[1]), len(item[0]), item[0])):
        parts += _entry(name, thing)
    parts.append("## What is returned")
    for name, module in RETURNED.items():
        parts += _entry(name, getattr(importlib.import_module(module), name), "###")
    return "\n\n".join(part for part in parts if part) + "\n"


def _entry(name: str, thing: Any, level: str = "##") -> Iterator[str]:
    yield f"{level} {name}"
    if inspect.isfunction(thing):
        yield f"```text\n{_signature(name, thing)}\n```"
    yield from _docstring(inspect.cleandoc(thing.__doc__ or ""))
    if inspect.isclass(thing) and issubclass(thing, BaseModel):
        yield "Its fields are the [settings of the method](settings.md#prune-the-method)."
    elif inspect.isclass(thing):
        for method, function in _methods(thing):
            yield f"**`{method}`** {' '.join(inspect.cleandoc(function.__doc__ or '').split(chr(10) * 2)[0].split())}"


def _methods(thing: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties defined by the class itself, and `configured`, which trainers are made by."""
    for name, value in vars(thing).items():
        inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        overrides = any(hasattr(base, name) for base in thing.__mro__[1:])  # what others call, such as Ultralytics
        if not name.startswith("_") and inspect.isfunction(inner) and inner.__doc__ and not overrides:
            yield (name if isinstance(value, property) else _on_one_line(name, inner)), inner
    inherited = inspect.getattr_static(thing, "configured", None)
    if inherited and not (thing.__doc__ or "").startswith("`"):  # "`AdaPruneTrainer` for ...": said there
        yield _on_one_line("configured", inherited.__func__), inherited.__func__


def _on_one_line(name: str, function: Any) -> str:
    """A method's call, which stands within a line."""
    return " ".join(_signature(name, function, skip=1).split()).replace("( ", "(").replace(", )", ")")


def _signature(name: str, function: Any, skip: int = 0) -> str:
    """A call with types, over several lines where one is too long."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[skip:]
    words = [_parameter(p) for p in parameters]
    first = next((i for i, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY), None)
    if first is not None and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        words.insert(first, "*")
    result = signature.return_annotation
    end = f") -> {result if isinstance(result, str) else getattr(result, '__name__', result)}"
    line = f"{name}({', '.join(words)}{end}"
    return line if len(line) < 100 else f"{name}(\n    " + ",\n    ".join(words) + f",\n{end}"


def _parameter(parameter: inspect.Parameter) -> str:
    """`name: type = default`, the type as the source has it."""
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    kind = parameter.annotation
    typed = "" if kind is parameter.empty else f": {kind if isinstance(kind, str) else getattr(kind, '__name__', kind)}"
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{stars}{parameter.name}{typed}{default}"


def _docstring(text: str) -> Iterator[str]:
    """A Google docstring as Markdown: its paragraphs, and its sections as lists."""
    head, *sections = _SECTION.split(text)
    yield head.strip()
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        items = re.split(r"\n(?=\S)", inspect.cleandoc(body))
        yield f"**{title}**"
        yield "\n".join(_item(title, " ".join(item.split())) for item in items if item.strip())


def _item(title: str, text: str) -> str:
    names, colon, meaning = text.partition(": ")
    if title == "Returns" or not colon:
        return f"- {text}"
    return f"- {', '.join(f'`{name}`' for name in names.split(', '))}: {meaning}"


if __name__ == "__main__":
    main()
