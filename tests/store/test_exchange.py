"""Archives: the same bytes, taken whole or not at all, merged without loss; what is hostile is refused unread."""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.stores import TABLE_FOLDER, TEACHER, begin, cell, finish, shown, table

from benchmarks.common.files import sha256_file, write_json
from benchmarks.report.collect import render
from benchmarks.store import archives, documents, manifest
from benchmarks.store.cell import Cell
from benchmarks.store.exchange import export, import_, merge, merged
from benchmarks.store.runs import Run, Store
from kd_methods.errors import UserError

KD = cell("kd", 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table(tmp_path_factory.mktemp("made"), "student", "kd")


@pytest.fixture
def theirs(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "theirs")
    return tmp_path / "theirs"


def files(folder: Path) -> dict[str, bytes]:
    """What a store holds, without locks and what can be made again."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "index.sqlite"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def packed(store: Path, **options: Any) -> Path:
    file = store.parent / "runs.zip"
    export(store, file, [TABLE_FOLDER], **options)
    return file


def test_a_table_goes_into_an_empty_store_and_looks_the_same(theirs: Path, tmp_path: Path) -> None:
    file, ours = packed(theirs), tmp_path / "ours"
    merged = import_(file, ours)
    assert len(merged.added) == 5 and not merged.missing and merged.tables == (TABLE_FOLDER,)
    teacher = Store(theirs).run(TEACHER).path.name
    students = [name for name in files(theirs) if name.endswith("student.pt") and teacher not in name]
    content_by_name = {name: content for name, content in files(theirs).items() if name not in students}
    assert files(ours) == content_by_name, "results come as they were written, with the machine that computed them"
    assert render(ours, TABLE_FOLDER, pytest.fail)[1] == render(theirs, TABLE_FOLDER, pytest.fail)[1]


def test_the_same_runs_give_the_same_bytes(theirs: Path, tmp_path: Path) -> None:
    first = sha256_file(packed(theirs))
    copy = tmp_path / "elsewhere" / "store"
    shutil.copytree(theirs, copy)
    assert sha256_file(packed(copy)) == first
    assert export(copy, tmp_path / "b.zip", [TABLE_FOLDER]).sha256 == first


def test_importing_twice_changes_nothing(theirs: Path, tmp_path: Path) -> None:
    file, ours = packed(theirs, also=["students"]), tmp_path / "ours"
    import_(file, ours)
    before = files(ours)
    again = import_(file, ours)
    assert not again.added and again.same == 5 and not again.tables and not again.students and not again.missing
    assert files(ours) == before


def test_networks_can_follow(theirs: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    import_(packed(theirs), ours)
    assert [file.parent for file in ours.rglob("student.pt")] == [Store(ours).run(TEACHER).path], "for who adds a row"
    assert import_(packed(theirs, also=["students"]), ours).students == 4
    assert Store(ours).run(cell("kd", 1)).damage("student.pt") == ""


def test_another_result_of_the_same_cell_is_named_and_not_taken(theirs: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    finish(ours, cell("kd", 0), 60.0)
    before = files(ours)
    merged = import_(packed(theirs), ours)
    assert len(merged.added) == 4 and len(merged.conflicts) == 1
    assert "kd/resnet14-resnet8/s0 (top1 60.00 here, top1 70.00 there)" in merged.missing
    assert {name: content for name, content in files(ours).items() if name in before} == before


def test_students_of_a_teacher_with_other_weights_are_not_taken(theirs: Path, tmp_path: Path) -> None:
    """One that both stores trained, on machines that round otherwise: a table has one teacher for all its seeds."""
    ours = tmp_path / "ours"
    finish(ours, TEACHER, 71.0)
    with Store(ours).run(TEACHER).lock():
        run = Store(ours).run(TEACHER)
        run.write("student.pt", b"rounded otherwise")
        run.set_status("done", **{key: run.status[key] for key in ("epoch", "epochs", "last", "best", "remarks")})
    finish(ours, cell("kd", 1), 70.5)
    merged = import_(packed(theirs), ours)
    assert not merged.added and len(merged.conflicts) == 5, merged
    assert not (Store(ours).run(cell("kd", 0)).path).exists(), "not as a folder without a run"
    assert "student/resnet14-resnet8/s0 (its teacher has other weights here)" in merged.missing


def test_what_is_not_ended_here_is_taken_and_kept_beside_it(theirs: Path, tmp_path: Path) -> None:
    ours, said = tmp_path / "ours", list[str]()
    run = Store(ours).create(cell("kd", 0))
    run.write("checkpoint.pt", b"half")
    run.set_status("interrupted", epoch=0, epochs=1)
    import_(packed(theirs), ours, said.append)
    assert run.state == "done" and (run / "checkpoint.pt.begun-1").read_bytes() == b"half"
    assert any("begun here" in line for line in said)


def test_a_run_that_another_process_computes_is_left_to_it(theirs: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    with Store(ours).run(cell("kd", 0)).lock():
        merged = import_(packed(theirs), ours)
    assert merged.busy == (cell("kd", 0).label,) and "being computed here" in merged.missing


def test_tables_are_joined_and_ours_stays(theirs: Path, tmp_path: Path) -> None:
    ours = table(tmp_path / "ours", "student", "dkd")
    import_(packed(theirs), ours)
    joined = manifest.existing(ours, TABLE_FOLDER)
    assert [row.key for row in joined.rows] == ["student", "kd", "dkd"] and len(joined.cells) == 6
    other = tmp_path / "other"
    manifest.save(other, TABLE_FOLDER, shown(cell("kd", 0), protocol={"epochs": 9}))
    said = list[str]()
    assert not import_(packed(theirs), other, said.append).tables
    assert any("stays as it is in 3 cells" in line for line in said)


def test_stores_are_merged_without_an_archive(theirs: Path, tmp_path: Path) -> None:
    assert len(merge(theirs, tmp_path / "ours").added) == 5
    run = Store(theirs).run(cell("kd", 0))
    (run / "metrics.json").write_text("[]")
    said = list[str]()
    assert len(merge(theirs, tmp_path / "third", said.append).added) == 4 and "metrics.json is damaged" in said[0]
    with pytest.raises(UserError, match="no store in"):
        merge(tmp_path / "absent", tmp_path / "ours")


def test_only_what_has_ended_and_is_whole_is_packed(theirs: Path, tmp_path: Path) -> None:
    Store(theirs).run(cell("kd", 1)).set_status("failed", message="of its own")
    (Store(theirs).run(cell("kd", 0)) / "environment.json").write_text("[]")
    exported = export(theirs, tmp_path / "runs.zip", [TABLE_FOLDER])
    assert (exported.runs, exported.students, exported.left_out) == (3, 1, 2)


def test_what_an_import_would_refuse_is_not_packed(theirs: Path, tmp_path: Path) -> None:
    begun, said = cell("kd", 1), list[str]()
    shutil.rmtree(Store(theirs).run(begun).path)
    (begin(theirs, begun, 2) / "metrics.json").write_text("[")
    plan = shown(cell("student", 0), cell("kd", 0), begun)
    place = {"row": plan.rows[0].key, "column": plan.columns[0].key, "key": "c" * 64}
    write_json(manifest.path(theirs, TABLE_FOLDER), {**plan.model_dump(mode="json"), "costs": [place]})
    Store(theirs).cost("c" * 64).parent.mkdir(exist_ok=True)
    Store(theirs).cost("c" * 64).write_text('{"label": "k')
    file = tmp_path / "runs.zip"
    exported = export(theirs, file, [TABLE_FOLDER], also=["unfinished"], say=said.append)
    assert (exported.begun, exported.left_out) == (0, 1) and len(said) == 2
    assert all(line.startswith("left out: ") for line in said), said
    assert import_(file, tmp_path / "ours").added


def test_unfinished_runs_are_packed_where_they_are_asked_for(theirs: Path, tmp_path: Path) -> None:
    ours, begun = tmp_path / "ours", cell("kd", 1)
    shutil.rmtree(Store(theirs).run(begun).path)
    begin(theirs, begun, 2)
    assert import_(packed(theirs), ours).begun == ()
    assert not Store(ours).run(begun).path.exists()
    merged = import_(packed(theirs, also=["unfinished"]), ours)
    assert merged.begun == (begun.label,) and merged.same == 4 and not merged.missing
    here = Store(ours).run(begun)
    assert Store(ours).run(TEACHER).student().is_file(), "its teacher goes on teaching it"
    assert here.saved_epochs == 2 and (here / "checkpoint.pt").read_bytes() == b"state"
    assert render(ours, TABLE_FOLDER, pytest.fail)[1] == render(theirs, TABLE_FOLDER, pytest.fail)[1]


def test_a_stopped_table_brings_the_teachers_whose_students_have_not_begun(theirs: Path, tmp_path: Path) -> None:
    """Teachers are trained first: another machine would train them to other bits under the same key."""
    for seed in (0, 1):
        for method in ("student", "kd"):
            shutil.rmtree(Store(theirs).run(cell(method, seed)).path)
    import_(packed(theirs, also=["unfinished"]), tmp_path / "ours")
    assert Store(tmp_path / "ours").run(TEACHER).student().is_file()


@pytest.mark.parametrize(("epochs", "taken"), [(1, True), (2, False), (3, False)])
def test_of_two_unfinished_runs_the_one_that_is_further_stays(tmp_path: Path, epochs: int, taken: bool) -> None:
    ours, theirs, said = tmp_path / "ours", tmp_path / "theirs", list[str]()
    begin(theirs, KD, 2)
    run = begin(ours, KD, epochs, b"ours")
    export(theirs, tmp_path / "runs.zip", runs=[KD.key], also=["unfinished"])
    merged = import_(tmp_path / "runs.zip", ours, said.append)
    assert merged.begun == ((KD.label,) if taken else ()) and merged.same == (not taken)
    assert (run / "checkpoint.pt").read_bytes() == (b"state" if taken else b"ours")
    assert (run / "checkpoint.pt.begun-1").exists() == taken == any("is further elsewhere" in line for line in said)


def test_epochs_of_first_phases_count(tmp_path: Path) -> None:
    ours, theirs = begin(tmp_path / "ours", KD, 1), begin(tmp_path / "theirs", KD, 3)
    for run in (ours, theirs):
        run.set_metrics([{**record, "phase": "first"} for record in run.metrics])
    assert ours.saved_epochs == theirs.saved_epochs == 0
    export(tmp_path / "theirs", tmp_path / "runs.zip", runs=[KD.key], also=["unfinished"])
    assert import_(tmp_path / "runs.zip", tmp_path / "ours", lambda line: None).begun == (KD.label,)


def test_of_two_stores_shown_as_one_the_further_run_counts(tmp_path: Path) -> None:
    for name, epochs in (("a", 1), ("b", 3), ("c", 2)):
        run = begin(tmp_path / name, KD, epochs)
        (run / "checkpoint.pt").rename(run / "mmengine")  # as of detection, whose checkpoints stay behind
    with merged([tmp_path / name for name in "abc"], pytest.fail) as both:
        assert len(Store(both).run(KD).metrics) == 3


def test_a_run_that_ends_while_others_are_merged_stays(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of the runs here is known from before; each is locked when its turn comes."""
    ours = begin(tmp_path / "ours", KD, 2)
    lock = Run.lock

    @contextmanager
    def ending_before(run: Run) -> Iterator[bool]:
        if run.path == ours.path:
            monkeypatch.setattr(Run, "lock", lock)
            finish(tmp_path / "ours", KD, 55.0)
        with lock(run) as mine:
            yield mine

    monkeypatch.setattr(Run, "lock", ending_before)
    (conflict,) = merge(theirs, tmp_path / "ours").conflicts
    assert conflict.startswith(KD.label) and ours.status["last"] == {"top1": 55.0}
    assert not list(ours.path.glob("*.begun-*"))


def test_a_table_that_is_planned_anew_while_it_is_packed_is_packed_whole(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks, other = archives.chunks, manifest.existing(theirs, TABLE_FOLDER).model_copy(update={"title": "Another"})
    manifest.save(tmp_path / "other", TABLE_FOLDER, other)

    def changing(path: Path) -> Iterator[bytes]:
        if path.name == "cell.json":
            shutil.copy(manifest.path(tmp_path / "other", TABLE_FOLDER), manifest.path(theirs, TABLE_FOLDER))
        yield from chunks(path)

    monkeypatch.setattr(archives, "chunks", changing)
    assert len(import_(packed(theirs), tmp_path / "ours").added) == 5


def test_a_result_is_more_than_an_unfinished_run(theirs: Path, tmp_path: Path) -> None:
    before = files(theirs)
    begin(tmp_path / "other", KD, 2)
    export(tmp_path / "other", tmp_path / "runs.zip", runs=[KD.key], also=["unfinished"])
    assert import_(tmp_path / "runs.zip", theirs).same == 1 and files(theirs) == before


def test_a_run_in_training_is_not_packed_or_replaced(theirs: Path, tmp_path: Path) -> None:
    begin(tmp_path / "other", KD, 2)
    export(tmp_path / "other", tmp_path / "runs.zip", runs=[KD.key], also=["unfinished"])
    run, said = begin(tmp_path / "ours", KD, 1), list[str]()
    with run.lock():
        assert import_(tmp_path / "runs.zip", tmp_path / "ours").busy == (KD.label,)
        with pytest.raises(UserError, match="nothing to export"):
            export(tmp_path / "ours", tmp_path / "b.zip", runs=[KD.key], also=["unfinished"], say=said.append)
    assert "is being computed" in said[0]


@pytest.mark.parametrize(
    ("name", "change"),
    [("checkpoint.pt", None), ("environment.json", None), ("metrics.json", b"{"), ("status.json", b"{}")],
)
def test_an_unfinished_run_that_cannot_go_on_is_refused(tmp_path: Path, name: str, change: bytes | None) -> None:
    begin(tmp_path / "other", KD, 2)
    export(tmp_path / "other", tmp_path / "runs.zip", runs=[KD.key], also=["unfinished"])

    def changed(content: dict[str, bytes]) -> None:
        del content[name_of(KD, name)]
        if change:
            content[name_of(KD, name)] = change

    refused(repacked(tmp_path / "runs.zip", changed), tmp_path / "ours")


def test_single_runs_bring_their_teacher(theirs: Path, tmp_path: Path) -> None:
    exported = export(theirs, tmp_path / "runs.zip", runs=[cell("kd", 1).key[:6]])
    assert exported.runs == 2 and len(import_(tmp_path / "runs.zip", tmp_path / "ours").added) == 2
    for start, words in (("", "several begin so"), ("xyz", "none begins so")):
        with pytest.raises(UserError, match=words):
            export(theirs, tmp_path / "runs.zip", runs=[start])
    with pytest.raises(UserError, match="nothing to export"):
        export(table(tmp_path / "empty"), tmp_path / "none.zip", [])


def repacked(file: Path, change: Callable[[dict[str, bytes]], None], honest: bool = True) -> Path:
    """An archive whose files were changed, with an index that fits them or, if not honest, the old one."""
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    change(content)
    target = file.with_name("changed.zip")
    folder = file.parent / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    if honest:
        del content[archives.INDEX]
        for name, text in content.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(text)
        archives.write(target, {name: folder / name for name in content})
    else:
        with zipfile.ZipFile(target, "w") as archive:
            for name, text in content.items():
                archive.writestr(name, text)
    return target


def name_of(one: Cell, file: str) -> str:
    return f"runs/{one.key[:16]}/{file}"


def refused(file: Path, output: Path) -> str:
    """The line with which an archive is refused; nothing of it is in the store."""
    before = files(output) if output.exists() else {}
    with pytest.raises(UserError) as caught:
        import_(file, output)
    assert (files(output) if output.exists() else {}) == before
    assert not list(output.glob(".kdbench-archive*")), "nothing is left behind"
    line = str(caught.value)
    assert str(file) in line and "\n" not in line
    return line


def edit(one: Cell, file: str, **changes: Any) -> Callable[[dict[str, bytes]], None]:
    """Change a document, and its seal with it."""

    def change(content: dict[str, bytes]) -> None:
        old = json.loads(content[name_of(one, file)])
        old.pop(documents.SEAL, None)
        content[name_of(one, file)] = json.dumps(documents.sealed({**old, **changes})).encode()

    return change


def drop(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda content: content.pop(name) and None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit(KD, "status.json", last={"top1": 99.0}), "other results than its epochs"),
        (edit(KD, "status.json", best={"top1": 99.0}), "other results than its epochs"),
        (edit(KD, "status.json", state="running"), "kd/resnet14-resnet8/s0"),
        (edit(KD, "status.json", key=TEACHER.key), "results of another cell"),
        (edit(KD, "cell.json", cell={**KD.identity(), "seed": 7}), "the key is not this cell's"),
        (lambda content: content.update({name_of(KD, "metrics.json"): b"[]"}), "metrics.json is damaged"),
        (lambda content: content.update({name_of(KD, "environment.json"): b"[]"}), "environment.json is damaged"),
        (lambda content: content.update({name_of(KD, "status.json"): b"{"}), "status.json"),
        (drop(name_of(KD, "cell.json")), "cell.json is missing"),
        (drop(name_of(KD, "status.json")), "missing"),
        (drop(name_of(KD, "metrics.json")), "metrics.json is missing"),
        (lambda content: content.update({"costs/" + "0" * 16 + ".json": b"{"}), "costs/"),
    ],
)
def test_runs_that_do_not_verify_are_refused_with_a_good_index_too(
    theirs: Path, tmp_path: Path, change: Any, words: str
) -> None:
    assert words in refused(repacked(packed(theirs), change), tmp_path / "ours")


