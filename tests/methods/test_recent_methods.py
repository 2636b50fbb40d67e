"""What goes wrong easily in the methods since 2020: schedules, what is computed before training, variants apart."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kd_methods
from benchmarks.config.protocol import load_protocol
from benchmarks.networks import NetworkView, build_network
from benchmarks.tasks.images import ImageBatch, Seen
from benchmarks.training.loop import shared
from benchmarks.training.optimizers import WHOLE
from benchmarks.training.shared_teacher import SharedTeacher
from kd_methods import functional
from kd_methods.analysis import class_distances as distances
from kd_methods.contract import Batch, DataInfo, Outputs, Progress, TeacherPass
from kd_methods.errors import UserError
from kd_methods.feature._diffusion import Denoising


class Given(TeacherPass):
    """Features that are given instead of computed; (N, ...) each."""

    def __init__(self, labels: Tensor, **units: Tensor) -> None:
        self.labels, self.units, self.passes = labels, units, 0

    def outputs(self, units: Iterable[str], indices: Tensor | None = None) -> Iterator[tuple[Outputs, Tensor]]:
        self.passes += 1
        chosen = torch.arange(len(self.labels)) if indices is None else indices
        for indices in chosen.split(3):
            features = {unit: self.units[unit][indices] for unit in units}
            yield Outputs(self.units["logits"][indices], features, None), self.labels[indices]  # type: ignore[arg-type]

    def stored(self, what: str, settings: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]) -> Any:
        return compute()


@pytest.fixture
def given() -> Given:
    draws = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 4, 4, 0, 1, 2, 4, 0])  # none of class 3, four of class 0
    return Given(labels, maps=torch.randn(13, 3, 2, 2, generator=draws), logits=torch.randn(13, 5, generator=draws))


@pytest.mark.parametrize("unit", ["maps", None])
@pytest.mark.parametrize("memory", [2**30, 1], ids=["at once", "class by class"])
def test_distances_between_classes(given: Given, unit: str | None, memory: int, monkeypatch: pytest.MonkeyPatch):
    """1 - linear CKA of the first three images of each class, in order; position by position on maps."""
    monkeypatch.setattr(distances, "IN_MEMORY", memory)
    computed = distances.class_distances(given, 5, unit)
    x = given.units[unit or "logits"].double()
    if unit:
        x = x.permute(0, 2, 3, 1)
    for a in range(5):
        for b in range(5):
            if 3 in (a, b) or a == b:
                expected = float(a != b)
            else:
                pair = [x[given.labels == k][:3].flatten(0, -2) for k in (a, b)]
                u, v = (features - features.mean(0) for features in pair)
                expected = 1 - ((u.t() @ v).norm() ** 2 / ((u.t() @ u).norm() * (v.t() @ v).norm())).item()
            assert computed[a, b].item() == pytest.approx(expected, abs=1e-5)
    assert given.passes == (2 if memory > 1 else 11), "one pass for a class's size; then each group once, and each pair"


def test_what_wkd_l_prepares(given: Given):
    teacher, student = (build_network("resnet8", 5, (3, 16, 16)) for _ in range(2))
    unit = teacher.layout.stages[-1]
    given.units[unit] = given.units["maps"]
    info = DataInfo(13, 5, given.labels)
    for values in ({"sharpness": 2.0}, {"features": "logits"}):
        method: Any = kd_methods.build("wkd_l", student, teacher, info, **values)
        assert torch.equal(method.cost, 1 - torch.eye(5)), "what losses can be computed with until then"
        method.prepare(given)
        wanted = distances.class_distances(given, 5, None if "features" in values else unit)
        assert torch.allclose(method.cost, 1 - torch.exp(-method.settings.sharpness * wanted))
        assert "cost" not in method.state_dict(), "it is computed again, or comes from the store"


def test_the_cosine_of_a_schedule():
    assert [Progress(epoch, 240).cosine(150.0) for epoch in (1, 150, 195, 240)] == pytest.approx([1, 1, 0.5, 0])
    assert Progress(50, 100).cosine(0.0) == pytest.approx(0.5)
    assert Progress(240, 240).cosine(240.0) == 1.0
    # In a shortened run an epoch stands for many, and has the mean of their factors.
    assert sum(Progress(epoch, 240, 30).cosine(150.0) for epoch in range(30, 241, 30)) == pytest.approx(
        sum(Progress(epoch, 240).cosine(150.0) for epoch in range(1, 241)) / 30
    )


@pytest.mark.parametrize(("name", "grid", "fits"), [("resnet8", 4, False), ("resnet8", 3, True), ("vgg8", 2, False)])
def test_wkd_f_refuses_cells_of_one_position(name: str, grid: int, fits: bool):
    networks = [build_network(name, 5, (3, 16, 16)) for _ in range(2)]  # last stages of 4x4 and 2x2
    if fits:
        kd_methods.build("wkd_f", *networks, DataInfo(10, 5), grid=grid)
        return
    with pytest.raises(UserError, match="two positions in each"):
        kd_methods.build("wkd_f", *networks, DataInfo(10, 5), grid=grid)


# --- terms and variants ----------------------------------------------------------------------------------------------


def of_logits(name: str, classes: int = 6, **values: Any) -> tuple[Any, Outputs, Outputs, Batch]:
    """A method that reads logits, and some of them."""
    student, teacher = (build_network("resnet8", classes, (3, 16, 16)) for _ in range(2))
    method: Any = kd_methods.build(name, student, teacher, DataInfo(10, classes), **values)
    draws = torch.Generator().manual_seed(0)
    s, t, labels = (
        torch.randn(8, classes, generator=draws),
        3 * torch.randn(8, classes, generator=draws),
        torch.arange(8),
    )
    outputs = (Outputs(z, {}, student.layout) for z in (s, t))
    return method, *outputs, Batch(s, labels % classes, labels, F.cross_entropy)


def test_skds_masks_are_shares_and_its_port_has_none():
    """The released code multiplies averaged losses by masks: shares of samples and classes up to the median."""
    method, s, t, batch = of_logits("skd", kd=0.7)
    p = t.logits.softmax(1)
    samples, classes = (float((x <= x.quantile(0.5)).sum()) / len(x) for x in (p.amax(1), p.sum(0)))
    kd, direction = functional.kd(s.logits, t.logits, temperature=4.0), functional.skd(s.logits, t.logits)
    computed = method.losses(s, t, batch, Progress(1, 240)).distill
    assert (samples, classes) == (0.5, 0.5)
    assert computed["kd"].item() == pytest.approx(0.7 * samples * kd.item(), rel=1e-6)
    assert computed["direction"].item() == pytest.approx(0.7 * classes * direction.item(), rel=1e-6)
    port, s, t, batch = of_logits("skd.port")
    computed = port.losses(s, t, batch, Progress(1, 240))
    assert not computed.task and computed.distill["kd"].item() == pytest.approx(kd.item() / 16, rel=1e-6)
    unscaled = functional.skd(s.logits, t.logits, by_classes=False)
    assert computed.distill["direction"].item() == pytest.approx(unscaled.item(), rel=1e-6)


def test_label_smoothing_is_torchs():
    method, s, t, batch = of_logits("label_smoothing", smoothing=0.2)
    loss = method.losses(s, t, batch, Progress(1, 240)).total()
    assert torch.allclose(loss, F.cross_entropy(s.logits, batch.labels, label_smoothing=0.2))


def test_label_smoothing_is_tf_kds_with_another_share():
    """Tf-KD's code spreads a over the other K - 1 classes: that is a share of a K / (K - 1) here."""
    classes, share = 6, 0.1
    method, s, t, batch = of_logits("label_smoothing", classes, smoothing=share * classes / (classes - 1))
    target = torch.full_like(s.logits, share / (classes - 1)).scatter(1, batch.labels[:, None], 1 - share)
    expected = -(target * s.logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(method.losses(s, t, batch, Progress(1, 240)).total(), expected)


def test_vkds_projection_stays_orthogonal():
    teacher, student = (build_network(name, 5, (3, 16, 16)) for name in ("vgg8", "resnet8"))
    for pair in ((student, teacher), (teacher, student)):
        method: Any = kd_methods.build("vkd", *pair, DataInfo(10, 5))
        optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
        before = method.projection.weight.clone()
        method.projection(torch.randn(4, before.shape[1])).pow(2).sum().backward()
        optimizer.step()
        weight = method.projection.weight
        small = weight @ weight.t() if len(weight) <= weight.shape[1] else weight.t() @ weight
        assert torch.allclose(small, torch.eye(len(small)), atol=1e-5) and not torch.allclose(weight, before)


def test_a_map_where_widths_differ():
    wide, narrow = (build_network(name, 5, (3, 16, 16)) for name in ("vgg8", "resnet8"))
    for pair, count in (((narrow, wide), 64 * 512 + 512), ((narrow, narrow), 0)):
        method = kd_methods.build("timm_feature", *pair, DataInfo(10, 5))
        assert sum(p.numel() for p in method.parameters()) == count


def test_which_blocks_vitkd_reads_and_what_it_masks():
    networks = [build_network("timm:test_vit", 5, (3, 64, 64)) for _ in range(2)]
    method: Any = kd_methods.build("vitkd", *networks, DataInfo(10, 5), masked=0.7)
    assert method.student_blocks == method.teacher_blocks == ("blocks.0", "blocks.1", "norm"), "after the final norm"
    count, width = networks[0].shape("norm")
    patches = torch.randn(3, count - 1, width)
    torch.manual_seed(0)
    generated, masked = method._generated(patches)
    assert generated.shape == patches.shape and masked.shape == (3, count - 1, 1)
    assert (masked.sum((1, 2)) == count - 1 - int((count - 1) * 0.3)).all()
    hidden = patches.clone()
    hidden[masked.expand_as(hidden)] = 9.0
    torch.manual_seed(0)
    assert torch.equal(method._generated(hidden)[0], generated), "masked patches are not seen"


def test_what_diffkd_trains_by_what():
    """The autoencoder by its reconstruction alone; the diffusion model and the student's part by both other terms."""
    torch.manual_seed(0)
    place = Denoising(3, 8, 4, spatial=True)
    student, teacher = torch.randn(5, 3, 4, 4, requires_grad=True), torch.randn(5, 8, 4, 4)
    refined, target, loss = place(student, teacher, 5)
    assert not target.requires_grad and refined.shape == target.shape == (5, 4, 4, 4)
    of_encoder = list(place.encoder.parameters())
    matching = functional.hint(refined, target)
    assert all(g is None for g in torch.autograd.grad(matching, of_encoder, retain_graph=True, allow_unused=True))
    assert torch.autograd.grad(matching, student, retain_graph=True)[0].any()
    for term in (matching, loss):
        times = torch.autograd.grad(term, place.predictor.times.weight, retain_graph=True)[0]
        assert times.any(1).sum() == 5, "the times of the five steps, or those of five images"
    only_place = Denoising(3, 8, None, spatial=False)
    assert only_place.encoder is None and only_place(student.detach(), teacher, 2)[1] is teacher


@pytest.mark.parametrize(
    ("values", "message"),
    [({"head_width": 24}, "cannot be cut"), ({"teacher_layer": 5}, "has 4 layers"), ({}, "")],
    ids=str,
)
def test_minilmv2_cuts_heads_anew(values: dict[str, int], message: str):
    teacher, student = (build_network(name, 2, vocabulary=30) for name in ("bert_l4_h64", "bert_l2_h32"))
    if message:
        with pytest.raises(UserError, match=message):
            kd_methods.build("minilmv2", student, teacher, DataInfo(10, 2), **values)
        return
    method: Any = kd_methods.build("minilmv2", student, teacher, DataInfo(10, 2), **values)
    assert method.heads == 4 and method.layer == 3, "heads of 16 values in the teacher, of 8 in the student"


# --- features from elsewhere, and a teacher's batch statistics --------------------------------------------------------


def small(name: str, seed: int = 0) -> NetworkView:
    """A network whose running statistics have seen data."""
    torch.manual_seed(seed)
    view = build_network(name, 5, (3, 16, 16))
    for _ in range(3):
        view(torch.randn(8, 3, 16, 16), fields=())
    return view


def buffers(network: NetworkView) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.named_buffers()}


