"""`export --format`: what other tools read out of a run is what the labels and the selection say."""

import csv
import json
import math
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlparse
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from PIL import Image

from tests import helpers
from tests.report_runs import knows_no_reasons, make_classes
from yolo_adapruner import cli
from yolo_adapruner.data.export import Outcome, read, write
from yolo_adapruner.data.source import label_file, read_labels, read_shapes
from yolo_adapruner.errors import ConfigError, DataError, RunError
from yolo_adapruner.formats import FORMATS, cleanlab, export_formats
from yolo_adapruner.formats.gathered import image_size

NAMES = {0: "disc <script>", 1: 'the "square" & co', 2: "Größe, x"}
TRIANGLE = [0.1, 0.1, 0.5, 0.1, 0.1, 0.5]
N, DROPPED = 12, (1, 4, 7)


def finish(folder: Path, data: Path, *, paths: list[str] | None = None, reasons: bool = True, **content) -> Outcome:
    """A run folder as a finished run leaves it, with the images of a set and no training."""
    paths = paths or [str(p) for p in helpers.training_images(data)]
    n = len(paths)
    kept = np.ones(n, bool)
    kept[[i for i in DROPPED if i < n]] = False
    logits = np.where(kept, 2.0, -np.arange(1.0, n + 1))
    lines = [label_file(Path(p)) for p in paths]
    boxes = [len(read_labels(f, 3)) if f.is_file() else 0 for f in lines]
    columns = {"weight": 1 / (1 + np.exp(-logits)), "logit": logits, "signal": -logits, "boxes": np.array(boxes)}
    if reasons:
        suspicion = np.full(n, np.nan)
        suspicion[[1, 7]] = 0.5, 3.0
        twin = np.full(n, -1)
        twin[4] = 0
        columns |= {"suspicion": suspicion, "kind": np.full(n, "shifted"), "similarity": np.ones(n), "twin": twin}
    folder.mkdir(parents=True, exist_ok=True)
    outcome = Outcome(paths, kept, columns)
    content = {"path": data.parent, "val": f"{data.parent}/images/val", "names": NAMES, "nc": 3, **content}
    manifest = {"seed": 0, "prune": {"share": 0.25}, "train": {"task": "detect", "imgsz": 64, "batch": 4}}
    with nullcontext() if reasons else knows_no_reasons():
        write(folder, outcome, source=data, data=content, manifest=manifest)
    return outcome


@pytest.fixture
def data(tmp_path):
    """Twelve images; the first has a polygon among its labels."""
    data = helpers.build_set(tmp_path / "set", train=N, val=1, empty=1)
    first = helpers.label_of(helpers.training_images(data)[0])
    first.write_text(f"2 {' '.join(map(str, TRIANGLE))}\n0 0.5 0.5 0.25 0.5\n", encoding="utf-8")
    return data


@pytest.fixture
def run(tmp_path, data):
    finish(tmp_path / "run", data)
    return tmp_path / "run"


def truth(run: Path) -> dict[str, list[tuple]]:
    """Each image's boxes in pixels with their class, read off the label files here."""
    found = {}
    for path in read(run)[1].paths:
        labels = read_labels(label_file(Path(path)), 3)
        found[path] = [
            (NAMES[int(c)], *(64 * box).tolist()) for c, box in zip(labels.classes, labels.boxes, strict=True)
        ]
    return found


def same(found: list[tuple], wanted: list[tuple], abs: float = 1e-3) -> None:
    assert [row[0] for row in found] == [row[0] for row in wanted]
    assert [row[1:] for row in found] == [pytest.approx(row[1:], abs=abs) for row in wanted]


# COCO, read by pycocotools


def test_coco_is_read_by_pycocotools_with_the_kept_images_and_their_boxes(run, data):
    from pycocotools.coco import COCO

    (written,) = export_formats(run, ["coco"])
    coco = COCO(str(written.files[0]))
    outcome, wanted = read(run)[1], truth(run)
    assert len(coco.imgs) == N - len(DROPPED)
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(NAMES.values())
    for image in coco.loadImgs(coco.getImgIds()):
        path = str(data.parent / image["file_name"])
        assert outcome.paths[image["id"] - 1] == path
        assert (image["width"], image["height"]) == (64, 64)
        anns = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        corners = [(a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]) for a in anns]
        same([(coco.cats[a["category_id"]]["name"], *c) for a, c in zip(anns, corners, strict=True)], wanted[path])


