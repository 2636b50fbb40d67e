"""The protocols that ship have the papers' values; rates, schedules and optimisers are those of the sources."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.config.protocol import PROTOCOLS, Protocol, load_protocol, protocol_names, steps_per_epoch
from benchmarks.config.protocol_words import lines
from benchmarks.config.schedules.onecycle import one_cycle
from benchmarks.config.table_spec import table_folder_of
from kd_methods.errors import UserError


def test_there_are_the_three_protocols_and_each_loads() -> None:
    assert {"cifar100-crd240", "cifar100-short", "digits-demo"} <= set(protocol_names())
    for name in protocol_names():
        protocol = load_protocol(name)
        assert protocol.name == name and protocol.version >= 1 and protocol.source


def test_the_papers_protocol_has_the_papers_values() -> None:
    """The recipe of RepDistiller's train_student.py, which mdistiller has too."""
    protocol = load_protocol("cifar100-crd240")
    assert (protocol.task, protocol.epochs, protocol.batch_size, protocol.drop_last) == ("cifar100", 240, 64, False)
    optimizer = protocol.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.nesterov, optimizer.weight_decay) == (0.05, 0.9, False, 5e-4)
    assert protocol.lr_by_student == {"MobileNetV2": 0.01, "ShuffleV1": 0.01, "ShuffleV2": 0.01, "ShuffleV2x1.5": 0.01}
    assert (protocol.milestones, protocol.decay) == ((150, 180, 210), 0.1)
    assert (protocol.crop_padding, protocol.flip, protocol.holdout) == (4, True, 0)
    assert (protocol.mean, protocol.std) == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    assert protocol.deviations == () and protocol.recipe == "cifar100-crd240"
    assert steps_per_epoch(50_000, protocol) == 782


def test_the_learning_rate_falls_after_the_milestone_epoch() -> None:
    """``epoch > milestone`` with epochs counted from 1: the 150th epoch is the last at the full rate."""
    protocol = load_protocol("cifar100-crd240")
    expected = {1: 0.05, 150: 0.05, 151: 0.005, 180: 0.005, 181: 5e-4, 210: 5e-4, 211: 5e-5, 240: 5e-5}
    for epoch, value in expected.items():
        assert protocol.lr("resnet20") * protocol.lr_at(epoch)[0] == pytest.approx(value), epoch
    assert [protocol.lr(name) for name in ("ShuffleV1", "ShuffleV2", "MobileNetV2")] == [0.01] * 3


def test_another_length_scales_the_milestones() -> None:
    paper = load_protocol("cifar100-crd240")
    tenth = paper.changed(epochs=24)
    rates = [0.05 * tenth.lr_at(epoch)[0] for epoch in (15, 16, 18, 19, 21, 22)]
    assert rates == pytest.approx([0.05, 0.005, 0.005, 5e-4, 5e-4, 5e-5])
    assert (tenth.recipe_epoch(12), tenth.recipe_epochs, tenth.epochs) == (120, 240, 24)
    assert tenth.deviations == ("24 epochs instead of 240, milestones scaled",)
    assert "24 epochs" in lines(tenth)[0] and "times 0.1 after epochs 15, 18, 21" in lines(tenth)[1]
    short = tenth.changed(epochs=5)  # the milestones lie after 3.1, 3.75 and 4.4 epochs
    assert [short.lr_at(epoch, 0, 1)[0] for epoch in (4, 5)] == pytest.approx([1, 0.01])
    assert ", times 0.01 after epoch 4" in lines(short)[1]
    early = paper.model_copy(update={"milestones": (60, 180, 185)}).changed(epochs=5)
    assert ", times 0.1 after epoch 2, times 0.01 after epoch 4" in lines(early)[1]
    assert paper.changed(epochs=240) is paper and paper.changed() is paper
    with pytest.raises(UserError, match="at least 1"):
        paper.changed(epochs=0)


def test_the_short_protocol_is_the_papers_in_ten_epochs() -> None:
    short, paper = load_protocol("cifar100-short"), load_protocol("cifar100-crd240")
    assert (short.epochs, short.recipe_epochs, short.recipe) == (10, 240, "cifar100-crd240")
    assert [0.05 * short.lr_at(epoch)[0] for epoch in (7, 8, 9, 10)] == pytest.approx([0.05, 0.005, 5e-4, 5e-5])
    assert short.deviations, "a shortened recipe must say so under the table"
    same = set(Protocol.model_fields) - {"name", "title", "epochs", "deviations", "version"}
    assert {key: getattr(short, key) for key in same} == {key: getattr(paper, key) for key in same}


