"""Combinations and modifiers, and the methods that they are tested with: CRD, MLLD."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.method_setup import CLASSES, INFO, NAMES, Setup, network

import kd_methods
from benchmarks.cli import descriptions
from kd_methods import functional, registry
from kd_methods.contract import (
    Method,
)
from kd_methods.errors import UserError


def test_crd_resumes_exactly():
    """The banks, the normalisation and everything else that a step leaves behind is in the state."""
    setup = Setup("crd")
    setup.method.losses(*setup.outputs(), setup.batch, setup.progress)
    state = copy.deepcopy(setup.method.state_dict())
    expected = setup.losses().total()
    torch.manual_seed(5)
    setup.method = kd_methods.build("crd", network("resnet8", "student"), setup.teacher, INFO).train()
    setup.method.load_state_dict(state)
    assert torch.equal(setup.losses().total(), expected)


def test_crd_draws_other_classes():
    method: Any = Setup("crd").method
    labels = torch.arange(CLASSES)
    drawn = INFO.labels[method._draw(labels)]
    assert drawn.shape == (CLASSES, 90) and (drawn != labels.unsqueeze(1)).all() and len(drawn.unique()) == CLASSES


def test_modifiers():
    assert "kd@ls" not in kd_methods.available()
    assert kd_methods.card("dkd@ls").title == "DKD + LS"
    assert kd_methods.settings("kd@ls").kd == 9.0 and kd_methods.settings("kd").kd == 0.9
    for name, message in {
        "fitnet@ls": "reads stages",
        "student@ls": "no teacher",
        "kd@ls@ls": "has that already",
        "dkd@lss": "did you mean dkd@ls",
    }.items():
        with pytest.raises(UserError, match=message):
            registry.get(name)
    plain, standard = Setup("kd").losses(), Setup("kd@ls", {"kd": 1.0}).losses()
    assert torch.equal(plain.task["task"], standard.task["task"])
    setup = Setup("kd@ls", {"kd": 1.0})
    student, teacher = setup.outputs()
    term = functional.logit_standardized_kd(student.logits, teacher.logits, temperature=2.0)
    assert torch.allclose(standard.distill["kd"], term)


def test_mlld_standardises_its_kd_terms_alone():
    plain, changed = Setup("mlld", {"kd": 1.0}).losses(), Setup("mlld@ls", {"kd": 1.0, "temperature": 4.0}).losses()
    for name, term in plain.terms().items():
        assert torch.equal(term, changed.terms()[name]) == (name != "instance"), name


def test_confidence_is_that_of_logits_as_they_are():
    """Of ten standardised logits the largest probability is 0.72 at most, however sure the teacher is."""
    terms = {}
    for name in ("crld@ls", "mlld@ls"):
        setup = Setup(name)
        student, teacher = setup.outputs()
        torch.manual_seed(0)
        sure = 40 * F.one_hot(setup.batch.labels, CLASSES) + torch.rand(len(setup.batch.labels), CLASSES)
        assert (sure.softmax(1).amax(1) == 1).all()
        taught = teacher.with_other_logits(sure).with_second(teacher.second.with_other_logits(sure))
        terms[name] = setup.method.losses(student, taught, setup.batch, setup.progress).distill
    assert terms["crld@ls"]["within"] > 0 and terms["crld@ls"]["cross"] > 0
    weak, strong = (
        [functional.logit_standardized_kd(z, sure, temperature=t) for t in (2, 3, 5, 2, 6)]
        for z in (student.logits, student.second.logits)
    )
    every = sum(weak) + sum(strong[:3]) + sum(weak[3:])  # no sample is above the median, so none is left out
    assert terms["mlld@ls"]["instance"].item() == pytest.approx(9 * every.item(), rel=1e-5)


def test_mlld_by_definition():
    """The released code: m and c are the shares up to the median, and strong terms at 2 and 6 read the weak view."""
    setup = Setup("mlld", {"ce": 0.3, "kd": 0.7})
    student, teacher = setup.outputs()
    weak, strong = (student.logits, teacher.logits), (student.second.logits, teacher.second.logits)
    p = teacher.logits.softmax(1)
    m = (p.max(1).values <= p.max(1).values.quantile(0.5)).float().mean()
    c = (p.sum(0) <= p.sum(0).quantile(0.5)).float().mean()
    expected = {
        "instance": sum(m * functional.kd(*weak, temperature=t) for t in (4, 3, 5, 2, 6))
        + sum(functional.kd(*strong, temperature=t) for t in (4, 3, 5))
        + sum(functional.kd(*weak, temperature=t) for t in (2, 6)),
        "class": sum(c * functional.class_correlation(*weak, temperature=t) for t in (4, 3, 5, 2, 6)),
        "batch": sum(m * functional.batch_correlation(*weak, temperature=t) for t in (4, 3, 5, 2, 6)),
    }
    losses = setup.method.losses(student, teacher, setup.batch, setup.progress)
    for name, value in expected.items():
        assert losses.distill[name].item() == pytest.approx(0.7 * value.item(), rel=1e-5)
    both = sum(F.cross_entropy(view[0], setup.batch.labels) for view in (weak, strong))
    assert losses.task["task"].item() == pytest.approx(0.3 * both.item(), rel=1e-6)
    assert m.item() == 0.5 and c.item() == 0.5


def test_a_combination_is_the_first_methods_loss_and_the_others_distillation():
    both, crd, kd = (Setup(name).losses() for name in ("sp+kd", "sp", "kd"))
    assert both.terms().keys() == {"task", "sp.similarity", "kd.kd"}
    assert torch.equal(both.task["task"], crd.task["task"])
    assert torch.equal(both.distill["sp.similarity"], crd.distill["similarity"])
    assert torch.equal(both.distill["kd.kd"], kd.distill["kd"])
    weighted = Setup("sp+kd", {"kd": {"kd": 2.7}}).losses()
    assert weighted.distill["kd.kd"].item() == pytest.approx(3 * kd.distill["kd"].item(), rel=1e-6)


def test_a_combination_needs_what_its_parts_need():
    setup = Setup("block_kd+crd+mlld")
    needs = setup.method.needs
    assert set(needs.student) == {"blocks", "pooled"} and "logits" in needs.teacher and needs.views == 2
    assert set(setup.losses().task) == {"task", "stones_task"}
    assert set(Setup("crd+block_kd").losses().task) == {"task", "block_kd.stones_task"}
    assert list(setup.method.auxiliary_logits(setup.outputs()[0])) == [f"block_kd.stone_{i}" for i in (1, 2, 3)]
    assert set(Setup("letkd1+kd").method.watched()) == {"letkd1.g_T_penultimate"}
    assert [phase.name for phase in Setup("ab+ft").method.phases()] == ["boundaries", "paraphraser"]


def test_a_combination_has_the_phase_needs_of_its_parts():
    ab, ft = registry.get("ab").phase_needs, registry.get("ft").phase_needs
    assert ab is not None and ft is not None and registry.get("ab+ft").phase_needs == ab.joined(ft)
    assert registry.get("sp+tinybert").phase_needs == registry.get("tinybert").phase_needs
    assert registry.get("sp+kd").phase_needs is None
    assert "in the first phase student: preacts" in descriptions.reads(registry.get("ab+kd"))


def test_family_and_modality_are_two_facts():
    fgd = kd_methods.card("fgd")
    assert (fgd.family, fgd.modality) == ("feature", "detection")
    assert kd_methods.card("block_kd.fpn").family == kd_methods.card("block_kd").family == "blockwise"
    mine = dataclasses.replace(fgd, name="mine", family="detection")
    with pytest.raises(UserError, match="has the family 'detection'; families are logit, feature"):
        registry.register(type("Mine", (Method,), {"card": mine}))


def test_the_first_method_may_change_the_network_and_the_others_see_it_changed():
    setup = Setup("simkd+cat_kd")
    assert "simkd_projector" in setup.student.units
    alone = Setup("simkd")
    assert setup.losses().distill["simkd.feature"].item() == pytest.approx(
        alone.losses().distill["feature"].item(), rel=1e-5
    )
    setup.student.eval(), setup.method.eval()
    x = setup.batch.inputs
    assert torch.allclose(setup.method.deployed(setup.student)(x), setup.student(x, fields=()).logits)


@pytest.mark.parametrize("name", ["norm+fitnet", "simkd+cat_kd", "norm+crd"])
def test_a_combination_is_built_where_the_student_is(name: str):
    """On a GPU, say; here on the device that keeps shapes alone."""
    student, teacher = (
        copy.deepcopy(network(n, role)).to("meta") for n, role in (("resnet8", "student"), ("resnet14", "teacher"))
    )
    for view in (student, teacher):
        view._shapes.clear()
    method = kd_methods.build(name, student, teacher, INFO)
    assert {p.device.type for p in method.adapt(student).parameters()} == {"meta"}


def of_task(name: str) -> list[str]:
    """Settings whose description is about the task loss."""
    fields = registry.get(name).Settings.model_fields
    return [key for key, field in fields.items() if "task loss" in str(field.description)]


@pytest.mark.parametrize("name", [name for name in NAMES if of_task(name)])
def test_a_weight_of_the_task_loss_is_of_that_alone_or_no_such(name: str):
    """By which settings a combination knows what it would ignore of its later methods."""
    plain = Setup(name).losses().terms()
    for key in of_task(name):
        changed = Setup(name, {key: getattr(kd_methods.settings(name), key) + 0.25}).losses().terms()
        others = [term for term in changed if term != "task" and not torch.equal(changed[term], plain[term])]
        assert (others == []) == (key in registry.get(name).task_weights), (key, others)


def test_a_task_weight_that_a_combination_would_ignore_is_refused():
    student, teacher = network("resnet8", "student"), network("resnet14", "teacher")
    made = {"num_classes": CLASSES, "input_shape": (3, 16, 16)}
    for name, values in {"sp+kd": {"kd": {"ce": 0.0}}, "sp+dkd@ls": {"dkd@ls": {"ce": 50.0}}}.items():
        with pytest.raises(UserError, match=r"ce=.*the task loss of .* is that of its first method, sp; leave it out"):
            kd_methods.Distiller(name, student, teacher, **made, **values)
    kd_methods.Distiller("sp+kd", student, teacher, **made, kd={"ce": 0.1, "kd": 2.0})
    first = kd_methods.Distiller("kd+sp", student, teacher, **made, kd={"ce": 0.5})
    assert first.method.parts[0].settings.ce == 0.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fitnet.paper@ls", "has a first phase"),
        ("kd+simkd", "'simkd' changes the network and has to come first"),
        ("kd+kd", "has 'kd' twice"),
        ("kd+student", "no distillation terms"),
        ("crd+kdd", "unknown method 'kdd'"),
        ("crd+fitnet@ls", "reads stages"),
    ],
)
def test_impossible_combinations(name: str, message: str):
    with pytest.raises(UserError, match=message):
        registry.get(name)


def test_settings_of_a_combination_are_checked_part_by_part():
    assert kd_methods.settings("crd+kd", {"kd": {"temperature": 2}}).model_dump()["kd"]["temperature"] == 2.0
    for values, message in {
        "kd.temprature": "did you mean temperature",
        "dkd": "unknown setting of method 'crd.kd' 'dkd'",
    }.items():
        method, _, key = values.partition(".")
        with pytest.raises(UserError, match=message):
            kd_methods.settings("crd+kd", {method: {key: 1.0}})
    assert registry.plain_methods("crd+kd@ls") == ("crd", "kd")


@pytest.mark.parametrize("name", ["kd@ls", "sp+kd", "sp+kd@ls"])
def test_a_name_is_one_class_each_time(name: str):
    """Modified and combined classes are made when asked for: what was built is of the one that is asked for later."""
    assert type(Setup(name).method) is registry.get(name)
