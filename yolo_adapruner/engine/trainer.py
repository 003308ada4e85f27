"""What each of our trainers adds to Ultralytics' own: hooks where a stage begins, a batch is weighted, an epoch closed.

What an image deserves is decided in `core`; this class only carries batches there and weights back.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import DEFAULT_CFG, LOCAL_RANK, LOGGER, RANK, WORLD_SIZE
from ultralytics.utils.torch_utils import parse_device, unwrap_model

from yolo_adapruner.config import PruneConfig
from yolo_adapruner.core import distributed
from yolo_adapruner.core.appearance import dimensions
from yolo_adapruner.core.floors import Constraints, Groups
from yolo_adapruner.core.layout import Layout
from yolo_adapruner.core.nearest import takes_long
from yolo_adapruner.core.pruner import Pruner, Settings, Stage
from yolo_adapruner.core.schedule import Draw, Dynamic, Plan, Stretch, Visits, validates
from yolo_adapruner.core.selection import drop_count
from yolo_adapruner.core.suspicion import Judge
from yolo_adapruner.data import export
from yolo_adapruner.data.export import replace_file
from yolo_adapruner.data.keep import read_keep, refuse_too_many
from yolo_adapruner.engine import dataset as images
from yolo_adapruner.engine import evidence, heads, labelcache, labels, launch, runtime, shown, state, warmstart, watch
from yolo_adapruner.engine.attribution import AttributedDataset
from yolo_adapruner.engine.channels import CHANNELS, detection_channels, fit
from yolo_adapruner.engine.epochs import RowLoader
from yolo_adapruner.engine.features import FeatureTap
from yolo_adapruner.engine.held import MOST, Held
from yolo_adapruner.engine.judge import FaultJudge
from yolo_adapruner.engine.losses import Assignment, LossTap
from yolo_adapruner.engine.names import refuse_script
from yolo_adapruner.engine.owners import Accounts, accounts
from yolo_adapruner.engine.rehearse import (
    FEATURES,
    MIXED_EVERY,
    MOST_REHEARSED,
    OBJECTS,
    READINGS,
    TRIED,
    Rehearsal,
    Spoilt,
)
from yolo_adapruner.engine.resumable import Resumable
from yolo_adapruner.engine.sight import Sight
from yolo_adapruner.engine.transforms import KEY
from yolo_adapruner.engine.trouble import one_line, quiet
from yolo_adapruner.engine.tryout import try_out
from yolo_adapruner.errors import ConfigError, DataError, RunError

if TYPE_CHECKING:
    from typing_extensions import Self


class AdaPruneMixin(Resumable):
    """The mask's part of a trainer; stands before an Ultralytics trainer among the bases of a class.

    Attributes:
        prune_config: settings of the method, one for the class; `configured` makes a class with others.
        notes: texts to leave in the run folder, by file name; part of the class like the settings, because launched
            processes are handed the class and begin with an empty folder.
        task: what it trains for, a key of `heads.TASKS`; one for the class.
        start: run folder whose logits this run begins with, or None; part of the class like the settings.
        watched: note what each epoch says of each image (`watch`) for the scores; part of the class like the settings.
        channels: names of what is read of an image, in the order of `_readings`' columns; one for the class.
        planner: makes, of the trainer that is set up, a plan of what each epoch draws; None: everything. Part of the
            class like the settings.
        remarks: what the manifest shall say of the training set beside `skipped`.
        pruner: mask, controller and record, from the start of training on; None at share 0.
        paths: each training image once, absolute; the pruner's sample i is `paths[i]`, and so is the plan's.
        plan: what `planner` made, from the start of training on. Where it has `state_dict` and `load_state_dict`, a
            resumed run goes on from those.
        visits: what a plan is told of each image, and how often it was drawn; None in stock training.
        held: batches whose readings are still to be taken; None in stock training.

    What an interrupted run goes on from is `Resumable`'s.
    """

    prune_config: ClassVar[PruneConfig] = PruneConfig()
    notes: ClassVar[Mapping[str, str]] = {}
    task: ClassVar[str] = "detect"
    start: ClassVar[Path | None] = None
    channels: ClassVar[tuple[str, ...]] = CHANNELS
    planner: ClassVar[Callable[[Any], Plan] | None] = None
    watched: ClassVar[bool] = False
    epochs: int  # Ultralytics', as are the next two
    scheduler: Any
    lf: Callable[[float], float]

    @classmethod
    def configured(
        cls,
        config: PruneConfig,
        notes: Mapping[str, str] | None = None,
        start: Path | None = None,
        planner: Callable[[Any], Plan] | None = None,
        *,
        watched: bool = False,
    ) -> type[Self]:
        """Return this trainer with other settings, as a class of the same name that Ultralytics can be handed."""
        own = {"prune_config": config, "notes": notes or {}, "start": start, "watched": watched}
        if planner is not None:
            own["planner"] = staticmethod(planner)  # a function is no method of ours
        return type(cls.__name__, (cls,), {**own, "__module__": cls.__module__, "__doc__": cls.__doc__})

    def __init__(
        self, cfg: Any = DEFAULT_CFG, overrides: dict[str, Any] | None = None, _callbacks: dict[str, Any] | None = None
    ) -> None:
        runtime.offer_font()
        self.pruner: Pruner | None = None
        self.plan: Plan | None = None
        self.visits: Visits | None = None
        self._tap: Any = None
        self._onlooker: watch.Watch | None = None
        self.held: Held | None = None
        self._saved_at = -math.inf  # seconds of the clock that only goes forward
        self._since = 0  # images trained on since the last validation
        self._validated: dict[str, float] | None = None  # what that said
        self._before: tuple[int, dict[str, float] | None] = 0, None  # both, as the epoch found them
        self.remarks: dict[str, Any] = {}
        self._own_classes: dict[str, Any] = {}  # the data file's, where the detector trains on others
        self._kept_dataset: Any = None
        self._entered: tuple[Stage | None, Any] | None = None
        self._stretch: Stretch | None = None
        self._columns: dict[str, float] = {}
        self._started: dict[str, Any] | None = None
        self._rehearsal: Rehearsal | None = None
        self._features: FeatureTap | None = None
        super().__init__(cfg, overrides, _callbacks)
        self._threads = runtime.use_all_cores(max(1, runtime.cores() // WORLD_SIZE))
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
        refuse_script(str(self.args.data), self.args.split)
        data = super().get_dataset()
        if self.args.single_cls:  # upstream has put one name over those of the file, by which its labels go
            own = check_det_dataset(self.args.data, autodownload=False, split=self.args.split)
            self._own_classes = {key: own[key] for key in ("names", "nc")}
        return data

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
        return model.to(memory_format=torch.channels_last) if runtime.channels_last() else model

    def _setup_train(self) -> None:
        super()._setup_train()
        self._ids = {path: i for i, path in enumerate(self.paths)}
        self.skipped: list[str] = []
        self._look_over(self.train_loader.dataset)
        self.labels_print = hashlib.sha256(self._label_prints.tobytes()).hexdigest()
        self.warn_of_other_labels()
        if self.skipped:
            LOGGER.warning(
                f"{len(self.skipped)} listed images are unreadable or wrongly labelled and take no part, "
                f"the first: {self.skipped[0]}"
            )
        required = self._required()
        self.constraints = Constraints(self._groups(), self.prune_config.floor, required)
        self._set_up_mask()
        if self.pruner is not None:
            self._start_warm(self.pruner)
        self.take_up()

    def _required(self) -> NDArray[np.bool_] | None:
        """Which images the user wants to stay, (N,), None without a list."""
        config = self.prune_config
        required = None if config.keep is None else read_keep(config.keep, self.paths, self.data.get("path", "."))
        refuse_too_many(required, config.share)
        return required

    @property
    def _weighs(self) -> bool:
        """Whether images are told apart at all; otherwise this is stock training."""
        config = self.prune_config
        return bool(config.share) or config.dynamic or self.planner is not None or self.watched

    def _set_up_mask(self) -> None:
        share = self.prune_config.share
        if not self._weighs:
            LOGGER.info("prune 0: nothing will be pruned, this is stock training")
            return
        if share:
            self._refuse_too_few(share)
        model = unwrap_model(self.model)
        if getattr(model, "criterion", None) is None:
            model.criterion = model.init_criterion()
        self._tap = self._tapped(model)
        self.visits = Visits(len(self.paths), len(self.channels))
        self.held = Held(self._read, 1 if self.device.type == "cpu" else MOST)
        if share or self.prune_config.dynamic:
            self._set_up_pruner(model)
        if self.planner is not None:
            self.plan = type(self).planner(self)  # type: ignore[misc]  # not None, see above
        if self.watched:
            if self.saved is not None and not (self.saved["mask"] or {}).get("trajectory"):
                raise RunError(
                    f"Expected a run that was watched from its first epoch on, but {self.save_dir} was not: start a "
                    "new run."
                )
            self._onlooker = watch.Watch(len(self.paths), self.epochs)
        if self.resume and self.saved is None:
            self._restore(self.start_epoch - 1)

    def _refuse_too_few(self, share: float) -> None:
        """Refuse a share that leaves no batch to train on."""
        left = len(self.paths) - drop_count(len(self.paths), share)
        if left < self.batch_size:
            raise ConfigError(
                f"Expected at least one batch of images to be left, but prune {share:g} of {len(self.paths)} images "
                f"leaves {left} with batch {self.batch_size}: prune less or take a smaller batch."
            )
        if self._one_stands_alone(left):
            raise ConfigError(
                f"Expected batches of two images or more at imgsz {self.args.imgsz}, for batch normalisation, but the "
                f"last of the {left} images that prune {share:g} leaves stands alone with batch {self.batch_size}: "
                "change batch, imgsz or prune."
            )
        if left == len(self.paths):
            LOGGER.warning(f"prune {share:g} of {len(self.paths)} images rounds to none: nothing will be pruned")

    def _one_stands_alone(self, images: int) -> bool:
        """Whether the last batch of so many has one image only, of which batch normalisation then has one value.

        Upstream looks at the whole set alone.
        """
        ranks = max(self.world_size, 1)
        last = -(-images // ranks) % (self.batch_size // ranks)
        smallest = self.args.imgsz * (1 - self.args.multi_scale)
        return last == 1 and not self.args.compile and smallest < 2 * self.stride

    def _set_up_pruner(self, model: Any) -> None:
        judge, readings = self._judge()
        settings = Settings(**self.prune_config.model_dump())
        features, layout = self._likeness(model)
        if features and takes_long(len(self.paths)):
            LOGGER.warning(
                f"each of {len(self.paths)} images is compared with each other one in every joint epoch, which takes "
                "long: pip install 'yolo-adapruner[large]', or set prune.redundancy=0"
            )
        if judge is None and settings.share:
            why = "prune.judge is false" if not self.prune_config.judge else f"of task {self.task} they cannot be"
            LOGGER.warning(
                f"labels are not judged ({why}): images go by how hard they read, the hardest first; where labels are "
                "right that loses more than a random choice, and the more the larger the share"
            )
        self.pruner = Pruner(
            len(self.paths),
            len(self.channels),
            self.epochs,
            settings,
            self.args.seed,
            self.constraints,
            judge=judge,
            readings=readings,
            features=features,
            layout=layout,
            ends_early=True,
        )

    def _start_warm(self, pruner: Pruner) -> None:
        if self.start is None or self.resume:
            return
        logits, seen, counts = warmstart.carry(
            self.start, self.task, self.prune_config, self.paths, self._label_prints, self.data["names"]
        )
        pruner.carry(logits, seen)
        self._started = warmstart.as_words(counts)
        LOGGER.info(counts.line())

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
        if mode != "train" or not self._weighs:
            return found
        # Half of the finest stride is where the anchors are; images that are resized need each pixel.
        finest = int(unwrap_model(self.model).stride.min())
        return AttributedDataset.adopt(found, 1 if self.args.multi_scale else max(finest // 2, 1))

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """Return Ultralytics' loader; for training one whose epochs may be shorter than the set, unless none is."""
        loader = super().get_dataloader(dataset_path, batch_size=batch_size, rank=rank, mode=mode)
        return RowLoader.of(loader) if mode == "train" and self._weighs else loader

    def auto_batch(self) -> int:
        """Find a batch size as Ultralytics does, of no more images than the fine-tune stage is left with."""
        found = super().auto_batch()
        left = len(self.paths) - drop_count(len(self.paths), self.prune_config.share)
        return min(found, max(left, 2))

    # ---- an epoch -----------------------------------------------------------------------------------------------

    def run_callbacks(self, event: str) -> None:
        """Do our part of an event, then run the registered callbacks."""
        self.note(event)
        if self.visits is not None:
            if event == "on_train_epoch_start":
                self._open_epoch(self.pruner)
            elif event == "on_train_batch_end":
                self._observe_batch(self.pruner)
        if event != "on_fit_epoch_end":
            super().run_callbacks(event)
            return
        with shown.to_loggers(self, self._columns):
            super().run_callbacks(event)
        self._columns = {}  # the last evaluation fires the same event, and is no epoch of the controller's

    def _open_epoch(self, pruner: Pruner | None) -> None:
        stage = None if pruner is None else pruner.stage
        # Another loader in the same stage: upstream builds a new one when memory ran out.
        if (stage, self.train_loader) != self._entered:
            self._enter(stage)
        self._before = self._since, self._validated
        self._evidence, self._drawn, self.taken = evidence.Evidence(), 0, None
        self._looks, self._shares = evidence.Evidence(), evidence.Evidence()
        self._batches = 0
        assert self.held is not None
        self.held.clear()
        self._tap.clear()  # what a batch that failed has left there
        self._tap.watching = stage is not Stage.FINETUNE or self._reads_on
        if self._features is not None:
            self._features.watching = stage is not Stage.FINETUNE
        if self._rehearsal is not None:
            self._rehearsal.sight.open_epoch()
        if self._onlooker is not None:
            self._onlooker.open_epoch()
        weights = None
        if pruner is not None:
            pruner.open_epoch()
            weights = pruner.weights()
            if stage is not Stage.FINETUNE:
                self.stopper.best_epoch = self.epoch + 1  # patience counts from the fine-tune stage on
        self._open_draw(weights)

    def _as_many_updates(self, kept: NDArray[np.bool_]) -> Stretch:
        """Return how long the fine-tune stage takes to train on as many images as were planned for the whole run."""
        assert self.visits is not None
        trained = int(self.visits.count.sum())
        return Stretch.of(self.args.epochs, len(self.paths), trained, self.epoch, int(kept.sum()))

    def _go_on_for(self, stretch: Stretch) -> None:
        """Change the run's epochs, and the learning rate's schedule with them, as Ultralytics does for `time`."""
        self._stretch = stretch
        if stretch.epochs != self.epochs:
            LOGGER.info(f"{stretch.epochs} epochs instead of {self.epochs}, for as many updates as on all images")
        self.epochs, scheduler = stretch.epochs, self.scheduler
        self._setup_scheduler()
        by_epoch = self.lf
        self.lf = lambda epoch: by_epoch(stretch.at(epoch))
        # The one that knows where the run stands; it sets the rates when the epoch begins.
        scheduler.lr_lambdas = [self.lf] * len(scheduler.lr_lambdas)
        self.scheduler = scheduler

    @property
    def mosaic_closes(self) -> int:
        """The epoch from which on Ultralytics mixes no more: by the epochs there were, if that had come before."""
        planned = int(self.args.epochs - self.args.close_mosaic)
        return planned if self._stretch is not None and self._stretch.begin > planned else super().mosaic_closes

    def _open_draw(self, weights: NDArray[np.float32] | None) -> None:
        """Ask the plan what the epoch draws, tell the loader, and put the draw's weights onto the mask's, (N,)."""
        assert self.visits is not None
        self.visits.open_epoch()
        self._draw = self._drawn_by(self.visits)
        drawn = np.ones(len(self.paths), bool)
        if self._draw is not None:
            drawn[:] = False
            drawn[self._draw.ids] = True
            if (self._draw.weights != 1).any():
                weights = np.ones(len(self.paths), np.float32) if weights is None else weights
                weights[self._draw.ids] *= self._draw.weights
        self._draw_rows(drawn[self._numbers])
        self._weights = None if weights is None else torch.from_numpy(weights)

    def _drawn_by(self, visits: Visits) -> Draw | None:
        """What the epoch draws: by the plan, where there is one."""
        if self.plan is not None:
            return self.plan(self.epoch, visits)
        active = None if self.pruner is None else self.pruner.active
        warm = self.pruner is not None and self.pruner.stage is Stage.WARMUP
        if self.prune_config.dynamic and not warm:
            config = self.prune_config
            dynamic = Dynamic(
                self.epochs,
                config.dynamic_share,
                config.dynamic_rest,
                config.dynamic_anneal,
                seed=self.args.seed,
                rescale=config.dynamic_rescale,
            )
            suspicion = None if self.pruner is None else self.pruner.suspicion.posterior
            ready = 0 if self.pruner is None else self.pruner.warm_epochs
            if (draw := dynamic(self.epoch, visits, suspicion, active, ready)) is not None:
                return draw
        return None if active is None else Draw.of(active)

    @property
    def _reads_on(self) -> bool:
        """Whether images are read after they are judged: whom the next epoch draws may hang on it."""
        return self.plan is not None or self.prune_config.dynamic

    def _draw_rows(self, drawn: NDArray[np.bool_]) -> None:
        """Have the loader draw these rows of its dataset, and further ones where no batch could be made of them."""
        loader, batch = self.train_loader, self.batch_size // max(self.world_size, 1)
        count = int(drawn.sum())
        missing = batch - count if loader.drop_last else int(self._one_stands_alone(count))
        rows = np.sort(np.concatenate((np.flatnonzero(drawn), np.flatnonzero(~drawn)[: max(missing, 0)])))
        if images.regroup(loader.dataset, rows):
            self._number_rows(loader.dataset)
            loader.reset()
        loader.sampler.draw(rows)
        if len(rows) < len(drawn):
            LOGGER.info(f"epoch {self.epoch + 1} draws {len(rows)} of {len(drawn)} images")

    def _enter(self, stage: Stage | None) -> None:
        """Make the loader fit the stage, None where there is no mask: only kept images in the fine-tune stage."""
        if stage is Stage.FINETUNE and self._features is not None:
            self._features.close()
        if stage is Stage.FINETUNE and self.pruner is not None and self.pruner.kept is not None:
            if self.prune_config.budget == "updates" and self._stretch is None:
                self._go_on_for(self._as_many_updates(self.pruner.kept))
            self._say_if_eased(self.pruner.kept, self.pruner.limits)
            keep = {path for path, kept in zip(self.paths, self.pruner.kept, strict=True) if kept}
            self._kept_dataset = self._subset(self.train_loader.dataset, keep)
            self.train_loader.close()
            self.train_loader = self.get_dataloader(
                self.data["train"],
                batch_size=self.batch_size // max(self.world_size, 1),
                rank=LOCAL_RANK,
                mode="train",
            )
        self._number_rows(self.train_loader.dataset)
        self._entered = stage, self.train_loader
        if stage is None:
            return
        name = {Stage.WARMUP: "warm-up on all", Stage.JOINT: "joint pruning of", Stage.FINETUNE: "fine-tune on"}
        LOGGER.info(f"stage {int(stage)}: {name[stage]} {len(self.train_loader.dataset)} images")

    def _say_if_eased(self, kept: NDArray[np.bool_], limits: Constraints) -> None:
        asked, share = limits.floor, self.prune_config.share
        if (held := limits.held(kept, share)) < asked - 1e-9 and not kept.all():
            LOGGER.warning(
                f"prune {share:g} leaves too little to choose from for floor {asked:g}: eased to {held:.2f} for every "
                "class, size and the images without boxes"
            )

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do Ultralytics' own, and set each owner's weight for the loss that follows."""
        sources = batch.pop(KEY, None)
        loaded = dict(batch)  # as yet on the CPU
        batch = super().preprocess_batch(batch)
        if self.visits is not None:
            on = self._accounts(sources, batch)
            self._batch_ids, self._views, self._tap.owners = on.numbers, on.views, on.ownership
            self._spoilt = None
            if self._rehearsal is not None and self._rehearses:
                every = self._rehearses_every(mixed=on.ownership is not None)
                if self._batches % every == self.epoch % every:
                    self._spoilt = self._rehearsal.spoil(loaded, tuple(batch["img"].shape[2:]), on, sources)
                self._batches += 1
            self._set_weights()
        return batch

    @property
    def _rehearses(self) -> bool:
        return self.pruner is not None and self.pruner.rehearses

    def _rehearses_every(self, *, mixed: bool) -> int:
        """Return of how many batches one is rehearsed: in the warm-up as few as tell whether the judge is ready."""
        assert self.pruner is not None
        few = min(len(self.paths), MOST_REHEARSED) // TRIED if self.pruner.stage is Stage.WARMUP else 1
        return min(max(few, MIXED_EVERY if mixed else 1), len(self.train_loader))  # none would be an epoch lost

    def _set_weights(self) -> None:
        """Hand the tap its owners' weights; where a plan wants losses, as a leaf whose gradient is what they are."""
        weights = None if self._weights is None else self._weights[self._batch_ids]
        if weights is None and self.plan is not None:
            weights = torch.ones(len(self._batch_ids))
        if weights is not None:
            weights = weights.to(self.device, non_blocking=True)
            if self.plan is not None:
                scale = self._scale()
                self._loss_unit = max(self.world_size, 1) * (1.0 if scale is None else scale)
                weights.requires_grad_()
        self._tap.weights = weights

    def _accounts(self, sources: Any, batch: dict[str, Any]) -> Accounts:
        """Sample numbers of the batch's owners, the whole views each was seen in, and who owns what in it."""
        if sources is None:  # fine-tune: nobody is judged
            numbers, unseen = [self._ids[images.identity(f)] for f in batch["im_file"]], np.zeros(0, np.float32)
            return Accounts(np.array(numbers), unseen, unseen, None)
        entries = len(batch["im_file"])
        once = ~distributed.repeated(self.train_loader.sampler, self._drawn, entries)
        self._drawn += entries
        return accounts(sources, self._numbers, batch, extents=self._extents, counted=once)

    def _observe_batch(self, pruner: Pruner | None) -> None:
        judged = pruner is not None or self.plan is not None
        if judged and (readings := self._readings()) is not None:
            self._evidence.add(self._batch_ids, readings, self._views)
            looks = None if self._features is None else self._features.take(self._tap.owners)
            if looks is not None:
                self._looks.add(self._batch_ids, looks, self._views, where=readings)
            weights = None if self.plan is None else self._tap.weights
            if (shares := None if weights is None else weights.grad) is not None:
                # The loss is linear in the weights, so what backward left there is each owner's share of it.
                views = torch.from_numpy(self._views).to(shares).clamp_min(1e-6)
                self._shares.add(self._batch_ids, (shares / self._loss_unit / views)[:, None], self._views)
        onlooker = self._onlooker
        if onlooker is not None:
            readings = self._watched(error=self.epoch in onlooker.trajectory.early)
            if readings is not None:
                onlooker.evidence.add(self._batch_ids, readings, self._views)
        if self.taken is not None:  # upstream steps before it says that the batch has ended
            watched = () if onlooker is None else (onlooker.evidence,)
            for each in (self._evidence, self._looks, self._shares, *watched):
                each.settle(self.taken)
            self.taken = None
        self._tap.clear()

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Close the epoch where Ultralytics, on every rank, has settled that it stands and is not trained again."""
        again = super()._handle_nan_recovery(epoch)
        if again:
            # What the weights that are no more were worth says nothing of those that stand in for them.
            self._since, self._validated = self._before
        elif self.visits is not None:
            self._close_epoch(self.pruner)
        return again

    def validate(self) -> Any:
        """Validate as Ultralytics does, but after short epochs not each time; then the last metrics stand, no fitness.

        Without a fitness nothing is held for the best, and no patience is lost.
        """
        if self.visits is None:
            return super().validate()
        self._since += self.train_loader.sampler.drawn
        rarely = not self.prune_config.validate_all
        if rarely and not validates(self._since, len(self.paths), self.epoch, self.epochs):
            # Not those the trainer holds, of which Ultralytics clears a part when a process begins.
            return None if self._validated is None else dict(self._validated), None
        self._since = 0
        metrics, fitness = super().validate()
        self._validated = None if metrics is None else dict(metrics)
        return metrics, fitness

    def _close_epoch(self, pruner: Pruner | None) -> None:
        assert self.visits is not None
        assert self.held is not None
        self.held.read()
        seen = self._evidence.collect()
        self._close_draw(self.visits, seen)
        if pruner is not None:
            if seen is not None:
                self._note_readings(pruner, *seen)
            del seen  # of millions of images as much as all that the mask knows of them
            self._close_mask(pruner)
        if self._onlooker is not None:
            self._onlooker.close_epoch(self.device)
        self._columns |= {
            "prune/images": float(self.train_loader.sampler.drawn),
            "prune/validated": float(self._since == 0),
        }

    def _close_draw(self, visits: Visits, seen: evidence.Collected | None) -> None:
        if seen is not None:
            ids, values, views = seen
            channels = values[:, : len(self.channels)].copy()
            if self._rehearsal is not None and values.shape[1] == READINGS:
                channels[:, : len(OBJECTS)] = values[:, -len(OBJECTS) :]  # what is not seen as yet is hard all the same
            visits.add(ids, channels, views)
        if (shares := self._shares.collect()) is not None:
            visits.add_losses(*shares)
        distributed.add_up(visits.totals, self.device)
        visits.close_epoch(self.epoch, self._draw)

    def _note_readings(
        self,
        pruner: Pruner,
        ids: NDArray[np.integer],
        values: NDArray[np.float32],
        views: NDArray[np.floating],
    ) -> None:
        true, rehearsed = values[:, : pruner.readings], None
        if pruner.rehearses:
            rehearsed = values[:, pruner.readings : 2 * pruner.readings]
        pruner.observe(ids, true, views, rehearsed=rehearsed)

    def _close_mask(self, pruner: Pruner) -> None:
        distributed.add_up(pruner.totals, self.device)
        if pruner.appearance is not None:
            if (looks := self._looks.collect()) is not None:
                pruner.appearance.add(*looks)
            distributed.add_up(pruner.appearance.totals, self.device)
        if self._rehearsal is not None and pruner.rehearses:
            self._look_at_classes(self._rehearsal.sight)
        fits = self._fit(pruner.record.means(len(self.channels)))
        works = min(fits.values()) >= self.prune_config.warmup_fit
        # Only the first rank has the metrics.
        metric = distributed.of_first(self.metrics[heads.TASKS[self.task].metric] if self.metrics else 0.0, self.device)
        rested = None
        if self._draw is not None:
            rested = np.ones(pruner.n, bool)
            rested[self._draw.ids] = False
        fresh = self._since == 0
        ran = pruner.close_epoch(metric, works=works, agree=self._agree(), rested=rested, fresh=fresh)
        self._columns = {f"prune/{key}": v for key, v in {**ran, **fits}.items()}

    def _look_at_classes(self, sight: Sight) -> None:
        """Close the epoch's account of what the detector sees of each class, and say so where that is another."""
        if not sight.close_epoch(self.device):
            return
        names = [str(self.data["names"][at]) for at in np.flatnonzero(sight.silent)]
        LOGGER.info(
            f"boxes of {', '.join(names)} are not seen as yet: they do not count when labels are judged"
            if names
            else "boxes of all classes are seen"
        )

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Write the epoch's line of results.csv with the controller's columns."""
        super().save_metrics({**metrics, **self._columns})

    # ---- what another task does in its own way: here for boxes ---------------------------------------------------

    def _look_over(self, dataset: Any) -> None:
        """Note what of the training set takes no part and what else its files shall say; refuse one without labels."""
        images.refuse_moving_labels(dataset)
        self.skipped = images.skipped_paths(dataset)
        self.boxes = images.box_counts(dataset, self.paths)
        if not any(self.boxes):
            raise DataError(
                f"Expected training images with labelled boxes, but none of the {len(self.paths)} images of "
                f"{self.args.data} has one: check that the labels folder mirrors the images folder."
            )
        self._label_prints = warmstart.label_prints(dataset, self.paths)

    def _tapped(self, model: Any) -> Any:
        """Put the weights' stand-ins on the model's criterion; what is returned has `weights`, `owners`, `watching`."""
        return LossTap(model.criterion)

    def _groups(self) -> Groups:
        """Return of which groups, such as the boxes of a class, the selection must not lose too much."""
        return labels.groups(self.train_loader.dataset, self.paths, self.data["names"], self.args.imgsz)

    def _judge(self) -> tuple[Judge | None, int]:
        """Return what learns from faults rehearsed in memory, None if nothing does, and the number of readings."""
        if not (self.prune_config.judge and self._tap.can_ask_again):
            return None, len(self.channels)
        self._rehearsal = Rehearsal.of(self.train_loader.dataset, self._ids, self.data["nc"], self.args.seed)
        return FaultJudge(self._rehearsal.kinds, self.args.seed, self.device), len(FEATURES)

    def _likeness(self, model: Any) -> tuple[int, Layout | None]:
        """Return how long the vector is by which images are compared, 0 if they are not, and where their boxes lie."""
        # A compiled forward runs no hooks.
        features = dimensions(len(self.paths)) if self.prune_config.redundancy and not self.args.compile else 0
        if not features:
            return 0, None
        self._features = FeatureTap(model.model[0], model.model[-1], features)
        return features, images.layout(self.train_loader.dataset, self.paths)

    def _subset(self, dataset: Any, keep: set[str]) -> Any:
        """Return the part of a training set that is kept."""
        part = images.subset(dataset, keep, self.args, traced=self._reads_on)
        if self.epoch >= self.mosaic_closes:
            with quiet():
                part.close_mosaic(hyp=copy(self.args))
        return part

    def _number_rows(self, dataset: Any) -> None:
        """Note which sample each row of the dataset is."""
        self._numbers = np.array([self._ids[images.identity(f)] for f in dataset.im_files])
        self._extents = images.extents(dataset)

    def _readings(self) -> Tensor | evidence.Later | None:
        """Return what the batch's forward said of its owners, (K, C) as `_read`, at the end of the epoch at the latest.

        None if nobody watched.
        """
        if self._tap.assignment is None or self.held is None:
            return None
        return self.held.add(self._tap.assignment, self.loss, self._spoilt)

    def _read(self, seen: Assignment, loss: Tensor, spoilt: Spoilt | None) -> Tensor:
        """Return what forwards said of their batches' owners, NaN where nothing; see `Held`.

        (K, C), and where this epoch rehearses faults as `Rehearsal.readings`.
        """
        sound = evidence.sound(seen, loss)
        if self.pruner is None or self._rehearsal is None or not self._rehearses:
            readings = detection_channels(seen)
        elif spoilt is None and self.pruner.stage is Stage.WARMUP:  # nobody will ask for more of these
            few = detection_channels(seen)
            none = few.new_full((len(few), READINGS - few.shape[1] - len(OBJECTS)), torch.nan)
            readings = torch.cat((few, none, few[:, : len(OBJECTS)]), 1)
        else:
            readings = self._rehearsal.readings(self._tap, spoilt, seen)
        return readings.masked_fill(~sound[:, None], torch.nan)

    def _watched(self, *, error: bool) -> Tensor | None:
        """Return what the batch's forward said of its owners to an onlooker, (K, 3); the error only where asked."""
        if self._tap.assignment is None:
            return None
        empty = watch.without_boxes(np.asarray(self.boxes), self._batch_ids, self.device)
        readings = watch.box_readings(self._tap.assignment, empty, error=error)
        return readings.masked_fill(~evidence.sound(self._tap.assignment, self.loss)[:, None], torch.nan)

    def _agree(self) -> float:
        """Return how alike two epochs must rank the images for an auto warm-up to end; infinity: it goes on."""
        return self.prune_config.warmup_agree if self.epoch + 1 >= self.args.warmup_epochs else math.inf

    def _fit(self, readings: NDArray[np.floating]) -> dict[str, float]:
        """Return how well the model knows the training set, by name, each in [0, 1]; an auto warm-up waits for all."""
        iou, probability = fit(readings)
        return {"iou": iou, "probability": probability}

    def _outcome(self) -> export.Outcome:
        """Return the selection with the columns of its files."""
        visits = None if self.visits is None else self.visits.count
        share = self.prune_config.share
        found = export.Outcome.of(self.pruner, self.paths, self.boxes, self.channels, share, self.constraints, visits)
        return self._with_watched(found)

    def _with_watched(self, found: export.Outcome) -> export.Outcome:
        """Add what an onlooker noted."""
        return found.with_columns({} if self._onlooker is None else self._onlooker.trajectory.columns())

    # ---- what is left behind ------------------------------------------------------------------------------------

    def method_settings(self) -> dict[str, Any]:
        """Return the method's settings."""
        return self.prune_config.model_dump()

    def mask_state(self) -> dict[str, Any] | None:
        """Return the pruner's state and the stage that this epoch's loader was made for."""
        if self._entered is None:
            return None
        stage, keeps = self._entered[0], (self.plan if hasattr(self.plan, "state_dict") else None)
        return {
            "pruner": None if self.pruner is None else self.pruner.state_dict(),
            "entered": None if stage is None else int(stage),
            "start": self._started,
            "required": self.constraints.required,
            "visits": None if self.visits is None else self.visits.state_dict(),
            "since": self._since,
            "validated": self._validated,
            "stretch": None if self._stretch is None else asdict(self._stretch),
            "sight": None if self._rehearsal is None else self._rehearsal.sight.state_dict(),
            "plan": None if keeps is None else keeps.state_dict(),
            "trajectory": None if self._onlooker is None else self._onlooker.trajectory.state_dict(),
        }

    def take_up_mask(self, mask: dict[str, Any]) -> None:
        """Give the pruner, the plan and the onlooker the state they had."""
        if self.pruner is not None:
            required = self.constraints.required
            if required is not None and not np.array_equal(mask["required"], required):
                raise RunError(
                    f"Expected {self.prune_config.keep} as it was when the run began, but it names other images: "
                    "restore it or start a new run."
                )
            self.pruner.load_state_dict(mask["pruner"])
            self._started = mask.get("start")
        if self._onlooker is not None:
            self._onlooker.trajectory.load_state_dict(mask["trajectory"])
        if self.visits is not None:
            if self._rehearsal is not None:
                self._rehearsal.sight.load_state_dict(mask["sight"])
            self.visits.load_state_dict(mask["visits"])
            self._since, self._validated = mask["since"], mask["validated"]
            if (stretch := mask.get("stretch")) is not None:
                self._go_on_for(Stretch(**stretch))
            if mask["plan"] is not None:
                self.plan.load_state_dict(mask["plan"])  # type: ignore[union-attr]  # it gave that state

    def enter_again(self, mask: Mapping[str, Any]) -> None:
        """Make the loader of the stage that the saved epoch ran in; `_open_epoch` then finds whether another begins."""
        if self.visits is not None:
            self._enter(None if mask["entered"] is None else Stage(mask["entered"]))

    def save_model(self) -> bool:
        """Save the epoch if it is the best so far, or if what came since the last save took long to train."""
        best = self.fitness is not None and self.fitness == self.best_fitness
        asked = self.stop or self._decided_just_now or self.args.save_period > 0 or self.visits is None
        if not (best or asked) and time.monotonic() - self._saved_at < runtime.save_seconds():
            return False
        self._saved_at = time.monotonic()
        return super().save_model()

    @property
    def _decided_just_now(self) -> bool:
        return self.pruner is not None and self.pruner.kept is not None and self._kept_dataset is None

    def save_checkpoints(self) -> bool:
        """Write Ultralytics' checkpoints, then the kept and dropped lists once they are decided."""
        saved = super().save_checkpoints()
        if self._decided_just_now:
            self._export(metrics=None)
        return saved

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        super()._load_checkpoint_state(ckpt)
        # NaN recovery; on resume there are no visits yet. Behind an epoch that was not saved the mask stays as that
        # left it: an epoch is closed only once it stands.
        if self.visits is not None and ckpt["epoch"] == self.epoch - 1:
            self._restore(ckpt["epoch"])

    def _restore(self, epoch: int) -> None:
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
            if self.pruner is not None:
                warmstart.write_prints(Path(self.save_dir), self.paths, self._label_prints)

    def _epochs_facts(self) -> dict[str, Any]:
        """What the manifest says of shortened epochs: images trained on, and how many all epochs on all would have."""
        if self.visits is None:
            return {}
        epochs = self.epoch + 1
        of = min(epochs, self.args.epochs) * len(self.paths)
        return {"visits": {"images": int(self.visits.count.sum()), "of": of, "epochs": epochs}}

    def _export(self, metrics: dict[str, float] | None) -> None:
        outcome = self._outcome()
        manifest = {
            "versions": runtime.versions(),
            # The last validation chose the device anew, which set the threads back.
            "hardware": runtime.hardware(self.device, threads=self._threads),
            "seed": self.args.seed,
            "prune": self.prune_config.model_dump(),
            "train": {k: v for k, v in vars(self.args).items() if k != "save_dir"},
            "skipped": self.skipped,
            "start": self._started,
            **self.remarks,
            "best_validation": metrics,
            "seconds": round(time.time() - self.train_time_start, 1),
            "updates": self.updates,
            **self._epochs_facts(),
        }
        data = {**self.data, **self._own_classes}
        export.write(Path(self.save_dir), outcome, source=Path(data["yaml_file"]), data=data, manifest=manifest)


def _refuse_unsupported(args: Any, task: str) -> None:
    heads.refuse_combinations(args)
    heads.refuse_other_task(task, heads.task_of(str(args.model), task), args.model)
    heads.refuse_other_task(task, args.task, f"task={args.task}")
    if not args.val:
        raise ConfigError("Expected validation after each epoch, but got val=False: the controller steers by it.")
    if not args.save:
        raise ConfigError("Expected checkpoints to be written, but got save=False: best.pt is what a run is for.")
    if args.time:
        raise ConfigError(f"Expected a budget in epochs, but got time={args.time}: set epochs instead.")
    device = parse_device(args.device)
    count = device.count(",") + 1
    if count > 1 and args.batch < count:
        raise ConfigError(
            f"Expected a batch of at least an image a device, but got batch={args.batch:g} for {count} devices: set a "
            f"whole number, such as batch={8 * count}; finding one by itself is for a single device."
        )
    chosen = runtime.chosen_device(device)
    if args.amp == "bf16" and not runtime.native_bf16(chosen):
        raise ConfigError(
            f"Expected a CUDA device that computes in bfloat16 for amp=bf16, but {chosen} is none: leave amp out."
        )
