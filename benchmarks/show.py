"""Tables, protocols and methods in words."""

from __future__ import annotations

from .spec import TABLES, all_pair_settings, load_protocol, load_table


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
        lines += [f"  {line}" for line in (*protocol.lines(), *protocol.deviations)]
    if spec.published:
        lines.append(f"published values: tables/published/{spec.published}, first of {', '.join(spec.sources)}")
    return "\n".join(lines)


def protocol(name: str) -> str:
    """A protocol's values and where they come from."""
    spec = load_protocol(name)
    lines = [f"{spec.name} v{spec.version}: {spec.title}", *(f"  {line}" for line in spec.lines())]
    lines += [f"  differs from the published recipe {spec.recipe}: {line}" for line in spec.deviations]
    return "\n".join([*lines, f"  source: {spec.source}"])


def method(name: str) -> str:
    """A method's card: formula, citation, needs, settings with defaults and sources, divergences."""
    from kd_methods import registry

    cls = registry.get(name)
    card, needs = cls.card, cls.needs
    lines = [f"{card.name} v{card.version} ({card.family}): {card.title}", f"  {(cls.__doc__ or '').splitlines()[0]}"]
    lines += [f"  loss      {card.formula}"] if card.formula else []
    lines.append(f"  optimum   {card.optimum}")
    lines.append(f"  reads     student: {', '.join(('logits', *needs.student, *needs.student_units))}; "
                 f"teacher: {', '.join((*needs.teacher, *needs.teacher_units)) or 'nothing'}")  # fmt: skip
    lines.append("  settings")
    for key, field in cls.Settings.model_fields.items():
        ours = "  [our choice: no published value]" if key in card.our_choice else ""
        lines.append(f"    {key} = {field.default!r}  {field.description or ''}{ours}")
    lines += [f"  defaults from {card.source}"] if card.source else []
    for recipe, pairs in _pair_values(name).items():
        lines += [f"    under {recipe}: {values}" for values in pairs]
    lines += [f"  note      {line}" for line in card.divergences]
    if card.paper:
        lines += ["", _bibtex(card.paper)]
    return "\n".join(lines)


def _pair_values(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in all_pair_settings().get(name, ()):
        values = ", ".join(f"{key} = {value}" for key, value in entry.values.items())
        found.setdefault(entry.recipe, []).append(f"{values} for {', '.join(entry.pairs)} ({entry.source})")
    return found


def _bibtex(key: str) -> str:
    """One entry of tables/references.bib."""
    entries = (TABLES / "references.bib").read_text(encoding="utf-8").split("\n@")
    found = next((entry for entry in entries if entry.partition("{")[2].startswith(f"{key},")), None)
    return "@" + found.strip().removeprefix("@") if found else f"({key} is missing from tables/references.bib)"
