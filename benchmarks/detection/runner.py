"""One cell of detection in a process of its own: mmengine's Runner trains, evaluates and resumes it.

Importing this module imports mmdetection.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch

from kd_methods.contract import DataInfo, Progress
from kd_methods.errors import Damaged, DiskError, UserError

from ..common import environment, plugins
from ..common.files import check_archive, read_bytes, set_aside
from ..common.seeding import derive
from ..common.weights import NUMPY, fit, load_weights
from ..config.protocol import Protocol
from ..config.recipe import Detection
from ..cost.profiling import TIMED, WARM_UP, median_seconds, peak_memory
from ..networks import count
from ..store.runs import OTHER_BITS
from ..tasks import get_task
from ..training.assembly import Assembly, begin
from ..training.failures import Diverged, Failure, Interrupted, Refused, line, of_cell
from ..training.loop import CHECK_EVERY, protocol_progress
from ..training.precision import autocast
from ..training.student_run import finish, on_cpu
from . import detectors
from .coco import METRICS, DetectionFiles
from .executor import Job

detectors.prepare()

from mmdet.evaluation import CocoMetric  # noqa: E402
from mmengine import dist  # noqa: E402
from mmengine.evaluator import Evaluator  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.logging import HistoryBuffer  # noqa: E402
from mmengine.model import is_model_wrapper  # noqa: E402
from mmengine.registry import LOOPS  # noqa: E402
from mmengine.runner import IterBasedTrainLoop, Runner  # noqa: E402
from mmengine.runner.loops import _InfiniteDataloaderIterator  # noqa: E402

from . import data as detection_data  # noqa: E402
from .distiller import Distiller  # noqa: E402

SAVE_EVERY = 1000
"""Iterations between two checkpoints within an epoch."""


def _statistic(owner: Any, name: str) -> Any:
    """What ``getattr`` does in a pickled history, and nothing else."""
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError(f"getattr({owner}, {name}) is not allowed")
    return getattr(owner, name)


_ALLOWED: list[Any] = [
    HistoryBuffer,
    (_statistic, "builtins.getattr"),
    *NUMPY,
]
"""What mmengine's own checkpoints hold beside tensors and plain values: the history of its log. None runs foreign code.
"""


@LOOPS.register_module()
class ResumableLoop(IterBasedTrainLoop):
    """mmengine's loop, which after a stop goes on with the next batch without loading those before it."""

    def run(self) -> Any:
        if done := self._iter:
            self.dataloader.batch_sampler.start = done
            # The loop takes as many batches as there were iterations, to get to its place.
            self.dataloader_iterator = chain(repeat(None, done), _InfiniteDataloaderIterator(self.dataloader))
            if done % self.val_interval == 0:  # stopped between the checkpoint of an epoch and its evaluation
                self.runner.val_loop.run()
        return super().run()


class Records(Hook):
    """Carries what happens over into the run's directory and to the parent; keeps each iteration's random numbers.

    Of several processes all know the same, and the first one tells of it.
    """

    priority = "LOW"

    def __init__(self, job: Job, sender: Any) -> None:
        self.job, self.sender = job, sender
        self.own: dict[str, Any] = {"records": [], "sums": {}, "counted": 0, "seconds": 0.0}
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    @property
    def records(self) -> list[dict[str, Any]]:
        return self.own["records"]

    def before_train(self, runner: Runner) -> None:
        """Here a checkpoint has been read, if there is one."""
        if not self.job.rank:
            place = divmod(runner.iter, self.job.detection.iterations)
            if change := self.job.run.add_environment(_environment(self.job), place[0] + 1, place[1]):
                _tell(self.sender, "say", f"{self.job.cell.label}  {change}, {OTHER_BITS}")
            self.job.run.set_status("running", epoch=len(self.records), epochs=self.job.protocol.epochs)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.started = time.perf_counter()
        rank = [self.job.rank] if self.job.rank else []
        detection_data.seed_all(derive(self.job.cell.seed, "step", runner.iter, *rank))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        assert outputs is not None
        sums, done = self.own["sums"], runner.iter + 1
        names = [name for name in outputs if name.startswith("loss_")]
        values = [outputs[name].detach().double().cpu() for name in names]
        told = torch.stack([*values, torch.tensor(self.asked, dtype=torch.float64)])
        dist.all_reduce(told, op="mean")  # so all stop after the same iteration
        for name, value in zip(names, told[:-1], strict=True):
            sums[name[5:]] = sums.get(name[5:], 0) + value
        self.own["counted"] += 1
        self.own["seconds"] += time.perf_counter() - self.started
        if done % CHECK_EVERY == 0 or done % self.job.detection.iterations == 0:
            for name, total in sums.items():
                if not math.isfinite(float(total)):
                    raise Diverged(f"loss term '{name}' is {float(total)} in iteration {done}")
        if not self.job.rank:
            _tell(self.sender, "step", *divmod(runner.iter, self.job.detection.iterations))
        if told[-1]:
            runner.save_checkpoint(runner.work_dir, f"iter_{done}.pth", by_epoch=False)
            raise Interrupted

    def before_val_epoch(self, runner: Runner) -> None:
        """All evaluate with the statistics of the first process, which are the ones that are kept."""
        for buffer in runner.model.buffers():
            dist.broadcast(buffer)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        assert metrics is not None
        epoch, own = runner.iter // self.job.detection.iterations, self.own
        # Without a single detection mmdetection gives no figures at all.
        found = {name: metrics.get(f"coco/{key}", 0.0) for name, key in METRICS.items()}
        self.records.append(
            {
                "epoch": epoch,
                "phase": "",
                "lr": runner.optim_wrapper.get_lr()["lr"][0],
                # COCO says -1 where there is no object of that size.
                "metrics": {name: round(100 * value, 4) for name, value in found.items() if value >= 0},
                "probes": {},
                "losses": {name: float(total) / own["counted"] for name, total in own["sums"].items()},
                "seconds": round(own["seconds"], 3),
            }
        )
        own.update(sums={}, counted=0, seconds=0.0)
        if self.job.rank:
            return
        self.job.run.set_metrics(self.records)
        self.job.run.set_status("running", epoch=epoch, epochs=self.job.protocol.epochs)
        _tell(self.sender, "epoch", self.records[-1])

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["kd"] = {**self.own, "records": list(self.records)}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self.own = checkpoint["kd"]


