"""The two studies of what the mask remembers: their figures by hand, on made-up recordings; no training."""

import numpy as np
import pytest

from yolo_adapruner.study import dynamics, forgetting
from yolo_adapruner.study.dynamics import CLEAN, COPY, JUDGED, RARELY, WRONG


def watched() -> dict:
    """Two images a group and six epochs; the first of each is kept, the noisy have the lowest logits."""
    groups = np.repeat([JUDGED, CLEAN, RARELY, COPY, WRONG], 2)
    readings = np.tile(np.repeat([1.0, 2.0, 3.0, 4.0, 5.0], 2), (6, 1))
    readings[: dynamics.VERDICT] = 99  # before the verdict: not counted
    logits = np.array([-9, 9, 1, 2, 3, 4, 5, 6, -1, 1.5])
    return {
        "groups": groups,
        "kept": np.arange(10) % 2 == 0,
        "logits": logits,
        "weights": np.ones((6, 10)),
        "readings": readings,
    }


def test_figures_of_an_arm_by_hand():
    found = dynamics.figures(watched())
    assert set(found.kept.values()) == {0.5}
    assert list(found.reading.values()) == [1, 2, 3, 4, 5]
    # noisy -1 and 1.5 against 1 to 6, without the wrongly judged: 11 of 12 pairs in order
    assert found.auroc == pytest.approx(11 / 12)


def test_the_page_is_made_anew_and_its_words_stay(tmp_path):
    page = tmp_path / "dynamics.md"
    dynamics._write(page, dynamics.table({"left alone": [dynamics.figures(watched())]}))
    page.write_text(page.read_text(encoding="utf-8") + f"\n{dynamics.WORDS}\n\n- ours\n", encoding="utf-8")
    dynamics._write(page, "anew")
    text = page.read_text(encoding="utf-8")
    assert text.endswith(f"anew\n\n{dynamics.WORDS}\n\n- ours\n")
    assert "left alone" not in text


def test_the_figure_is_drawn_with_every_group_and_comes_again_byte_for_byte(tmp_path):
    for name in ("a.svg", "b.svg"):
        dynamics.draw({"left alone": watched(), "another": watched()}, tmp_path / name)
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    assert (tmp_path / "b.svg").read_text(encoding="utf-8") == text


def recording(n: int = 100, epochs: int = 20) -> dict:
    """Readings of which every fifth sample's, swapped, are high in one channel."""
    rng = np.random.default_rng(0)
    kind = np.where(np.arange(n) % 5 == 0, "swapped", "clean")
    own = rng.lognormal(0, 0.3, (n, 4)) * np.where(kind == "swapped", 6, 1)[:, None]
    return {"channels": own * rng.lognormal(0, 0.2, (epochs, n, 4)), "kind": kind}


def test_wronged_samples_come_back_when_there_are_epochs_left_and_the_mask_forgets():
    planted, back = forgetting.figures(recording(), 0.3)
    assert planted >= 0.9
    assert back[0] >= 0.9
    assert back[0] >= back[-1]
    assert forgetting.figures(recording(), 1.0)[1] == [0.0] * len(forgetting.BEFORE_END)


def test_the_table_has_means_over_recordings():
    text = forgetting.table({0.3: [(0.5, [1.0, 1.0, 0.5, 0.0]), (0.7, [1.0, 0.0, 0.5, 0.0])]})
    assert "| 0.3 | 60.0% | 100% | 50% | 50% | 0% |" in text
    assert "Means over 2 recordings" in text
