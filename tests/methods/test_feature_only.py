"""Feature-only KD: what each loss trains, which layers meet, the quality metric by its definition; its networks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import kd_methods
from benchmarks.analysis import linear_probe
from benchmarks.cli.main import cli
from benchmarks.common.weights import frozen
from benchmarks.config.protocol import load_protocol
from benchmarks.config.table_spec import load_table
from benchmarks.networks import NetworkView, build_network, count
from benchmarks.report.formats import latex, markdown
from benchmarks.report.layouts import efficiency
from benchmarks.report.model import Column, SeedResult, Table, TableEntry, TableRow
from benchmarks.tasks import get_task
from benchmarks.tasks.images import ImageData
from benchmarks.training.teacher_pass import StoredTeacherPass
from kd_methods import functional
from kd_methods.analysis import quality as analysis
from kd_methods.contract import Batch, DataInfo, Progress
from kd_methods.errors import UserError
from kd_methods.feature._connectors import spatial
from kd_methods.feature.feature_only import FeatureOnly
from kd_methods.functional.feature import same_size

INFO = DataInfo(100, 10, torch.arange(100) % 10)
SIZES = {
    "ResNet34": (21_282_122, 21_328_292),
    "ResNet9": (4_903_242, 4_949_412),
    "vgg19_bn": (38_958_922, 39_327_652),
    "vgg11_bn": (28_149_514, 28_518_244),
    "MobileNetV2x1": (2_236_682, 2_351_972),
    "vit_b": (85_152_010, 85_221_220),
    "vit_ett": (2_991_946, 3_009_316),
}
CUT = {"ResNet9": 5_130, "MobileNetV2x1": 424_970, "vgg11_bn": 18_923_530, "vit_ett": 373_258}
"""Parameters behind the last matched layer, trained by the labels alone."""


def built(pair: tuple[str, str], **values: Any) -> tuple[FeatureOnly, NetworkView]:
    torch.manual_seed(0)
    teacher = build_network(pair[0], 10).requires_grad_(False).eval()
    student = build_network(pair[1], 10)
    method = kd_methods.build("feature_only", student, teacher, INFO, **values)
    return method, method.adapt(student)  # type: ignore[return-value]


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_their_published_sizes(name: str):
    with torch.device("meta"):
        assert tuple(count(build_network(name, classes).parameters()) for classes in (10, 100)) == SIZES[name]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("ResNet34_64", 21_379_592),
        ("ResNet9_64", 5_000_712),
        ("MobileNetV2x1_64", 2_480_072),
        ("vgg11_bn", 28_927_944),
        ("vit_b_p8", 85_408_712),
        ("vit_ett_p8", 3_056_264),
    ],
)
def test_networks_for_tiny_imagenet_have_their_published_sizes(name: str, size: int):
    with torch.device("meta"):
        assert count(build_network(name, 200, (3, 64, 64)).parameters()) == size


def test_the_stem_of_networks_for_64_pixels_is_matched_before_its_pooling():
    network = build_network("ResNet9_64", 10, (3, 64, 64))
    assert network.shape(network.layout.layers[0]) == (64, 64, 64)
    assert network.shapes("stem") == ((64, 32, 32),)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("ResNet9", [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]),
        ("MobileNetV2x1", [(24, 16, 16), (32, 8, 8), (96, 4, 4), (320, 2, 2)]),
        ("vgg11_bn", [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]),
        ("vit_ett", [(65, 192)] * 4),
    ],
)
def test_students_layers(name: str, shapes: list[tuple[int, ...]]):
    network = build_network(name, 10)
    assert [network.shape(unit) for unit in network.layout.stages] == shapes
    indices = {
        "ResNet9": (1, 2, 3, 4),
        "MobileNetV2x1": (3, 6, 13, 17),
        "vgg11_bn": (1, 3, 5, 7),
        "vit_ett": (1, 3, 5, 7),
    }
    assert tuple(network.layout.layers.index(unit) for unit in network.layout.stages) == indices[name]


@pytest.mark.parametrize("name", CUT)
def test_labels_train_only_what_follows_the_last_matched_layer(name: str):
    teacher = {"vit_ett": "vit_ett"}.get(name, "ResNet9")
    method, student = built((teacher, name))
    student.train()
    x, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    needs = method.needs
    outputs = student(x, at=needs.student_units, fields=())
    head = nn.functional.cross_entropy(outputs.logits, labels)
    trained = torch.autograd.grad(head, list(student.parameters()), allow_unused=True)
    sizes = [p.numel() for p, g in zip(student.parameters(), trained, strict=True) if g is not None]
    assert sum(sizes) == CUT[name]
    _, student = built((teacher, name), detach=False)
    loss = nn.functional.cross_entropy(student(x, fields=()).logits, labels)
    assert all(g is not None for g in torch.autograd.grad(loss, list(student.parameters()), allow_unused=True))


def test_features_alone_train_the_backbone_and_the_plain_student_is_deployed():
    method, student = built(("resnet14", "resnet8"))
    x = torch.randn(4, 3, 32, 32)
    outputs = student(x, at=method.needs.student_units, fields=())
    teacher = method.teacher(x, at=method.needs.teacher_units, fields=())
    batch = Batch(x, torch.arange(4), torch.arange(4), nn.functional.cross_entropy)
    losses = method.losses(outputs, teacher, batch, Progress(1, 50))
    assert set(losses.terms()) == {"task", "feature"}
    reached = torch.autograd.grad(losses.distill["feature"], list(student.parameters()), allow_unused=True)
    names = [name for name, _ in student.named_parameters()]
    assert {name for name, g in zip(names, reached, strict=True) if g is None} == {"module.fc.weight", "module.fc.bias"}
    assert method.deployed(student) is student.module


@pytest.mark.parametrize(
    ("student", "teacher", "wanted"),
    [
        ((64, 32, 32), (256, 8, 8), (256, 8, 8)),  # the student's is pooled
        ((320, 2, 2), (512, 4, 4), (512, 2, 2)),  # the teacher's is
        ((32, 8, 8), (256, 8, 8), (256, 8, 8)),
        ((512, 4, 4), (512,), (512, 1, 1)),
        ((65, 192), (65, 768), (768, 1, 65)),
    ],
)
def test_the_larger_map_is_pooled_to_the_smaller(student: tuple, teacher: tuple, wanted: tuple):
    from kd_methods.feature.feature_only import _projector

    for three_layer in (False, True):
        s, t = same_size(spatial(torch.randn(2, *student)), spatial(torch.randn(2, *teacher)))
        assert _projector("feature_only", student, teacher, three_layer)(s).shape == t.shape == (2, *wanted)


def test_feature_term_is_the_mean_over_layers():
    method, student = built(("ResNet9", "ResNet9"), mapping="full", layers=(0, 2, 3, 5))
    x = torch.randn(3, 3, 32, 32)
    ours = student.eval()(x, at=method.needs.student_units, fields=())
    theirs = method.teacher(x, at=method.needs.teacher_units, fields=())
    batch = Batch(x, torch.arange(3), torch.arange(3), nn.functional.cross_entropy)
    term = method.losses(ours, theirs, batch, Progress(1, 50)).distill["feature"]
    total = torch.zeros(())
    for i, s_unit in enumerate(method.student_units):
        for j, t_unit in enumerate(method.teacher_units):
            s, t = ours[s_unit], spatial(theirs[t_unit])
            size = min(s.shape[-1], t.shape[-1])
            s, t = (nn.functional.adaptive_avg_pool2d(value, size) for value in (s, t))
            total = total + (method.projectors[f"{i}-{j}"](s) - t).pow(2).mean() / 4
    assert torch.allclose(term, total / 4, rtol=1e-5)


def test_legacy_switches_repeat_the_public_codes_mistakes():
    tokens = torch.arange(2 * 5 * 3.0).reshape(2, 5, 3)
    assert torch.equal(spatial(tokens)[:, :, 0], tokens.transpose(1, 2))
    assert torch.equal(spatial(tokens, scrambled=True)[:, :, 0], tokens.view(2, 3, 5))
    s, t = torch.randn(4, 6), torch.randn(4, 9)
    cosines = [torch.cosine_similarity(x[:, None], x[None], dim=2) for x in (s, t)]
    assert torch.allclose(functional.cosine_gram(s, t), (cosines[0] - cosines[1]).pow(2).mean())
    row = (cosines[0][0] - cosines[1][0]).pow(2).mean()
    assert torch.allclose(functional.cosine_gram(s, t, first_row=True), row)


def test_a_legacy_switch_that_would_do_nothing_is_one_line():
    with pytest.raises(UserError, match="legacy gram is a mistake of distance gram"):
        built(("resnet14", "resnet8"), legacy=("gram",))
    with pytest.raises(UserError, match="self_pairs is about selection Q and S"):
        built(("resnet14", "resnet8"), self_pairs=False, selection="E")
    with pytest.raises(UserError, match="legacy=view is about tokens"):
        built(("resnet14", "resnet8"), legacy=("view",))


@pytest.mark.parametrize("selection", ["Q", "stages"])
def test_every_layer_of_the_student_is_matched_whatever_the_number_of_stages(selection: str):
    """Three stages beside four: the last ones meet, and nothing before the detached head is left untrained."""
    method, student = built(("resnet14", "MobileNetV2"), selection=selection)
    assert len(method.student_units) == len(method.teacher_units) == (4 if selection == "Q" else 3)
    assert method.student_units[-1] == student.layout.stages[-1]
    x = torch.randn(4, 3, 32, 32)
    outputs = student(x, at=method.needs.student_units, fields=())
    teacher = method.teacher(x, at=method.needs.teacher_units, fields=())
    batch = Batch(x, torch.arange(4), torch.arange(4), nn.functional.cross_entropy)
    total = method.losses(outputs, teacher, batch, Progress(1, 50)).total()
    assert all(g is not None for g in torch.autograd.grad(total, list(student.parameters()), allow_unused=True))


def test_layers_that_are_not_there_are_one_line():
    for layers in ((), (0, 1, 2, 3), (0, 1, 99), (1, 1, 1), (5, 1, 2)):
        with pytest.raises(UserError, match=r"feature_only\.layers"):
            built(("resnet14", "resnet8"), layers=layers)


# --- quality


def by_definition(
    features: Tensor, counts: list[int], population: int
) -> tuple[float, float, float, float, list[float]]:
    """S, self-pairs' part, least cosine, E and class-wise entropies with loops over all pairs, in fp64."""
    f = features.double()
    labels = [label for label, n in enumerate(counts) for _ in range(n)]
    n, classes = len(f), range(len(counts))
    g = [[abs(float(f[a] @ f[b] / f[a].norm() / f[b].norm())) for b in range(n)] for a in range(n)]
    members = {c: [i for i in range(n) if labels[i] == c] for c in classes}

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    whole = mean([mean([g[a][b] for a in members[c] for b in members[c]]) for c in classes])
    within = mean([mean([g[a][b] for a in members[c] for b in members[c] if a != b]) for c in classes])
    between = mean(
        [mean([g[a][b] for a in members[c] for b in members[d]]) for c in classes for d in classes if c != d]
    )
    least = mean([min(g[a][b] for a in members[c] for b in members[c]) for c in classes])
    apart = mean(
        [min(float((f[a] - f[b]).norm()) for a in members[c] for b in range(n) if labels[b] != c) for c in classes]
    )
    length = mean([mean([float(f[a].norm()) for a in members[c]]) for c in classes])
    expansion = 2 * apart / length * (population / math.pi) ** (1 / min(f.shape))
    entropies = []
    for c in classes:
        shares = torch.linalg.svdvals(f[members[c]] - f[members[c]].mean(0)).pow(2)
        shares = shares / shares.sum()
        entropies.append(float(-(shares * shares.clamp_min(1e-300).log()).sum()))
    return within - between, whole - within, least, expansion, entropies


