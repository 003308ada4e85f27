"""The report without a browser: what the page holds, that a stranger's names stay words, that it never grows large."""

import base64
import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.report_runs import EPOCHS_JOINT, NAMES, NOT_UTF8, REASONS, make_classes, make_comparison, make_run
from yolo_adapruner import cli, report
from yolo_adapruner.data.source import Labels
from yolo_adapruner.engine import labels
from yolo_adapruner.errors import RunError
from yolo_adapruner.report import charts, comparison, page, pictures, rows
from yolo_adapruner.report.drift import SIZES, drift
from yolo_adapruner.report.run import SUSPECTS, Run, load
from yolo_adapruner.report.svg import MARKS, Panel, mark, ticks
from yolo_adapruner.study.arms import ORDER
from yolo_adapruner.study.closing import report_run
from yolo_adapruner.study.interval import Difference
from yolo_adapruner.study.verdict import sentence


class Parsed(HTMLParser):
    """The page's elements with their attributes, its text outside of scripts, and the scripts' own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.words += data

    @property
    def island(self):
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "run"
    make_run(folder)
    return folder


@pytest.fixture(scope="module")
def lone(run) -> Parsed:
    return Parsed(page.page(load(run)))


@pytest.fixture(scope="module")
def compared(run, tmp_path_factory) -> Parsed:
    folder = tmp_path_factory.mktemp("compare")
    make_comparison(folder)
    return Parsed(page.page(load(run), comparison.load(folder)))


# The page stands alone and takes no orders from names


def test_nothing_is_asked_of_the_network(lone):
    for tag, attributes in lone.tags:
        for name in ("src", "href", "srcset", "action", "data", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", lone.scripts[1])
    policy = next(
        a["content"] for t, a in lone.tags if t == "meta" and "content" in a and "default-src" in a["content"]
    )
    assert policy.startswith("default-src 'none'; img-src data: file:;")


def test_names_that_are_scripts_add_no_element_and_come_out_of_the_island_as_they_are(lone):
    assert [tag for tag, _ in lone.tags].count("script") == 2
    assert {tag for tag, _ in lone.tags} & {"img", "b", "iframe", "object"} == set()
    assert not any(name.startswith("on") for _, attributes in lone.tags for name in attributes)
    assert lone.island["names"] == {str(c): name for c, name in NAMES.items()}
    assert NAMES[1] in lone.words  # of the table of classes
    assert "</" not in lone.scripts[0]


def test_paths_are_whole_and_bytes_that_are_no_text_are_shown_as_in_scores_csv(run):
    content = Parsed(page.page(load(run))).island
    shown = [content["root"] + path for path in content["paths"]]
    assert f"{run.parent}/set/images/train/caf\\xe9.png" in shown
    place = shown.index(f"{run.parent}/set/images/train/caf\\xe9.png")
    assert content["links"] == {str(place): f"file://{run.parent}/set/images/train/caf%E9.png"}
    assert f"{run.parent}/set/images/train/<script>window.attacked = 1</script>.png" in shown
    assert NOT_UTF8 not in "".join(shown)


# The verdict


def test_a_run_that_was_not_compared_says_so_with_commands_that_the_command_line_takes(run, lone):
    assert "Nothing has been compared yet." in lone.words
    commands = [attributes["data-copy"] for _, attributes in lone.tags if "data-copy" in attributes]
    parsed = [cli._parser().parse_args(shlex.split(command)[1:]) for command in commands]
    assert [args.run for args in parsed] == [cli._compare, cli._report]
    assert (parsed[0].prune, parsed[1].folder) == ([0.5], str(run))
    assert Path(parsed[1].compare).name == parsed[0].name


def test_a_comparison_comes_first_with_the_learned_choice_against_everything(compared):
    head = compared.words.index("Dropping 50 % gains +3.0 mAP [+2.0, +4.0].")
    assert head < compared.words.index("Accuracy against share") < compared.words.rindex("Dropped images")
    assert compared.words.count("random choice") >= 1
    assert "test split <b>" in compared.words
    assert "Nothing has been compared" not in compared.words


CASES = {
    "better": Difference(0.02, 0.01, 0.03, 3, 1e-5, 0.0, 0),
    "within": Difference(0.0, -0.004, 0.004, 3, 1e-5, 0.0, 0),
    "worse": Difference(-0.03, -0.04, -0.02, 3, 1e-5, 0.0, 0),
    "open": Difference(-0.01, -0.04, 0.02, 3, 1e-4, 0.0, 0),
}


@pytest.mark.parametrize(("tone", "found"), CASES.items(), ids=CASES)
@pytest.mark.parametrize("against", ["", " against a random choice"])
def test_a_tone_is_what_the_verdict_says(tone, found, against):
    assert comparison.tone(sentence("dropping 10 %", found, 0.005, against=against, base=0.4)) == tone
    assert comparison.tone(sentence("dropping 10 %", found, 0.005, against=against, base=0.001)) == "open"


def test_the_run_s_own_share_leads_then_the_same_against_a_random_choice(tmp_path):
    facts = make_comparison(tmp_path)
    lines = [
        "dropping 30 % costs -2.0 mAP: worse than",
        *facts["verdicts"],
        "dropping 30 % gains 1 mAP against a random choice",
    ]
    found = comparison.Comparison(tmp_path, {**facts, "verdicts": lines})
    own = [verdict.line for verdict in found.verdicts(0.5)]
    assert own[0].startswith("dropping 50 % gains +3.0")
    assert own[1].startswith("dropping 50 % gains +5.0 mAP [+4.0, +6.0] against a random choice")
    assert sorted(own) == sorted(lines)
    assert [verdict.line for verdict in found.verdicts(0.2)][:2] == [lines[0], lines[-1]]
    assert found.verdicts(0.3)[0].head == "Dropping 30 % costs −2.0 mAP"


def test_a_plain_loss_whose_size_is_open_is_not_called_worse():
    found = Difference(-0.006, -0.011, -0.001, 3, 1e-6, 0.0, 0)
    assert comparison.tone(sentence("dropping 10 %", found, 0.005)) == "open"


def test_a_comparison_at_another_share_is_named(run, tmp_path):
    make_comparison(tmp_path, share=0.1)
    words = Parsed(page.page(load(run), comparison.load(tmp_path))).words
    assert "The comparison was made at 10 %; this run prunes 50 %." in words


@pytest.mark.parametrize(
    ("named", "same"),
    [
        ("digits.yaml", True),
        ("digits", True),
        ("elsewhere/set/digits.yaml", True),
        ("set/data.yaml", False),
        ("other/digits.yaml", False),
    ],
)
def test_a_comparison_on_another_set_is_named(run, tmp_path, named, same):
    content = make_comparison(tmp_path)
    (tmp_path / "compare.json").write_text(json.dumps(content | {"config": {"model": "small.yaml", "data": named}}))
    found = load(run)
    manifest = {**found.manifest, "data": {**found.manifest["data"], "source": "/home/set/digits.yaml"}}
    words = Parsed(page.page(replace(found, manifest=manifest), comparison.load(tmp_path))).words
    assert (f"The comparison was made on {named}; this run is of /home/set/digits.yaml." in words) != same


def test_a_comparison_s_own_run_is_of_its_set(run, tmp_path):
    """It trains on a data file that the comparison has made of the set."""
    make_comparison(tmp_path)
    found = load(run)
    manifest = {**found.manifest, "data": {**found.manifest["data"], "source": str(tmp_path / "data.yaml")}}
    own = replace(found, folder=tmp_path / "cells" / "one-run-0.5-s0", manifest=manifest)
    assert "The comparison was made on" not in Parsed(page.page(own, comparison.load(tmp_path))).words


def test_a_run_that_does_not_say_its_model_is_no_other_one_s(run, tmp_path):
    make_comparison(tmp_path)
    found = load(run)
    train = {key: value for key, value in found.manifest["train"].items() if key != "model"}
    silent = replace(found, manifest={**found.manifest, "train": train})
    words = Parsed(page.page(silent, comparison.load(tmp_path))).words
    assert "this run trained" not in words


BROKEN = {
    "nothing there": (None, "has no compare.json"),
    "no JSON": ("{", "cannot be read"),
    "no rows": ('{"rows": 3}', "cannot be read"),
    "differences as lists": (
        '{"rows": [{"arm": "a", "share": 0, "budget": "", "images": 1, "updates": 1, "map50_95": [], '
        '"versus_full": [1], "versus_random": null}]}',
        "of an earlier version",
    ),
}


@pytest.mark.parametrize(("content", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_comparison_is_refused_in_one_line(run, tmp_path, capsys, content, words):
    if content is not None:
        (tmp_path / "compare.json").write_text(content, encoding="utf-8")
    assert cli.main(["report", str(run), "--compare", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("yolo-adapruner: Expected")
    assert words in error
    assert error.count("\n") == 1


# The gallery's rows


def test_rows_are_the_dropped_images_lowest_score_first_with_reason_history_and_boxes(run, lone):
    found, content = load(run), lone.island
    order = found.order()
    assert len(order) == 20
    assert (np.diff(content["columns"]["logit"]) >= 0).all()
    assert content["reasons"] == found.outcome.columns["reason"][order].tolist()
    assert content["epochs"] == list(EPOCHS_JOINT)
    for row, i in enumerate(order):
        flat = [i % 3, 3500, 3500, 6499, 6499] + ([0, 500, 500, 9499, 9499] if i % 2 == 0 else [])
        np.testing.assert_allclose(content["boxes"][row], flat, atol=1)
        assert content["classes"][row] == sorted({int(i % 3), *([0] if i % 2 == 0 else [])})
    assert set(content["pictures"]) == set(map(str, range(20)))
    twins = {row for row, i in enumerate(order) if found.outcome.columns["reason"][i] == "duplicate"}
    assert set(map(int, content["twins"])) == set(map(int, content["twinPictures"])) == twins


def test_a_run_that_knows_no_reasons_says_dropped_and_one_without_history_shows_none(tmp_path):
    make_run(tmp_path / "run", reasons=False)
    (tmp_path / "run" / "trace.npz").write_bytes(b"torn")
    (tmp_path / "run" / "results.csv").unlink()
    parsed = Parsed(page.page(load(tmp_path / "run")))
    assert set(parsed.island["reasons"]) == {"dropped"}
    assert parsed.island["history"] == []
    assert "Weights at the end" in parsed.words
    assert "Kept share" not in parsed.words


def test_pictures_go_to_each_reason_in_turn_when_there_are_not_enough_for_all(run):
    found = load(run)
    chosen = rows.pictured(found, rows.Limits(pictures=6))
    assert sorted(found.reasons[i] for i in chosen[: len(REASONS)]) == sorted(REASONS)
    logits = found.outcome.columns["logit"]
    for reason in REASONS:
        of_reason = [i for i in chosen if found.reasons[i] == reason]
        others = [i for i in found.order() if found.reasons[i] == reason and i not in of_reason]
        assert max(logits[of_reason]) < min(logits[others])


def test_what_the_detector_sees_is_read_from_the_run_folder(run, tmp_path):
    make_run(tmp_path / "run")
    found = load(tmp_path / "run")
    first = found.outcome.paths[found.order()[0]]
    (tmp_path / "run" / SUSPECTS).write_text(json.dumps({"images": {first: [[1, 0.876543, -0.1, 0.2, 0.5, 1]]}}))
    assert Parsed(page.page(load(tmp_path / "run"))).island["found"] == {"0": [[1, 0.877, 0, 2000, 5000, 9999]]}


def test_an_image_that_is_gone_has_no_picture_and_a_label_file_of_nonsense_is_named(tmp_path):
    make_run(tmp_path / "run")
    found = load(tmp_path / "run")
    first, second = (Path(found.outcome.paths[i]) for i in found.order()[:2])
    first.unlink()
    label = Path(str(second).replace("/images/", "/labels/")).with_suffix(".txt")
    label.write_text("no label\n", encoding="utf-8")
    content = Parsed(page.page(found)).island
    assert "0" not in content["pictures"]
    assert content["unreadable"] == [1]
    assert content["boxes"][1] == []


def test_a_run_that_kept_everything_has_a_report_too(tmp_path):
    make_run(tmp_path / "run", share=0.0)
    words = Parsed(page.page(load(tmp_path / "run"))).words
    assert "Nothing was pruned." in words
    assert "Dropped images" not in words


def test_a_classification_run_speaks_of_classes_and_not_of_boxes(tmp_path):
    outcome = make_classes(tmp_path / "run")
    found = load(tmp_path / "run")
    parsed = Parsed(page.page(found))
    assert "box" not in parsed.words.replace("checkbox", "")
    for part in ("Whether a classifier", "6 of 24", "6 outlier", "validation accuracy", "75.0", "ant", "bee"):
        assert part in parsed.words
    content = parsed.island
    assert content["whole"]
    assert content["names"] == {"0": "ant", "1": "bee"}
    assert [c for (c,) in content["classes"]] == [int(outcome.columns["class"][i]) for i in found.order()]
    assert len(content["pictures"]) == 6


def test_a_copy_is_small_upright_and_within_the_budget(tmp_path):
    from PIL import Image

    for i in range(4):
        image = Image.effect_noise((1200, 600), 80).convert("RGB")
        exif = Image.Exif()
        exif[0x0112] = 6  # on its side
        image.save(tmp_path / f"{i}.jpg", exif=exif)
    (tmp_path / "9.jpg").write_bytes(b"no image")
    files = [str(tmp_path / f"{i}.jpg") for i in (9, 0, 1, 2, 3)]
    one = pictures.copy_of(files[1])
    assert (one.width, one.height) == (240, 480)
    assert one.uri.startswith("data:image/jpeg;base64,")
    made = pictures.copies(files, budget=int(2.5 * len(one.uri)))
    assert list(made) == files[1:3]


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_a_picture_of_16_bits_is_as_bright_as_the_detector_has_it(tmp_path, suffix):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    file = tmp_path / f"Röntgen{suffix}"
    file.write_bytes(cv2.imencode(suffix, ramp)[1].tobytes())
    picture = pictures.copy_of(str(file))
    shown = cv2.imdecode(np.frombuffer(base64.b64decode(picture.uri.split(",")[1]), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.abs(shown.astype(float) - ramp / 257).max() < 8


def test_classes_are_the_set_s_and_not_the_folders_an_image_lies_in(tmp_path):
    make_classes(tmp_path / "run")
    found = load(tmp_path / "run")
    nested = [str(Path(path).parent / "day0" / Path(path).name) for path in found.outcome.paths]
    manifest = {**found.manifest, "data": {**found.manifest["data"]}}
    manifest["data"]["rest"] = {**manifest["data"]["rest"], "names": {"0": "ant", "1": "bee", "2": "empty"}}
    moved = replace(found, manifest=manifest, outcome=replace(found.outcome, paths=nested))
    assert moved.names == {0: "ant", 1: "bee", 2: "empty"}
    given = [int(c) for c in found.outcome.columns["class"]]
    assert [moved.labels(i).classes.tolist() for i in range(len(nested))] == [[c] for c in given]


# Size


def test_a_page_that_would_be_too_large_shows_fewer_rows_and_says_so(run, monkeypatch):
    whole = page.page(load(run))
    monkeypatch.setattr(page, "MOST_BYTES", len(whole.encode()) - 1)
    limits = rows.Limits(rows=20, pictures=20)
    smaller = Parsed(page.page(load(run), limits=limits))
    assert len(smaller.island["paths"]) == 10
    assert "The 10 with the lowest scores of 20; all are in dropped.txt." in smaller.words


@pytest.mark.slow
def test_of_fifty_thousand_images_almost_all_dropped_the_page_is_below_25_mb(tmp_path, monkeypatch):
    make_run(tmp_path / "run", n=50_000, share=0.9, images=False)
    found = load(tmp_path / "run")
    # Pictures that no format makes small, and twenty boxes an image: what a page has no room for in full.
    noise = np.random.default_rng(0).integers(0, 256, (360, 480, 3), np.uint8)
    for i in rows.pictured(found, rows.Limits()):
        Path(found.outcome.paths[i]).parent.mkdir(parents=True, exist_ok=True)
        Path(found.outcome.paths[i]).write_bytes(cv2.imencode(".png", noise)[1].tobytes())
    many = Labels(np.arange(20), np.tile([0.123, 0.234, 0.345, 0.456], (20, 1)))
    monkeypatch.setattr(Run, "labels", lambda *_: many)
    file = report.write(tmp_path / "run")
    content = Parsed(file.read_text(encoding="utf-8")).island
    assert len(content["paths"]) == 45_000
    assert 50 < len(content["pictures"]) <= 300
    assert sum(boxes is not None for boxes in content["boxes"]) == rows.Limits().boxes // 20
    assert 15_000_000 < file.stat().st_size < 25_000_000


# Numbers and drawings


def test_drift_is_what_the_manifest_counted():
    counts = {
        "classes": {"b": [1, 0], "small": [3, 2]},
        "sizes": {"large": [3, 1], "small": [1, 1]},
        "background": [2, 1],
        "boxes": [4, 2],
    }
    found = drift({"drift": counts, "images": {"total": 3, "kept": 2}})
    assert [(s.name, s.note, s.total, s.kept, s.removed) for s in found.classes] == [
        ("small", "", 3, 2, pytest.approx(1 / 3)),
        ("b", "", 1, 0, 1),
    ]
    assert [(s.share_of_all, s.share_of_kept) for s in found.classes] == [(0.75, 1.0), (0.25, 0.0)]
    assert [(s.name, s.note, s.total, s.kept) for s in found.sizes] == [
        ("small", "below 32 px", 1, 1),
        ("large", "from 96 px", 3, 1),
    ]
    assert (found.boxes_removed, found.images_removed) == (0.5, pytest.approx(1 / 3))


@pytest.mark.parametrize(
    "changed", [{"drift": None}, {"images": {"total": 3, "kept": 3}}, {"drift": {"boxes": [0, 0]}}]
)
def test_where_nothing_was_counted_or_dropped_there_is_no_drift(changed):
    counts = {"classes": {"a": [3, 2]}, "sizes": {}, "background": [0, 0], "boxes": [3, 2]}
    assert drift({"drift": counts, "images": {"total": 3, "kept": 2}}) is not None
    assert drift({"drift": counts, "images": {"total": 3, "kept": 2}, **changed}) is None


def test_sizes_have_the_names_that_a_run_gives_them():
    assert tuple(SIZES) == labels.SIZES


def test_a_chart_of_shares_has_a_mark_an_arm_and_its_interval(tmp_path):
    make_comparison(tmp_path)
    made = charts.against_share(comparison.load(tmp_path))
    assert [chart.title for chart in made] == ["At equal updates", "At equal epochs"]
    assert [chart.svg.count('class="mark') for chart in made] == [2, 3]
    assert [chart.svg.count('class="whisker') for chart in made] == [2, 3]
    assert "pruned, 50 %: 43.0 [42.0, 44.0]" in made[0].svg


def test_epochs_are_drawn_over_their_stages_and_gaps_stay_gaps():
    table = {"epoch": np.arange(1.0, 7), "prune/stage": np.array([1.0, 1, 2, 2, 3, 3])}
    table["metrics/mAP50-95(B)"] = np.array([0.1, 0.2, np.nan, 0.3, np.nan, 0.4])
    (chart,) = charts.by_epoch(table)
    assert [chart.svg.count(f'class="band {kind}"') for kind in ("warmup", "joint", "finetune")] == [1, 1, 1]
    assert chart.svg.count('class="line c0"') == 1
    assert chart.svg.count('class="dot c0"') == 2


def test_the_weights_of_an_epoch_are_shares_of_equal_bins():
    history = (np.array([3, 4]), np.array([[128] * 4, [0, 0, 255, 255]], np.uint8))
    chart = charts.weights(history, np.ones(4))
    assert re.findall(r"<title>(.*?)</title>", chart.svg) == [
        "epoch 3, weight 0.50 to 0.55: 100.0 %",
        "epoch 4, weight 0.00 to 0.05: 50.0 %",
        "epoch 4, weight 0.95 to 1.00: 50.0 %",
    ]


def test_no_two_arms_of_a_comparison_have_the_same_mark():
    marks = [re.search(r'class="mark (m\d)".* d="(.*?)"', mark(0, 0, kind)).groups() for kind in range(len(ORDER))]
    assert len(set(marks)) == len(ORDER) > MARKS


def test_words_in_a_drawing_are_escaped():
    panel = Panel('<a "b">', "&", (0, 1), (0, 1))
    panel.mark(0, 0, 3, "</title><script>")
    assert "<script>" not in panel.svg()
    assert 'aria-label="&lt;a &#34;b&#34;&gt;. &amp;"' in panel.svg()


@pytest.mark.parametrize(
    ("low", "high", "values", "digits"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0], 1),
        (27.3, 29.1, [27.5, 28.0, 28.5, 29.0], 1),
        (0, 50, [0, 10, 20, 30, 40, 50], 0),
        (3, 3, [3], 0),
    ],
)
def test_ticks_are_round(low, high, values, digits):
    assert ticks(low, high) == (pytest.approx(values), digits)


# The command and the end of a run


def test_the_command_writes_the_page_and_says_where(run, capsys):
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "has no manifest.json" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_costs_a_line_and_not_the_run(run, monkeypatch, capsys):
    def fails(*_):
        raise ValueError("two\nlines")

    monkeypatch.setattr(report, "write", fails)
    assert report_run(run) is None
    assert capsys.readouterr().err == "yolo-adapruner: no report was written, all else was: two lines\n"


def test_a_report_that_has_no_room_is_refused_in_one_line(run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "replace_file", full)
    with pytest.raises(RunError, match=r"Expected to write .*report\.html, but No space left on device"):
        report.write(run)