def work(sender: Any, job: Job) -> None:
    """Train a cell; the parent hears ``(step, epoch, step)``, ``(epoch, record)``, and in the end ``(state, ...)``.

    The run's lock is held by this process and those that load its images, which end with it.
    """
    if job.rank:
        _assist(sender, job)
        return
    run = job.run
    with run.lock() as mine:
        if not mine:
            _tell(sender, "held")
        elif run.ended:
            _tell(sender, run.state)
        else:
            _tell(sender, *_train(job, sender, _quiet(run / "mmengine", "console.log")))


def _tell(sender: Any, *message: Any) -> None:
    """Say something to the parent. Where that was killed there is nobody to work for, and it is no cell's failure."""
    try:
        sender.send(message)
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)


def _assist(sender: Any, job: Job) -> None:
    """Train beside the cell's first process, which tells of what happens to both; the parent hears of errors here."""
    folder = _quiet(job.run / "mmengine", f"console-{job.rank}.log")
    try:
        runner, _ = set_up(job, sender, folder)
        _run(runner)
    except BaseException as error:
        failure = _failure(error)
        if failure and failure.state == "failed":
            traceback.print_exc()
            sender.send(failure.message)


def _failure(error: BaseException) -> Failure | None:
    """What an error makes of the cell, which is alone in its process; None if the user asked to stop.

    A lack of memory is its own, too.
    """
    if isinstance(error, Interrupted):
        return None
    return of_cell(error) or Failure("failed", line(error))


def _quiet(folder: Path, name: str) -> Path:
    """Let this process, and what of it is not Python, write into a file of the folder instead of the terminal."""
    folder.mkdir(exist_ok=True)
    with (folder / name).open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    return folder


def _run(runner: Runner) -> None:
    with torch.serialization.safe_globals(_ALLOWED):  # mmengine's torch.load knows no list of its own
        runner.train()


def _train(job: Job, sender: Any, folder: Path) -> tuple[str, ...]:
    """Train the cell; the state in which its run is then, or ``("disk", message)`` where nothing could be written."""
    run = job.run
    try:
        runner, hook = set_up(job, sender, folder)
        _run(runner)
        model: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
        finish(run, on_cpu(model.student), hook.records, job.protocol, model.method.remarks())
    except DiskError as error:
        return "disk", str(error)
    except BaseException as error:
        failure = _failure(error)
        if failure is None:
            run.set_status("interrupted", epoch=len(run.metrics), epochs=job.protocol.epochs)
            return ("interrupted",)
        run.set_status(**failure.facts(), epoch=len(run.metrics) + 1)
        return (failure.state,)
    return ("done",)


def _environment(job: Job) -> dict[str, Any]:
    from importlib import metadata

    facts = environment.describe(environment.device(job.device))
    names = ("mmdet", "mmengine", "mmcv-lite", "pycocotools")
    return {**facts, "versions": {**facts["versions"], **{name: metadata.version(name) for name in names}}}