def test_a_demo_on_digits_mirrors_nothing() -> None:
    demo = load_protocol("digits-demo")
    assert demo.task == "digits" and not demo.flip and demo.deviations


def test_holdout_is_a_deviation_and_shortens_the_epoch() -> None:
    split = load_protocol("cifar100-crd240").changed(holdout=5000)
    assert split.holdout == 5000 and "5000 held-out" in split.deviations[0]
    assert steps_per_epoch(50_000, split) == 704
    assert "tested on 5000 held-out training images" in lines(split)[-1]
    demo = load_protocol("digits-holdout-demo")
    assert f"tested on {demo.holdout} held-out training images" in lines(demo)[-1], "and where the YAML holds them out"
    assert split.changed(holdout=5000) == split
    with pytest.raises(UserError, match="--holdout 0: protocol digits-holdout-demo holds out 300 images"):
        demo.changed(holdout=0)
    assert table_folder_of("t", "paper", load_protocol("cifar100-crd240"), split) == "t-paper-holdout5000"
    assert (
        table_folder_of("t", "paper", load_protocol("cifar100-crd240"), split.changed(epochs=3))
        == "t-paper-epochs3-holdout5000"
    )


def test_identity_is_everything_but_the_texts() -> None:
    protocol = load_protocol("cifar100-crd240")
    texts = {"title": "x", "source": "y", "deviations": ("z",)}
    assert protocol.model_copy(update=texts).identity() == protocol.identity()
    changes = {"epochs": 239, "batch_size": 65, "version": 2, "holdout": 1, "flip": False, "mean": (0.5, 0.5, 0.5)}
    for key, value in changes.items():
        assert protocol.model_copy(update={key: value}).identity() != protocol.identity(), key


def test_an_optimiser_of_a_row_has_to_fit_the_protocol() -> None:
    nesterov = Protocol.model_validate(
        {**load_protocol("digits-demo").model_dump(), "optimizer": {"lr": 0.1, "nesterov": True}}
    )
    with pytest.raises(UserError, match="dot needs 0 < delta <= momentum"):
        nesterov.with_optimizer({"name": "dot", "delta": 0.05})
    dot = load_protocol("digits-demo").with_optimizer({"name": "dot", "delta": 0.05})
    assert dot.with_optimizer({"delta": 0.09}).optimizer.delta == 0.09 and dot.optimizer.lr == 0.05


