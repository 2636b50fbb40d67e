"""Files of weights: every form that the field has is read, everything else refused in one line, and nothing is run."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import pickle
import struct
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from benchmarks.common.weights import Taken, fit, load_weights, read, take, to_bytes, weights_digest
from benchmarks.networks import build_network
from kd_methods.errors import Damaged, DiskError, UserError

State = dict[str, Tensor]


def network_weights(name: str = "resnet8", num_classes: int = 10) -> State:
    torch.manual_seed(0)
    return build_network(name, num_classes).module.state_dict()


@pytest.fixture
def weights() -> State:
    return network_weights()


def saved(path: Path, content: Any, **how: Any) -> Path:
    torch.save(content, path, **how)
    return path


def taken(path: Path, which: str = "") -> Taken:
    return take(path, lambda _: build_network("resnet8", 10).module, which)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert line.isprintable() and len(line) < 600
    return line


def under(prefix: str, weights: State) -> State:
    return {f"{prefix}{key}": value for key, value in weights.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": lambda w: w,
    "model": lambda w: {"epoch": 240, "model": w, "best_acc": torch.tensor(72.3)},
    "state_dict": lambda w: {"state_dict": w, "optimizer": {"state": {}}},
    "net": lambda w: {"net": w, "acc": 72.3},
    "another name": lambda w: {"epoch": 3, "weights": w, "scaler": {"scale": torch.tensor(2.0)}},
    "two names": lambda w: {"epoch": 3, "checkpoint": {"student": w}},
    "module.": lambda w: under("module.", w),
    "state_dict with module.": lambda w: {"state_dict": under("module.", w)},
    "compiled": lambda w: {"model": under("_orig_mod.", w)},
    "compiled and parallel": lambda w: {"model": under("module._orig_mod.", w)},
    "Lightning": lambda w: {"state_dict": under("model.", w), "pytorch-lightning_version": "2.4", "callbacks": {}},
    "Lightning, of another name": lambda w: {"state_dict": under("net.backbone.", w)},
    "an average": lambda w: {"model_ema": {"n_averaged": torch.tensor(5), **under("module.", w)}},
    "parameters": lambda w: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in w.items()},
    "without counters": lambda w: {k: v for k, v in w.items() if not k.endswith("num_batches_tracked")},
    "options beside": lambda w: {"opt": argparse.Namespace(lr=0.05, model="resnet8"), "model": w},
    **{
        f"numpy {value!r} beside": lambda w, value=value: {"model": w, "accuracy": value}
        for value in (np.float64(72.34), np.float32(72.34), np.bool_(True), np.int64(3), np.uint8(3), np.str_("a"))
    },
    "numpy array beside": lambda w: {"model": w, "curve": np.arange(3.0), "sizes": np.array([1, 2])},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_fields_checkpoint_files_are_read(tmp_path: Path, weights: State, form: str) -> None:
    read_weights = taken(saved(tmp_path / "file.pth", FORMS[form](weights)))
    assert list(read_weights.weights) == list(weights)
    assert all(torch.equal(read_weights.weights[key], weights[key]) for key in weights)
    assert weights_digest(read_weights.weights) == weights_digest(weights)
    assert not read_weights.others


@pytest.mark.parametrize("zipped", [True, False])
def test_old_and_new_files_of_torch_are_read(tmp_path: Path, weights: State, zipped: bool) -> None:
    path = saved(tmp_path / "file.pth", {"model": weights}, _use_new_zipfile_serialization=zipped)
    assert weights_digest(load_weights(path)) == weights_digest(weights)


@pytest.mark.parametrize("core", ["_core", "core"])
def test_values_of_numpy_1_and_2_are_read(tmp_path: Path, weights: State, core: str) -> None:
    """numpy 1 has the functions that make arrays and scalars in another module."""
    path = saved(tmp_path / "file.pth", {"model": weights, "best": np.float64(3)}, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"cnumpy._core.multiarray\n") == 1
    path.write_bytes(content.replace(b"cnumpy._core.", f"cnumpy.{core}.".encode()))
    assert weights_digest(load_weights(path)) == weights_digest(weights)


def test_which_of_several_weights_are_taken_is_said(tmp_path: Path, weights: State) -> None:
    average = {key: value / 2 if value.is_floating_point() else value for key, value in weights.items()}
    for names in (("state_dict", "state_dict_ema"), ("model", "model_ema"), ("weights", "ema.shadow")):
        raw, ema = names
        outer, _, inner = ema.partition(".")
        content = {outer: {inner: average} if inner else under("module.", average), raw: weights, "epoch": 1}
        path = saved(tmp_path / "file.pth", content)
        read_weights = taken(path)
        assert (read_weights.name, read_weights.others) == (raw, (ema,)) and torch.equal(
            read_weights.weights["fc.bias"], weights["fc.bias"]
        )
        other = taken(path, ema)
        assert (other.name, other.others) == (ema, (raw,)) and torch.equal(other.weights["fc.bias"], average["fc.bias"])
        assert f"did you mean {ema}" in refusal(lambda path=path, ema=ema: taken(path, f"{ema}x"))
    module = build_network("resnet8", 10).module
    module.load_state_dict(weights)
    swa = AveragedModel(module).state_dict()
    assert "n_averaged" in swa
    read_weights = taken(saved(tmp_path / "swa.pth", swa))
    assert weights_digest(read_weights.weights) == weights_digest(weights)


def test_what_lies_first_but_does_not_fit_is_not_taken(tmp_path: Path, weights: State) -> None:
    content = {"model": network_weights("resnet14"), "student": weights}
    assert taken(saved(tmp_path / "file.pth", content)).name == "student"
    assert "another architecture" in refusal(lambda: taken(tmp_path / "file.pth", "model"))


def test_the_digest_is_that_of_the_tensors(weights: State) -> None:
    digest = weights_digest(weights)
    assert weights_digest(dict(reversed(weights.items()))) == digest
    key = next(iter(weights))
    assert weights_digest({**weights, key: weights[key] + 1e-6}) != digest
    assert weights_digest({**weights, key: weights[key].double()}) != digest
    assert weights_digest({**weights, key: weights[key].reshape(-1)}) != digest
    assert weights_digest({k + "x" if k == key else k: v for k, v in weights.items()}) != digest


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_one_clear_line(tmp_path: Path, weights: State, share: float, zipped: bool) -> None:
    path = saved(tmp_path / "file.pth", weights, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert str(path) in refusal(lambda: load_weights(path)) and "truncated" in refusal(lambda: load_weights(path))


@pytest.mark.parametrize(
    "content", [{}, [1, 2], torch.zeros(3), {"model": {"epoch": 3}}, {"model": "resnet8"}, {1: torch.zeros(1)}], ids=str
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    path = saved(tmp_path / "file.pth", content)
    assert "holds no state dict" in refusal(lambda: load_weights(path))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.eye(64).to_sparse(), "sparse"),
        (torch.eye(64).to_sparse_csr(), "sparse"),
        (torch.eye(64, device="meta"), "without values"),
        (torch.eye(64).to(torch.complex64), "complex"),
        (torch.eye(64).to(torch.float8_e4m3fn), "quantised"),
        (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested"),
        (torch.zeros(64, dtype=torch.int8), "integers (torch.int8)"),
        (torch.full((64,), torch.nan), "64 of 64 values of 'layer3.0.bn2.weight' are NaN or infinite"),
        (torch.ones(64).index_fill(0, torch.tensor(3), torch.inf), "1 of 64 values"),
        (torch.full((64,), 1e300, dtype=torch.float64), "64 of 64 values"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_are_no_weights_are_refused(tmp_path: Path, weights: State, value: Tensor, words: str) -> None:
    path = saved(tmp_path / "file.pth", {"model": {**weights, "layer3.0.bn2.weight": value}})
    line = refusal(lambda: taken(path))
    assert words in line and str(path) in line and "layer3.0.bn2.weight" in line


@pytest.mark.filterwarnings("ignore")  # torch's own, about quantisation
def test_quantised_weights_are_refused(tmp_path: Path, weights: State) -> None:
    value = torch.quantize_per_tensor(weights["fc.weight"], 0.1, 0, torch.qint8)
    path = saved(tmp_path / "file.pth", {**weights, "fc.weight": value})
    assert "'fc.weight' is quantised (torch.qint8)" in refusal(lambda: taken(path))


def test_a_negative_variance_is_refused(tmp_path: Path, weights: State) -> None:
    path = saved(tmp_path / "file.pth", {**weights, "bn1.running_var": -torch.ones(16)})
    assert "'bn1.running_var' has negative variances" in refusal(lambda: taken(path))


def test_half_precision_is_accepted(tmp_path: Path, weights: State) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    assert taken(saved(tmp_path / "file.pth", half)).weights["fc.weight"].dtype == torch.float16


def test_what_is_no_checkpoint_is_named(tmp_path: Path, weights: State) -> None:
    path = tmp_path / "file.pth"
    assert "there is no file" in refusal(lambda: load_weights(path))
    assert "is no file" in refusal(lambda: load_weights(tmp_path))
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("ckpt.pth"), io.BytesIO())
    for content, words in (
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1114\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>Virus scan warning</body></html>", "HTML page"),
        (b"\n  <html>404 Not Found</html>", "HTML page"),
        (struct.pack("<Q", len(header)) + header + bytes(4), "safetensors"),
        (archive.getvalue(), "archive"),
        (b"just some text", "no readable checkpoint"),
        (pickle.dumps({"a": 1}), "no readable checkpoint"),
    ):
        path.write_bytes(content)
        assert words in refusal(lambda: load_weights(path)) and str(path) in refusal(lambda: load_weights(path))
    objects = argparse.Namespace(data=Path("data"))
    saved(path, {"model": weights, "args": objects})
    line = refusal(lambda: load_weights(path))
    assert "it holds a pathlib" in line and "PosixPath" in line and "torch.save(model.state_dict(), FILE)" in line


def test_an_archive_that_unpacks_to_more_than_it_is_stays_closed(tmp_path: Path, weights: State) -> None:
    plain, packed = saved(tmp_path / "plain.pth", weights), tmp_path / "packed.pth"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert "it is compressed" in refusal(lambda: load_weights(packed))


def test_a_file_that_may_not_be_read_is_no_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "file.pth", {})

    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(DiskError, match="Permission denied"):
        read(path)


class Bomb:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_executed(tmp_path: Path, weights: State, zipped: bool) -> None:
    path, target = tmp_path / "file.pth", tmp_path / "executed"
    saved(path, {"model": weights, "x": Bomb(str(target))}, _use_new_zipfile_serialization=zipped)
    assert str(path) in refusal(lambda: load_weights(path))
    assert not target.exists()


def test_another_architecture_or_number_of_classes_is_named() -> None:
    module = build_network("resnet8", 10).module
    other = refusal(lambda: fit(network_weights("wrn_16_1"), module, "a.pth"))
    assert other.startswith("a.pth is a checkpoint of another architecture") and "keys missing" in other
    classes = refusal(lambda: fit(network_weights(num_classes=100), module, "a.pth"))
    assert "(100, 64)" in classes and "(10, 64)" in classes
    deeper = refusal(lambda: fit(network_weights("resnet14"), module, "a.pth"))
    assert "0 keys missing" in deeper
    assert "another architecture" in refusal(
        lambda: fit({**under("a.", module.state_dict()), "b.x": torch.zeros(1)}, module, "a.pth")
    )


# --- whatever a file holds

bounded = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(3, 2), nn.BatchNorm1d(2)


@functools.cache
def patience() -> float:
    """Seconds of the processor that no small file needs, on a slow machine more of them: a good one takes milliseconds.

    What takes longer is work without an end, or for sizes that a file claims and does not have.
    """
    content, start = to_bytes(TwoLayers().state_dict()), time.process_time()
    for _ in range(10):
        torch.load(io.BytesIO(content), weights_only=True)
    return max(5.0, 1000 * (time.process_time() - start))


def is_read_or_refused(path: Path) -> None:
    """It is ordinary tensors that fit, or one line; and it does not take long."""
    limit, start = patience(), time.process_time()
    try:
        read_weights = take(path, lambda _: TwoLayers())
    except UserError as error:
        assert str(path) in str(error) and str(error).isprintable() and len(str(error)) < 600
    else:
        wanted = TwoLayers().state_dict()
        assert {key: value.shape for key, value in read_weights.weights.items()} == {
            k: v.shape for k, v in wanted.items()
        }
        assert all(value.isfinite().all() for value in read_weights.weights.values())
    assert time.process_time() - start < limit


@bounded
@given(
    zipped=st.booleans(),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    tail=st.binary(max_size=20),
)
def test_damage_of_any_kind(
    tmp_path_factory: pytest.TempPathFactory, zipped: bool, cut: float, flips: list[tuple[float, int]], tail: bytes
) -> None:
    path = saved(
        tmp_path_factory.getbasetemp() / "fuzz.pth", TwoLayers().state_dict(), _use_new_zipfile_serialization=zipped
    )
    content = bytearray(path.read_bytes())
    for place, value in flips:
        content[int(place * len(content))] = value
    path.write_bytes(bytes(content[: int(cut * len(content)) if cut < 0.7 else None]) + tail)
    is_read_or_refused(path)


@bounded
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
def test_any_other_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.pth"
    path.write_bytes(content)
    is_read_or_refused(path)


OWN = TwoLayers().state_dict()
KEYS = st.sampled_from([*OWN, *under("module.", OWN), "epoch", "model", "state_dict", "ema", "\n\x00"])
TENSORS = st.builds(
    lambda value, dtype: value.to(dtype),
    st.sampled_from([*OWN.values(), torch.full((2,), torch.nan), torch.eye(2).to_sparse(), torch.zeros(0)]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64]),
)
CONTENTS = st.recursive(
    st.one_of(
        TENSORS, st.none(), st.integers(), st.text(max_size=5), st.sampled_from([np.float64(1), Path("a"), print])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(KEYS, st.integers()), inner, max_size=4),
        st.dictionaries(KEYS, TENSORS, min_size=1, max_size=8),
        st.dictionaries(KEYS, TENSORS, max_size=2).map(lambda changed: {**OWN, **changed}),
    ),
    max_leaves=12,
)


@bounded
@given(content=CONTENTS)
def test_any_content(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    is_read_or_refused(saved(tmp_path_factory.getbasetemp() / "fuzz.pth", content))


MARK = b"touch executed"
STEPS = [
    *(b"c" + name + b"\n" for name in (
        b"os\nsystem", b"posix\nsystem", b"builtins\nexec", b"builtins\ngetattr", b"builtins\n__import__",
        b"subprocess\nPopen", b"torch\nload", b"torch.hub\nload", b"argparse\nNamespace", b"numpy\nload",
        b"numpy.core.multiarray\nscalar", b"numpy.core.multiarray\n_reconstruct", b"numpy\nndarray", b"numpy\ndtype",
        b"torch._utils\n_rebuild_tensor_v2", b"torch._utils\n_rebuild_parameter", b"torch\nFloatStorage",
        b"torch._tensor\n_rebuild_from_type_v2", b"collections\nOrderedDict", b"_codecs\nencode",
    )),
    *(b"X" + struct.pack("<I", len(text)) + text for text in (MARK, b"model", b"fc.bias", b"f8", b"storage", b"cpu")),
    *(b"(", b"t", b")", b"R", b"R", b"}", b"]", b"b", b"s", b"u", b"a", b"e", b"0", b"2", b"N", b"K\x01", b"\x81"),
    *(b"\x85", b"\x86", b"\x87", b"q\x00", b"h\x00", b"Q", b"J\xff\xff\xff\x7f", b"M\xff\xff"),
]  # fmt: skip
"""Steps of a pickle: functions that a hostile file calls and those that torch allows, values, calls."""


@bounded
@given(steps=st.lists(st.sampled_from(STEPS), max_size=25))
def test_any_pickle(tmp_path_factory: pytest.TempPathFactory, steps: list[bytes]) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / "fuzz.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"".join(steps) + b".")
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", bytes(64))
    with contextlib.chdir(folder):
        is_read_or_refused(path)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("bit", [4, *(pytest.param(bit, marks=pytest.mark.slow) for bit in (0, 1, 2, 3, 5, 6, 7))])
def test_no_bit_of_a_file_changes_unseen(tmp_path: Path, bit: int) -> None:
    """Whichever bit flips, the file is refused or gives what was written: torch alone reads other numbers."""
    state = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([7, 8])}
    path, content = tmp_path / "file.pt", to_bytes(state)
    seen = Counter[str]()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        try:
            read_state = read(path)
            assert read_state.keys() == state.keys() and all(
                torch.equal(read_state[key], state[key]) for key in state
            ), place
            seen["as written"] += 1
        except Damaged as error:
            assert str(path) in str(error) and "\n" not in str(error)
            seen["refused"] += 1
    assert seen["refused"] > 200, seen  # the others lie in what pads and dates


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        (tmp_path / "file.pt").write_bytes(to_bytes({"a": torch.ones(3)}))
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read(tmp_path / "file.pt")["a"], torch.ones(3))