def test_coco_has_the_polygon_as_a_segment_that_pycocotools_fills(run):
    from pycocotools.coco import COCO

    (written,) = export_formats(run, ["coco"])
    coco = COCO(str(written.files[0]))
    triangle, box = coco.loadAnns(coco.getAnnIds(imgIds=1))
    assert triangle["segmentation"] == [pytest.approx([64 * x for x in TRIANGLE])]
    assert triangle["area"] == pytest.approx((0.4 * 64) ** 2 / 2)
    assert coco.annToMask(triangle).sum() == pytest.approx(triangle["area"], rel=0.1)
    assert (box["segmentation"], box["area"]) == ([], pytest.approx(16 * 32))


def test_coco_of_all_images_marks_the_dropped_and_keeps_the_ids(run):
    content = {}
    for name in ("coco", "coco-all"):
        (written,) = export_formats(run, [name])
        content[name] = json.loads(written.files[0].read_text(encoding="utf-8"))
    everything, kept = content["coco-all"], content["coco"]
    assert [i["id"] for i in everything["images"]] == list(range(1, N + 1))
    assert [i["id"] - 1 for i in everything["images"] if not i["kept"]] == list(DROPPED)
    assert everything["images"][1]["reason"] == "label suspect"
    assert everything["images"][0]["suspicion"] is None  # NaN is no JSON
    by_id = {a["id"]: a for a in everything["annotations"]}
    assert len(by_id) == len(everything["annotations"])
    assert [by_id[a["id"]] for a in kept["annotations"]] == kept["annotations"]


def test_coco_follows_other_shares(run):
    written = export_formats(run, ["coco"], [0.5])
    assert [w.files[0].relative_to(run).as_posix() for w in written] == [
        *("pruned.yaml", "prune-0.5/pruned.yaml"),
        *("coco.json", "prune-0.5/coco.json"),
    ]
    kept = helpers.read_list(run / "prune-0.5" / "kept.txt")
    images = json.loads((run / "prune-0.5" / "coco.json").read_text(encoding="utf-8"))["images"]
    assert [str(run.parent / "set" / i["file_name"]) for i in images] == kept
    assert len(kept) == N // 2


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_other_shares_have_the_reasons_of_their_own_scores(run, share):
    export_formats(run, ["coco-all"], [share])
    folder = run / f"prune-{share}"
    images = json.loads((folder / "coco-all.json").read_text(encoding="utf-8"))["images"]
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [i["reason"] for i in images] == [row["reason"] for row in rows]
    assert [i["detail"] for i in images] == [row["detail"] for row in rows]
    assert {bool(i["reason"]) for i in images if not i["kept"]} == {True}


