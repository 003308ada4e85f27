"""docs/loops.md runs as it stands: the plain loop, its checkpoint, and Lightning where that is installed."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch

PAGE = Path(__file__).parent.parent / "docs" / "loops.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
PLAIN = [block for block in BLOCKS if "pl." not in block]
LIGHTNING = [block for block in BLOCKS if "pl." in block]


def run(blocks: list[str], names: dict) -> dict:
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The names that the page's plain blocks leave, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return run(PLAIN, {})


def test_the_plain_loop_and_its_checkpoint(page, capsys):
    pruner = page["pruner"]
    assert pruner.stage == "finetune"
    assert pruner.kept.sum() == len(pruner.active) == 420
    assert len(page["loader"]) == -(-420 // 32)
    assert page["accuracy"] > 0.9
    assert page["clean"].config.tau == 0.75
    assert Path("checkpoint.pt").is_file()


@pytest.mark.slow
def test_lightning_goes_through_the_stages(page):
    pytest.importorskip("lightning.pytorch")
    names = run(LIGHTNING, page)
    assert names["pruner"].epoch == 10
    assert (~names["pruner"].kept).sum() == 180
    assert len(names["loader"].sampler) == 420


@pytest.mark.slow
def test_lightning_interrupted_ends_where_it_would_have_ended(page):
    """Five epochs, the middle of the joint stage, then a new trainer, module and pruner from the checkpoint."""
    pytest.importorskip("lightning.pytorch")
    names = run(LIGHTNING[:1], page)
    pl, fresh = names["pl"], copy.deepcopy(names["model"])

    def fit(epochs, checkpoint=None):
        pruner = names["AdaPruner"](n=600, epochs=10, prune=0.3, config=names["PruneConfig"](warmup=3, joint=0.4))
        trainer = pl.Trainer(
            max_epochs=epochs,
            callbacks=[names["Prune"](pruner, "accuracy"), pl.callbacks.ModelCheckpoint(save_on_train_epoch_end=True)],
            reload_dataloaders_every_n_epochs=1,
            default_root_dir=str(epochs),
            enable_progress_bar=False,
            accelerator="cpu",
        )
        loader = names["DataLoader"](names["dataset"], batch_size=32, sampler=pruner.sampler())
        trainer.fit(names["Module"](copy.deepcopy(fresh), pruner), loader, loader, ckpt_path=checkpoint)
        return pruner

    stopped = fit(5)
    assert stopped.stage == "joint"
    (checkpoint,) = Path("5").rglob("*.ckpt")
    straight, resumed = fit(10), fit(10, str(checkpoint))
    assert straight.epoch == resumed.epoch == 10
    np.testing.assert_array_equal(resumed.kept, straight.kept)
    np.testing.assert_array_equal(resumed.scores, straight.scores)
