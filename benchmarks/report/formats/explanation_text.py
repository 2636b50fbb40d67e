"""An explanation of a number, in words for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from ..explain import Explanation, Seed, Value

WIDTH = 60
"""Most characters of a curve."""

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(curve: Sequence[float]) -> str:
    """A curve in one line, from its least to its greatest value; of many epochs some, the last among them."""
    count = min(len(curve), WIDTH)
    picked = [curve[(i + 1) * len(curve) // count - 1] for i in range(count)]
    low, high = min(picked, default=0.0), max(picked, default=0.0)
    return "".join(BLOCKS[round((value - low) / (high - low or 1.0) * (len(BLOCKS) - 1))] for value in picked)


def text(explanation: Explanation) -> str:
    """An explanation in words."""
    lines = [
        f"{explanation.title} on {explanation.pair}, {explanation.metric} (table {explanation.table_folder})",
        *explanation.outcome,
    ]
    if explanation.deviations:
        lines.append(f"not the paper's protocol: {'; '.join(explanation.deviations)}")
    lines += ["", "protocol of the table", *(f"  {line}" for line in explanation.protocol_lines)]
    for heading, values in (("its values (what is left out is every protocol's default)", explanation.protocol),
                            ("settings", explanation.settings)):  # fmt: skip
        lines += ["", heading, *_aligned(values)]
    lines += ["", "teacher", *(f"  {line}" for line in explanation.teacher)]
    versions = ", ".join(f"{name} version {number}" for name, number in explanation.versions.items())
    lines += ["", f"data  {explanation.data}"]
    if versions:
        lines.append(f"code  {versions}")
    for seed in explanation.seeds:
        lines += ["", *_seed_lines(seed)]
    return "\n".join(lines)


def _aligned(values: Sequence[Value]) -> list[str]:
    names = max((len(value.name) for value in values), default=0)
    texts = {value.name: json.dumps(value.value) for value in values}
    width = max((len(shown) for shown in texts.values() if len(shown) <= 30), default=0)
    return [f"  {value.name:{names}}  {texts[value.name]:{width}}  {value.source}" for value in values] or ["  none"]


def _seed_lines(seed: Seed) -> Iterator[str]:
    figures = "" if seed.last is None else f": last {seed.last:.2f}, best {seed.best:.2f}"
    yield f"seed {seed.seed}: {seed.state}{figures}" + (f": {seed.message}" if seed.message else "")
    yield f"  run      {seed.folder} (key {seed.key})"
    for env in seed.environments:
        where = f"{env['machine']}, {env.get('device', 'device not recorded')}, torch {env['versions']['torch']}"
        begin = f"from epoch {env['from_epoch']}" if "from_epoch" in env else "all of it"
        yield f"  computed {env['date']}, commit {env['commit']}, {where}, {begin}"
    if seed.curve:
        epochs = range(1, len(seed.curve) + 1)
        best = max(epochs, key=lambda epoch: seed.curve[epoch - 1])
        yield f"  curve    {sparkline(seed.curve)}"
        if len(seed.curve) <= 12:
            yield f"           {', '.join(f'{value:.2f}' for value in seed.curve)}"
        else:
            ends = f"epoch 1 {seed.curve[0]:.2f}, epoch {len(seed.curve)} {seed.curve[-1]:.2f}"
            yield f"           {ends}, best {seed.curve[best - 1]:.2f} in epoch {best}"
    if seed.sha256 or seed.here:
        digest = f"sha256 {seed.sha256 or 'not recorded'}"
        yield f"  student  {seed.student if seed.here else 'its file is not in this store'}, {digest}"
    yield f"  again    {seed.command or 'the table is none of the suite, give its file: explain FILE.yaml ROW PAIR'}"
    for name, digest in seed.plugins.items():
        yield f"           with --plugin and the file that brings {name}, sha256 {digest}"
