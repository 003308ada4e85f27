"""The command that runs the gates: which it runs, with which words, and what it says of their failures."""

import subprocess

import pytest

from tests import check

PARTS = [f"tests: {name}" for name in ("quick", "slow", "alone")]


def test_each_part_runs_once_and_only_all_quick_tests_are_asked_for_coverage():
    every = check.gates(None, [])
    assert list(every) == [*check.CHECKS, *PARTS]
    assert [sum(word.startswith("--part=") for word in every[name]) for name in PARTS] == [1, 1, 1]
    assert [set(check.COVERAGE) <= set(every[name]) for name in PARTS] == [True, False, False]
    one = check.gates("quick", ["tests/test_config.py", "-k", "share"])
    assert list(one) == [*check.CHECKS, "tests: quick"]
    assert one["tests: quick"][-3:] == ["tests/test_config.py", "-k", "share"]
    assert not {*check.COVERAGE} & {*one["tests: quick"]}
    assert list(check.gates("long", [])) == [*check.CHECKS, "tests: long"]


@pytest.mark.parametrize(
    ("words", "codes", "code", "said"),
    [
        ([], {}, 0, ""),
        ([], {"types": 1, "tests: slow": 1}, 1, "failed: types, tests: slow"),
        ([], {"tests: slow": 5}, 1, "failed: tests: slow"),  # a part is never empty by itself
        (["-k", "x"], {"tests: slow": 5, "tests: alone": 5}, 0, ""),
        (["-k", "x"], dict.fromkeys(PARTS, 5), 1, f"failed: {', '.join(PARTS)}"),
        (["--part", "alone", "-m", "not slow"], {"tests: alone": 5}, 1, "failed: tests: alone"),
        (["--part", "alone"], {"tests: quick": 1}, 0, ""),
    ],
)
def test_what_failed_is_named_and_the_rest_runs_all_the_same(monkeypatch, capsys, words, codes, code, said):
    ran = []

    def run(command, **_):
        ran.append(command)
        part = next((f"tests: {word[7:]}" for word in command if word.startswith("--part=")), None)
        name = part or next(name for name, gate in check.CHECKS.items() if gate == command)
        return subprocess.CompletedProcess(command, codes.get(name, 0))

    monkeypatch.setattr(check.subprocess, "run", run)
    assert check.main(words) == code
    assert capsys.readouterr().err.strip() == said
    assert len(ran) == len(check.CHECKS) + (1 if "--part" in words else 3)