@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"yolo"}))
def test_a_classifier_s_run_has_no_boxes_to_write(tmp_path, format):
    make_classes(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(ConfigError, match="is one of a classifier"):
        export_formats(tmp_path / "run", ["yolo", format], [0.5])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize(("shape", "tail", "points"), [((2, 3), "0.5 0.25 2 0 0 0", 1), ((2, 2), "0.5 0.25 0 0", 1)])
def test_coco_has_keypoints(tmp_path, data, shape, tail, points):
    for image in helpers.training_images(data):
        helpers.label_of(image).write_text(f"1 0.5 0.5 0.5 0.5 {tail}\n", encoding="utf-8")
    paths = [str(p) for p in helpers.training_images(data)]
    columns = {"logit": np.ones(N), "boxes": np.ones(N, int)}
    (tmp_path / "run").mkdir()
    content = {"path": data.parent, "names": NAMES, "kpt_shape": shape}
    manifest = {"seed": 0, "prune": {"share": 0.0}, "train": {"task": "pose"}}
    write(tmp_path / "run", Outcome(paths, np.ones(N, bool), columns), source=data, data=content, manifest=manifest)
    (written,) = export_formats(tmp_path / "run", ["coco"])
    first = json.loads(written.files[0].read_text(encoding="utf-8"))["annotations"][0]
    assert first["keypoints"] == [32, 16, 2, 0, 0, 0]
    assert (first["num_keypoints"], first["bbox"]) == (points, [16, 16, 32, 32])


@pytest.mark.parametrize(("suffix", "orientation", "size"), [(".jpg", 6, (30, 40)), (".jpg", 1, (40, 30))])
def test_sizes_are_of_the_picture_as_it_is_seen(tmp_path, suffix, orientation, size):
    exif = Image.Exif()
    exif[274] = orientation
    file = tmp_path / f"a{suffix}"
    Image.new("RGB", (40, 30)).save(file, exif=exif)
    assert image_size(str(file)) == size
    assert cv2.imread(str(file)).shape[1::-1] == size  # which is what the detector saw


# Review lists


def test_the_review_list_is_the_suspect_labels_the_likeliest_first(run):
    (written,) = export_formats(run, ["cvat"])
    root = ElementTree.parse(written.files[0]).getroot()
    assert [image.get("name") for image in root.iter("image")] == ["images/train/007.png", "images/train/001.png"]
    assert written.note == ""
    assert helpers.read_list(run / "cvat" / "images.txt") == [read(run)[1].paths[i] for i in (7, 1)]


def test_a_run_without_reasons_lists_all_dropped_and_says_so(tmp_path, data, capsys):
    finish(tmp_path / "old", data, reasons=False)
    assert cli.main(["export", str(tmp_path / "old"), "--format", "cvat,labelstudio"]) == 0
    said = capsys.readouterr().err
    assert said.count("this run knows no reasons: these are all dropped images, not only suspect labels") == 2
    tasks = json.loads((tmp_path / "old" / "labelstudio" / "tasks.json").read_text(encoding="utf-8"))
    assert [task["id"] - 1 for task in tasks] == [7, 4, 1]  # by logit


def test_no_suspect_is_said(tmp_path, data):
    outcome = finish(tmp_path / "run", data)
    columns = {**outcome.columns, "suspicion": np.full(N, -1.0)}
    manifest = {"seed": 0, "prune": {"share": 0.25}}
    content = {"path": data.parent, "names": NAMES}
    write(tmp_path / "run", replace(outcome, columns=columns), source=data, data=content, manifest=manifest)
    for name in ("cvat", "labelstudio"):
        (written,) = export_formats(tmp_path / "run", [name])
        assert written.note == "no image was dropped for suspect labels: the list is empty"
    assert json.loads((tmp_path / "run" / "labelstudio" / "tasks.json").read_text()) == []


def test_cvat_holds_labels_and_reason_as_the_format_says(run):
    (written,) = export_formats(run, ["cvat"])
    root = ElementTree.parse(written.files[0]).getroot()
    assert root.findtext("version") == "1.1"
    assert [label.findtext("name") for label in root.iterfind("meta/task/labels/label")] == [*NAMES.values(), "suspect"]
    wanted = truth(run)
    for image in root.iter("image"):
        boxes = [(b.get("label"), *(float(b.get(k)) for k in ("xtl", "ytl", "xbr", "ybr"))) for b in image.iter("box")]
        same(boxes, wanted[str(run.parent / "set" / image.get("name"))], abs=0.006)
    tag = next(root.iter("tag"))
    found = {a.get("name"): a.text for a in tag}
    assert found == {"reason": "label suspect", "detail": "shifted", "suspicion": "3", "weight": found["weight"]}
    assert tag.get("label") == "suspect"


def test_the_tag_of_cvat_is_no_class(tmp_path, data):
    finish(tmp_path / "run", data, names={0: "suspect", 1: "a", 2: "suspect_"})
    (written,) = export_formats(tmp_path / "run", ["cvat"])
    labels = json.loads(written.files[1].read_text(encoding="utf-8"))
    assert [label["name"] for label in labels] == ["suspect", "a", "suspect_", "suspect__"]


def test_cvat_sdk_takes_the_labels_of_the_task(run):
    models = pytest.importorskip("cvat_sdk.models", reason="cvat-sdk is not installed: pip install cvat-sdk")
    (written,) = export_formats(run, ["cvat"])
    for label in json.loads(written.files[1].read_text(encoding="utf-8")):
        attributes = [models.AttributeRequest(**attribute) for attribute in label.pop("attributes")]
        request = models.PatchedLabelRequest(**label, attributes=attributes)
        assert request.to_dict()["name"] == label["name"]


def review(run: Path, data: Path) -> Path:
    """The run with the image that has a polygon among the suspects."""
    outcome = read(run)[1]
    outcome.kept[0] = False
    outcome.columns["suspicion"][0] = 0.1
    manifest = {"seed": 0, "prune": {"share": 0.25}}
    content = {"path": data.parent, "names": NAMES}
    write(run, outcome, source=data, data=content, manifest=manifest)
    return run


def test_datumaro_reads_the_cvat_file(run, data):
    """Datumaro is what CVAT itself reads and writes formats with."""
    datumaro = pytest.importorskip("datumaro", reason="datumaro is not installed (over a minute): pip install datumaro")
    export_formats(review(run, data), ["cvat"])
    shutil.copytree(data.parent / "images", run / "cvat" / "images" / "images")  # where it looks for the pictures
    found = datumaro.Dataset.import_from(str(run / "cvat"), "cvat")
    names = [label.name for label in found.categories()[datumaro.AnnotationType.label]]
    assert names == [*NAMES.values(), "suspect"]
    wanted = {Path(path).stem: rows for path, rows in truth(run).items()}
    assert {Path(item.id).stem for item in found} == {"000", "001", "007"}
    for item in found:
        boxes = [a for a in item.annotations if a.type == datumaro.AnnotationType.bbox]
        rows = [(names[a.label], *a.points) for a in boxes]
        same(rows, [r for i, r in enumerate(wanted[Path(item.id).stem]) if Path(item.id).stem != "000" or i], abs=0.006)
        (tag,) = [a for a in item.annotations if a.type == datumaro.AnnotationType.label]
        assert tag.attributes["reason"] == "label suspect"


def test_fiftyone_reads_the_cvat_file(run, data):
    cvat = pytest.importorskip("fiftyone.utils.cvat", reason="fiftyone is not installed: pip install fiftyone")
    export_formats(review(run, data), ["cvat"])
    _, labels, images = cvat.load_cvat_image_annotations(str(run / "cvat" / "annotations.xml"))
    assert [label["name"] for label in labels.labels] == [*NAMES.values(), "suspect"]
    assert [(len(i.boxes), len(i.polygons), len(i.tags)) for i in images if i.name.endswith("000.png")] == [(1, 1, 1)]
    assert {i.tags[0].attributes[0].value for i in images} == {"label suspect"}


def test_label_studio_tasks_have_the_labels_as_predictions(run, data):
    (written,) = export_formats(review(run, data), ["labelstudio"])
    tasks = json.loads(written.files[0].read_text(encoding="utf-8"))
    assert [task["id"] - 1 for task in tasks] == [7, 1, 0]
    first, _, last = tasks
    assert first["meta"] == {
        "reason": "label suspect",
        "detail": "shifted",
        "suspicion": 3.0,
        "weight": first["meta"]["weight"],
    }
    assert first["data"]["why"] == "label suspect: shifted"
    assert first["predictions"][0]["score"] == pytest.approx(1 / (1 + math.exp(3)))
    assert [r["type"] for r in last["predictions"][0]["result"]] == ["polygonlabels", "rectanglelabels"]
    query = parse_qs(urlparse(first["data"]["image"]).query)
    assert "/" + query["d"][0] == read(run)[1].paths[7]


def test_label_studio_takes_tasks_predictions_and_interface(run, data, tmp_path):
    """Its SDK validates them against the interface, and converts what a reviewer would hand back unchanged."""
    sdk = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    from label_studio_sdk.converter import Converter

    (written,) = export_formats(review(run, data), ["labelstudio"])
    config = written.files[1].read_text(encoding="utf-8")
    interface = sdk.LabelInterface(config)
    interface.validate()
    tasks = json.loads(written.files[0].read_text(encoding="utf-8"))
    for task in tasks:
        assert interface.validate_task({k: v for k, v in task.items() if k != "predictions"})  # it trips over them
        assert interface.validate_prediction(task["predictions"][0], return_errors=True) == []
        task["annotations"] = [{"id": task["id"], "result": task["predictions"][0]["result"]}]
    (tmp_path / "back.json").write_text(json.dumps(tasks), encoding="utf-8")
    Converter(config, str(tmp_path), download_resources=False).convert_to_yolo(
        str(tmp_path / "back.json"), str(tmp_path / "yolo"), is_dir=False
    )
    classes = (tmp_path / "yolo" / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(classes) == sorted(NAMES.values())
    (file,) = (tmp_path / "yolo" / "labels").glob("*007*")
    shapes = read_labels(file, 3)
    rows = [(classes[c], *(64 * b).tolist()) for c, b in zip(shapes.classes, shapes.boxes, strict=True)]
    same(rows, truth(run)[read(run)[1].paths[7]])


# FiftyOne


def test_fiftyone_has_every_image_with_what_the_run_found(run):
    (written,) = export_formats(run, ["fiftyone"])
    assert [f.name for f in written.files] == ["metadata.json", "samples.json"]
    samples = json.loads((run / "fiftyone" / "samples.json").read_text(encoding="utf-8"))["samples"]
    assert [s["filepath"] for s in samples] == list(read(run)[1].paths)
    assert [s["kept"] for s in samples] == [i not in DROPPED for i in range(N)]
    assert samples[7]["reason"] == "label suspect"
    assert samples[7]["tags"] == ["dropped"]


def test_fiftyones_own_importer_reads_the_folder(run):
    """Its database is not at hand here: samples as its importer hands them to it."""
    data = pytest.importorskip("fiftyone.utils.data", reason="fiftyone is not installed: pip install fiftyone")
    export_formats(run, ["fiftyone"])
    importer = data.FiftyOneDatasetImporter(dataset_dir=str(run / "fiftyone"))
    assert importer._is_legacy_format_data(), "the type that the docs name finds the layout by itself"
    importer = importer._to_legacy_importer()
    with importer:
        assert importer.get_dataset_info()["classes"]["ground_truth"] == list(NAMES.values())
        samples = list(importer)
    wanted = truth(run)
    assert [s.filepath for s in samples] == list(wanted)
    for i, sample in enumerate(samples):
        assert (sample.kept, sample.metadata.width) == (i not in DROPPED, 64)
        rows = wanted[sample.filepath][1 if i == 0 else 0 :]
        found = [(d.label, *(64 * np.array(d.bounding_box))) for d in sample.ground_truth.detections]
        same([(n, x, y, x + w, y + h) for n, x, y, w, h in found], rows)
    (outline,) = samples[0].outlines.polylines
    assert np.ravel(outline.points).tolist() == TRIANGLE
    assert (samples[7].reason, samples[7].suspicion, samples[0].suspicion) == ("label suspect", 3.0, None)


# cleanlab


def test_cleanlab_arrays_are_labels_alone_where_there_is_no_checkpoint(run):
    (written,) = export_formats(run, ["cleanlab"])
    assert "labels only: there is no" in written.note
    labels, predictions = cleanlab.load(written.files[0])
    assert predictions is None
    for entry in labels:
        rows = truth(run)[entry["image_name"]]
        same([(NAMES[int(c)], *b) for c, b in zip(entry["labels"], entry["bboxes"], strict=True)], rows)


@pytest.mark.slow
def test_cleanlab_scores_the_images_by_labels_and_predictions(tmp_path):
    pytest.importorskip("cleanlab", reason="cleanlab is not installed: pip install cleanlab")
    from cleanlab.object_detection.filter import find_label_issues
    from cleanlab.object_detection.rank import get_label_quality_scores

    data = helpers.build_set(tmp_path / "set", train=16, val=4)
    helpers.train_here(data, tmp_path / "run", epochs=3)
    (written,) = export_formats(tmp_path / "run", ["cleanlab"])
    assert "was trained on these images" in written.note
    labels, predictions = cleanlab.load(written.files[0])
    assert [entry["image_name"] for entry in labels] == list(read(tmp_path / "run")[1].paths)
    assert [len(p) for p in predictions] == [3] * 16
    assert all(boxes.shape[1:] == (5,) and (boxes[:, 4] >= 0.05).all() for p in predictions for boxes in p)
    scores = get_label_quality_scores(labels, predictions)
    assert scores.shape == (16,)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert find_label_issues(labels, predictions).shape == (16,)


@pytest.mark.slow
def test_cleanlab_predictions_are_by_the_whole_data_file(tmp_path, monkeypatch):
    """Of one channel the detector was made for one; labels with keypoints are read by `kpt_shape`."""
    monkeypatch.setattr(cleanlab, "_FLOOR", 1e-4)  # three epochs make no sure detector
    data = helpers.build_set(tmp_path / "set", train=16, val=4)
    helpers.write_data(data, data.parent, channels=1, kpt_shape=[2, 3])
    for image in helpers.training_images(data)[:4]:
        lines = helpers.label_of(image).read_text(encoding="utf-8").splitlines()
        helpers.label_of(image).write_text("".join(f"{line} .1 .1 2 .2 .2 2\n" for line in lines), encoding="utf-8")
    helpers.train_here(data, tmp_path / "run", epochs=3)
    (written,) = export_formats(tmp_path / "run", ["cleanlab"])
    _, predictions = cleanlab.load(written.files[0])
    assert all(sum(map(len, image)) for image in predictions)


@pytest.mark.slow
def test_an_image_that_gives_no_predictions_any_more_is_named(tmp_path):
    data = helpers.build_set(tmp_path / "set", train=16, val=4)
    helpers.train_here(data, tmp_path / "run", epochs=3)
    image = helpers.training_images(data)[3]
    with helpers.label_of(image).open("a", encoding="utf-8") as labels:
        labels.write("1 .4 .4 .6 .4 .6 .6\n")  # a polygon beside boxes: Ultralytics leaves the image out
    with pytest.raises(DataError, match=rf"but 1 cannot be read .*{image.name}"):
        export_formats(tmp_path / "run", ["cleanlab"])
    assert not (tmp_path / "run" / "cleanlab.npz").exists()


@pytest.mark.parametrize("harm", [lambda f: f.unlink(), lambda f: f.write_bytes(f.read_bytes()[:-30])])
def test_a_torn_cleanlab_file_is_one_line(run, harm):
    (written,) = export_formats(run, ["cleanlab"])
    harm(written.files[0])
    with pytest.raises(RunError, match=r"Expected a cleanlab\.npz of this package"):
        cleanlab.load(written.files[0])


# All of them


OTHERS = [name for name in FORMATS if name != "yolo"]


def test_formats_may_be_a_list_or_given_again(run, capsys):
    assert cli.main(["export", str(run), "--format", "coco,fiftyone", "--format", "cvat", "--format", "coco"]) == 0
    out = [str(Path(line).relative_to(run)) for line in capsys.readouterr().out.splitlines()]
    folders = ["fiftyone/metadata.json", "fiftyone/samples.json", "cvat/annotations.xml", "cvat/labels.json"]
    assert out == ["coco.json", *folders, "cvat/images.txt"]


@pytest.mark.parametrize("name", OTHERS)
def test_written_again_it_is_the_same_bytes_and_nothing_is_left_over(run, name):
    def bytes_of() -> dict[str, bytes]:
        return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}

    export_formats(run, [name])
    before = bytes_of()
    export_formats(run, [name])
    assert bytes_of() == before
    assert not [p for p in before if p.endswith(".tmp")]


@pytest.mark.parametrize("words", ["cocoo", "", "coco,,cvat"])
def test_an_unknown_format_lists_the_known_and_writes_nothing(run, words, capsys):
    (run / "pruned.yaml").unlink()
    assert cli.main(["export", str(run), "--format", words]) == 2
    line = capsys.readouterr().err
    assert f"Expected formats among {', '.join(FORMATS)}" in line
    assert len(line.splitlines()) == 1
    assert not (run / "pruned.yaml").exists()


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_that_is_not_finished_is_one_line(run, name, capsys):
    (run / "mask.npz").unlink()
    assert cli.main(["export", str(run), "--format", name]) == 2
    assert "finish the run with --resume" in capsys.readouterr().err


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda image: helpers.label_of(image).unlink(), "Expected the labels of .*001.png, but .*001.txt is gone"),
        (lambda image: image.unlink(), "Expected the image .*001.png, but it is gone"),
        (
            lambda image: image.write_bytes(b"no image"),
            "Expected the image .*001.png, but it is gone or cannot be read",
        ),
        (lambda image: helpers.label_of(image).write_text("0 1 2"), "Expected lines of class x y w h in .*001.txt"),
        (lambda image: helpers.label_of(image).write_text("9 .5 .5 .1 .1"), "Expected classes 0 to 2"),
    ],
    ids=["no labels", "no image", "a broken image", "broken labels", "an unknown class"],
)
def test_what_is_gone_is_named_in_one_line_and_no_half_file_stays(run, data, name, harm, words):
    harm(helpers.training_images(data)[1])
    with pytest.raises(DataError, match=words) as caught:
        export_formats(run, [name])
    assert len(str(caught.value).splitlines()) == 1
    assert not [p for p in run.rglob("*") if "coco" in p.name or "samples" in p.name or p.suffix in (".xml", ".tmp")]


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_in_the_way_is_one_line(run, name):
    target = {"coco": "coco.json", "coco-all": "coco-all.json", "cleanlab": "cleanlab.npz"}.get(name)
    if target is None:
        (run / name).write_text("in the way")
    else:
        (run / target).mkdir()
    with pytest.raises(RunError, match="Expected to write into"):
        export_formats(run, [name])