def test_batch_statistics_leave_everything_as_it_was():
    network, x = small("resnet8").eval(), torch.randn(6, 3, 16, 16)
    unit = network.layout.blocks[0]
    network.module.add_module("drop", torch.nn.Dropout(0.5).eval())
    before, logits = buffers(network), network(x).logits
    with network.batch_statistics():
        outputs = network(x, at=[unit])
        assert torch.equal(network.resume(unit, outputs[unit]), outputs.logits)
        assert not network.module.drop.training, "only batch-norms change"
    with pytest.raises(ZeroDivisionError), network.batch_statistics():
        1 / 0  # noqa: B018
    assert all(torch.equal(value, before[key]) for key, value in buffers(network).items())
    assert not any(module.training for module in network.modules()) and torch.equal(network(x).logits, logits)
    as_in_training = copy.deepcopy(network).train()
    as_in_training.module.drop.eval()
    assert torch.equal(as_in_training(x).logits, outputs.logits) and not torch.allclose(logits, outputs.logits)


def fcfd(**values: Any) -> tuple[Any, NetworkView, NetworkView, Batch]:
    teacher, student = small("resnet14", 1).requires_grad_(False).eval(), small("resnet8", 2).train()
    torch.manual_seed(3)
    method: Any = kd_methods.build("fcfd", student, teacher, DataInfo(10, 5), **values).train()
    x = torch.randn(6, 3, 16, 16)
    return method, student, teacher, Batch(x, torch.tensor([0, 1, 2, 3, 4, 0]), torch.arange(6), F.cross_entropy)