@pytest.mark.parametrize(
    "changes",
    [{"name": "../../evil"}, {"published": "../teachers.yaml"}, {"name": "other"}, {"cells": [{"key": "../../etc"}]},
     {"columns": [{"key": "../../../a-b"}]}, {"cells": [{"row": "odd"}]}],
)  # fmt: skip
def test_a_manifest_that_names_what_is_no_name_is_refused(theirs: Path, tmp_path: Path, changes: dict) -> None:
    def change(content: dict[str, bytes]) -> None:
        old = shown(cell("student", 0)).model_dump(mode="json")
        for name, value in changes.items():
            old[name] = [{**old[name][0], **value[0]}] if isinstance(value, list) else value
        content[f"tables/{TABLE_FOLDER}/plan.json"] = json.dumps(old).encode()

    assert "plan.json" in refused(repacked(packed(theirs), change), tmp_path / "ours")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.update({name_of(KD, "metrics.json"): b"[]"}), "not what was packed"),
        (drop(name_of(KD, "status.json")), "not both in it and in its index"),
        (lambda content: content.update({name_of(KD, "student.pt"): b"own"}), "not both in it and in its index"),
        (drop(archives.INDEX), "has no archive.json"),
        (lambda content: content.update({"../evil": b""}), "is called '../evil'"),
        (lambda content: content.update({"/etc/evil": b""}), "is called '/etc/evil'"),
        (lambda content: content.update({"runs/" + "0" * 16 + "/../../x/cell.json": b""}), "is called 'runs/"),
        (lambda content: content.update({"runs/" + "0" * 16 + "/": b""}), "is called 'runs/"),
        (lambda content: content.update({"tables/../plan.json": b""}), "is called 'tables/../plan.json'"),
        (lambda content: content.update({"tables/x\\..\\y/plan.json": b""}), "is called"),
        (lambda content: content.update({"runs/evil.py": b""}), "is called 'runs/evil.py'"),
    ],
)
def test_what_is_not_as_it_was_packed_is_refused(theirs: Path, tmp_path: Path, change: Any, words: str) -> None:
    assert words in refused(repacked(packed(theirs), change, honest=False), tmp_path / "ours")
    assert not (tmp_path / "evil").exists()