@pytest.mark.parametrize("width", [5, 40])
def test_quality_is_its_definition(width: int):
    torch.manual_seed(0)
    counts = [6, 4, 8]
    features = torch.randn(18, width) + torch.cat([torch.randn(width).expand(n, -1) for n in counts])
    *expected, entropies = by_definition(features, counts, 600)
    assert analysis.distances(features, counts, 600) == pytest.approx(tuple(expected), rel=1e-4)
    spectra = [analysis.spectrum(rows) for rows in features.split(counts)]
    assert analysis.spectral_entropy(spectra) == pytest.approx(sum(entropies) / 3, rel=1e-5), "nothing is cut"


def test_spectra_are_cut_as_the_public_code_cuts_them():
    """At the sum, not the mean, over classes of what 95 % of the variance need: felt where classes are simple."""
    torch.manual_seed(0)
    classes = [torch.randn(40, 60) @ torch.diag(0.3 ** torch.arange(60.0)) for _ in range(3)]
    spectra = torch.stack([analysis.spectrum(rows) for rows in classes])
    total = 0
    for shares in spectra:
        count = 0
        while shares[:count].sum() < 0.95:
            count += 1
        total += count
    assert 3 <= total < 12
    left = spectra[:, :total] / spectra[:, :total].sum(1, keepdim=True)
    expected = float(-(left * left.log()).sum(1).mean())
    assert analysis.spectral_entropy(list(spectra)) == pytest.approx(expected, rel=1e-9)
    assert expected != pytest.approx(float(-torch.xlogy(spectra, spectra).sum(1).mean()), rel=1e-6)