def test_one_cycle_is_torchs() -> None:
    total, parameter = 157, torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.0075, total_steps=total)
    for step in range(total):
        factor, momentum = one_cycle(step, total)
        assert 0.0075 * factor == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        assert momentum == pytest.approx(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        if step + 1 < total:
            schedule.step()


def test_feature_only_kds_cycle_is_its_codes() -> None:
    """50 epochs of 391 steps, of which 390 are run: the last rates are cut off."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.0075, epochs=50, steps_per_epoch=int(50_000 / 128 + 1))
    protocol, steps = load_protocol("cifar100-feature-only"), 50_000 // 128
    for done in range(50 * steps):
        if done % 997 == 0 or done > 50 * steps - 5:
            factor, momentum = protocol.lr_at(1 + done // steps, done, protocol.epochs * steps)
            assert 0.0075 * factor == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
            assert momentum == pytest.approx(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        theirs.step()
    assert factor > 3e-5, "the end of the cycle would be 4e-6"
    with pytest.raises(ValueError, match="for schedule onecycle with drop_last"):
        Protocol.model_validate({**load_protocol("digits-demo").model_dump(), "plan_dropped": True})


def test_settings_of_another_optimizer_are_errors() -> None:
    usual = load_protocol("digits-demo")
    for changes in (
        {"beta2": 0.9},
        {"name": "adamw", "nesterov": True},
        {"name": "adamw", "delta": 0.1},
        {"nesterov": True, "momentum": 0.0},
    ):
        with pytest.raises(UserError, match="under protocol digits-demo"):
            usual.with_optimizer(changes)
    with pytest.raises(UserError, match="one cycle moves the momentum"):
        load_protocol("digits-feature-only-demo").with_optimizer({"name": "dot", "delta": 0.05})
    assert usual.with_optimizer({"name": "adamw"}).optimizer.line() == "AdamW, beta2 0.999, weight decay 0.0005"


def test_what_does_not_fit_together_is_said() -> None:
    with pytest.raises(UserError, match="no 3 parts"):
        load_protocol("imagenet-100").changed(accumulate=3)
    with pytest.raises(UserError, match="not for detection"):
        load_protocol("coco-1x").changed(accumulate=2)
    with pytest.raises(UserError, match="8 is not shared evenly by 3 processes"):
        load_protocol("coco-1x").changed(processes=3)
    with pytest.raises(UserError, match="64 is not shared evenly by 3 processes"):
        load_protocol("cifar100-crd240").changed(processes=3)
    with pytest.raises(UserError, match="share what lies on the device"):
        load_protocol("imagenet-100").changed(processes=2)
    shared = load_protocol("coco-1x").changed(precision="bf16", processes=4)
    assert "bf16, each batch on 4 processes (batch statistics and relations are those of 2 samples)" in lines(shared)[2]
    assert table_folder_of("t", "paper", load_protocol("coco-1x"), shared) == "t-paper-bf16-processes4"
    changed = load_protocol("imagenet-100").changed(precision="bf16", accumulate=4)
    assert "bf16, each batch in 4 parts" in lines(changed)[-1]
    assert changed.identity() != load_protocol("imagenet-100").identity()
    assert changed.recipe == "imagenet-100" and "bf16 instead of fp32" in changed.deviations
    with pytest.raises(UserError, match="sync_bn: for several processes"):
        load_protocol("cifar100-crd240").model_copy(update={"compile": True}).changed(processes=2, sync_bn=True)
    compiled = load_protocol("imagenet-100").changed(compile=True)
    assert lines(compiled)[-1].endswith(", fp32, compiled") and "networks compiled by torch" in compiled.deviations
    assert table_folder_of("t", "paper", load_protocol("imagenet-100"), compiled) == "t-paper-compile"
    with pytest.raises(UserError, match="compile: for images"):
        load_protocol("glue-ft").changed(compile=True)


def test_what_a_recipe_has_beyond_the_usual_is_in_its_lines_and_its_identity() -> None:
    usual = load_protocol("digits-demo")
    values = {"mixing": {"mixup": 0.8, "cutmix": 1.0}, "ema": 0.99, "repeats": 3, "task_loss": "bce"}
    strong = Protocol.model_validate({**usual.model_dump(), **values})
    text = "\n".join(lines(strong))
    for words in (
        "evaluated weights are moving averages (decay 0.99)",
        "mixup with shares from Beta(0.8, 0.8) or CutMix with shares from Beta(1, 1)",
        "3 augmentations of each image in a batch",
        "binary cross-entropy of every class as the task loss",
    ):
        assert words in text and words not in "\n".join(lines(usual))
    assert set(strong.identity()) - set(usual.identity()) == set(values), "old cells keep their keys"
    for key, value in values.items():
        assert Protocol.model_validate({**usual.model_dump(), key: value}).identity() != usual.identity()


def test_recipes_that_do_not_fit_are_said() -> None:
    usual, text = load_protocol("digits-demo").model_dump(), load_protocol("grammar-demo").model_dump()
    mixing = {"mixing": {"mixup": 0.2}}
    for base, changes, words in (
        (usual, {**mixing, "stored_logits": True}, "single images, and mixing makes others"),
        (usual, {"mixing": {}}, "above 0, or there is no mixing"),
        (usual, {"ema": 1.0}, "less than 1"),
        (usual, {"by_epoch": {"warmup": 2}}, "by_epoch belongs to the schedules"),
        (usual, {"schedule": "cosine_by_epoch"}, "by_epoch belongs to the schedules"),
        (usual, {"schedule": "cosine_by_epoch", "by_epoch": {"last": 1e-6}, "warmup": 0.1}, "no other warmup"),
        (usual, {"optimizer": {"lr": 0.1, "exempt_named": True}}, "goes beyond decay_matrices_only"),
        (usual, {"crops": {"erase_fill": "noise"}}, "where erase is 0"),
        (text, {"drop_path": 0.1}, "for images, without max_length"),
        (text, mixing, "for images, without max_length"),
        (text, {"task_loss": "bce"}, "for images, without max_length"),
        (text, {"label_smoothing": 0.1}, "for images, without max_length"),
        (text, {"flip": True}, "for images, without max_length"),
        (usual, {"tokenizer": "folder"}, "for texts, with max_length"),
        (usual, {"schedule": "onecycle", "warmup": 0.1}, "one cycle rises by itself"),
        (load_protocol("imagenet-100").model_dump(), {"rotation": 15}, "that lie on the device, without crops"),
        (load_protocol("imagenet-100").model_dump(), {"crop_padding": 4}, "that lie on the device, without crops"),
        (load_protocol("coco-1x").model_dump(), {"ema": 0.9}, "not for detection: ema"),
        (
            load_protocol("imagenet-100").model_dump(),
            {"crops": {"interpolation": "random"}},
            "needs a test_interpolation",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            Protocol.model_validate({**base, **changes})
    assert Protocol.model_validate({**text, "ema": 0.9}).ema == 0.9


def test_the_strong_recipes_have_their_sources_values() -> None:
    ofa, deit, a2 = (load_protocol(f"imagenet-{name}") for name in ("ofa", "deit", "vanilla-a2"))
    assert ofa.mixing == deit.mixing and ofa.mixing and (ofa.mixing.mixup, ofa.mixing.cutmix) == (0.8, 1.0)
    assert (ofa.ema, deit.ema, a2.ema) == (0.99996, 0.0, 0.0)
    assert (deit.optimizer.lr, deit.repeats, deit.optimizer.clip) == (5e-4 * 1024 / 512, 3, 0.0)
    assert (ofa.drop_path, deit.drop_path, a2.drop_path) == (0.0, 0.1, 0.05)
    assert (ofa.optimizer.exempt_named, deit.optimizer.exempt_named, a2.optimizer.exempt_named) == (False, True, True)
    assert ofa.crops and deit.crops and ofa.crops.erase_fill == deit.crops.erase_fill == "noise"
    a1 = load_protocol("imagenet-vanilla-a1")
    assert [(p.epochs, p.optimizer.weight_decay, p.label_smoothing, p.mixing and p.mixing.mixup) for p in (a2, a1)] == [
        (300, 0.02, 0.0, 0.1),
        (600, 0.01, 0.1, 0.2),
    ]
    matching = load_protocol("imagenet-function-matching")
    assert matching.optimizer.weight_decay == pytest.approx(3e-4 / matching.optimizer.lr)
    assert matching.epochs == 1200 and matching.warmup * 1200 * (1281167 // 4096) == pytest.approx(5000, rel=0.01)


@pytest.mark.parametrize("name", ["ofa", "ofa-cnn", "deit", "vanilla-a1", "vanilla-a2"])
def test_rates_that_move_with_epochs_are_those_of_timms_schedulers(name: str) -> None:
    """As the recipes' scripts step them: with the number of the next epoch; DeiT's with that of the last one."""
    from timm.scheduler import CosineLRScheduler, StepLRScheduler

    protocol = load_protocol(f"imagenet-{name}")
    how, peak = protocol.by_epoch, protocol.optimizer.lr
    assert how
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    rising = {"warmup_t": how.warmup, "warmup_lr_init": how.first}
    theirs = (
        StepLRScheduler(optimizer, decay_t=30, decay_rate=0.1, warmup_prefix=False, **rising)
        if name == "ofa-cnn"
        else CosineLRScheduler(optimizer, t_initial=protocol.epochs, lr_min=how.last, **rising)
    )
    for epoch in range(1, protocol.epochs + 1):
        for done in (0, 7):  # constant within the epoch
            assert peak * protocol.lr_at(epoch, done, 9)[0] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        theirs.step(epoch - 1 if name == "deit" else epoch)


def test_a_shorter_run_passes_through_the_rates_of_the_recipes_epochs() -> None:
    whole = load_protocol("imagenet-ofa")
    tenth = whole.changed(epochs=30)
    for epoch in (1, 2, 3, 17, 30):
        assert tenth.lr_at(epoch)[0] == pytest.approx(whole.lr_at(1 + 10 * (epoch - 1))[0])
    assert "warm-up over 20 epochs from 5e-07, set once an epoch" in lines(whole)[1]
    assert "warm-up over 2 epochs" in lines(tenth)[1]
    assert "set once an epoch, late by 1" in lines(load_protocol("imagenet-deit"))[1]


def test_settings_of_the_strong_recipes_leave_others_keys_as_they_are() -> None:
    usual = load_protocol("imagenet-100")
    plain = usual.model_dump()
    values = {"drop_path": 0.0, "optimizer": {**plain["optimizer"], "decay_matrices_only": True, "exempt_named": True}}
    values["crops"] = {**plain["crops"], "erase": 0.25, "erase_fill": "noise"}
    values |= {"schedule": "cosine_by_epoch", "by_epoch": {"warmup": 2}, "milestones": ()}
    for key in ("drop_path", "by_epoch"):
        assert key not in usual.identity()
    assert "exempt_named" not in usual.identity()["optimizer"] and "erase_fill" not in usual.identity()["crops"]
    changed = Protocol.model_validate({**plain, **values})
    identity = changed.identity()
    assert (identity["drop_path"], identity["by_epoch"]) == (0.0, {"warmup": 2})
    assert (identity["optimizer"]["exempt_named"], identity["crops"]["erase_fill"]) == (True, "noise")
    text = "\n".join(lines(changed))
    for words in ("but for those that timm exempts", "random erasing 0.25 with noise", "stochastic depth 0"):
        assert words in text and words not in "\n".join(lines(usual))


def test_processes_that_share_a_batch_are_said_and_make_other_cells() -> None:
    usual = load_protocol("cifar100-crd240")
    shared = usual.changed(processes=4)
    said = "each batch on 4 processes (batch statistics are each process's own, of 16 samples, relations those of 64)"
    assert f"fp32, {said}" in lines(shared)[-1] and table_folder_of("t", "paper", usual, shared) == "t-paper-processes4"
    assert shared.identity() == {**usual.identity(), "world_size": 4}
    assert usual.changed(processes=1) is usual and shared.of_one_process().batch_size == 16


def test_synchronised_batch_statistics_are_said_and_make_other_cells() -> None:
    usual = load_protocol("cifar100-crd240")
    shared = usual.changed(processes=4, sync_bn=True)
    said = "each batch on 4 processes (batch statistics, synchronised, and relations are those of 64 samples)"
    assert said in lines(shared)[-1] and table_folder_of("t", "paper", usual, shared) == "t-paper-processes4-syncbn"
    assert shared.identity() == {**usual.changed(processes=4).identity(), "sync_bn": True}
    assert "batch statistics of all processes together" in shared.deviations
    assert not shared.of_one_process().sync_bn
    with pytest.raises(UserError, match="sync_bn: for several processes"):
        usual.changed(sync_bn=True)
    with pytest.raises(UserError, match="not for detection: sync_bn"):
        load_protocol("coco-1x").changed(processes=2, sync_bn=True)


@pytest.mark.parametrize("name", ["grammar-demo", "shapes-demo"])
def test_teachers_of_the_demonstrations_train_for_longer_and_are_else_trained_alike(name: str) -> None:
    students = load_protocol(name)
    teachers = students.for_teachers({})
    assert teachers.epochs > 2 * students.epochs and not teachers.teachers_from
    of_length = {"name", "version", "epochs", "recipe_epochs", "milestones"}
    for key in (set(students.identity()) | set(teachers.identity())) - of_length:
        assert students.identity()[key] == teachers.identity()[key], key
    assert students.for_teachers({"epochs": 1}).epochs < teachers.epochs, "as much shorter as its students are"


def test_teachers_of_letkds_recipe_are_crds():
    """The paper's files are; where there are none they are trained as CRD's were."""
    for name, wanted in (
        ("cifar100-letkd", "cifar100-crd240"),
        ("cifar100-letkd-noise40", "cifar100-crd240"),
        ("cifar100-letkd-short", "cifar100-short"),
        ("cifar100-letkd-noise20-short", "cifar100-short"),
        ("tiny-imagenet-letkd", "tiny-imagenet-letkd"),
    ):
        for_teachers = load_protocol(name).for_teachers({})
        assert for_teachers.name == wanted and for_teachers.epochs == load_protocol(name).epochs


def test_a_caption_says_of_the_rate_what_the_schedule_does(tmp_path: Path) -> None:
    """Not milestones of the protocol that it extends, nor a momentum that moves."""
    said = {}
    for schedule in ("steps", "cosine", "linear", "onecycle"):
        file = tmp_path / f"{schedule}.yaml"
        file.write_text(f"extends: cifar100-crd240\nname: mine\nversion: 1\nschedule: {schedule}\n")
        said[schedule] = lines(load_protocol(str(file)))[1]
    assert [name for name, line in said.items() if "times 0.1 after epochs 150, 180, 210" in line] == ["steps"]
    assert [name for name, line in said.items() if "momentum 0.9," not in line] == ["onecycle"]


def _mine(folder: Path, text: str) -> Protocol:
    (folder / "mine.yaml").write_text(text)
    return load_protocol(str(folder / "mine.yaml"))


@pytest.mark.parametrize("name", protocol_names())
def test_a_changed_protocol_is_not_the_one_that_it_extends(name: str, tmp_path: Path) -> None:
    """Else its numbers would get a gap beside values that were published under the other."""
    changed = _mine(tmp_path, f"extends: {name}\nname: mine\noptimizer: {{lr: 0.0123}}\n")
    assert changed.recipe == "mine" or changed.deviations


def test_what_takes_over_a_recipe_says_what_differs_from_it(tmp_path: Path) -> None:
    begin = "extends: cifar100-crd240\nname: mine\nrecipe: cifar100-crd240\n"
    assert _mine(tmp_path, begin).deviations == ()
    changed = _mine(tmp_path, f"{begin}optimizer: {{lr: 0.1, nesterov: true}}\ndrop_last: true\n")
    assert changed.deviations == ("not as in cifar100-crd240: drop_last, optimizer.lr, optimizer.nesterov",)
    in_words = _mine(tmp_path, f"{begin}optimizer: {{lr: 0.1}}\ndeviations: [twice the rate]\n")
    assert in_words.deviations == ("twice the rate",)
    assert _mine(tmp_path, "extends: cifar100-crd240\nname: mine\noptimizer: {lr: 0.1}\n").deviations == ()
    whole = _mine(tmp_path, "extends: cifar100-short\nname: mine\nepochs: 240\n")
    assert (whole.recipe, whole.deviations) == ("cifar100-crd240", ()), "what the short one says is not said of it"
    faster = "extends: tiny-imagenet-letkd\nname: mine\nrecipe: tiny-imagenet-letkd\noptimizer: {lr: 0.5}\n"
    assert _mine(tmp_path, faster).deviations == (
        *load_protocol("tiny-imagenet-letkd").deviations,
        "not as in tiny-imagenet-letkd: optimizer.lr",
    )


def test_what_differs_from_a_recipe_is_said_of_the_run_as_it_is(tmp_path: Path) -> None:
    begin = "extends: cifar100-crd240\nname: mine\nrecipe: cifar100-crd240\n"
    mine = _mine(tmp_path, f"{begin}epochs: 10\nrecipe_epochs: 240\nprecision: bf16\n")
    assert mine.deviations == ("not as in cifar100-crd240: epochs, precision",)
    assert mine.changed(epochs=240).deviations == ("not as in cifar100-crd240: precision",)
    assert mine.changed(epochs=240, precision="fp32").deviations == ()


def test_a_shipped_file_is_the_suite_s_by_any_path_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    file = PROTOCOLS.files["digits-demo"]
    monkeypatch.chdir(file.parents[1])
    assert load_protocol(f"demo/../demo/{file.name}") == load_protocol("digits-demo")


def test_a_protocol_of_the_user_has_a_name_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml line 1: name: Field required"):
        _mine(tmp_path, "extends: cifar100-crd240\noptimizer: {lr: 0.1}\n")
    for name in ("cifar100-crd240", "digits-demo"):
        with pytest.raises(UserError, match=rf"mine\.yaml line 2: name: '{name}' is a protocol of the suite; give"):
            _mine(tmp_path, f"extends: cifar100-crd240\nname: {name}\n")


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("teacher_answers: {wrong: 0.004}", "teacher_answers: {wrong: 0.001}", "for 0.4% of the images"),
        ("teacher_answers: {missing: 0.125}", "teacher_answers: {missing: 0.12}", "for 12.5% of the images"),
        ("warmup: 0.0134", "warmup: 0.01", "over 1.34% of the steps"),
        ("schedule: cosine\nwarmup: 0.05", "schedule: cosine", "cosine decay after a warm-up over 5% of the steps"),
        ("optimizer: {name: adamw, momentum: 0.5}", "optimizer: {name: adamw}", "AdamW, beta1 0.5, beta2 0.999"),
    ],
)
def test_a_caption_tells_two_recipes_apart(one: str, other: str, said: str, tmp_path: Path) -> None:
    base = "extends: digits-demo\nname: mine\n"
    first, second = ("\n".join(lines(_mine(tmp_path, f"{base}{text}\n"))) for text in (one, other))
    assert said in first and said not in second


def test_what_is_not_there_is_not_scaled() -> None:
    for name, scaled in (("cifar100-crd240", True), ("glue-ft", False), ("cifar100-feature-only", False)):
        (deviation,) = load_protocol(name).changed(epochs=1).deviations[-1:]
        assert deviation.endswith(", milestones scaled") == scaled
    for name in protocol_names():
        assert " 0%" not in " ".join(lines(load_protocol(name)))
