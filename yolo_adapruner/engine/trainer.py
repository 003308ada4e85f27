"""What each of our trainers adds to Ultralytics' own: hooks where a stage begins, a batch is weighted, an epoch closed.

What an image deserves is decided in `core`; this class only carries batches there and weights back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from ultralytics.utils import DEFAULT_CFG, LOCAL_RANK, LOGGER, RANK, WORLD_SIZE
from ultralytics.utils.torch_utils import parse_device, select_device, unwrap_model

from yolo_adapruner.config import PruneConfig
from yolo_adapruner.core.pruner import Pruner, Settings, Stage
from yolo_adapruner.core.selection import drop_count
from yolo_adapruner.data import export
from yolo_adapruner.data.export import replace_file
from yolo_adapruner.engine import dataset as images
from yolo_adapruner.engine import distributed, evidence, heads, labelcache, launch, runtime, state
from yolo_adapruner.engine.attribution import AttributedDataset
from yolo_adapruner.engine.channels import CHANNELS, detection_channels, fit
from yolo_adapruner.engine.judge import FaultJudge
from yolo_adapruner.engine.losses import LossTap
from yolo_adapruner.engine.names import refuse_script
from yolo_adapruner.engine.owners import Accounts, accounts
from yolo_adapruner.engine.rehearse import FEATURES, MIXED_EVERY, Rehearsal
from yolo_adapruner.engine.resumable import Resumable
from yolo_adapruner.engine.transforms import KEY
from yolo_adapruner.engine.trouble import one_line
from yolo_adapruner.engine.tryout import try_out
from yolo_adapruner.errors import ConfigError, DataError

if TYPE_CHECKING:
    from typing_extensions import Self


class AdaPruneMixin(Resumable):
    """The mask's part of a trainer; stands before an Ultralytics trainer among the bases of a class.

    Attributes:
        prune_config: settings of the method, one for the class; `configured` makes a class with others.
        notes: texts to leave in the run folder, by file name; part of the class like the settings, because launched
            processes are handed the class and begin with an empty folder.
        task: what it trains for, a key of `heads.TASKS`; one for the class.
        pruner: mask, controller and record, from the start of training on; None at share 0.
        paths: each training image once, absolute; the pruner's sample i is `paths[i]`.

    What an interrupted run goes on from is `Resumable`'s.
    """

    prune_config: ClassVar[PruneConfig] = PruneConfig()
    notes: ClassVar[Mapping[str, str]] = {}
    task: ClassVar[str] = "detect"

    @classmethod
    def configured(cls, config: PruneConfig, notes: Mapping[str, str] | None = None) -> type[Self]:
        """Return this trainer with other settings, as a class of the same name that Ultralytics can be handed."""
        own = {"prune_config": config, "notes": notes or {}}
        return type(cls.__name__, (cls,), {**own, "__module__": cls.__module__, "__doc__": cls.__doc__})

    def __init__(
        self, cfg: Any = DEFAULT_CFG, overrides: dict[str, Any] | None = None, _callbacks: dict[str, Any] | None = None
    ) -> None:
        runtime.offer_font()
        self.pruner: Pruner | None = None
        self._kept_dataset: Any = None
        self._entered: tuple[Stage, Any] | None = None
        super().__init__(cfg, overrides, _callbacks)
        runtime.use_all_cores(max(1, runtime.cores() // WORLD_SIZE))
        if RANK in {-1, 0}:
            for name, text in self.notes.items():
                with replace_file(Path(self.save_dir) / name) as temporary:
                    temporary.write_text(text, encoding="utf-8")

    def train(self) -> None:
        """Train here, or in processes that Ultralytics launches; an error of theirs ends this one with their line."""
        with launch.launching() if self.ddp else launch.launched(str(self.args.data)):
            super().train()

    # ---- set-up -------------------------------------------------------------------------------------------------

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Settle the arguments, and refuse what cannot be done before anything is made."""
        super().check_resume(overrides)
        _refuse_unsupported(self.args, self.task)

    def get_dataset(self) -> Any:
        """Read the data file as Ultralytics does, but run no script that came with it."""
        refuse_script(str(self.args.data))
        return super().get_dataset()

    def setup_model(self) -> Any:
        """Build or load the model as Ultralytics does; what it cannot make one of is the user's to mend."""
        try:
            return super().setup_model()
        except ConfigError:
            raise
        except Exception as error:  # a broken file fails in ways of its own
            raise ConfigError(
                f"Expected an Ultralytics architecture or checkpoint as model, but {self.args.model} is none: "
                f"{one_line(error)}"
            ) from error

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """Build the model as Ultralytics does, and refuse one that is not plainly of this trainer's task."""
        model = super().get_model(cfg, weights, verbose)
        given = heads.task_of_head(type(model.model[-1]).__name__, self.args.model)
        heads.refuse_other_task(self.task, given, self.args.model)
        return model

    def _setup_train(self) -> None:
        super()._setup_train()
        train_set = self.train_loader.dataset
        self.skipped = images.skipped_paths(train_set)
        self._ids = {path: i for i, path in enumerate(self.paths)}
        self.boxes = images.box_counts(train_set, self.paths)
        if not any(self.boxes):
            raise DataError(
                f"Expected training images with labelled boxes, but none of the {len(self.paths)} images of "
                f"{self.args.data} has one: check that the labels folder mirrors the images folder."
            )
        if self.skipped:
            LOGGER.warning(
                f"{len(self.skipped)} listed images are unreadable or wrongly labelled and take no part, "
                f"the first: {self.skipped[0]}"
            )
        self._set_up_mask()
        self.take_up()

    def _set_up_mask(self) -> None:
        share = self.prune_config.share
        if share == 0:
            LOGGER.info("prune 0: nothing will be pruned, this is stock training")
            return
        left = len(self.paths) - drop_count(len(self.paths), share)
        ranks = max(self.world_size, 1)
        if left < self.batch_size:
            raise ConfigError(
                f"Expected at least one batch of images to be left, but prune {share:g} of {len(self.paths)} images "
                f"leaves {left} with batch {self.batch_size}: prune less or take a smaller batch."
            )
        last = -(-left // ranks) % (self.batch_size // ranks)
        if last == 1 and not self.args.compile and self.args.imgsz < 2 * self.stride:  # upstream looks at all images
            raise ConfigError(
                f"Expected batches of two images or more at imgsz {self.args.imgsz}, for batch normalisation, but the "
                f"last of the {left} images that prune {share:g} leaves stands alone with batch {self.batch_size}: "
                "change batch, imgsz or prune."
            )
        if left == len(self.paths):
            LOGGER.warning(f"prune {share:g} of {len(self.paths)} images rounds to none: nothing will be pruned")
        model = unwrap_model(self.model)
        if getattr(model, "criterion", None) is None:
            model.criterion = model.init_criterion()
        self._tap = LossTap(model.criterion)
        self._rehearsal, judge = None, None
        if self.prune_config.judge and self._tap.can_ask_again:
            train_set, seed = self.train_loader.dataset, self.args.seed
            self._rehearsal = Rehearsal.of(train_set, self._ids, self.data["nc"], seed)
            judge = FaultJudge(self._rehearsal.kinds, seed, self.device)
        settings = Settings(**self.prune_config.model_dump())
        self.pruner = Pruner(
            len(self.paths), len(CHANNELS), self.epochs, settings, self.args.seed, judge=judge, readings=len(FEATURES)
        )
        if self.resume and self.saved is None:
            self._restore(self.start_epoch - 1)

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Return the kept images once the mask is decided, and before that all, each sample with its sources."""
        if mode == "train" and self._kept_dataset is not None:
            return self._kept_dataset
        if mode == "train":
            transforms = getattr(self.args, "augmentations", None) or []
            try_out(transforms, self.args.imgsz, self.data.get("channels", 3), rect=self.args.rect)
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        found = labelcache.build(self.args, img_path, batch, self.data, mode=mode, rect=mode == "val", stride=stride)
        if mode == "train":
            self.paths = images.unique_paths(found)
        if mode != "train" or not self.prune_config.share:
            return found
        # Half of the finest stride is where the anchors are; images that are resized need each pixel.
        finest = int(unwrap_model(self.model).stride.min())
        return AttributedDataset.adopt(found, 1 if self.args.multi_scale else max(finest // 2, 1))

    def auto_batch(self) -> int:
        """Find a batch size as Ultralytics does, of no more images than the fine-tune stage is left with."""
        found = super().auto_batch()
        left = len(self.paths) - drop_count(len(self.paths), self.prune_config.share)
        return min(found, max(left, 2))

    # ---- an epoch -----------------------------------------------------------------------------------------------

    def run_callbacks(self, event: str) -> None:
        """Do our part of an event, then run the registered callbacks."""
        self.note(event)
        if self.pruner is not None:
            if event == "on_train_epoch_start":
                self._open_epoch(self.pruner)
            elif event == "on_train_batch_end":
                self._observe_batch(self.pruner)
        super().run_callbacks(event)

    def _open_epoch(self, pruner: Pruner) -> None:
        # Another loader in the same stage: upstream builds a new one when memory ran out.
        if (pruner.stage, self.train_loader) != self._entered:
            self._enter(pruner, pruner.stage)
        pruner.open_epoch()
        weights = pruner.weights()
        self._weights = None if weights is None else torch.from_numpy(weights)
        self._evidence, self._drawn, self.taken = evidence.Evidence(), 0, None
        self._batches = 0
        self._tap.clear()  # what a batch that failed has left there
        self._tap.watching = pruner.stage is not Stage.FINETUNE
        if pruner.stage is not Stage.FINETUNE:
            self.stopper.best_epoch = self.epoch  # patience counts from the fine-tune stage on

    def _enter(self, pruner: Pruner, stage: Stage) -> None:
        """Make the loader fit the stage: only kept images in the fine-tune stage."""
        if stage is Stage.FINETUNE and pruner.kept is not None:
            keep = {path for path, kept in zip(self.paths, pruner.kept, strict=True) if kept}
            full = self.train_loader.dataset
            self._kept_dataset = images.subset(full, keep, self.args)
            if self.epoch >= self.epochs - self.args.close_mosaic:
                self._kept_dataset.close_mosaic(hyp=copy(self.args))
            self.train_loader.close()
            self.train_loader = self.get_dataloader(
                self.data["train"],
                batch_size=self.batch_size // max(self.world_size, 1),
                rank=LOCAL_RANK,
                mode="train",
            )
        files = self.train_loader.dataset.im_files
        self._numbers = np.array([self._ids[images.identity(f)] for f in files])  # by row of the dataset
        self._extents = images.extents(self.train_loader.dataset)
        self._entered = stage, self.train_loader
        name = {Stage.WARMUP: "warm-up on all", Stage.JOINT: "joint pruning of", Stage.FINETUNE: "fine-tune on"}
        LOGGER.info(f"stage {int(stage)}: {name[stage]} {len(self.train_loader.dataset)} images")

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do Ultralytics' own, and set each owner's weight for the loss that follows."""
        sources = batch.pop(KEY, None)
        loaded = dict(batch)  # as yet on the CPU
        batch = super().preprocess_batch(batch)
        if self.pruner is not None:
            on = self._accounts(sources, batch)
            self._batch_ids, self._views, self._tap.owners = on.numbers, on.views, on.ownership
            self._spoilt = None
            if self._rehearsal is not None and self.pruner.rehearses:
                if on.ownership is None or self._batches % MIXED_EVERY == self.epoch % MIXED_EVERY:
                    self._spoilt = self._rehearsal.spoil(loaded, tuple(batch["img"].shape[2:]), on, sources)
                self._batches += 1
            weights = None if self._weights is None else self._weights[self._batch_ids]
            self._tap.weights = None if weights is None else weights.to(self.device, non_blocking=True)
        return batch

    def _accounts(self, sources: Any, batch: dict[str, Any]) -> Accounts:
        """Sample numbers of the batch's owners, the whole views each was seen in, and who owns what in it."""
        if sources is None:  # fine-tune: nobody is judged
            numbers, unseen = [self._ids[images.identity(f)] for f in batch["im_file"]], np.zeros(0, np.float32)
            return Accounts(np.array(numbers), unseen, unseen, None)
        entries = len(batch["im_file"])
        once = ~distributed.repeated(self.train_loader.sampler, self._drawn, entries)
        self._drawn += entries
        return accounts(sources, self._numbers, batch, extents=self._extents, counted=once)

    def _observe_batch(self, pruner: Pruner) -> None:
        if self._tap.assignment is not None:
            if self._rehearsal is not None and pruner.rehearses:
                readings = self._rehearsal.readings(self._tap, self._spoilt)
            else:
                readings = detection_channels(self._tap.assignment)
            sound = evidence.sound(self._tap.assignment, self.loss)
            self._evidence.add(self._batch_ids, readings.masked_fill(~sound[:, None], torch.nan), self._views)
        if self.taken is not None:  # upstream steps before it says that the batch has ended
            self._evidence.settle(self.taken)
            self.taken = None
        self._tap.clear()

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Close the epoch where Ultralytics, on every rank, has settled that it stands and is not trained again."""
        again = super()._handle_nan_recovery(epoch)
        if self.pruner is not None and not again:
            self._close_epoch(self.pruner)
        return again

    def _close_epoch(self, pruner: Pruner) -> None:
        if (seen := self._evidence.collect()) is not None:
            ids, values, views = seen
            true, rehearsed = np.split(values, [len(FEATURES)], 1) if pruner.rehearses else (values, None)
            pruner.observe(ids, true, views, rehearsed=rehearsed)
        distributed.add_up(pruner.totals, self.device)
        iou, probability = fit(pruner.record.means())
        works = min(iou, probability) >= self.prune_config.warmup_fit
        # Only the first rank has the metrics.
        metric = distributed.of_first(self.metrics[heads.TASKS[self.task].metric] if self.metrics else 0.0, self.device)
        ran = pruner.close_epoch(metric, works=works)
        self._columns = {f"prune/{key}": v for key, v in {**ran, "iou": iou, "probability": probability}.items()}

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Write the epoch's line of results.csv with the controller's columns."""
        super().save_metrics(metrics if self.pruner is None else {**metrics, **self._columns})

    # ---- what is left behind ------------------------------------------------------------------------------------

    def method_settings(self) -> dict[str, Any]:
        """Return the method's settings."""
        return self.prune_config.model_dump()

    def mask_state(self) -> dict[str, Any] | None:
        """Return the pruner's state and the stage that this epoch's loader was made for."""
        if self.pruner is None or self._entered is None:
            return None
        return {"pruner": self.pruner.state_dict(), "entered": int(self._entered[0])}

    def take_up_mask(self, mask: dict[str, Any]) -> None:
        """Give the pruner the state it had."""
        if self.pruner is not None:
            self.pruner.load_state_dict(mask["pruner"])

    def enter_again(self, mask: Mapping[str, Any]) -> None:
        """Make the loader of the stage that the saved epoch ran in; `_open_epoch` then finds whether another begins."""
        if self.pruner is not None:
            self._enter(self.pruner, Stage(mask["entered"]))

    def save_checkpoints(self) -> bool:
        """Write Ultralytics' checkpoints, then the kept and dropped lists once they are decided."""
        saved = super().save_checkpoints()
        if self.pruner is not None and self.pruner.kept is not None and self._kept_dataset is None:
            self._export(metrics=None)
        return saved

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        super()._load_checkpoint_state(ckpt)
        if self.pruner is not None:  # NaN recovery; on resume there is no pruner yet
            self._restore(ckpt["epoch"])

    def _restore(self, epoch: int) -> None:
        assert self.pruner is not None
        self.take_up_mask(state.arrays(state.mask_after(Path(self.wdir), epoch)))

    def final_eval(self) -> None:
        """Validate the best checkpoint as Ultralytics does, then write the data set that this run leaves behind."""
        super().final_eval()
        # Stopped from outside before the joint stage ended.
        if self.pruner is not None and self.pruner.kept is None and self.pruner.decide().all():
            LOGGER.warning("stopped before any image was judged: nothing is pruned")
        if RANK in {-1, 0}:
            metrics = {k: float(v) for k, v in (self.metrics or {}).items() if isinstance(v, (int, float))}
            self._export(metrics)

    def _export(self, metrics: dict[str, float] | None) -> None:
        outcome = export.Outcome.of(self.pruner, self.paths, self.boxes, CHANNELS, self.prune_config.share)
        manifest = {
            "versions": runtime.versions(),
            "hardware": runtime.hardware(self.device),
            "seed": self.args.seed,
            "prune": self.prune_config.model_dump(),
            "train": {k: v for k, v in vars(self.args).items() if k != "save_dir"},
            "skipped": self.skipped,
            "best_validation": metrics,
            "seconds": round(time.time() - self.train_time_start, 1),
            "updates": self.updates,
        }
        export.write(
            Path(self.save_dir), outcome, source=Path(self.data["yaml_file"]), data=copy(self.data), manifest=manifest
        )


def _refuse_unsupported(args: Any, task: str) -> None:
    heads.refuse_combinations(args)
    heads.refuse_other_task(task, heads.task_of(str(args.model), task), args.model)
    heads.refuse_other_task(task, args.task, f"task={args.task}")
    if not args.val:
        raise ConfigError("Expected validation after each epoch, but got val=False: the controller steers by it.")
    if args.time:
        raise ConfigError(f"Expected a budget in epochs, but got time={args.time}: set epochs instead.")
    device = parse_device(args.device)
    count = device.count(",") + 1
    if count > 1 and args.batch < count:
        raise ConfigError(
            f"Expected a batch of at least an image a device, but got batch={args.batch:g} for {count} devices: set a "
            f"whole number, such as batch={8 * count}; finding one by itself is for a single device."
        )
    try:
        chosen = select_device(device, verbose=False)
    except ValueError:
        raise ConfigError(
            f"Expected a device of this machine, but got device={device}: it has cpu and {torch.cuda.device_count()} "
            "CUDA devices. Name one of them, or none to let Ultralytics pick."
        ) from None
    if args.amp == "bf16" and not runtime.native_bf16(chosen):
        raise ConfigError(
            f"Expected a CUDA device that computes in bfloat16 for amp=bf16, but {chosen} is none: leave amp out."
        )
