"""Any method on networks that it has never seen, as one module in other people's loops."""

from __future__ import annotations

import copy
import functools
import importlib.util
import multiprocessing
import re
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.models import ResNet, ShuffleNetV2, VisionTransformer, mobilenet_v3_small
from torchvision.models.resnet import BasicBlock

import kd_methods
from kd_methods import Distiller, UserError
from kd_methods.contract import Progress
from kd_methods.distiller import EPOCHS
from kd_methods.views import NetworkView, view

CLASSES, SAMPLES = 4, 12
PAGE = (Path(__file__).parents[2] / "docs" / "library.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"## (.+?)\n(?:(?!\n## ).)*?```python\n(.*?)```", PAGE, re.S)
NEEDED = {"accelerate": "Trainer of transformers", "lightning": "Lightning", "timm.task": "timm's training script"}


def shuffle(*widths: int, classes: int = CLASSES) -> ShuffleNetV2:
    return ShuffleNetV2([1, 1, 1], [24, *widths], num_classes=classes)


def vit(depth: int, width: int) -> VisionTransformer:
    network = VisionTransformer(16, 8, depth, 2, width, 2 * width, num_classes=CLASSES)
    nn.init.normal_(network.heads.head.weight)  # zero as torchvision has it, by which all networks agree
    return network


SMALL = partial(shuffle, 24, 32, 48, 32), partial(shuffle, 32, 48, 64, 40)
PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], int]] = {
    "shuffle": (*SMALL, 32),
    "resnet": (
        partial(ResNet, BasicBlock, [1, 1, 1, 1], num_classes=CLASSES),
        partial(ResNet, BasicBlock, [2, 1, 1, 1], num_classes=CLASSES),
        64,
    ),
    "mobile": (
        partial(mobilenet_v3_small, num_classes=CLASSES),
        partial(ResNet, BasicBlock, [1, 1, 1, 1], num_classes=CLASSES),
        64,
    ),
    "vit": (partial(vit, 3, 16), partial(vit, 4, 24), 16),
}
OTHERS = {"text": "is made for text, not for images", "detection": "is made for detection, not for images"}
IMAGES = [name for name in kd_methods.available() if kd_methods.card(name).modality not in OTHERS]
COMPOSED = ["dkd@ls", "crd+kd", "letkd1+sp"]


def data(size: int = 32) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, 3, size, size, generator=draws), torch.arange(SAMPLES) % CLASSES


@functools.cache
def viewed(pair: str) -> tuple[NetworkView, NetworkView]:
    """A pair that is cut once for all tests."""
    student, teacher, size = PAIRS[pair]
    return view(student(), (3, size, size)), view(teacher(), (3, size, size))


def distiller(name: str, pair: str = "shuffle", **settings: Any) -> Distiller:
    student, teacher = copy.deepcopy(viewed(pair))
    torch.manual_seed(0)
    return Distiller(name, student, teacher, num_classes=CLASSES, labels=data()[1], **settings)


def loader(size: int = 32) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data(size)), batch_size=5, shuffle=True)


def train_once(kd: Distiller, size: int = 32) -> None:
    """Prepare, a step of every phase, and a step of the training proper that moves the student."""
    images, labels = data(size)
    kd.prepare(loader(size))
    for phase in (*kd.phases, None):
        kd.begin(phase)
        kd.zero_grad()
        losses = kd((images, images.flip(3)), labels, torch.arange(SAMPLES), progress=0.5)
        losses.total().backward()
    assert losses.logits is not None and losses.logits.shape == (SAMPLES, CLASSES)
    assert any(p.grad is not None and p.grad.any() for p in kd.student.parameters()), "nothing reaches the student"
    teacher = kd.teacher
    assert teacher is None or not any(m.training for m in teacher.modules())
    assert teacher is None or not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert kd.eval().deployed()(images).shape == (SAMPLES, CLASSES)


