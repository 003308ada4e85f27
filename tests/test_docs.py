"""README and docs say what the code has: settings with their defaults, commands that parse, names that exist."""

import re
import shlex
from pathlib import Path

import pytest

from yolo_adapruner import cli
from yolo_adapruner.config import PruneConfig, RunConfig

ROOT = Path(__file__).parent.parent
DOCS = sorted(
    [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "data" / "README.md"]
)


def blocks(language):
    return [
        pytest.param(block, id=f"{path.name}-{i}")
        for path in DOCS
        for i, block in enumerate(re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.S))
    ]


@pytest.mark.parametrize("model", [PruneConfig, RunConfig], ids=lambda m: m.__name__)
def test_settings_md_lists_every_setting_with_its_default_and_meaning(model):
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8").replace("\\|", "|")
    for name, field in model.model_fields.items():
        if name in ("prune", "train"):
            continue
        default = "required" if field.is_required() else "–" if field.default is None else f"`{field.default}`"
        assert f"| `{name}` | {default} | {field.description} |" in text, f"docs/settings.md lacks or misstates {name}"


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_compile_and_import_what_exists(block):
    compile(block, "docs", "exec")
    for line in block.splitlines():
        if line.startswith("from yolo_adapruner"):
            exec(line, {})


@pytest.mark.parametrize("block", blocks("bash"))
def test_commands_of_ours_parse(block):
    for line in block.replace("\\\n", " ").splitlines():
        line = line.split("#")[0].strip().removesuffix("&&").strip()
        words = shlex.split(line)
        if not words or Path(words[0]).name != "yolo-adapruner":
            continue
        args, rest = cli._parser().parse_known_args(words[1:])
        assert not [word for word in rest if word.startswith("-")], line
        assert args.run


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
