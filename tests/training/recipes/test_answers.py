"""A teacher whose answers belong to other images, are noisy, or are missing, for a share of the training images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.method_setup import Setup
from helpers.training_bench import CPU, PROTOCOL, Result, TrainingBench, tiny_data

import kd_methods
from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import Protocol, load_protocol
from benchmarks.config.protocol_words import lines
from benchmarks.config.recipe import Answers
from benchmarks.driver.planning.plan import Request, make
from benchmarks.tasks.answers import DrawnAnswers
from benchmarks.training.answered import answered
from benchmarks.training.loop import shared
from benchmarks.training.optimizers import WHOLE
from kd_methods.analysis import locations
from kd_methods.contract import Losses, Needs
from kd_methods.errors import UserError
from kd_methods.feature.letkd import PER_WORD, LetKD1

BY_SAMPLE = [name for name in kd_methods.available() if kd_methods.card(name).by_sample]


def under(**shares: float) -> Protocol:
    return PROTOCOL.model_copy(update={"second_view": "", "teacher_answers": Answers(**shares)})


def test_which_images_it_is_depends_on_nothing_but_their_number() -> None:
    wanted = Answers(wrong=0.4, missing=0.25, corrupted=0.3, noise=2)
    drawn, again = (DrawnAnswers(1000, 10, wanted, CPU) for _ in range(2))
    assert drawn.looked_at is not None and drawn.given is not None and again.given is not None
    assert (drawn.looked_at != torch.arange(1000)).sum() == 400, "nobody keeps its own"
    assert torch.equal(drawn.looked_at.sort().values, torch.arange(1000)), "each answer belongs to one image"
    assert (~drawn.given).sum() == 250 and torch.equal(drawn.given, again.given)
    exchanged = drawn.looked_at != torch.arange(1000)
    assert 60 < (exchanged & ~drawn.given).sum() < 140, "the two are drawn apart"
    assert drawn.noise is not None and again.noise is not None and torch.equal(drawn.noise, again.noise)
    noisy = drawn.noise.any(1)
    assert noisy.sum() == 300 and drawn.noise[noisy].std().item() == pytest.approx(2, rel=0.05)
    assert 80 < (exchanged & noisy).sum() < 160 and 40 < (noisy & ~drawn.given).sum() < 110


def test_the_teacher_looks_at_another_image_with_the_same_crop_and_the_student_at_its_own() -> None:
    plain, data = tiny_data(protocol=under(missing=0.1)), tiny_data(protocol=under(wrong=0.5))
    assert data.answers and data.answers.looked_at is not None
    others = data.answers.looked_at
    for batch, usual in zip(data.batches(3, 1), plain.batches(3, 1), strict=True):
        assert torch.equal(batch.images, usual.images) and usual.as_taught() is usual
        assert batch.student().answered is None and len(batch.part(slice(0, 5)).as_taught()) == 5
        answered_here = others[batch.indices] == batch.indices
        same = (batch.as_taught().images == batch.images).flatten(1).all(1)
        assert torch.equal(same, answered_here) and 0 < answered_here.sum() < len(answered_here)
    clean = data.clean(torch.arange(20))
    assert torch.equal(clean.as_taught().images, data.train.images[others[:20]])
    assert data.clean(torch.arange(5), test=True).as_taught().images.equal(data.test.images[:5])


def test_methods_get_the_teachers_answers_to_those_images(tmp_path: Path) -> None:
    protocol = under(wrong=0.5)
    bench = TrainingBench(tmp_path, tiny_data(protocol=protocol), protocol)
    teacher = bench.group().teacher
    assert teacher
    run = bench.student_run(bench.cells([("kd", {})])[0])
    batch = next(iter(bench.data.batches(0, 1)))
    inputs, outputs = shared(batch, WHOLE, teacher, [run])
    seen = batch.as_taught().inputs(teacher.normalisation)
    assert outputs and torch.equal(inputs.teacher_inputs, seen)
    assert torch.equal(outputs.logits, teacher.network.fold_batch_norms()(seen, fields=()).logits)


def test_noise_is_on_the_logits_alone_the_same_whenever_an_image_comes(tmp_path: Path) -> None:
    protocol = under(corrupted=0.5, noise=3.0)
    bench = TrainingBench(tmp_path, tiny_data(protocol=protocol), protocol)
    teacher, noise = bench.group().teacher, bench.data.answers and bench.data.answers.noise
    assert teacher and noise is not None
    with_folded_norms = teacher.network.fold_batch_norms()
    for epoch in (1, 2):
        batch = next(iter(bench.data.batches(0, epoch)))
        outputs = teacher.outputs(batch, [Needs(teacher=("logits", "stages"))])
        seen = with_folded_norms(batch.inputs(teacher.normalisation), fields=("stages",))
        assert outputs and all(map(torch.equal, outputs.stages, seen.stages))
        added = (outputs.logits - seen.logits) / seen.logits.std(1, keepdim=True)
        torch.testing.assert_close(added, noise[batch.indices], rtol=1e-3, atol=1e-4)
    (cell,) = bench.cells([("kd", {})])
    assert cell.teacher
    pass_ = bench.context().teacher_pass(cell, bench.context().teacher(cell.teacher))
    logits = torch.cat([outputs.logits for outputs, _ in pass_.outputs(())])
    plain = with_folded_norms(bench.data.clean(torch.arange(200)).inputs(teacher.normalisation), fields=()).logits
    torch.testing.assert_close(logits, plain + plain.std(1, keepdim=True) * noise)


@pytest.mark.parametrize("name", [*BY_SAMPLE, "kd@ls", "letkd2+kd"])
def test_terms_are_summed_over_the_answered_and_divided_by_all(name: str) -> None:
    """Of a method that says ``by_sample``: the part of each sample is what it gives alone."""
    setup = Setup(name, size=6)
    student, teacher = setup.outputs()
    given = torch.tensor([True, False, True, True, False, True])

    def losses(chosen: list[int]) -> Losses:
        rows = torch.tensor(chosen)
        return setup.method.losses(student.rows(rows), teacher.rows(rows), setup.batch.rows(rows), setup.progress)

    summed = answered(setup.method.losses, student, teacher, replace(setup.batch, answered=given), setup.progress)
    for key, term in summed.distill.items():
        each = [losses([i]).distill[key] for i in range(6) if given[i]]
        torch.testing.assert_close(term, torch.stack(each).sum() / 6, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(summed.task["task"], losses(list(range(6))).task["task"])
    (gradient,) = torch.autograd.grad(
        sum(summed.distill.values()), student.logits, allow_unused=True, retain_graph=True
    )
    if gradient is not None:
        assert not gradient[~given].any() and gradient[given].any(1).all()
    silent = replace(setup.batch, answered=torch.zeros(6, dtype=torch.bool))
    none = answered(setup.method.losses, student, teacher, silent, setup.progress)
    assert none.distill.keys() == summed.distill.keys() and not any(term.any() for term in none.distill.values())


@pytest.mark.parametrize(
    "shares", [{"wrong": 0.4, "corrupted": 0.6}, {"missing": 0.5}, {"wrong": 0.3, "missing": 0.97}]
)
def test_it_trains_to_the_same_bits_alone_and_in_company(tmp_path: Path, shares: dict[str, float]) -> None:
    protocol = under(**shares)
    data = tiny_data(protocol=protocol)
    group = TrainingBench(tmp_path / "group", data, protocol)
    cells = group.cells([("student", {}), ("kd", {}), ("letkd1", {"words": 4, "iterations": 2})])
    group.run(cells)
    for i, cell in enumerate(cells):
        single = TrainingBench(tmp_path / str(i), data, protocol)
        single.run([cell])
        assert Result(single.store, cell) == Result(group.store, cell), cell.label


def test_what_is_prepared_sees_the_answers_that_there_are(tmp_path: Path) -> None:
    protocol = under(missing=0.75)
    bench = TrainingBench(tmp_path, tiny_data(protocol=protocol), protocol)
    (cell,) = bench.cells([("letkd1", {"words": 4, "iterations": 2})])
    assert cell.teacher
    pass_ = bench.context().teacher_pass(cell, bench.context().teacher(cell.teacher))
    labels = torch.cat([labels for _, labels in pass_.outputs(())])
    assert torch.equal(labels, bench.data.info.labels[bench.data.answered]) and len(labels) == 50  # type: ignore[index]
    chosen = torch.tensor([7, 3])
    assert torch.equal(next(iter(pass_.outputs((), chosen)))[1], pass_.labels[chosen])
    assert pass_.identity["protocol"]["teacher_answers"] == {"missing": 0.75}


@pytest.mark.parametrize("missing", [0.5, 0.95])
def test_words_are_as_many_as_the_answered_images_have_locations_for(tmp_path: Path, missing: float) -> None:
    protocol = under(missing=missing)
    bench = TrainingBench(tmp_path, tiny_data(protocol=protocol), protocol)
    (cell,) = bench.cells([("letkd1", {"words": 4096})])
    bench.run([cell])
    assert bench.data.info.taught == round(200 * (1 - missing))
    method = bench.student_run(cell).method
    assert isinstance(method, LetKD1)
    (site,) = method.sites
    places = bench.data.info.taught * locations.count(method.teacher.shape(site.teacher_unit), site.factor)
    assert len(method.words) == places // PER_WORD
    assert bench.states([cell]) == ["done"]


def test_methods_that_relate_samples_are_refused_where_answers_are_missing(tmp_path: Path) -> None:
    workspace = Workspace(CPU, tmp_path, tmp_path, tmp_path)
    for name in ("sp", "letkd2+sp", "block_kd"):
        with pytest.raises(UserError, match=r"relates samples or keeps some.*possible are dkd, kd"):
            make(Request("letkd-answers", "demo-missing", methods=(name,)), workspace)
        assert make(Request("letkd-answers", "demo", methods=(name,)), workspace).cells
    plan = make(Request("letkd-answers", "demo-missing"), workspace)
    assert "teacher_answers" not in plan.training[0].protocol, "teachers are taught with what they are"
    assert {name: plan.protocol.identity().get(name) for name in ("teacher_answers",)} == {
        "teacher_answers": {"missing": 0.5}
    }


def test_the_caption_says_it() -> None:
    line = " ".join(lines(load_protocol("cifar100-letkd-missing90")))
    assert "for 90% of the images the teacher gives no answer (distillation terms are summed over the others" in line
    assert "for 20% of the images the teacher gives another one's answer" in " ".join(
        lines(load_protocol("cifar100-letkd-wrong20"))
    )
    noisy = " ".join(lines(load_protocol("cifar100-letkd-corrupted20")))
    assert "for 20% of the images normal noise is added to the teacher's logits, 1 of their standard deviation" in noisy
    for changes in ({"max_length": 8}, {"second_view": "randaugment"}, {"stored_logits": True}):
        with pytest.raises(ValueError, match=r"for images that lie on the device|not beside stored_logits"):
            Protocol.model_validate({**load_protocol("digits-wrong-demo").model_dump(), **changes})
    with pytest.raises(ValueError, match="above 0"):
        Answers()
    with pytest.raises(ValueError, match="corrupted"):
        Answers(wrong=0.2, noise=2.0)
    assert Needs().data == () and "teacher_answers" not in PROTOCOL.identity()