@pytest.mark.parametrize("name", ["kd", "crd", "mlld", "norm", "simkd", "letkd1+sp", "ft.paper", "block_kd"])
def test_methods_train_networks_of_torchvision(name: str) -> None:
    train_once(distiller(name))


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["resnet", "mobile", "vit"])
@pytest.mark.parametrize("name", [*IMAGES, *COMPOSED])
def test_every_method_trains_networks_of_torchvision(name: str, pair: str) -> None:
    """Or says in one line why it does not; a pair of ResNets suits all but the method for vision transformers."""
    try:
        kd = distiller(name, pair)
    except UserError as error:
        assert "\n" not in str(error) and f"'{name}'" in str(error)
        assert pair != "resnet" or name == "vitkd"
    else:
        train_once(kd, PAIRS[pair][2])


@pytest.mark.parametrize("name", [name for name in kd_methods.available() if name not in IMAGES])
def test_methods_for_other_inputs_say_so(name: str) -> None:
    with pytest.raises(UserError, match=OTHERS[kd_methods.card(name).modality]):
        distiller(name)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("crd", {}, "depends on the training set: Distiller(…, num_samples=…)"),
        ("crd", {"num_samples": SAMPLES}, "Distiller(…, labels=…)"),
        ("letkd1", {}, "num_samples"),
        ("kd", {"num_samples": 3, "labels": data()[1]}, "3 samples and 12 labels"),
        ("kd", {"temprature": 2.0}, "did you mean temperature"),
        ("kdd", {}, "unknown method"),
    ],
)
def test_what_is_missing_is_said_at_once(name: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        Distiller(name, *viewed("shuffle"), num_classes=CLASSES, **given)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("letkd1", {}, r"kd\.prepare\(loader\)"),
        ("feature_only", {}, r"kd\.prepare\(loader\)"),
        ("wkd_l+sp", {}, r"kd\.prepare\(loader\)"),
        ("ft.paper", {}, r"trains paraphraser first: kd\.begin"),
        ("crd", {}, r"kd\(images, labels, indices\)"),
        ("mlld", {}, r"kd\(\(images, second\), labels\)"),
        ("kd", {"progress": 3}, "from 0 to 1"),
    ],
)
def test_a_call_that_would_go_wrong_silently_is_one_line(name: str, arguments: dict[str, Any], words: str) -> None:
    kd = distiller(name)
    with pytest.raises(UserError, match=words) as error:
        kd(*data(), **arguments)
    assert "\n" not in str(error.value)


def test_sizes_are_checked() -> None:
    (images, labels), small = data(), viewed("shuffle")
    with pytest.raises(UserError, match="batches of at least 2"):
        Distiller("rkd", *small, num_classes=CLASSES)(images[:1], labels[:1])
    with pytest.raises(UserError, match="4 logits, the Distiller was made for 5 classes"):
        Distiller("kd", *small, num_classes=5)(images, labels)
    kd = Distiller("letkd1", *small, num_classes=CLASSES, num_samples=100)
    with pytest.raises(UserError, match="12 samples, the Distiller was made for 100"):
        kd.prepare(loader())
    with pytest.raises(UserError, match="a DataLoader"):
        kd.prepare([data()])


def test_what_is_prepared_does_not_depend_on_the_loader_s_order() -> None:
    words = []
    for shuffled in (loader(), DataLoader(TensorDataset(*data()), batch_size=3)):
        kd = distiller("letkd1", words=2)
        kd.prepare(shuffled)
        words.append(kd.method.words)
    assert torch.equal(*words) and not torch.equal(words[0], distiller("letkd1", words=2).method.words)


