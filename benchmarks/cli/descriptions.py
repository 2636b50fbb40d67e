"""Tables, protocols and methods in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kd_methods.errors import UserError

from ..config.changed_rows import flat
from ..config.protocol import load_protocol
from ..config.protocol_words import lines as protocol_lines
from ..config.published import absent_methods, all_pair_settings
from ..config.table_spec import load_table
from ..report.citations import entry as bibliography_entry
from ..report.citations import row_papers

if TYPE_CHECKING:
    from kd_methods.contract import Card, Method


def table(name: str) -> str:
    """Rows, columns and presets of a table."""
    spec = load_table(name)
    lines = [f"{spec.name}: {spec.title}", "rows     " + ", ".join(row.id for row in spec.methods)]
    lines.append("columns  " + ", ".join(pair.id for pair in spec.pairs))
    for preset_name in spec.presets:
        preset = spec.preset(preset_name)
        protocol = load_protocol(preset.protocol)
        lines.append(f"preset {preset_name}: {protocol.name}, seeds {', '.join(map(str, preset.seeds))}")
        if preset.pairs and preset.pairs != spec.pairs:
            lines.append("  columns " + ", ".join(pair.id for pair in preset.pairs))
        lines += [f"  {line}" for line in (*protocol_lines(protocol), *protocol.deviations)]
    if spec.published:
        lines.append(f"published values: tables/published/{spec.published}, first of {', '.join(spec.sources)}")
    return "\n".join(lines)


def protocol(name: str) -> str:
    """A protocol's values and where they come from."""
    spec = load_protocol(name)
    lines = [f"{spec.name} v{spec.version}: {spec.title}", *(f"  {line}" for line in protocol_lines(spec))]
    lines += [f"  differs from the published recipe {spec.recipe}: {line}" for line in spec.deviations]
    return "\n".join([*lines, f"  source: {spec.source}"])


def method(name: str) -> str:
    """A method's card: formula, citation, needs, settings with defaults and sources, divergences."""
    from kd_methods import registry

    cls = registry.get(name)
    card = cls.card
    lines = [f"{card.name} v{card.version} ({kind(card)}): {card.title}", f"  {(cls.__doc__ or '').splitlines()[0]}"]
    lines += [f"  loss      {card.formula}"] if card.formula else []
    lines.append(f"  optimum   {card.optimum or 'no distillation terms'}")
    lines += [f"  order     the losses depend on the order within a batch: {card.order}"] if card.order else []
    lines += [f"  waits     for the device in every step: {card.waits}"] if card.waits else []
    lines.append(f"  reads     {reads(cls)}")
    lines += [f"  labels    {hard_labels(card)}"] if card.hard_labels else []
    lines.append("  settings")
    for key, default, description, ours in settings(cls):
        lines.append(f"    {key} = {default}  {description}" + ("  [our choice: no published value]" if ours else ""))
    lines += [f"  defaults from {card.source}"] if card.source else []
    for recipe, pairs in pair_values(name).items():
        lines += [f"    under {recipe}: {values}" for values in pairs]
    lines += [f"  note      {line}" for line in card.divergences]
    for key in row_papers(name):
        lines += ["", bibliography_entry(key)]
    return "\n".join(lines)


def kind(card: Card) -> str:
    """A method's family, and what its networks read if that is not just any images."""
    modality = {"images": "", "any": ", images or text"}.get(card.modality, f", {card.modality}")
    return f"{card.family}{modality}"


def hard_labels(card: Card) -> str:
    """What a method needs one class of each image for."""
    return f"one class an image, {card.hard_labels}; of a mixed image the class with the larger share"


def reads(cls: type[Method]) -> str:
    """What a method's losses read of both networks, in words."""
    needs = cls.needs
    student = ", ".join(("logits", *needs.student, *needs.student_units))
    teacher = ", ".join((*needs.teacher, *needs.teacher_units)) or "nothing"
    more = [f"batches of {needs.min_batch} at least"] if needs.min_batch > 1 else []
    if cls.card.modality != "images":
        goal = {1: "classification or regression", 2: "classification"}.get(cls.card.classes)
        goal = goal or f"classification into {cls.card.classes} classes at least"
        networks = "detectors" if cls.card.modality == "detection" else f"text, {goal}"
        if cls.card.modality == "any":
            of_regions = cls.card.detectors and not needs.student
            networks = f"images or text, {goal}" + (", regions of detectors" if of_regions else "")
        more.append(networks)
    more += ["two views of each image"] if needs.views > 1 else []
    more += [f"batches of {needs.max_batch} at most"] if needs.max_batch else []
    if cls.phase_needs:
        first = cls.phase_needs
        more.append(f"in the first phase student: {', '.join(first.student) or 'nothing'},"
                    f" teacher: {', '.join(first.teacher)}")  # fmt: skip
    return "; ".join([f"student: {student}", f"teacher: {teacher}", *more])