@pytest.mark.parametrize("teacher_bn", ["batch", "eval"])
def test_fcfd_by_definition(teacher_bn: str):
    """Every path by itself, of copies in the mode that the authors' composite is in."""
    method, student, teacher, batch = fcfd(teacher_bn=teacher_bn, paths=4, appearance=0.5, mixed=0.3, kd=2.0)
    ours, theirs = student.layout.blocks, teacher.layout.blocks
    outputs = student(batch.inputs, fields=("blocks",))
    before = buffers(student), buffers(teacher)
    teacher_outputs = teacher.fold_batch_norms()(batch.inputs, fields=("blocks",))
    terms = method.losses(outputs, teacher_outputs, batch, Progress(20, 240)).terms()
    for network, values in zip((student, teacher), before, strict=True):
        assert all(torch.equal(value, values[key]) for key, value in buffers(network).items())

    t = copy.deepcopy(teacher).train(teacher_bn == "batch")
    s = copy.deepcopy(student).train()
    full = t(batch.inputs, at=theirs)
    targets, logits = [full[unit].detach() for unit in theirs], full.logits.detach()
    bridged = [bridge(outputs[unit]) for bridge, unit in zip(method.to_teacher, ours, strict=True)]
    second = t.resume(theirs[0], bridged[0], until=theirs[1])
    third = t.resume(theirs[1], second, until=theirs[2])
    third_from_second = t.resume(theirs[1], bridged[1], until=theirs[2])
    paths = [
        t.resume(theirs[2], third),
        t.resume(theirs[2], third_from_second),
        *(s.resume(ours[k], method.to_student[k](targets[k])) for k in (0, 1)),
    ]
    kd = [functional.kd(z, logits, temperature=4.0) for z in paths]
    pairs = [(bridged[0], 0), (bridged[1], 1), (second, 1), (bridged[2], 2), (third, 2), (third_from_second, 2)]
    distances = sum(F.mse_loss(g, targets[block]) for g, block in pairs)
    distances += sum(
        F.mse_loss(g.relu().mean((2, 3)), targets[2].relu().mean((2, 3))) for g, block in pairs if block == 2
    )
    assert terms["mixed"].item() == pytest.approx(0.3 * sum(kd).item(), rel=1e-4)
    assert terms["appearance"].item() == pytest.approx(0.5 * distances.item(), rel=1e-4)
    assert terms["kd"].item() == pytest.approx(
        2 * functional.kd(outputs.logits, logits, temperature=4.0).item(), rel=1e-4
    )


