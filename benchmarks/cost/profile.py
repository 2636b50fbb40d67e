"""The profile of one method on one pair: a training step by sections, memory over it, its operators, a Chrome trace."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ..common.files import read_json, write_text
from ..report.model import SECTIONS
from ..store.runs import Store
from .measuring import Bench
from .setup import Suite

ROUNDS, WARM_UP = 5, 2
TOP = 15
MARK = "kd: "

Timeline = list[tuple[float, float]]


def report(method: str, pair: str, suite: Suite, output: Path) -> tuple[str, list[Path]]:
    """Profile a step; returns a text and the files written.

    Raises:
        UserError: an unknown method or pair, or a method that is not made for the pair.
    """
    Store(output).check_writable()
    bench = suite.bench(pair, method)
    bench.seconds(WARM_UP, 1)
    split = bench.split(ROUNDS)
    folder = output / "profiles"
    name = f"{method}-{pair}"
    trace = folder / f"{name}.trace.json"
    operators = _traced(bench, trace)
    timeline, starts = memory_timeline(trace, suite.device.type)
    text_file = folder / f"{name}.txt"
    total = sum(split.values())
    lines = [f"{method} on {pair}, batch {suite.protocol.batch_size}, {suite.machine['machine']}"]
    lines += [f"  {section:10s} {1e3 * split[section]:9.2f} ms  {split[section] / total:5.0%}" for section in SECTIONS]
    lines += [f"  {'step':10s} {1e3 * total:9.2f} ms  {suite.protocol.batch_size / total:.0f} images/s"]
    if timeline:
        lines.append(
            f"  memory of tensors: at most {max(value for _, value in timeline) / 2**20:.0f} MiB within the step"
        )
    text = "\n".join([*lines, "", operators])
    write_text(text_file, text + "\n")
    return text, [text_file, *draw(split, timeline, starts, folder / name), trace]


def _traced(bench: Bench, trace: Path) -> str:
    """Write the trace of one step, its sections marked; returns the table of the operators that take most time."""
    cuda = bench.data.device.type == "cuda"
    with profiler(bench.data.device, profile_memory=True) as profiled:
        for section, run in bench.sections():
            with record_function(MARK + section):
                run()
        if cuda:
            torch.cuda.synchronize(bench.data.device)
    trace.parent.mkdir(parents=True, exist_ok=True)
    profiled.export_chrome_trace(str(trace))
    by = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return profiled.key_averages().table(sort_by=by, row_limit=TOP, max_name_column_width=50)


def profiler(device: torch.device, **options: Any) -> profile:
    """torch's profiler, of what runs on the device."""
    if device.type == "cpu":
        # Read when the profiler is first used: without it its library complains on every CPU that there is no GPU.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        return profile(activities=[ProfilerActivity.CPU], **options)
    return profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], **options)


def memory_timeline(trace: Path, device: str) -> tuple[Timeline, dict[str, float]]:
    """(milliseconds, bytes of live tensors) over a step, and where its sections begin, out of a Chrome trace.

    The profiler counts from its own start, so what lived before the step is not in it.
    """
    events = read_json(trace, limit=2**32)["traceEvents"]
    marked = [e for e in events if e.get("cat") == "user_annotation" and e["name"].startswith(MARK)]
    starts = {e["name"].removeprefix(MARK): e["ts"] for e in marked}
    kind = 1 if device == "cuda" else 0
    memory = [e for e in events if e.get("name") == "[memory]" and e["args"].get("Device Type") == kind]
    begin = min(starts.values(), default=0.0)
    points = sorted((e["ts"], e["args"]["Bytes"]) for e in memory)
    timeline: Timeline = []
    live = 0.0
    for at, size in points:
        live += size
        timeline.append(((at - begin) / 1e3, live))
    return timeline, {section: (at - begin) / 1e3 for section, at in starts.items()}


def draw(split: dict[str, float], timeline: Timeline, starts: dict[str, float], path: Path) -> list[Path]:
    """Milliseconds by section, and live memory over the step, as PDF and PNG."""
    from ..report.figures.drawing import COLOURS, figure, write

    fig, (sections, memory) = figure(panels=2, height=1.6)
    sections.barh(SECTIONS, [1e3 * split[section] for section in SECTIONS], color=COLOURS[1])
    sections.invert_yaxis()
    sections.set_xlabel("ms, each section awaited")
    memory.step([at for at, _ in timeline], [value / 2**20 for _, value in timeline], where="post", color=COLOURS[1])
    after = [*list(starts.values())[1:], max([at for at, _ in timeline], default=0.0)]
    for i, ((section, at), end) in enumerate(zip(starts.items(), after, strict=True)):
        memory.axvspan(at, end, color="0.9" if i % 2 else "1.0", zorder=0)
        level = 1.02 + 0.09 * (i % 2)
        memory.text((at + end) / 2, level, section, fontsize=5.5, ha="center", transform=memory.get_xaxis_transform())
    memory.set_xlabel("ms, under the profiler")
    memory.set_ylabel("MiB of tensors")
    return write(fig, path)