@pytest.mark.parametrize("name", ["kd", "norm", "simkd", "crd"])
def test_state_is_that_of_what_is_trained(name: str, tmp_path: Path) -> None:
    """And nothing is in it twice, so that it can be saved as safetensors, strictly loaded and trained on."""
    kd, other = distiller(name), distiller(name)
    images, labels = data()
    kd(images, labels, torch.arange(SAMPLES)).total().backward()
    torch.optim.SGD(kd.parameters(), 0.1).step()
    save_file(kd.state_dict(), tmp_path / "kd.safetensors")
    other.load_state_dict(load_file(tmp_path / "kd.safetensors"))
    state, loaded = kd.state_dict(), other.state_dict()
    assert state.keys() == loaded.keys() and all(torch.equal(state[k], loaded[k]) for k in state)
    assert torch.equal(kd.eval().deployed()(images), other.eval().deployed()(images))
    assert kd.teacher is not None
    trained, frozen = ({id(p) for p in module.parameters()} for module in (kd, kd.teacher))
    assert trained.isdisjoint(frozen)


def test_the_teacher_moves_along() -> None:
    kd = distiller("block_kd")
    kd(*data())  # makes what it keeps of the teacher
    kd.double()
    images, labels = data()
    losses = kd(images.double(), labels)
    assert losses.total().dtype == torch.float64
    kd.train()
    assert kd.teacher is not None and not kd.teacher.training


def test_a_plain_student_is_what_is_deployed() -> None:
    student, teacher = (make() for make in SMALL)
    kd = Distiller("kd", student, teacher, num_classes=CLASSES, input_shape=(3, 32, 32))
    assert kd.deployed() is student


def test_progress_is_a_share_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    kd = distiller("dkd", warmup=20.0)
    kd.eval()
    full = kd(*data(), progress=1.0).distill["dkd"]
    for share in (0.0, 0.05, 0.5):
        expected = min((int(share * EPOCHS) + 1) / 20, 1.0) * full
        assert torch.allclose(kd(*data(), progress=share).distill["dkd"], expected)
    assert torch.allclose(kd(*data(), progress=Progress(10, 100)).distill["dkd"], full / 2)


IN_PARALLEL = ("reviewkd", "simkd")


def gradients(name: str, wrap: Callable[[Distiller], nn.Module], *halves: int) -> dict[str, Tensor]:
    """Summed over some halves of a batch; networks and method are the same in every process."""
    torch.manual_seed(0)
    student, teacher = (make() for make in SMALL)
    kd = Distiller(name, student, teacher, num_classes=CLASSES, input_shape=(3, 32, 32))
    called = wrap(kd)
    for half in halves:
        images, labels = (tensor[half::2] for tensor in data())
        called(images, labels, progress=0.5).total().backward()
    return {key: parameter.grad for key, parameter in kd.named_parameters() if parameter.grad is not None}