HOSTILE = [
    "<script>alert(1)</script>",
    "a \"b\" 'c' & d; e",
    "猫 🐈 %41 # ?x=1",
    "back\\slash",
    " leading",
    "]]>",
    "{{x}}",
]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_names_come_back_as_they_were(tmp_path, data, name, word):
    """In a file's name and a class's; a slash would be a folder."""
    image = helpers.training_images(data)[1]
    label = helpers.label_of(image)
    file = word.replace("/", "∕")
    renamed = image.rename(image.with_name(f"0 {file}.png"))
    label.rename(label.with_name(f"0 {file}.txt"))
    paths = sorted(str(p) for p in helpers.training_images(data))
    place = paths.index(str(renamed))
    outcome = finish(tmp_path / "run", data, paths=paths, names={0: word, 1: "b", 2: "c"})
    outcome.kept[place] = name in ("coco",)
    outcome.columns["suspicion"][place] = 5.0
    write(
        tmp_path / "run",
        outcome,
        source=data,
        data={"path": data.parent, "names": {0: word, 1: "b", 2: "c"}},
        manifest={"seed": 0, "prune": {"share": 0.25}},
    )
    (written,) = export_formats(tmp_path / "run", [name])
    named, classes = read_names(name, written.files[0], data.parent)
    assert str(renamed) in named
    assert classes is None or word in classes