def build(job: Job, classes: int) -> tuple[detectors.Detector, detectors.Detector | None]:
    """Student and frozen teacher of a cell; the student's weights are a function of the seed."""
    cell, pretrained = job.cell, job.detection.pretrained
    teacher = None
    if cell.teacher:
        teacher = detectors.build(cell.teacher.network, classes, pretrained=False)
        if job.teacher:  # where only the cost is asked for there is none
            fit(load_weights(job.teacher), teacher.module, str(job.teacher))
    detection_data.seed_all(derive(cell.seed, "student"))
    student = detectors.build(cell.student, classes, pretrained)
    try:
        begin(cell, student, teacher)
    except UserError as error:
        raise Refused(str(error)) from None
    return student, teacher and teacher.requires_grad_(False).eval()


def distiller(
    job: Job,
    student: detectors.Detector,
    teacher: detectors.Detector | None,
    samples: int,
    progress: Callable[[], Progress],
) -> Distiller:
    """The student with its teacher and method, whose own parameters are a function of the seed.

    Raises:
        Refused: the method is not for them.
    """
    cell, protocol, device = job.cell, job.protocol, environment.device(job.device)
    detection_data.seed_all(derive(cell.seed, "method"))
    try:
        assembly = Assembly(cell, student, teacher, DataInfo(samples, student.classes + 1))
    except UserError as error:
        raise Refused(str(error)) from None
    model = Distiller(assembly, teacher, progress, lambda: autocast(protocol, device))
    if protocol.part_size < (least := model.method.needs.min_batch):
        raise Refused(f"method '{cell.method}' needs {least} images at once, and each process has {protocol.part_size}")
    return model