def forged(file: Path, name: str, text: bytes = b"", **facts: Any) -> Path:
    """An archive with one more file, whose header says what it likes."""
    target = file.with_name("forged.zip")
    shutil.copy(file, target)
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    for fact, value in facts.items():
        setattr(info, fact, value)
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(info, text)
    return target


def test_links_bombs_and_doubles_are_refused(theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, ours, odd = packed(theirs), tmp_path / "ours", "runs/" + "0" * 16
    link = forged(file, f"{odd}/cell.json", b"/etc/passwd", external_attr=(stat.S_IFLNK | 0o777) << 16)
    assert "is a link or device" in refused(link, ours)
    assert "compressed, which weights never are" in refused(forged(file, f"{odd}/student.pt", bytes(2**20)), ours)
    lzma = forged(file, f"{odd}/cell.json", bytes(2**10), compress_type=zipfile.ZIP_LZMA)
    assert "in a way that archives of runs are not" in refused(lzma, ours)
    monkeypatch.setattr(archives, "MOST_OF_A_DOCUMENT", 2**20)
    bomb = forged(file, f"{odd}/metrics.json", bytes(2**20 + 1))
    assert bomb.stat().st_size < 2**20 and "that is no document" in refused(bomb, ours)
    with pytest.warns(UserWarning, match="Duplicate"):
        double = forged(file, archives.INDEX)
    assert "more than once" in refused(double, ours)
    for limit in ("MOST_MEMBERS", "MOST_OF_ALL"):
        with monkeypatch.context() as patch:
            patch.setattr(archives, limit, 5)
            assert "no archive of runs" in refused(file, ours)


def test_damaged_files_are_refused(theirs: Path, tmp_path: Path) -> None:
    file, ours = packed(theirs), tmp_path / "ours"
    whole, target = file.read_bytes(), tmp_path / "damaged.zip"
    for content in (b"", b"no archive", whole[: len(whole) // 2], whole[:200] + b"\0\0" + whole[202:]):
        target.write_bytes(content)
        refused(target, ours)
    refused(tmp_path, ours)
    refused(tmp_path / "absent.zip", ours)


def test_a_result_keeps_its_provenance(theirs: Path, tmp_path: Path) -> None:
    finish(theirs, cell("dkd", 0), 71.0, machine="a far machine")
    manifest.save(theirs, TABLE_FOLDER, shown(cell("dkd", 0)))
    ours = table(tmp_path / "ours", "student", "kd")
    import_(packed(theirs), ours)
    assert Store(ours).run(cell("dkd", 0)).environments[0]["machine"] == "a far machine"
    assert Store(ours).run(cell("kd", 0)).environments[0]["machine"] == "a machine"


def test_a_cell_is_known_by_its_identity() -> None:
    for one in (KD, TEACHER, cell("crd+kd", 3, init="first", versions={"task:digits": 1}, start=KD.teacher)):
        assert Cell.of(one.identity()).key == one.key