def read_names(name: str, file: Path, root: Path) -> tuple[list[str], list[str] | None]:
    """Image paths and class names by each format's own reading rules."""
    if name == "cleanlab":
        return [entry["image_name"] for entry in cleanlab.load(file)[0]], None
    if name == "cvat":
        tree = ElementTree.parse(file).getroot()
        return [str(root / i.get("name")) for i in tree.iter("image")], [e.text for e in tree.iter("name")]
    content = json.loads(file.read_text(encoding="utf-8"))
    if name == "labelstudio":
        interface = ElementTree.parse(file.with_name("interface.xml")).getroot()
        images = ["/" + parse_qs(urlparse(t["data"]["image"]).query)["d"][0] for t in content]
        return images, [e.get("value") for e in interface.iter("Label")]
    if name == "fiftyone":
        samples = json.loads(file.with_name("samples.json").read_text(encoding="utf-8"))["samples"]
        return [s["filepath"] for s in samples], content["info"]["classes"]["ground_truth"]
    return [str(root / i["file_name"]) for i in content["images"]], [c["name"] for c in content["categories"]]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("where", ["class", "image"])
def test_names_that_are_no_utf8_are_refused_in_one_line(tmp_path, data, name, where):
    paths = [str(p) for p in helpers.training_images(data)]
    names = dict(NAMES)
    if where == "class":
        names[1] = "caf\udce9"
    else:
        paths = sorted([*paths, str(data.parent / "images" / "train" / "caf\udce9.png")])
    finish(tmp_path / "run", data, paths=paths, names=names)
    with pytest.raises(DataError, match=r"Expected names in UTF-8, but got '.*caf\\udce9") as caught:
        export_formats(tmp_path / "run", [name])
    str(caught.value).encode("ascii")