def settings(cls: type[Method], prefix: str = "") -> Iterator[tuple[str, str, str, bool]]:
    """Name, default, description of each setting, and whether the default is our own choice."""
    for combined in getattr(cls, "combines", ()):
        yield from settings(combined, f"{combined.card.name}.")
    if not hasattr(cls, "combines"):
        for key, field in cls.Settings.model_fields.items():
            yield f"{prefix}{key}", repr(field.default), field.description or "", key in cls.card.our_choice


def parameters(name: str, pair: str) -> str:
    """What a method adds on a pair: parameters trained, and those that stay at inference.

    Raises:
        UserError: an unknown network, or a pair that the method cannot work on.
    """
    import torch

    from kd_methods.contract import DataInfo

    from ..networks import build_network, count
    from ..store.make_cell import Distillation
    from ..training.assembly import Assembly

    teacher, _, student = pair.partition("-")
    if not teacher or not student:
        raise UserError(f"--pair {pair}: write teacher-student, for example --pair resnet56-resnet20")
    labels = torch.arange(50_000) % 100
    views = build_network(student), build_network(teacher).requires_grad_(False).eval()
    plain = count(views[0].module.parameters())
    assembly = Assembly(Distillation(name), *views, DataInfo(len(labels), 100, labels))
    method = assembly.method
    both = count([*assembly.student.parameters(), *method.parameters()])
    deployed = count(assembly.deployed.parameters())
    buffers = sum(buffer.numel() for buffer in method.state_dict().values()) - count(method.parameters())
    return (
        f"on {pair} (100 classes, 50,000 images): the student has {plain:,} parameters; {both - plain:+,} in training,"
        f" {deployed - plain:+,} at inference; {buffers:,} numbers kept besides (statistics, memory banks)"
    )


def methods_page() -> str:
    """docs/methods.md: every card, by family; those for texts and for detectors apart."""
    from kd_methods import registry
    from kd_methods.modifiers import MODIFIERS

    lines = [
        "# Methods",
        "",
        "Made from the methods' cards by `./reproduce.sh show methods > docs/methods.md`; a test compares the two.",
        "A name may carry a modifier after `@` and be combined by `+`: `dkd@ls`, `crd+kd`.",
        "Values marked **chosen** are our own choice: none is published, or only for some pairs.",
    ]
    for suffix, modifier in MODIFIERS.items():
        lines += ["", f"- `@{suffix}` ({modifier.title}): {modifier.summary}. Defaults from {modifier.source}."]
        lines += [f"  {line[:1].upper()}{line[1:]}." for line in modifier.divergences]
    for folder in registry.FOLDERS:
        lines += ["", f"## {folder.capitalize()}"]
        for entry in (entry for entry in registry.index().values() if entry.folder == folder):
            lines += _section(entry.name)
    lines += [
        "",
        "## Not here",
        "",
        "What other suites and their forks ship and this one does not, and what it would take:",
        "",
    ]
    for reason, names in absent_methods().items():
        lines.append(f"- {reason}: " + "; ".join(f"{name} ({source})" for name, source in names.items()))
    return "\n".join(lines)


def _section(name: str) -> list[str]:
    from kd_methods import registry

    cls = registry.get(name)
    card = cls.card
    lines = ["", f"### `{name}` {card.title}", "", (cls.__doc__ or "").splitlines()[0], "", f"    {card.formula}", ""]
    lines += [f"- Family: {card.family}"] if card.modality in ("text", "detection") else []
    lines += [f"- Optimum: {card.optimum or 'no distillation terms'}", f"- Reads {reads(cls)}"]
    lines += [f"- Depends on the order of the samples: {card.order}"] if card.order else []
    lines += ["- Sees all of a batch that processes share"] if card.batch == "global" else []
    lines += [f"- Waits for the device in every step: {card.waits}"] if card.waits else []
    lines += [f"- Labels: {hard_labels(card)}"] if card.hard_labels else []
    if values := [
        f"`{key}` {default}{' **chosen**' if ours else ''} ({text})" for key, default, text, ours in settings(cls)
    ]:
        lines.append("- Settings: " + "; ".join(values))
    lines.append(f"- Defaults from {card.source}")
    for recipe, pairs in pair_values(name).items():
        lines += [f"- Under `{recipe}`: {text}" for text in pairs]
    lines += [f"- Note: {text}" for text in card.divergences]
    lines += [f"- Cite `{card.paper}` (tables/references.bib)"] if card.paper else []
    return lines


def pair_values(name: str) -> dict[str, list[str]]:
    """Settings that are published for some pairs, in words, by recipe."""
    by_recipe: dict[str, list[str]] = {}
    for entry in all_pair_settings().get(name, ()):
        values = ", ".join(f"{key} = {value}" for key, value in flat(entry.values).items())
        pairs = ", ".join(entry.pairs) or "all pairs"
        by_recipe.setdefault(entry.recipe, []).append(f"{values} for {pairs} ({entry.source})")
    return by_recipe
