"""Installs the suite's folder under a name that cannot clash, ``kdbench``, with the tables inside."""

from pathlib import Path

from setuptools import find_packages, setup

ROOMS = find_packages(include=["benchmarks", "benchmarks.*"])
KINDS = ("*.yaml", "*.csv", "*.bib", "*.md", "*.zip")
FILES = [path for kind in KINDS for path in Path("tables").rglob(kind)]
DATA = {".".join(("kdbench", *path.parent.parts)): path.parent for path in FILES}

setup(
    packages=[
        *find_packages(include=["kd_methods", "kd_methods.*"]),
        *(name.replace("benchmarks", "kdbench", 1) for name in ROOMS),
        *DATA,
    ],
    package_dir={
        "kdbench": "benchmarks",
        **{name: str(folder) for name, folder in DATA.items()},
    },
    package_data={
        **{name: list(KINDS) for name in DATA},
        "kd_methods": ["py.typed"],
        "kdbench": ["py.typed"],
        "kdbench.report.site": ["files/*/*"],
    },
)