def test_values_and_choice():
    terms = [torch.tensor(x, dtype=torch.float64) for x in ([0.1, 0.5, 0.3, 0.5], [0.2] * 4, [2.0, 1, 3, 1], [1.0] * 4)]
    selves = torch.tensor([0.45, 0.0, 0.0, 0.0], dtype=torch.float64)
    quality = analysis.Quality(("a", "b", "c", "d"), terms[0], selves, *terms[1:], per_class=100)
    information = 0.8 * terms[2] / math.log(5)
    assert torch.allclose(quality.values("I"), information)
    assert torch.allclose(quality.values("I", "lnN"), 0.8 * terms[2] / math.log(100))
    assert torch.allclose(quality.values("Q"), terms[0] + selves + information.sqrt())
    assert torch.equal(quality.values("S"), terms[0] + selves)
    assert torch.equal(quality.values("S", self_pairs=False), terms[0])
    assert quality.best(2, "I") == ("a", "c") and quality.best(2, "S", self_pairs=False) == ("b", "d")
    assert quality.best(1, "S", self_pairs=False) == ("d",), "of equal layers the deeper"
    assert quality.best(1, "S") == ("a",) and quality.best(1, "Q") == ("a",)
    assert quality.best(1, "Q", self_pairs=False) == ("c",)