@pytest.mark.parametrize("name", ["cvat", "labelstudio"])
@pytest.mark.parametrize("word", ["two\nlines", "a\x00b", "bell\x07", "\x85"])
def test_control_characters_are_refused_where_xml_has_no_word_for_them(tmp_path, data, name, word):
    finish(tmp_path / "run", data, names={0: word, 1: "b", 2: "c"})
    with pytest.raises(DataError, match=f"without control characters for format {name}") as caught:
        export_formats(tmp_path / "run", [name])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["coco", "fiftyone"])
def test_control_characters_survive_json(tmp_path, data, name):
    finish(tmp_path / "run", data, names={0: "two\nlines\x00", 1: "b", 2: "c"})
    (written,) = export_formats(tmp_path / "run", [name])
    assert "two\nlines\x00" in read_names(name, written.files[0], data.parent)[1]


def test_a_run_of_one_empty_image(tmp_path, data):
    last = helpers.training_images(data)[-1]
    finish(tmp_path / "run", data, paths=[str(last)], reasons=False)
    written = export_formats(tmp_path / "run", OTHERS)
    content = json.loads(written[0].files[0].read_text(encoding="utf-8"))
    assert (len(content["images"]), content["annotations"]) == (1, [])


# Label files


def test_shapes_are_what_the_lines_say(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("0 .5 .5 .2 .2\n1 .1 .1 .5 .1 .1 .5\n0 .5 .5 .2 .2\n", encoding="utf-8")
    shapes = read_shapes(file, 2)
    assert shapes.labels.classes.tolist() == [0, 1]  # equal rows count once
    assert shapes.outlines[0] is None
    assert shapes.outlines[1].tolist() == [[0.1, 0.1], [0.5, 0.1], [0.1, 0.5]]


@pytest.mark.parametrize(
    ("line", "outline"),
    [
        ("1 .5 .5 .2 .2", None),
        ("1 .5 .5 .2 .2 .1 .1 2 .3 .3 2", None),
        ("1 .4 .4 .6 .4 .6 .6", [[0.4, 0.4], [0.6, 0.4], [0.6, 0.6]]),
    ],
    ids=["box", "keypoints", "polygon"],
)
def test_where_no_keypoints_are_learned_a_row_may_have_them_or_not(tmp_path, line, outline):
    """As Ultralytics reads a data file with `kpt_shape` for a detector."""
    file = tmp_path / "a.txt"
    file.write_text(line + "\n", encoding="utf-8")
    shapes = read_shapes(file, 2, (2, 3), task="detect")
    assert shapes.labels.classes.tolist() == [1]
    assert np.allclose(shapes.labels.boxes, [[0.4, 0.4, 0.6, 0.6]])
    assert shapes.keypoints is None
    assert outline == (None if shapes.outlines[0] is None else shapes.outlines[0].tolist())


@pytest.mark.parametrize("format", ["coco", "cvat", "labelstudio"])
def test_a_detector_s_run_on_a_data_file_with_keypoints_has_its_boxes(tmp_path, data, format):
    finish(tmp_path / "run", data, kpt_shape=[4, 3])
    (written,) = export_formats(tmp_path / "run", [format])
    assert written.files


def test_keypoints_of_another_number_are_one_line(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("0 .5 .5 .2 .2 .1 .1 2\n", encoding="utf-8")
    with pytest.raises(DataError, match="a line has 8 numbers"):
        read_shapes(file, 2, (2, 3))


def test_unknown_formats_from_python(run):
    with pytest.raises(ConfigError, match="but got voc, xml: choose one"):
        export_formats(run, ["voc", "coco", "xml"])
    shutil.rmtree(run)
    with pytest.raises(RunError, match="Expected a finished run"):
        export_formats(run, ["coco"])