def set_up(job: Job, sender: Any, folder: Path) -> tuple[Runner, Records]:
    """The cell's Runner, at its last checkpoint if there is one."""
    torch.set_num_threads(job.threads)
    plugins.load(job.plugin_files)
    protocol, cell, own = job.protocol, job.cell, job.detection
    device = environment.device(job.device)
    if job.rendezvous:
        _meet(job, device)
    files: DetectionFiles = get_task(protocol.task).open(job.data_root, protocol, torch.device("cpu"))
    student, teacher = build(job, len(files.classes))
    hook = Records(job, sender)
    total = protocol.epochs * own.iterations
    runner: Runner

    progress = lambda: protocol_progress(protocol, runner.iter // own.iterations + 1)  # noqa: E731
    model = distiller(job, student, teacher, files.train.count, progress)
    optimizer = cell.under(protocol).optimizer
    checkpoint = _last_checkpoint(folder)
    runner = Runner(
        model=model,
        work_dir=str(folder),
        train_dataloader=detection_data.training(files, job),
        train_cfg={"type": "ResumableLoop", "max_iters": total, "val_interval": own.iterations},
        optim_wrapper={
            **_wrapper(protocol),
            "optimizer": {
                "type": "SGD",
                **optimizer.model_dump(include={"lr", "momentum", "weight_decay", "nesterov"}),
            },
            "clip_grad": {"max_norm": optimizer.clip} if optimizer.clip else None,
        },
        param_scheduler=_schedule(protocol, own),
        val_dataloader=detection_data.validation(files.val, files.classes, job),
        val_cfg={"type": "ValLoop"},
        val_evaluator=Evaluator([average_precision(files, folder / "collected")]),
        default_hooks={
            "checkpoint": {
                "type": "CheckpointHook",
                "interval": min(own.iterations, SAVE_EVERY),
                "by_epoch": False,
                "max_keep_ckpts": 2,
            },
            "logger": {"type": "LoggerHook", "interval": min(50, own.iterations)},
        },
        custom_hooks=[hook],
        log_processor={"by_epoch": False},
        randomness={"seed": derive(cell.seed, "runner") % 2**32},
        resume=checkpoint is not None,
        load_from=str(checkpoint) if checkpoint else None,
        experiment_name=f"{cell.key[:16]}-{time.time_ns()}",
        default_scope="mmdet",
        launcher="pytorch" if job.rendezvous else "none",
        cfg={"model_wrapper_cfg": _parallel(device)} if job.rendezvous else {},
    )
    model.to(device)
    return runner, hook


def _meet(job: Job, device: torch.device) -> None:
    """Join the cell's other processes; mmengine, which would do it for GPUs only, takes the group that it finds."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    os.environ["LOCAL_RANK"] = str(job.rank)
    backend = "nccl" if device.type == "cuda" else "gloo"
    place = f"file://{job.rendezvous}"
    torch.distributed.init_process_group(backend, place, rank=job.rank, world_size=job.protocol.processes)


def _parallel(device: torch.device) -> dict[str, Any]:
    """How the model is shared. A method may leave parts of the student without a gradient in some step."""
    return {
        "type": "MMDistributedDataParallel",
        "device_ids": [device.index] if device.type == "cuda" else None,
        "broadcast_buffers": False,
        "find_unused_parameters": True,
    }


def _wrapper(protocol: Protocol) -> dict[str, Any]:
    """The kind of optimiser wrapper: of the precisions, fp16 needs its loss scaled."""
    return {"type": "AmpOptimWrapper", "dtype": "float16"} if protocol.precision == "fp16" else {"type": "OptimWrapper"}


def average_precision(files: DetectionFiles, collected: Path) -> CocoMetric:
    """On the validation set; ``collected`` is where several processes bring their results together."""
    metric = CocoMetric(metric="bbox")
    metric._coco_api = detection_data.ground_truth(
        files.val, files.classes
    )  # else it reads labels out of a file by itself
    metric.dataset_meta = {"classes": files.classes}
    metric.collect_dir = str(collected)  # else a folder where the command was given
    return metric


def _schedule(protocol: Protocol, own: Detection) -> list[dict[str, Any]]:
    milestones = protocol.milestones_in(own.iterations)
    steps: list[dict[str, Any]] = [
        {"type": "MultiStepLR", "by_epoch": False, "milestones": milestones, "gamma": protocol.decay}
    ]
    if own.warmup:
        rise = {"type": "LinearLR", "by_epoch": False, "start_factor": 1e-3, "begin": 0, "end": own.warmup}
        steps.insert(0, rise)
    return steps


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; older ones are removed, and those that cannot be used are set aside."""
    paths = sorted(folder.glob("iter_*.pth"), key=lambda path: int(path.stem.removeprefix("iter_")), reverse=True)
    for place, path in enumerate(paths):
        try:
            _check(path)
        except FileNotFoundError:  # another process of the cell was faster
            continue
        except Damaged as error:
            print(f"{error}; going on without it")
            with suppress(DiskError):  # as above
                set_aside(path, "unreadable")
            continue
        for older in paths[place + 1 :]:
            older.unlink(missing_ok=True)
        return path
    return None


def _check(path: Path) -> None:
    """Raise Damaged if a checkpoint cannot be read, and DiskError if it cannot be read now."""
    content = read_bytes(path)
    check_archive(content, path)
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # any: a kill may have left a part of it
        raise Damaged(f"{path} is no whole checkpoint ({type(error).__name__})") from None


def evaluate(sender: Any, job: Job) -> None:
    """The AP of the file in place of a teacher, as ``(value, AP)`` to the parent."""
    try:
        torch.set_num_threads(job.threads)
        files: DetectionFiles = get_task(job.protocol.task).open(job.data_root, job.protocol, torch.device("cpu"))
        network = detectors.build(job.cell.student, len(files.classes), pretrained=False)
        assert job.teacher is not None
        fit(load_weights(job.teacher), network.module, str(job.teacher))
        model = network.module.to(environment.device(job.device)).eval()
        metric = average_precision(files, job.path)
        loader = detection_data.validation(files.val, files.classes, job)
        with torch.no_grad():
            for batch in loader:
                metric.process(batch, [sample.to_dict() for sample in model.val_step(batch)])
        with redirect_stdout(io.StringIO()):
            sender.send(("value", 100 * metric.evaluate(len(loader))["coco/bbox_mAP"]))
    except Exception as error:
        sender.send(("error", line(error)))


def cost(sender: Any, job: Job) -> None:
    """The figures of :func:`benchmarks.cost.profiling.measure` as ``(cost, figures)`` to the parent."""
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            figures = _figures(job)
        sender.send(("cost", figures))
    except Exception as error:
        sender.send(("error", line(error)))


def _figures(job: Job) -> dict[str, Any]:
    device = environment.device(job.device)
    with peak_memory(device) as memory:
        runner, hook = set_up(job, None, job.path)
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        model: Any = runner.model.train()
        batches, numbers = iter(runner.train_dataloader), itertools.count()

        def step() -> None:
            hook.before_train_iter(runner, next(numbers))
            model.train_step(next(batches), optim_wrapper=runner.optim_wrapper)

        seconds = median_seconds(step, device, WARM_UP, TIMED)
    images = job.protocol.part_size
    plain, trained = count(model.student.parameters()), count(model.parameters())
    return {
        "images_per_second": images / seconds,
        "peak_memory_bytes": memory["bytes"],
        "memory_kind": memory["kind"],
        "reserved_memory_bytes": memory["reserved"],
        "memory_by_part": {},
        "extra_train_params": trained - plain,
        "extra_inference_params": 0,
        "batch_size": images,
        "device": job.device,
        "steps": TIMED,
        "first_phases": False,
    }