def test_what_fcfd_draws_from():
    for names, count in ((("resnet14", "resnet8"), 4), (("vgg8", "vgg8"), 6), (("vgg8", "resnet8"), 4)):
        teacher, student = (build_network(name, 5, (3, 16, 16)) for name in names)
        for directions, share in (("both", 1), ("to_teacher", 2), ("to_student", 2)):
            method: Any = kd_methods.build("fcfd", student, teacher, DataInfo(10, 5), directions=directions)
            assert len(method.candidates) == len(set(method.candidates)) == count // share
    method, student, _, batch = fcfd(directions="to_student", paths=1)
    first, *_, last = student.parameters()
    losses = method.losses(student(batch.inputs, fields=("blocks",)), None, batch, Progress(1, 240))
    of_first, of_last = torch.autograd.grad(losses.distill["mixed"], [first, last], allow_unused=True)
    assert of_first is None and of_last is not None, "on the teacher's features the student's later parts alone learn"


def test_a_methods_own_pass_of_the_teacher_sees_the_teachers_inputs():
    images = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    statistics, others = ((0.5,) * 3, (0.25,) * 3), ((0.4, 0.5, 0.6), (0.2,) * 3)
    batch = ImageBatch(images, torch.arange(4), torch.arange(4), Seen(statistics, F.cross_entropy))
    network = small("resnet8").requires_grad_(False).eval()
    for normalisation in (statistics, others):
        teacher = SharedTeacher(network, normalisation, load_protocol("digits-demo"))
        seen, _ = shared(batch, WHOLE, teacher, [])
        assert torch.equal(seen.teacher_inputs, batch.inputs(normalisation))
        assert torch.equal(seen.inputs, batch.inputs(statistics))
    seen, _ = shared(batch, WHOLE, None, [])
    assert seen.teacher_inputs is seen.inputs


