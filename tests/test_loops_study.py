"""The study outside vision: what is planted, what an arm trains on, and what its tables say."""

import json

import numpy as np
import pytest

from yolo_adapruner.errors import DataError
from yolo_adapruner.study import loopruns, loops, loopsets
from yolo_adapruner.study.loopruns import Recipe

SHORT = Recipe(epochs=4, batch=64, width=8, lr=1e-2)


@pytest.mark.parametrize("name", ["cancer", "covertype-like"])
def test_wrong_labels_are_planted_in_train_and_validation_and_nowhere_else(name):
    spoilt, clean = (loopsets.load(name, noise=noise, seed=3) for noise in (0.2, 0.0))
    np.testing.assert_array_equal(spoilt.wrong, spoilt.train.y != clean.train.y)
    assert spoilt.wrong.sum() == round(0.2 * len(spoilt.wrong))
    assert (spoilt.val.y != clean.val.y).sum() == round(0.2 * len(clean.val.y))
    assert not clean.wrong.any()
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(spoilt, part).x, getattr(clean, part).x)
    np.testing.assert_array_equal(spoilt.test.y, clean.test.y)
    assert set(spoilt.train.y) == set(range(spoilt.classes))


def test_a_seed_gives_its_split_and_another_seed_another():
    one, same, other = (loopsets.load("cancer", noise=0.2, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.train.x, same.train.x)
    np.testing.assert_array_equal(one.wrong, same.wrong)
    assert (one.test.x[:50] != other.test.x[:50]).any()
    assert abs(one.train.x.mean(0)).max() < 1e-5  # scaled by train alone
    assert abs(one.test.x.mean(0)).max() > 1e-3


def test_a_set_that_is_none_is_refused():
    with pytest.raises(DataError, match=r"^Expected a set out of cancer, covertype-like, text, but got iris\.$"):
        loopsets.load("iris", noise=0, seed=0)


def test_passages_are_long_docstrings_without_the_packages_names(tmp_path, monkeypatch):
    long = " ".join(f"word{i}" for i in range(60))
    files = {
        "a": f'def f():\n    """Torch {long}"""\n',
        "b": f'"""short"""\nclass C:\n    """{long}"""\n',
        "c": "def (",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(loopsets, "_sources", lambda _: sorted(tmp_path.glob("*.py")))
    found = loopsets.passages("torch")
    assert sorted(text.split()[:2] for text in found) == [["word0", "word1"]] * 2
    assert sorted(len(text.split()) for text in found) == [49, 50]
    assert loopsets.passages("torch", 1) == found[:1]


def test_every_arm_is_trained_and_the_oracle_without_what_was_planted(monkeypatch):
    trained, train = [], loopruns.train
    monkeypatch.setattr(loops, "RECIPES", {"cancer": SHORT})
    monkeypatch.setattr(
        loopruns,
        "train",
        lambda data, recipe, rows, *, seed: (trained.append(rows), train(data, recipe, rows, seed=seed))[1],
    )
    arms = loops.cell("cancer", 0.2, 7)
    by_share = [f"{arm} {share}" for share in (0.1, 0.2, 0.3) for arm in ("random", "pruned", "one run")]
    assert list(arms) == ["full", "oracle", *by_share, "easy 0.3"]
    assert all(0 <= arm["test"] <= 1 for arm in arms.values())
    wrong = loopsets.load("cancer", noise=0.2, seed=7).wrong
    assert [len(rows) for rows in trained] == [341, 273, 307, 307, 273, 273, 239, 239, 239]
    assert not wrong[trained[1]].any()
    assert arms["pruned 0.1"]["wrong"] == pytest.approx((wrong.sum() - wrong[trained[3]].sum()) / 34)


def test_arms_take_equally_many_updates_whatever_they_train_on(monkeypatch):
    data, updates, update = loopsets.load("cancer", noise=0, seed=0), [0], loopruns._update

    def counted(*args):
        updates[-1] += 1
        update(*args)

    monkeypatch.setattr(loopruns, "_update", counted)
    for rows in (np.arange(341), np.arange(100)):
        loopruns.train(data, SHORT, rows, seed=0)
        updates.append(0)
    assert updates == [4 * 6, 4 * 6, 0]


def made_up(gain: float) -> dict:
    def arm(test, **more):
        return {"val": 0.5, "test": test, **more}

    judged = {"auroc": 0.9, "wrong": 0.8}
    return {
        "full": arm(0.70 + gain),
        "random 0.1": arm(0.69 + gain),
        "pruned 0.1": arm(0.72 + 2 * gain, **judged),
        "one run 0.1": arm(0.71 + gain),
    }


def test_a_study_goes_on_where_it_was_stopped_and_its_tables_are_paired(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loops, "cell", lambda name, noise, seed: asked.append((noise, seed)) or made_up(0.01 * seed))
    path, said = tmp_path / "loops.json", []
    loops.study(["cancer"], [0], path, said.append)
    found = loops.study(["cancer"], [0, 1], path, said.append)
    assert asked == [(0.2, 0), (0.0, 0), (0.2, 1), (0.0, 1)]
    assert len(said) == len(json.loads(path.read_text())["cells"]) == 4
    text = loops.report(found)
    assert "## cancer, 20% of the labels planted wrong, 2 seeds" in text
    row = next(line for line in text.splitlines() if line.startswith("| pruned"))
    # gains of 2 and 3 points: mean 2.5, half width t(1 degree of freedom) * 0.5 = 6.4
    assert row == "| pruned | 10% | 73.0 | +2.5 (-3.9 to +8.9) | +3.5 (-2.9 to +9.9) | 80% | 0.900 |"
