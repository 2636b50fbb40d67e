"""Quality of layers by its definition, which layers it chooses, and the tool that prints it."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from helpers.real_data import CIFAR100, RealData
from torch import Tensor

import kd_methods
from benchmarks.cli.main import cli
from benchmarks.common.weights import frozen
from benchmarks.config.protocol import load_protocol
from benchmarks.networks import build_network
from benchmarks.tasks import get_task
from benchmarks.tasks.images import ImageData
from benchmarks.training.teacher_pass import StoredTeacherPass
from kd_methods.analysis import quality as analysis
from kd_methods.errors import UserError


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
def test_pairs_of_an_image_with_itself_change_the_layers_of_a_real_teacher(real_data: RealData, tmp_path: Path):
    """Few images of a class make them weigh: the chosen layers of a trained resnet56 are others without them."""
    checkpoint = "checkpoints/cifar100_resnet56.pth"
    root = real_data(CIFAR100, checkpoint)
    cifar = get_task("cifar100").open(root, load_protocol("cifar100-feature-only"), torch.device("cpu"))
    network = frozen(cifar.build("resnet56"), root / checkpoint)  # type: ignore[type-var]
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
    arguments[3] = str(tmp_path / "one.yaml")
    (tmp_path / "one.yaml").write_text("extends: digits-demo\nname: one\nversion: 1\nepochs: 1\n")
    trained = ["teachers", "train", "resnet8", "--protocol", arguments[3], "--output", str(tmp_path)]
    assert CliRunner().invoke(cli, trained).exit_code == 0
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.exception
    assert result.output.count("*") == 4 and "layers by sqrtIE" in result.output
    lines = (tmp_path / "quality" / "resnet8-one.csv").read_text().splitlines()
    assert lines[0] == "index,layer,S,I,E,Q,chosen" and sum(line.endswith("yes") for line in lines) == 4
    assert (tmp_path / "quality" / "resnet8-one.png").read_bytes().startswith(b"\x89PNG")
    other = CliRunner().invoke(cli, [*arguments, "--layers", "3", "--entropy-norm", "lnN"])
    assert other.exit_code == 0 and other.output.count("*") == 3
    changed = "resnet8-one-layers-3-entropy_norm-lnN"
    again = (tmp_path / "quality" / f"{changed}.csv").read_text().splitlines()
    page = (tmp_path / "quality" / f"{changed}.md").read_text()
    assert "its entropy over the logarithm of the samples per class; of all layers 3 are chosen" in page
    ratios = [float(a.split(",")[3]) / float(b.split(",")[3]) for a, b in zip(lines[1:], again[1:], strict=True)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-3) and ratios[0] > 1
    assert CliRunner().invoke(cli, [*arguments, "--no-self-pairs"]).exit_code == 0
    assert lines == (tmp_path / "quality" / "resnet8-one.csv").read_text().splitlines(), "and is still there"
    arguments[1] = "resnet50-tv1"
    other_task = CliRunner().invoke(cli, arguments)
    assert "teacher 'resnet50-tv1' is one for imagenet, protocol one has images of digits" in str(other_task.exception)
    others = (tmp_path / "quality" / "resnet8-one-self_pairs-False.csv").read_text().splitlines()
    assert all(float(a.split(",")[2]) > float(b.split(",")[2]) for a, b in zip(lines[1:], others[1:], strict=True))


def test_the_tool_measures_on_as_many_images_as_is_said(tmp_path: Path):
    torch.manual_seed(1)
    torch.save(build_network("resnet8", 10).module.state_dict(), tmp_path / "any.pth")
    places = ["--checkpoints", str(tmp_path / "zoo")]
    added = CliRunner().invoke(
        cli, ["teachers", "add", "resnet8", str(tmp_path / "any.pth"), "--task", "digits", *places]
    )
    assert added.exit_code == 0, added.exception

    def measured(samples: int, per_class: int) -> tuple[list[tuple[str, str]], list[str]]:
        """S and E of each layer, which are of all samples, and I, whose spectra are of those of a class."""
        places[2:] = ["--output", str(tmp_path), "--device", "cpu", "--protocol", "digits-demo"]
        counts = ["--samples", str(samples), "--per-class", str(per_class)]
        result = CliRunner().invoke(cli, ["quality", "resnet8", *places, *counts])
        assert result.exit_code == 0, result.exception
        name = f"resnet8-digits-demo-samples-{samples}-per_class-{per_class}"
        page = (tmp_path / "quality" / f"{name}.md").read_text()
        assert f"E on at most {samples} images, I on at most {per_class} of each class" in page
        lines = list(csv.DictReader((tmp_path / "quality" / f"{name}.csv").open(newline="")))
        return [(line["S"], line["E"]) for line in lines], [line["I"] for line in lines]

    usual, of_fewer, of_small_classes = measured(200, 40), measured(100, 40), measured(200, 20)
    assert usual[0] != of_fewer[0] and usual[0] == of_small_classes[0] and usual[1] != of_small_classes[1]


def test_an_unknown_teacher_is_named(tmp_path: Path):
    result = CliRunner().invoke(cli, ["quality", "resnet65", "--checkpoints", str(tmp_path)])
    assert isinstance(result.exception, UserError) and "did you mean resnet56" in str(result.exception)
