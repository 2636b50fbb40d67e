"""Settings of the process on which it depends what torch computes: reading and restoring all of them at once."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.backends.opt_einsum  # which earlier versions import where it is used
from torch import nn, overrides
from torch.utils import _python_dispatch


def read() -> list[Any]:
    """The values of all settings, in some order of this version of torch."""
    return [setting.get() for setting in _settings()]


def restore(values: list[Any]) -> list[str]:
    """Give the settings values that were read before; the names of those that had others."""
    current = read()
    if current == values:
        return []
    changed = [setting for setting, old, new in zip(_settings(), values, current, strict=True) if old != new]
    for setting, value in zip(_settings(), values, strict=True):
        if setting.get() != value:  # it may have followed one before it
            setting.set(value)
    return [setting.name for setting in changed]


@contextmanager
def settings_restored() -> Iterator[list[str]]:
    """Context for other people's code: settings that it changed are restored afterwards, and the list names them."""
    before, changed = read(), list[str]()
    try:
        yield changed
    finally:
        changed += restore(before)


class _Setting(NamedTuple):
    name: str
    get: Callable[[], Any]
    set: Callable[[Any], Any]


_DENORMAL = 5e-324
_FLAGS = (
    *(f"cudnn.{name}" for name in ("enabled", "benchmark", "benchmark_limit", "deterministic")),
    *(f"cuda.matmul.allow_{name}" for name in ("fp16_accumulation", "fp16_reduced_precision_reduction")),
    "cuda.matmul.allow_bf16_reduced_precision_reduction",
    *(f"mkldnn.{name}" for name in ("enabled", "deterministic")),
    *(f"opt_einsum.{name}" for name in ("enabled", "strategy")),
)
"""Of :mod:`torch.backends`."""

_PRECISIONS = (
    ("generic", "all"),
    *(("cuda", operation) for operation in ("all", "conv", "rnn", "matmul")),
    *(("mkldnn", operation) for operation in ("all", "conv", "rnn", "matmul")),
)
"""Whose fp32 may be tf32 or bf16; the wider ones before those that follow them."""

_HOOKS = tuple(
    getattr(nn.modules.module, f"_global_{kind}_hooks")
    for kind in (
        *("forward", "forward_pre", "backward", "backward_pre"),
        *("buffer_registration", "module_registration", "parameter_registration"),
    )
)


@functools.cache
def _settings() -> tuple[_Setting, ...]:
    """All of them that this version of torch has."""
    cuda, mha, autograd = torch.backends.cuda, torch.backends.mha, torch.autograd
    return (
        _Setting("number of threads", torch.get_num_threads, torch.set_num_threads),
        _Setting("default dtype", torch.get_default_dtype, torch.set_default_dtype),
        _Setting("default device", _default_device, _set_default_device),
        _Setting("grad mode", torch.is_grad_enabled, torch._C._set_grad_enabled),
        _Setting("anomaly detection", torch.is_anomaly_enabled, autograd.set_detect_anomaly),
        _Setting("deterministic algorithms", torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        _Setting("flush of denormals", lambda: _DENORMAL * 1.0 == 0, torch.set_flush_denormal),
        *_precisions(),
        *(_flag(name) for name in _FLAGS if _has(name)),
        _Setting("NNPACK", torch._C._get_nnpack_enabled, torch._C._set_nnpack_enabled),
        *(_autocast(device) for device in ("cpu", "cuda")),
        _Setting("autocast cache", torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
        _Setting("flash attention", cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
        _Setting("memory-efficient attention", cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
        _Setting("math attention", cuda.math_sdp_enabled, cuda.enable_math_sdp),
        _Setting("cuDNN attention", cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
        _Setting("fast path of attention", mha.get_fastpath_enabled, mha.set_fastpath_enabled),
        *_modes(),
        _Setting("errors of numpy", np.geterr, lambda value: np.seterr(**value)),
        _Setting("hooks of all modules", lambda: tuple(map(tuple, _HOOKS)), _set_hooks),
        _Setting("working directory", _directory, _set_directory),
    )


def _precisions() -> Iterator[_Setting]:
    yield _Setting("precision of matrix products", _product_precision, _set_product_precision)
    if hasattr(torch._C, "_get_fp32_precision_getter"):
        for place in _PRECISIONS:
            get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
            yield _Setting(
                f"fp32 precision of {' '.join(place)}", functools.partial(get, *place), functools.partial(put, *place)
            )
    else:
        yield from map(_flag, ("cudnn.allow_tf32", "cuda.matmul.allow_tf32"))


_MIXED = "mixed"


def _product_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it has been set by the newer switches, too, which are told apart by themselves
        return _MIXED


def _set_product_precision(value: str) -> None:
    if value != _MIXED:
        torch.set_float32_matmul_precision(value)


def _modes() -> Iterator[_Setting]:
    """What stands between a program and torch's operations, and was entered and not left."""
    function, dispatch = torch._C._len_torch_function_stack, torch._C._len_torch_dispatch_stack
    yield _Setting("modes of torch functions", function, functools.partial(_leave, function, overrides._pop_mode))
    yield _Setting("modes of dispatch", dispatch, functools.partial(_leave, dispatch, _python_dispatch._pop_mode))
    autograd: Any = torch._C._autograd
    if hasattr(autograd, "_top_saved_tensors_default_hooks"):
        hooks = functools.partial(autograd._top_saved_tensors_default_hooks, False)
        leave = functools.partial(_leave, hooks, autograd._pop_saved_tensors_default_hooks)
        yield _Setting("hooks of saved tensors", hooks, leave)


def _leave(get: Callable[[], Any], pop: Callable[[], Any], wanted: Any) -> None:
    while (value := get()) and value != wanted:
        pop()


def _owner(flag: str) -> tuple[Any, str]:
    path, _, name = flag.rpartition(".")
    return functools.reduce(getattr, path.split("."), torch.backends), name


def _has(flag: str) -> bool:
    return hasattr(*_owner(flag))


def _flag(flag: str) -> _Setting:
    owner = _owner(flag)
    return _Setting(f"torch.backends.{flag}", functools.partial(getattr, *owner), functools.partial(setattr, *owner))


def _autocast(device: str) -> _Setting:
    def put(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(device, value[0])
        torch.set_autocast_dtype(device, value[1])

    def get() -> tuple[bool, torch.dtype]:
        return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    return _Setting(f"autocast on {device}", get, put)


def _default_device() -> Any:
    return getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)


def _set_default_device(context: Any) -> None:
    torch.set_default_device(context and context.device)


def _directory() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it has been removed
        return None


def _set_directory(path: Path | None) -> None:
    if path is not None:
        os.chdir(path)


def _set_hooks(keys_before: tuple[tuple[int, ...], ...]) -> None:
    for hooks, keys in zip(_HOOKS, keys_before, strict=True):
        for key in set(hooks).difference(keys):
            del hooks[key]
