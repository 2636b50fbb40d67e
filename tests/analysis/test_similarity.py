"""How alike blocks are: the measures, and their record over training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.analysis import similarity
from benchmarks.cli.main import cli
from benchmarks.common.files import read_json
from benchmarks.store.runs import Store


def test_cka_is_its_definition_and_ignores_rotation_and_scale():
    torch.manual_seed(0)
    x, y = torch.randn(30, 8), torch.randn(30, 5)
    centred = [features.double() - features.double().mean(0) for features in (x, y)]
    cross = (centred[1].t() @ centred[0]).norm() ** 2
    wanted = cross / ((centred[0].t() @ centred[0]).norm() * (centred[1].t() @ centred[1]).norm())
    assert similarity.linear_cka(x, y) == pytest.approx(float(wanted))
    rotation = torch.linalg.qr(torch.randn(8, 8)).Q
    assert similarity.linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)


def test_connector_distance_is_what_a_regression_leaves_on_other_images():
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    assert similarity.connector_distance(x, x @ torch.randn(6, 9) + 2, images=100) == pytest.approx(0, abs=1e-2)
    y, fitted = torch.randn(200, 4), torch.arange(200) // 2 % 2 == 0  # two rows for each of 100 images
    padded = torch.cat([x, torch.ones(200, 1)], 1)
    left = (y - padded @ torch.linalg.lstsq(padded[fitted], y[fitted]).solution)[~fitted]
    share = left.pow(2).sum() / (y[~fitted] - y[fitted].mean(0)).pow(2).sum()
    assert similarity.connector_distance(x, y, images=100) == pytest.approx(float(share), rel=2e-2) and share > 0.9
    idle = torch.cat([x, torch.zeros(200, 2), x[:, :1]], 1)  # constant and repeated channels
    assert similarity.connector_distance(idle, y, images=100) == pytest.approx(float(share), rel=2e-2)


@pytest.mark.parametrize("width", [64, 256, 512])
def test_unlike_blocks_are_not_alike_however_wide(width: int):
    """One row an image, as many as the student's channels or fewer: a fit to all of them would find everything."""
    generator = torch.Generator().manual_seed(width)
    x, y = (torch.randn(500, width, generator=generator) for _ in range(2))
    assert 0.95 < similarity.connector_distance(x, y, images=500) < 2.5
    known = similarity.connector_distance(x, x @ torch.randn(width, 8, generator=generator), images=500)
    assert known < similarity.connector_distance(x, y, images=500) - 0.2


def unwatched(folder: Path) -> str:
    """The same table without the measurement."""
    file = folder / "unwatched.yaml"
    file.write_text("extends: block-kd-similarity\nname: unwatched\nsimilarity: false\n")
    return str(file)


def test_it_is_recorded_after_every_epoch_and_changes_no_result(tmp_path: Path):
    command = ["--preset", "demo", "--methods", "plain,block_kd", "--seeds", "0",
               "--epochs", "2", "--no-cost", "--checkpoints", str(tmp_path)]  # fmt: skip
    outputs = [tmp_path / name for name in ("watched", "plain")]
    for output, table in zip(outputs, ("block-kd-similarity", unwatched(tmp_path)), strict=True):
        result = CliRunner().invoke(cli, [table, *command, "--output", str(output)])
        assert result.exit_code == 0, result.exception
    plans = [read_json(next((output / "tables").glob("*/plan.json"))) for output in outputs]
    for cell, other in zip(plans[0]["cells"], plans[1]["cells"], strict=True):
        assert cell["key"] == other["key"]
        watched, plain = (Store(output).run(cell["key"]) for output in outputs)
        weights = [torch.load(run / "student.pt", weights_only=True) for run in (watched, plain)]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
        for record in watched.metrics:
            measured = record["similarity"]
            assert len(measured["cka"]) == len(measured["unseen_distance"]) == 3
            assert all(0 <= value <= 1 + 1e-9 for values in measured.values() for value in values)
        assert not any("similarity" in record for record in plain.metrics)
    folder = next((outputs[0] / "tables").glob("*"))
    lines = next(folder.glob("*blocks*.csv")).read_text().splitlines()
    assert lines[0] == "row,epoch,block,cka,unseen_distance" and len(lines) == 1 + 2 * 2 * 3
    assert next(folder.glob("*blocks*.png")).read_bytes().startswith(b"\x89PNG")


def test_what_was_trained_unwatched_is_named(tmp_path: Path):
    command = [unwatched(tmp_path), "--preset", "demo", "--methods", "plain", "--seeds", "0", "--epochs", "1",
               "--no-cost", "--checkpoints", str(tmp_path), "--output", str(tmp_path)]  # fmt: skip
    CliRunner().invoke(cli, command)
    result = CliRunner().invoke(cli, [*command, "--similarity"])
    assert result.exit_code == 0 and "not trained with --similarity of today" in result.output
