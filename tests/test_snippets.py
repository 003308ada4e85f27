"""Every command and every snippet in README and docs runs, in a world that is small (see tests/snippets.py)."""

import importlib
import re

import pytest
import yaml

from tests.snippets import (
    ELSEWHERE,
    NOT_RUN,
    PAGES,
    ROOT,
    RUN,
    SHOWN,
    Snippet,
    World,
    build_shared,
    commands,
    inline_commands,
    parses,
    snippets,
)
from yolo_adapruner.config import TOP_LEVEL, load

ALL = [snippet for page in PAGES for snippet in snippets(page)]


def cases(*languages):
    return [pytest.param(s, id=s.name) for s in ALL if s.language in languages]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_block_says_what_it_is(page):
    text = page.read_text(encoding="utf-8")
    found = snippets(page)
    assert text.count("```") == 2 * len(found), "a fence that is not closed, or stands within a line"
    assert {s.language for s in found} <= {*RUN, *SHOWN}
    indented = re.findall(r"^(?: {4}|\t)(?:\.venv/bin/)?(?:yolo\S*|python3?|pip) .*", text, re.MULTILINE)
    fenced = "".join(s.text for s in found)
    assert [line for line in indented if line not in fenced] == [], "commands stand in ```bash blocks"


@pytest.mark.parametrize("snippet", cases("bash"))
def test_commands_parse_also_where_they_are_not_run(snippet):
    assert {line: wrong for line in commands(snippet.text) if (wrong := parses(line))} == {}


@pytest.mark.parametrize("snippet", cases("python"))
def test_python_compiles_and_imports_what_exists(snippet):
    compile(snippet.text, snippet.name, "exec")
    for module, names in re.findall(r"^from (yolo_adapruner\S*) import (.+)$", snippet.text, re.MULTILINE):
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_within_a_sentence_parse(page):
    assert {line: wrong for line in inline_commands(page) if (wrong := parses(line))} == {}


@pytest.mark.parametrize("snippet", cases("yaml"))
def test_yaml_blocks_are_run_configs_or_data_files(snippet):
    content = yaml.safe_load(snippet.text)
    if "names" in content:
        assert {"train", "val"} <= set(content)
    else:
        assert set(content) <= set(TOP_LEVEL)
        load({"model": "yolov3-tiny.yaml", "data": "digits.yaml", **content})


@pytest.mark.parametrize("snippet", [s for s in ALL if s.reason], ids=lambda s: s.name)
def test_a_reason_not_to_run_is_a_reason(snippet):
    assert len(snippet.reason.split()) >= 2


def test_a_command_without_a_rule_is_refused_and_a_bad_flag_is_found(tmp_path):
    world = World.__new__(World)
    with pytest.raises(AssertionError, match="no rule covers 'curl example'"):
        world.run_command("curl example")
    assert "prnue" in parses("yolo-adapruner train x --prnue 0.1")
    assert "unrecognized" in parses("python -m yolo_adapruner.study.calibrate --nothing 1")
    assert parses("python -m yolo_adapruner.study.calibrate --studies 10") == ""


def test_blocks_are_read_as_a_shell_would():
    text = "a --b 1 \\\n  c   # why\n# all of it\n\nd &&\n  e 'x # y'\n"
    assert commands(text)[:2] == ["a --b 1 c", "d"]
    assert Snippet("p", 0, "bash", f"{NOT_RUN}needs a GPU\nx\n").reason == "needs a GPU"


def test_the_commands_that_ci_runs_are_in_the_readme():
    lines = [line for s in snippets(ROOT / "README.md") if s.language == "bash" for line in commands(s.text)]
    assert sum(any(re.fullmatch(pattern, line) for pattern in ELSEWHERE) for line in lines) == 7


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return build_shared(tmp_path_factory.mktemp("snippets"))


@pytest.mark.slow
def test_a_run_leaves_the_files_that_the_readme_lists(shared):
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("| file | content |")[2].partition("\n\n")[0]
    files = [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(files) >= 8
    assert [name for name in files if not (shared / "finished" / name).is_file()] == []


@pytest.fixture(scope="module")
def worlds(shared, tmp_path_factory):
    """A page's world, made when its first block runs."""
    made = {}

    def world(page):
        if page not in made:
            made[page] = World(tmp_path_factory.mktemp("pages") / "page", shared)
        return made[page]

    return world


@pytest.mark.slow
@pytest.mark.parametrize("snippet", [pytest.param(s, id=s.name) for s in ALL if s.language in RUN and not s.reason])
def test_it_runs(snippet, worlds):
    worlds(snippet.page).run(snippet)