def test_anc_trains_student_and_discriminator_against_each_other():
    """Each of the contest's parts reaches one of the two; the values are those of the cross-entropies."""
    teacher, student = (build_network(name, 5, (3, 16, 16)) for name in ("resnet14", "resnet8"))
    method: Any = kd_methods.build("anc", student, teacher.eval(), DataInfo(8, 5), dropout=0.0, logits=0.0)
    x, needs = torch.randn(4, 3, 16, 16), method.needs
    outputs = student.train()(x, fields=needs.student), teacher(x, fields=needs.teacher[:1])
    batch = Batch(x, torch.arange(4), torch.arange(4), F.cross_entropy)
    term = method.losses(*outputs, batch, Progress(1, 240)).distill["adversarial"]
    of_student, theirs = (method.discriminator(f) for f in (method.map(outputs[0].pooled), outputs[1].pooled))
    terms = [-F.logsigmoid(of_student).mean(), -F.logsigmoid(theirs).mean(), -F.logsigmoid(-of_student).mean()]
    torch.testing.assert_close(term, 2 * terms[0] + terms[1] + terms[2])
    judge, first = next(iter(method.discriminator.parameters())), next(iter(student.parameters()))
    gradients = torch.autograd.grad(term, [judge, first], retain_graph=True)
    torch.testing.assert_close(gradients[0], torch.autograd.grad(sum(terms), judge, retain_graph=True)[0])
    torch.testing.assert_close(gradients[1], torch.autograd.grad(terms[0], first)[0])
    assert functional.told_apart(torch.full((3, 1), 1e4), False).item() == pytest.approx(1e4)