@pytest.fixture(scope="module")
def data() -> ImageData:
    protocol = load_protocol("digits-demo")
    return get_task("digits").open(Path(), protocol, torch.device("cpu"))  # type: ignore[return-value]


def test_quality_of_a_network_does_not_depend_on_how_memory_splits_it(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(1)
    network = data.build("resnet8").requires_grad_(False).eval()
    layers = network.layout.layers

    def measured(folder: str) -> analysis.Quality:
        teacher_pass = StoredTeacherPass(
            network, ((0.3,) * 3, (0.3,) * 3), data, {"teacher": {"network": "x"}}, tmp_path / folder, print
        )
        return analysis.quality(teacher_pass, layers, 10, samples=200, per_class=40)

    whole = measured("whole")
    monkeypatch.setattr(analysis, "MEMORY", 1000)
    split = measured("split")
    assert whole.units == layers and whole.per_class == 40
    for name in ("separation", "self_pairs", "least", "entropy", "expansion"):
        assert torch.equal(getattr(whole, name), getattr(split, name))
    assert whole.separation.abs().max() <= 1 and (whole.expansion > 0).all()


@pytest.mark.real_data
@pytest.mark.slow
def test_pairs_of_an_image_with_itself_change_the_layers_of_a_real_teacher(real_data: Path, tmp_path: Path):
    """Few images of a class make them weigh: the chosen layers of a trained resnet56 are others without them."""
    cifar = get_task("cifar100").open(real_data, load_protocol("cifar100-feature-only"), torch.device("cpu"))
    network = frozen(cifar.build("resnet56"), real_data / "checkpoints" / "cifar100_resnet56.pth")  # type: ignore[type-var]
    normalisation = (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)
    teacher_pass = StoredTeacherPass(network, normalisation, cifar, {"teacher": {"network": "x"}}, tmp_path, print)
    layers = network.layout.layers
    quality = analysis.quality(teacher_pass, layers[16:], 100, samples=1000, per_class=20)
    assert [layers.index(unit) for unit in quality.best(4)] == [19, 22, 23, 24]
    assert [layers.index(unit) for unit in quality.best(4, self_pairs=False)] == [22, 23, 24, 27]


def test_method_takes_the_layers_of_highest_quality(data: ImageData, tmp_path: Path):
    torch.manual_seed(1)
    network = data.build("resnet14").requires_grad_(False).eval()
    teacher_pass = StoredTeacherPass(
        network, ((0.3,) * 3, (0.3,) * 3), data, {"teacher": {"network": "x"}}, tmp_path, print
    )
    small = {"samples": 200, "per_class": 40}
    quality = analysis.quality(teacher_pass, network.layout.layers, 10, **small)
    for selection in ("Q", "S", "sqrtIE"):
        method: Any = kd_methods.build(
            "feature_only", data.build("resnet8"), network, data.info, selection=selection, **small
        )
        method.prepare(teacher_pass)
        assert method.teacher_units == quality.best(3, selection)
        shapes = [network.shape(unit) for unit in method.teacher_units]
        assert [projector[0].out_channels for projector in method.projectors.values()] == [s[0] for s in shapes]
        assert method.teacher_units[0] in method.remarks()[0]
    method_of_stages: Any = kd_methods.build(
        "feature_only", data.build("resnet8"), network, data.info, selection="stages"
    )
    method_of_stages.prepare(teacher_pass)
    assert method_of_stages.teacher_units == network.layout.stages


def test_the_tool_prints_plots_and_names_what_is_missing(tmp_path: Path):
    arguments = [
        "quality",
        "resnet8",
        "--protocol",
        "digits-demo",
        "--output",
        str(tmp_path),
        "--checkpoints",
        str(tmp_path),
    ]
    result = CliRunner().invoke(cli, arguments)
    assert isinstance(result.exception, UserError) and "teachers train resnet8" in str(result.exception)
    trained = ["teachers", "train", "resnet8", "--protocol", "digits-demo", "--epochs", "1", "--output", str(tmp_path)]
    assert CliRunner().invoke(cli, trained).exit_code == 0
    arguments[3] = str(tmp_path / "one.yaml")
    (tmp_path / "one.yaml").write_text("extends: digits-demo\nname: digits-demo\nversion: 2\nepochs: 1\n")
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.exception
    assert result.output.count("*") == 4 and "layers by sqrtIE" in result.output
    lines = (tmp_path / "quality" / "resnet8-digits-demo.csv").read_text().splitlines()
    assert lines[0] == "index,layer,S,I,E,Q,chosen" and sum(line.endswith("yes") for line in lines) == 4
    assert (tmp_path / "quality" / "resnet8-digits-demo.png").read_bytes().startswith(b"\x89PNG")
    other = CliRunner().invoke(cli, [*arguments, "--layers", "3", "--entropy-norm", "lnN"])
    assert other.exit_code == 0 and other.output.count("*") == 3
    again = (tmp_path / "quality" / "resnet8-digits-demo.csv").read_text().splitlines()
    ratios = [float(a.split(",")[3]) / float(b.split(",")[3]) for a, b in zip(lines[1:], again[1:], strict=True)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-3) and ratios[0] > 1
    assert CliRunner().invoke(cli, [*arguments, "--no-self-pairs"]).exit_code == 0
    others = (tmp_path / "quality" / "resnet8-digits-demo.csv").read_text().splitlines()
    assert all(float(a.split(",")[2]) > float(b.split(",")[2]) for a, b in zip(lines[1:], others[1:], strict=True))


def test_an_unknown_teacher_is_named(tmp_path: Path):
    result = CliRunner().invoke(cli, ["quality", "resnet65", "--checkpoints", str(tmp_path)])
    assert isinstance(result.exception, UserError) and "did you mean resnet56" in str(result.exception)


def test_average_relative_improvement_is_against_the_named_rows():
    columns = (Column("a-b", "a", "b"),)
    last = {"student": 60.0, "x": 64.0, "y": 60.3, "variant": 70.0, "ours": 66.0}
    rows = tuple(
        TableRow(key, key, "feature", {"a-b": TableEntry((SeedResult(0, "done", value, value),))})
        for key, value in last.items()
    )
    table = Table("t", "T", "Top-1", columns, rows)
    assert efficiency.ari(table, "ours", ("x", "y"), columns[0]) == pytest.approx(1.5), "y gains too little to count"
    assert efficiency.ari(table, "ours", ("y",), columns[0]) is None
    curves = {
        ("student", "a-b", 0): [50.0, 60.0],
        ("ours", "a-b", 0): [59.0, 61.0, 66.0],
        ("x", "a-b", 0): [40.0, 59.0],
    }
    assert efficiency.reached(curves, "ours", columns[0], rows[-1].entries["a-b"]) == ([2], 1)
    assert efficiency.reached(curves, "x", columns[0], rows[1].entries["a-b"]) == ([], 1)
    page = efficiency.layout(table, curves, "ours", ("x", "y"))
    assert "never" in markdown.render(page) and "| ARI, % | 150 |" in markdown.render(page)
    row = next(line for line in latex.render(page).splitlines() if line.startswith("ARI"))
    assert row.replace(r"\%", "").count("%") == 0, "a comment would end the row"


def test_efficiency_of_unknown_rows_is_one_line(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: feature-only\nname: mine\nefficiency: {row: feature_only, against: [nobody]}\n")
    with pytest.raises(UserError, match="efficiency: no row of the table: nobody"):
        load_table(str(file))


def _simkd_stages(pair: tuple[str, str], **settings: Any) -> tuple[Any, Any, Any, Any]:
    """Teacher, method, the student as it becomes, and a batch of four."""
    torch.manual_seed(0)
    teacher = build_network(pair[0], 10).requires_grad_(False).eval()
    student = build_network(pair[1], 10)
    method = kd_methods.build("simkd.stages", student, teacher, INFO, **settings).train()
    x, labels = torch.randn(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])
    return (
        teacher,
        method,
        method.adapt(student).train(),
        Batch(x, labels, torch.arange(4), nn.functional.cross_entropy),
    )


def _seen(method: Any, adapted: Any, teacher: Any, batch: Batch) -> tuple[Any, Any]:
    ours = adapted(batch.inputs, at=method.needs.student_units, fields=())
    return ours, teacher(batch.inputs, at=method.needs.teacher_units, fields=())


def test_the_papers_simkd_matches_four_layers_and_predicts_with_the_teachers_classifier():
    teacher, method, adapted, batch = _simkd_stages(("ResNet34", "ResNet9"))
    ours, theirs = _seen(method, adapted, teacher, batch)
    losses = method.losses(ours, theirs, batch, Progress(1, 50))

    stages = adapted(batch.inputs).stages
    projected = [nn.Sequential(*p)(f) for p, f in zip([*method.earlier, method.projector], stages, strict=True)]
    terms = [(p - t).square().mean() for p, t in zip(projected, teacher(batch.inputs).stages, strict=True)]
    assert len(terms) == 4 and losses.distill["feature"].item() == pytest.approx(sum(terms).item() / 4, rel=1e-5)
    logits = teacher.module.linear(projected[-1].mean((2, 3)))
    assert torch.allclose(ours.logits, logits, atol=1e-5)
    p_t, log_s = (theirs.logits / 4).softmax(1), (logits / 4).log_softmax(1)
    kd = 16 * (p_t * (p_t.log() - log_s)).sum(1).mean()  # the public code's weight at T 4
    assert losses.distill["kd"].item() == pytest.approx(kd.item(), rel=1e-4)
    losses.total().backward()
    assert all(p.grad is not None for p in method.parameters())
    assert all((p.grad is None) == name.startswith("module.tail") for name, p in adapted.named_parameters())
    adapted.eval(), method.eval()
    assert torch.allclose(method.deployed(adapted)(batch.inputs), adapted(batch.inputs).logits)


TAILS = {  # what runs behind the projected map: the networks of the paper, and the ReLU or block that its code repeats
    ("ResNet34", "MobileNetV2x1"): (["pool", "flatten", "linear"], ["layer4.2.sum", "layer4.2"]),
    ("vgg19_bn", "vgg11_bn"): (
        ["pool4", "pool", "flatten", "fc1", "drop1", "fc2", "drop2", "classifier"],
        ["block4"],
    ),
    ("vit_ett", "vit_ett"): (["blocks.8", "norm", "pool", "head"], ["blocks.7"]),
}


@pytest.mark.parametrize("pair", TAILS)
@pytest.mark.parametrize("legacy", [(), ("block",)])
def test_simkd_ends_with_all_that_follows_the_teachers_last_matched_layer(
    pair: tuple[str, str], legacy: tuple[str, ...]
):
    teacher, method, adapted, batch = _simkd_stages(pair, legacy=legacy)
    rest, again = TAILS[pair]
    of_tail = [unit.removeprefix("tail.") for unit in adapted.units if unit.startswith("tail.")]
    assert of_tail == ([*again, *rest] if legacy else rest)
    ours, theirs = _seen(method, adapted, teacher, batch)
    end = ours["simkd_projector"]
    assert [s.shape for s in same_size(end, theirs[method.teacher_unit])] == [end.shape] * 2
    before = teacher.units[teacher.units.index(again[0]) - 1] if legacy else method.teacher_unit
    # The end is in evaluation mode while the student trains: VGG's dropout would show.
    assert torch.allclose(ours.logits, teacher.resume(before, end), atol=1e-5)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    method.losses(ours, theirs, batch, Progress(1, 50)).total().backward()
    assert trained == {name for name, p in adapted.named_parameters() if p.grad is not None}, "nothing without use"


def test_simkd_in_its_legacy_form_tests_with_the_statistics_of_the_batch():
    for legacy in ((), ("statistics",)):
        _, _, adapted, batch = _simkd_stages(("resnet14", "resnet8"), legacy=legacy)
        x = batch.inputs
        alone, together = adapted.eval()(x[:2]).logits, adapted(x).logits[:2]
        assert torch.allclose(alone, together, atol=1e-5) == (not legacy)
    with pytest.raises(UserError, match="last block gives another shape than it takes"):
        _simkd_stages(("resnet8", "resnet8"), legacy=("block",))
    with pytest.raises(UserError, match="nothing would run twice"):
        _simkd_stages(("torchvision:vgg11_bn", "resnet8"), legacy=("block",))


def test_the_probe_sees_the_projected_map_and_none_of_the_teachers_end():
    _, _, adapted, _ = _simkd_stages(("resnet14", "resnet8"))
    assert linear_probe.probed(adapted, build_network("resnet8", 10)) == ["layer3.0", "simkd_projector"]
