"""Whatever stands in a YAML, JSON or CSV file is read, or refused in one line that names the file and the place."""

from __future__ import annotations

import csv
import errno
import importlib.util
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from benchmarks.common import yaml_files
from benchmarks.common.files import NoFile, csv_text, read_csv, read_json, read_text
from benchmarks.common.yaml_files import read_value, read_yaml
from benchmarks.config.protocol import PROTOCOLS, load_protocol
from benchmarks.config.table_spec import TABLE_FILES, load_table
from kd_methods.errors import DiskError, UserError


class Figure(BaseModel):
    row: str
    value: float
    note: str = ""


READERS: dict[str, Callable[[Path], Any]] = {
    "yaml": read_yaml,
    "json": read_json,
    "csv": lambda path: read_csv(path, Figure),
}


def refusal(path: Path, content: bytes | str, read: Callable[[Path], Any] | None = None) -> str:
    """The one line with which a file of that content is refused."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        (read or READERS[path.suffix[1:]])(path)
    line = str(caught.value)
    assert str(path) in line and "\n" not in line and len(line) < 600
    assert time.process_time() - start < 3
    return line.replace(str(path), path.name)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 400))


@pytest.fixture(params=["libyaml", "Python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """The reader of YAML on either parser; PyYAML may be built without libyaml."""
    if request.param == "libyaml":
        assert yaml.__with_libyaml__
        return read_yaml
    monkeypatch.delattr(yaml, "CSafeLoader")
    spec = importlib.util.spec_from_file_location("benchmarks.common.pure_yaml", yaml_files.__file__)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module.read_yaml


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("a: 1\nb: 2024-13-45\n", "line 2: '2024-13-45' is no timestamp", id="bad date"),
        pytest.param("a: 1\nb: !!int abc\n", "line 2: 'abc' is no int", id="bad integer"),
        pytest.param("a: [1, !!float x]\n", "line 1: 'x' is no float", id="bad float"),
        pytest.param("a: !!bool maybe\n", "line 1: 'maybe' is no bool", id="bad truth value"),
        pytest.param("a: !!int ''\n", "line 1: '' is no int", id="empty integer"),
        pytest.param(f"a: {'9' * 5000}\n", "line 1: '9999", id="digits"),
        pytest.param("a: &x [1, *x]\n", "line 1: an alias stands within what it repeats", id="cycle"),
        pytest.param("a: 1\nb: &x {c: {d: *x}}\n", "line 2: an alias stands within", id="cycle of mappings"),
        pytest.param("a: &x {<<: *x}\n", "line 1: an alias stands within", id="merged cycle"),
        pytest.param(LAUGHS, "more than 100,000 values", id="billion laughs"),
        pytest.param(LAUGHS.replace("[", "[{<<: [").replace("]\n", "]}]\n"), "line 1", id="merged laughs"),
        pytest.param(CHAIN, "nested more than 50 deep", id="a chain of aliases"),
        pytest.param("a: " + "[" * 200_000, "line 1: nested more than 50 deep", id="deep lists"),
        pytest.param("{a: " * 200_000, "line 1: nested more than 50 deep", id="deep mappings"),
        pytest.param("- " * 200_000, "line 1: nested more than 50 deep", id="deep blocks"),
        pytest.param("a: 1\na: 2\n", "line 2: the key 'a' is there twice", id="key twice"),
        pytest.param("a: 1\nb: \x00\n", "line 2: character 0x00", id="zero byte"),
        pytest.param("a: !!python/object:os.system x\n", "line 1: could not determine a constructor", id="objects"),
        pytest.param("a: *b\n", "line 1: found undefined alias", id="no anchor"),
        pytest.param("a: 1\n---\nb: 1\n", "line 2: but found another document", id="two documents"),
        pytest.param("{[1]: 2}\n", "line 1: found unhashable key", id="list as a key"),
        pytest.param("just text\n", "line 1: expected a mapping", id="no mapping"),
    ],
)
def test_yaml_that_is_none(text: str, words: str, parser: Callable[[Path], Any], tmp_path: Path) -> None:
    assert words in refusal(tmp_path / "t.yaml", text, parser)


def test_aliases_and_merged_keys_may_repeat(parser: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_bytes(b"\xef\xbb\xbfa: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a, y: 2}\n")
    assert parser(tmp_path / "t.yaml") == {"a": {"x": 1}, "b": [{"x": 1}, {"x": 1}], "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param('{"a": 1,\n "b": }', "line 2 column 7 is damaged", id="malformed"),
        pytest.param("", "line 1 column 1 is damaged", id="empty"),
        pytest.param('{"a": 1, "a": 2}', "the key 'a' is there twice", id="key twice"),
        pytest.param('{"a": ' + "[" * 200_000, "nested too deep", id="deep"),
        pytest.param('{"a": ' + "9" * 5000 + "}", "is damaged (Exceeds the limit", id="digits"),
    ],
)
def test_json_that_is_none(text: str, words: str, tmp_path: Path) -> None:
    line = refusal(tmp_path / "t.json", text)
    assert words in line and "mend or delete it" in line


def test_json_of_another_shape(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    shape = dict[str, list[Figure]]
    path.write_text('{"a": [{"row": "x", "value": 1}]}')
    assert read_json(path, shape) == {"a": [Figure(row="x", value=1)]}
    assert read_json(tmp_path / "none.json", shape) is None
    for text, words in (
        ("[1]", "t.json: all of it: Input should be a valid dictionary"),
        ('{"a": [{"row": "x", "value": "much"}]}', "t.json: a.0.value: Input should be a valid number"),
        ('{"a": [{"value": 1}]}', "t.json: a.0.row: Field required"),
    ):
        assert words in refusal(path, text, lambda path: read_json(path, shape))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", "line 1: there is no column 'row'", id="empty"),
        pytest.param("row,note\nx,y\n", "line 1: there is no column 'value' (there: row, note)", id="no column"),
        pytest.param("row,value,row\n", "line 1: two columns have one name", id="column twice"),
        pytest.param("row,value\nx,1\n\ny,2,3\n", "line 4: 3 fields, the header has 2", id="too many fields"),
        pytest.param("row,value\nx\n", "line 2: 1 fields, the header has 2", id="too few fields"),
        pytest.param("row,value\nx,high\n", "line 2: value: Input should be a valid number", id="no number"),
        pytest.param("row,value\nx,\n", "line 2: value: Field required", id="no value"),
        pytest.param('row,value\n"x"y,1\n', "line 2: ',' expected after", id="quotes"),
        pytest.param('row,value\n"x,1\n', "line 2: unexpected end of data", id="open quote"),
        pytest.param(f"row,value\n{'x' * 200_000},1\n", "line 2: field larger than", id="long field"),
    ],
)
def test_csv_that_is_none(text: str, words: str, tmp_path: Path) -> None:
    assert words in refusal(tmp_path / "t.csv", text)


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbfrow,value,note\r\n"a\r\nb",1.5,\r\n')
    assert read_csv(tmp_path / "t.csv", Figure) == [Figure(row="a\r\nb", value=1.5)]
    (tmp_path / "t.csv").write_bytes(b"row,value\ra,1\r")
    assert read_csv(tmp_path / "t.csv", Figure) == [Figure(row="a", value=1)]


def denied(path: Path) -> bytes:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("kind", READERS)
def test_files_that_cannot_be_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / f"t.{kind}", READERS[kind]
    assert "line 2: byte 0xff is no UTF-8 text" in refusal(path, b"a\nb\xff")
    assert "line 1: byte 0xff is no UTF-8 text" in refusal(path, "a: 1".encode("utf-16"))
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room
    with pytest.raises(UserError, match=r"at most .* are read"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="is no file"):
        read(path)
    path.rmdir()
    os.mkfifo(path)  # opening it would wait for a writer
    with pytest.raises(UserError, match="is no file"):
        read(path)
    path.unlink()
    path.write_text("x")
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(DiskError, match=r"cannot read .*Permission denied"):
        read(path)


@pytest.mark.parametrize("name", ["none", "none\0", "x/y", "\ud800"])
def test_files_that_do_not_exist(name: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no folder")
    with pytest.raises(NoFile):
        read_text(tmp_path / name)
    for load in (load_table, load_protocol):
        for file in (str(tmp_path / f"{name}.yaml"), name, name * 1000):
            with pytest.raises(UserError):
                load(file)


def test_values_on_the_command_line() -> None:
    assert read_value("[1, 2.5]", "--set") == [1, 2.5]
    for text in ("[1", "!!int x", "{a: 1, a: 2}", "2024-13-45", "\udcff"):
        with pytest.raises(UserError, match=r"^--set a.b: .* is not a value"):
            read_value(text, "--set a.b")


def test_fields_that_a_spreadsheet_would_compute(tmp_path: Path) -> None:
    formulas = ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1", "=a\rb"]
    numbers = ["-1.5000", "+3", "-1e-05", "-inf", -0.5, 7]
    others = ["-", "a=b", "", None, "'quoted'"]
    lines = list(csv.reader(io.StringIO(csv_text([formulas, numbers, others]), newline="")))
    assert lines == [
        [f"'{text}".replace("\r", " ") for text in formulas],
        ["-1.5000", "+3", "-1e-05", "-inf", "-0.5", "7"],
        ["-", "a=b", "", "", "'quoted'"],
    ]


# The fuzz test: what is built of the formats' own pieces, and shipped files with a piece put in or taken out.
FUZZ = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
YAML = (
    *(
        "a: ",
        "b: ",
        "- ",
        "? ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "\n",
        "  ",
        "\t",
        "&a ",
        "*a",
        "<<: ",
        "| ",
        ">-\n",
        "#",
        "'",
    ),
    *(f"!!{kind} " for kind in ("int", "float", "bool", "null", "timestamp", "binary", "set", "omap", "pairs", "map")),
    *("!x ", "!<", "%YAML 9.9\n", "---\n", "...\n", "2024-13-45", "2001-1-1T1:1:1+99:99", "0x_", "1:99:99", ".inf"),
    *('"', "\\ud800", "\\x", "\0", "\ufeff", "\u2028", "\x85", "9" * 5000, "=", "~", "yes", "extends: ", "name: "),
)
JSON = (
    *('{"a":', '{"b":', "}", "[", "]", ",", '"', '"a"', "1", "-", "1e999", "9" * 5000, "NaN", "null", "\\ud800", "\0"),
)
CSV = ("row", "value", "note", ",", "\n", "\r", '"', "1", "x", "\0", " ", "=1", "nan", "\ufeff")


def pieces(tokens: tuple[str, ...]) -> st.SearchStrategy[bytes]:
    text = st.lists(st.sampled_from(tokens) | st.text(max_size=3), max_size=30).map("".join)
    return text.map(lambda text: text.encode(errors="replace")) | st.binary(max_size=40)


def reads_or_refuses(read: Callable[[Path], Any], path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        read(path)
    except UserError as error:
        assert str(path) in str(error)


@FUZZ
@given(content=pieces(YAML))
def test_any_yaml(content: bytes, tmp_path: Path) -> None:
    reads_or_refuses(read_yaml, tmp_path / "t.yaml", content)


@FUZZ
@given(content=pieces(JSON))
def test_any_json(content: bytes, tmp_path: Path) -> None:
    reads_or_refuses(read_json, tmp_path / "t.json", content)
    reads_or_refuses(lambda path: read_json(path, dict[str, list[Figure]]), tmp_path / "t.json", content)


@FUZZ
@given(content=pieces(CSV), whole=st.booleans())
def test_any_csv(content: bytes, whole: bool, tmp_path: Path) -> None:
    head = b"" if whole else b"row,value,note\n"
    reads_or_refuses(lambda path: read_csv(path, Figure), tmp_path / "t.csv", head + content)


@FUZZ
@given(data=st.data())
def test_any_table_and_protocol(data: st.DataObject, tmp_path: Path) -> None:
    load, shelf, name = data.draw(
        st.sampled_from(
            [
                (load_table, TABLE_FILES, "table3-timm"),
                (load_table, TABLE_FILES, "letkd-noise"),
                (load_protocol, PROTOCOLS, "coco-1x"),
                (load_protocol, PROTOCOLS, "imagenet-ofa"),
            ]
        )
    )
    content = shelf.path(name).read_bytes()
    start, length = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 40))
    changed = content[:start] + data.draw(pieces(YAML)) + content[start + length :]
    reads_or_refuses(lambda path: load(str(path)), tmp_path / "t.yaml", changed)
