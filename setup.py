"""Installs the suite's folder under a name that cannot clash, ``kdbench``, with the tables inside."""

from pathlib import Path

from setuptools import find_packages, setup

ROOMS = [name for name in find_packages(include=["benchmarks", "benchmarks.*"]) if not name.endswith(".suites")]
DATA = {path.parent for path in Path("tables").rglob("*") if path.suffix in (".yaml", ".csv", ".bib", ".md", ".zip")}

setup(
    packages=[
        *find_packages(include=["kd_methods", "kd_methods.*"]),
        *(name.replace("benchmarks", "kdbench", 1) for name in ROOMS),
        *(".".join(("kdbench", *folder.parts)) for folder in DATA),
    ],
    package_dir={
        "kdbench": "benchmarks",
        **{".".join(("kdbench", *folder.parts)): str(folder) for folder in DATA},
    },
    package_data={
        **{".".join(("kdbench", *folder.parts)): ["*.yaml", "*.csv", "*.bib", "*.md", "*.zip"] for folder in DATA},
        "kd_methods": ["py.typed"],
        "kdbench": ["py.typed"],
    },
)
