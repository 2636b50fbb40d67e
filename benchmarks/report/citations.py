"""What to cite: the papers of methods, data sets and networks, and this suite. Imports no torch."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib import metadata

from kd_methods import registry
from kd_methods.modifiers import MODIFIERS
from kd_methods.strict import Strict

from ..common.files import read_text
from ..common.places import INSTALLED, PUBLISHED, ROOT, TABLES
from ..common.yaml_files import read_yaml, validate
from ..store.manifest.shapes import Manifest

SUITE = "kdbenchmark"
"""The suite's own key."""


class Papers(Strict):
    """tables/published/papers.yaml: keys of references.bib, with patterns of the names that they stand for."""

    tasks: dict[str, tuple[str, ...]]
    networks: dict[str, tuple[str, ...]]
    optimizers: dict[str, tuple[str, ...]]
    recipes: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Cited:
    """What a table rests on, as keys: what is compared, on which data, with which networks."""

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    networks: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys((*self.methods, *self.tasks, *self.networks)))


def cited(rows: Iterable[tuple[str, str]], tasks: Iterable[str], networks: Iterable[str]) -> Cited:
    """The papers of rows (each a method and its optimiser, if it has one of its own), tasks and networks, by names."""
    known = _papers()
    return Cited(
        tuple(dict.fromkeys(key for method, optimizer in rows for key in row_papers(method, optimizer))),
        _keys(tasks, known.tasks),
        _keys(networks, known.networks),
    )


def of_manifest(shown: Manifest) -> Cited:
    """The papers of a table as it is in a store."""
    papers = cited(
        [(row.method, row.optimizer) for row in shown.rows],
        [column.task for column in shown.columns],
        [name for column in shown.columns for name in (column.teacher_network, column.student)]
        + [row.student for row in shown.rows],
    )
    return under(papers, shown.protocol.get("name", ""), shown.protocol.get("optimizer", {}).get("name", ""))


def under(papers: Cited, protocol: str, optimizer: str) -> Cited:
    """With those of the recipe by that name, and of its optimiser."""
    recipe = _keys([protocol], _papers().recipes) + _keys([optimizer], _papers().optimizers)
    return replace(papers, methods=tuple(dict.fromkeys((*papers.methods, *recipe))))


def row_papers(method: str, optimizer: str = "") -> tuple[str, ...]:
    """The keys to cite at a row: of its method or methods, their modifiers, its own optimiser (name or words)."""
    keys: list[str] = []
    for one in registry.combined_methods(method) or (method,):
        base, *suffixes = one.split("@")
        keys += [_method_paper(base), *(MODIFIERS[suffix].paper for suffix in suffixes)]
    keys += _keys([optimizer], _papers().optimizers)
    return tuple(key for key in dict.fromkeys(keys) if key)


def _method_paper(name: str) -> str:
    if name in registry.index():
        return registry.index()[name].paper
    return registry.card(name).paper if registry.exists(name) else ""  # a plugin's, where it is loaded


def _keys(names: Iterable[str], papers: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The papers that stand for names, in the order of the names."""
    return tuple(
        dict.fromkeys(
            key
            for name in names
            for key, patterns in papers.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        )
    )


@functools.cache
def _papers() -> Papers:
    path = PUBLISHED / "papers.yaml"
    return validate(Papers, read_yaml(path), path)


@functools.cache
def bibliography() -> dict[str, str]:
    """The entries of tables/references.bib by key, in its order."""
    text = read_text(TABLES / "references.bib")
    return {
        entry.partition("{")[2].partition(",")[0].strip(): entry.strip()
        for entry in re.split(r"^(?=@)", text, flags=re.MULTILINE)
        if entry.strip()
    }


def entry(key: str) -> str:
    """An entry of the bibliography, or words that it is missing."""
    return bibliography().get(key, f"({key} is missing from tables/references.bib)")


@dataclass(frozen=True)
class Paper:
    """An entry of the bibliography in a line of words, with where it can be read ('': not known here)."""

    key: str
    words: str
    link: str
    bibtex: str


def paper(key: str) -> Paper:
    """What the entry with a key says of its paper."""
    text = entry(key)
    names = re.split(r"\s+and\s+", _field(text, "author"))
    first = names[0].partition(",")[0] + (" et al." if len(names) > 1 else "")
    venue = _field(text, "booktitle") or _field(text, "journal")
    words = ", ".join(word for word in (first, _field(text, "title"), venue, _field(text, "year")) if word)
    arxiv = re.search(r"arXiv:(\d{4}\.\d{4,5})", text)
    number = _field(text, "eprint") or (arxiv[1] if arxiv else "")
    link = f"https://arxiv.org/abs/{number}" if number else _field(text, "url")
    return Paper(key, words or key, link if link.startswith("https://") else "", text)


def _field(text: str, name: str) -> str:
    """A field of a BibTeX entry as plain text, empty where it has none."""
    match = re.search(rf"^\s*{name}\s*=\s*\{{(.*?)\}},?\s*$", text, re.MULTILINE | re.DOTALL)
    if match is None:
        return ""
    plain = re.sub(r"\\(['`\"^~])\{?(\w)", lambda m: unicodedata.normalize("NFC", m[2] + _ACCENTS[m[1]]), match[1])
    plain = re.sub(r"\$\\(\w+)\$", lambda m: unicodedata.lookup(f"GREEK SMALL LETTER {m[1]}"), plain)
    return " ".join(re.sub(r"[\\{}]", "", plain).split())


_ACCENTS = {"'": "\u0301", "`": "\u0300", '"': "\u0308", "^": "\u0302", "~": "\u0303"}


@functools.cache
def suite() -> dict[str, str]:
    """Title, authors, version and licence of this suite: of a checkout from CITATION.cff, else as it was installed."""
    if not INSTALLED:
        facts = read_yaml(ROOT / "CITATION.cff")
        names = [author["name"] for author in facts["authors"]]
        return {"authors": " and ".join(names), **{name: str(facts[name]) for name in ("title", "version", "license")}}
    package = metadata.metadata("kd-benchmark")
    return {
        "authors": package["Author"],
        "title": f"{package['Name']}: {package['Summary']}".rstrip("."),
        "version": package["Version"],
        "license": package["License-Expression"],
    }


def bibtex(cited: Cited) -> str:
    """What is cited as a BibTeX file: methods, data sets, networks, and this suite in the version at hand."""
    facts = suite()
    software = "\n".join([
        f"@misc{{{SUITE},",
        f"  author = {{{{{facts['authors']}}}}},",
        f"  title  = {{{{{facts['title']}}}}},",
        f"  note   = {{Version {facts['version']}, {facts['license']} licence}}",
        "}",
    ])  # fmt: skip
    blocks = []
    listed: set[str] = set()
    for name, keys in (("methods", cited.methods), ("data sets", cited.tasks), ("networks", cited.networks)):
        new = [key for key in keys if key not in listed]
        listed |= set(new)
        if new:
            blocks.append("\n\n".join([f"% {name}", *map(entry, new)]))
    return "\n\n".join([*blocks, f"% this suite\n\n{software}"])