def train_in_parallel(rank: int, folder: Path) -> None:
    """In one of two processes, each with a half of the batch; what comes of it is saved in the folder."""
    torch.set_num_threads(1)
    minute, place = timedelta(minutes=1), f"file://{folder}/group"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2, timeout=minute)
    try:
        averaged = {name: gradients(name, DistributedDataParallel, rank) for name in IN_PARALLEL}
        torch.save(averaged, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def in_parallel(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """The gradients of both processes, of which this is the first."""
    folder = tmp_path_factory.mktemp("parallel")
    second = multiprocessing.get_context("spawn").Process(target=train_in_parallel, args=(1, folder), daemon=True)
    second.start()
    train_in_parallel(0, folder)
    second.join()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", IN_PARALLEL)
def test_several_processes_train_it(name: str, in_parallel: list[dict[str, dict[str, Tensor]]]) -> None:
    """With the mean of what a process alone has on each half of the batch."""
    total, half = gradients(name, lambda kd: kd, 0, 1), gradients(name, lambda kd: kd, 0)
    for process in in_parallel:
        assert process[name].keys() == total.keys()
        for key, averaged in process[name].items():
            assert torch.allclose(averaged, total[key] / 2, atol=1e-6), key
    alike = [key for key in total if torch.allclose(half[key], total[key] / 2, atol=1e-6)]
    assert len(alike) < len(total) / 4, "the halves have other gradients"


class Mapped(Dataset[dict[str, Any]]):
    """Samples as the data sets of transformers have them."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        images, labels = data(64)
        return {"pixel_values": images[index], "labels": int(labels[index])}


def test_a_data_set_of_mappings_prepares() -> None:
    kd = distiller("feature_only")
    kd.prepare(DataLoader(Mapped(), batch_size=4))
    assert kd._prepared


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_an_example_of_the_page(title: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 15, f"{title} has {len(lines)} lines"
    for package in (package for package, user in NEEDED.items() if user == title):
        if importlib.util.find_spec(package.split(".")[0]) is None or importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    student, teacher = (make(classes=10) for make in SMALL)
    begun: list[dict[str, Tensor]] = []
    make_distiller = Distiller.__init__

    def noting(self: Distiller, name: str, student: nn.Module, *rest: Any, **given: Any) -> None:
        begun.append({key: parameter.detach().clone() for key, parameter in student.named_parameters()})
        make_distiller(self, name, student, *rest, **given)

    monkeypatch.setattr(Distiller, "__init__", noting)
    names: dict[str, Any] = {
        "student": student,
        "teacher": teacher,
        "train_loader": loader(64),
        "train_set": Mapped(),
        "epochs": 1,
    }
    exec(compile(code, title, "exec"), names)
    (before,) = begun
    trained = dict(names["student"].named_parameters())
    assert trained.keys() == before.keys()
    if title == "A network that cannot be traced":  # one batch, and no step
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained.values())
    else:
        assert not [name for name, parameter in trained.items() if torch.equal(before[name], parameter)]


def test_the_page_has_every_loop() -> None:
    assert [title for title, _ in EXAMPLES] == [
        "A plain loop",
        "A network that cannot be traced",
        "Trainer of transformers",
        "Lightning",
        "timm's training script",
    ]


def test_timm_s_task_evaluates_the_student_and_goes_on_where_it_was() -> None:
    """What a checkpoint holds as ``state_dict`` is the deployed student's, with averaged weights too."""
    module = pytest.importorskip("kd_methods.timm_task", reason="timm has no timm.task", exc_type=ImportError)
    images, labels = data()
    task, other = (module.DistillerTask(distiller("norm"), batches=4, verbose=False) for _ in range(2))
    task.setup_ema(decay=0.5)
    for _ in range(3):
        result = task(images, labels)
        assert {"loss", "output", "task", "matching"} == result.keys()
        result["loss"].backward()
    torch.optim.SGD(task.get_trainable_module().parameters(), 0.1).step()
    task.update_ema()
    student = task.get_eval_model()
    assert student(images).shape == task.get_eval_model(ema=True)(images).shape == (SAMPLES, CLASSES)
    state = task.get_checkpoint_state()
    assert state["state_dict"].keys() == student.state_dict().keys()
    assert state["state_dict"].keys() == task.get_checkpoint_state(ema=True)["state_dict_ema"].keys()
    other.load_checkpoint_state(state["state_dict"], state["task_state"])
    assert other.seen == 3
    assert torch.equal(other.get_eval_model().eval()(images), student.eval()(images))


def test_labels_of_another_shape_are_refused_and_those_of_a_regression_may_be_a_column() -> None:
    """A column of labels beside a row of predictions would be compared with every one of them."""
    images, labels = data()
    regression = Distiller("student", shuffle(24, 32, 48, 32, classes=1), num_classes=1, input_shape=(3, 32, 32)).eval()
    numbers = labels.float()
    loss = regression(images, numbers).total()
    assert torch.equal(regression(images, numbers.unsqueeze(1)).total(), loss)
    wanted = (regression.student(images).logits.squeeze(1) - numbers).square().mean()
    torch.testing.assert_close(loss, wanted)
    kd = Distiller("student", SMALL[0](), num_classes=CLASSES, input_shape=(3, 32, 32))
    for one, wrong in ((regression, numbers.repeat(2)), (regression, numbers[:1]), (kd, labels.unsqueeze(1))):
        with pytest.raises(UserError, match=f"labels of {SAMPLES} images are") as caught:
            one(images, wrong)
        assert "\n" not in str(caught.value)
