"""The study of what goes beyond the suspects: its set, its arms, its tables."""

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from yolo_adapruner.study import rest


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(rest, "TRAIN", 120)
    monkeypatch.setattr(rest, "VAL", 60)
    monkeypatch.setattr(rest, "EPOCHS", 8)


def test_only_training_labels_are_wrong_and_no_digit_is_in_two_parts():
    train, val, test = rest.parts(0.2, seed=1)
    assert len(train.labels) == rest.TRAIN
    assert train.wrong.sum() == 0.2 * rest.TRAIN
    assert not val.wrong.any()
    assert not test.wrong.any()
    clean, _, _ = rest.parts(0.0, seed=1)
    assert ((train.labels != clean.labels).numpy() == train.wrong).all()
    whole = torch.cat([part.pictures for part in (train, val, test)]).flatten(1)
    images = load_digits().images.reshape(-1, 64) / 16
    assert sorted(map(tuple, whole.numpy().round(4).tolist())) == sorted(map(tuple, images.round(4).tolist()))
    other, _, _ = rest.parts(0.2, seed=2)
    assert not torch.equal(other.pictures, train.pictures)


def test_the_oracle_takes_the_planted_first_and_draws_the_rest():
    wrong = np.arange(100) % 10 == 0
    assert not rest._oracle(wrong, 0.3, seed=0)[wrong].any()
    assert rest._oracle(wrong, 0.3, seed=0).sum() == 70
    assert (~rest._oracle(wrong, 0.05, seed=0))[wrong].sum() == 5
    assert (rest._oracle(wrong, 0.3, seed=0) != rest._oracle(wrong, 0.3, seed=1)).any()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_cell_has_every_arm_and_the_same_seed_the_same_figures():
    found = rest.cell(0.2, 0, shares=(0.3,))
    assert set(found) == {"full", *(f"{arm} 0.3" for arm in rest.ARMS)}
    assert found["oracle 0.3"]["wrong"] == pytest.approx(24 / 36)
    assert found["draw 0.3"]["wrong"] > found["random 0.3"]["wrong"]
    assert {arm for arm in found if "told" in found[arm]} == {f"{arm} 0.3" for arm in rest.ARMS[1:-1]}
    assert all(0.2 < figures["test"] <= 1 for figures in found.values())
    assert rest.cell(0.2, 0, shares=(0.3,)) == found


def test_what_is_done_is_not_done_again_and_tables_come_of_it(tmp_path, monkeypatch):
    made = []

    def cell(noise, seed):
        made.append((noise, seed))
        arms = {"full": {"test": 0.9}}
        for share in rest.SHARES:
            for place, arm in enumerate(rest.ARMS):
                figures = {"test": 0.8 + 0.01 * place + 0.001 * seed, "wrong": noise}
                arms[f"{arm} {share:g}"] = {**figures, **({"told": 0.11} if place not in (0, 5) else {})}
        return arms

    monkeypatch.setattr(rest, "cell", cell)
    said = []
    rest.study([0], tmp_path / "r.json", said.append)
    rest.main(["--seeds", "0", "1", "2", "--out", str(tmp_path / "r")])
    assert made == [(noise, seed) for seed in (0, 1, 2) for noise in rest.NOISES]
    assert len(said) == len(rest.NOISES)
    assert len(json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["cells"]) == 9
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "| draw | 30% | 81.1 | -8.9 [-9.1, -8.7] | +1.0 [+1.0, +1.0] | 20% | 11.0% |" in text
    assert "| random | 10% | 80.1 | -9.9 [-10.1, -9.7] | – | 0% | – |" in text
    assert text.count("3 seeds") == 3
