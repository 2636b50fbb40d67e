"""reproduce.sh: its logic, on a small copy of the repository with empty lock files; nothing is downloaded.

Most tests put a stand-in for uv on PATH, which notes how it was called and links .venv/bin/python to a running Python:
that takes milliseconds, and lets a test see, delay, fail or kill an installation. One test goes the real way, by pip.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]

# What the script may call. A PATH of these alone has no python and no uv.
SCRIPT_TOOLS = ["bash", "dirname", "env", "find", "mkdir", "mv", "readlink", "rm", "sha256sum", "shasum", "tail"]
STUB_TOOLS = ["ln", "sh", "sleep", "touch"]
SHARED = ["-n", "auto", "--maxprocesses", "8", "--dist", "worksteal"]
"""How tests are spread over the cores."""

ECHO = """\
import os, sys
print([{name!r}, os.getcwd(), *sys.argv[1:]])
if sys.argv[1:2] == ["exit"]:
    sys.exit(int(sys.argv[2]))
"""

FAKE_UV = f"""\
#!/bin/sh
echo "$1 $2" >> "$UV_LOG"
for last in "$@"; do :; done
case "$1 $2" in
"venv -q")
    mkdir -p "$last/bin" "$last/lib/python3/site-packages"
    ln -s '{sys.executable}' "$last/bin/python"
    touch "$last/pyvenv.cfg" ;;
"pip install")
    echo "$* find-links:$UV_FIND_LINKS" >> "$UV_LOG.how"
    eval "$UV_DOES" ;;
esac
"""


class Tree:
    """A copy of the script with what it stands on, at a path with spaces and a colon."""

    def __init__(self, folder: Path):
        self.repo = folder / "a clone: with spaces"
        self.bin = folder / "bin"
        self.log = folder / "uv.log"
        self.elsewhere = folder / "the user's folder"
        for path in (self.repo / "requirements", self.repo / "benchmarks", self.bin, self.elsewhere):
            path.mkdir(parents=True)
        self.script = Path(shutil.copy(REPO / "reproduce.sh", self.repo))
        self.lock("core", "# core")
        self.lock("dev", "# dev")
        (self.repo / "benchmarks" / "__init__.py").touch()
        (self.repo / "benchmarks" / "__main__.py").write_text(ECHO.format(name="benchmarks"))
        (self.repo / "pytest.py").write_text(ECHO.format(name="pytest"))
        for tool in SCRIPT_TOOLS + STUB_TOOLS:
            if where := shutil.which(tool):
                (self.bin / tool).symlink_to(where)
        self.executable("uv", FAKE_UV)
        self.env = {"PATH": str(self.bin), "UV_LOG": str(self.log), "KDBENCH_PYTHON": sys.executable}

    def lock(self, name: str, text: str) -> None:
        (self.repo / "requirements" / f"{name}.txt").write_text(text + "\n")

    def executable(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def command(self, *args: str, script: Path | None = None) -> list[str]:
        return ["bash", str(script or self.script), *args]

    def run(self, *args: str, script: Path | None = None, cwd: Path | None = None, **env: str):
        return subprocess.run(
            self.command(*args, script=script),
            cwd=cwd or self.elsewhere,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def uv_calls(self) -> list[str]:
        """The calls of the stand-in since the last time this was asked."""
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return calls


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def one_line(result: subprocess.CompletedProcess) -> str:
    """The only line of a refusal: nothing on stdout, exit code 2."""
    assert (result.returncode, result.stdout) == (2, ""), result
    (line,) = result.stderr.splitlines()
    return line


def test_arguments_folder_and_exit_code_pass_through(tree: Tree):
    args = ["table 2", "--set", "kd.alpha=*", "", "--data-root", "../data"]
    result = tree.run(*args)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{['benchmarks', str(tree.elsewhere), *args]}\n"
    assert tree.run("exit", "3").returncode == 3
    assert tree.run().stdout == f"{['benchmarks', str(tree.elsewhere)]}\n"


def test_a_table_that_names_an_extra_has_it_installed(tree: Tree):
    tree.lock("text", "# core and text")
    (tree.repo / "tables").mkdir()
    (tree.repo / "tables" / "words.yaml").write_text("name: words\nextra: text\n")
    (tree.repo / "tables" / "plain.yaml").write_text("name: plain\n")
    assert "requirements/core.txt" in tree.run("plain", "--preset", "demo").stderr
    first = tree.run("words", "--preset", "demo")
    assert first.stderr.splitlines()[0] == "words needs the extra [text]." and "requirements/text.txt" in first.stderr
    assert tree.run("render", "words").stderr == tree.run("plain").stderr == ""
    yaml_file = tree.elsewhere / "own.yaml"
    yaml_file.write_text("extra: text # mine\n")
    assert tree.run("own.yaml").stderr == ""
    (tree.repo / "tables" / "words.yaml").write_text("name: words\nextra: other\n")
    for content in ("extends: words\nname: own\n", "name: own\nextends: 'words'  # its columns\n"):
        yaml_file.write_text(content)
        assert "requirements/other.txt is missing" in one_line_of_error(tree.run("own.yaml"))
    (tree.repo / "tables" / "words.yaml").write_text("name: words\nextends: words\n")
    assert tree.run("own.yaml").stderr == "", "those in a circle are for the suite to refuse"
    yaml_file.write_text('extra: "nonsense"\n')
    assert "requirements/nonsense.txt is missing" in one_line_of_error(tree.run("own.yaml"))


def test_a_tracker_a_cluster_and_a_form_have_their_extras_installed(tree: Tree):
    for extra in ("track", "cluster", "onnx"):
        tree.lock(extra, f"# core and {extra}")
    said = tree.run("table1", "--track", "tensorboard", "--executor=ray").stderr
    assert "requirements/cluster.txt" in said and "requirements/track.txt" in said
    assert tree.run("table1", "--track=tensorboard", "--executor", "ray").stderr == ""
    assert tree.run("table1", "--track", "lines").stderr == ""
    assert "requirements/onnx.txt" in tree.run("convert", "x", "--to", "onnx").stderr
    assert tree.run("convert", "x", "--to=onnx").stderr == ""


def test_the_lock_of_the_tests_has_every_extra(tree: Tree):
    for extra in ("text", "track"):
        tree.lock(extra, f"# core and {extra}")
    assert "requirements/dev.txt" in tree.run("test").stderr
    assert tree.run("table1", "--track", "tensorboard").stderr == ""
    every = pins(REPO / "requirements" / "dev.txt").keys()
    assert all(pins(path).keys() <= every for path in (REPO / "requirements").glob("*.txt"))
    texts = [path.read_text() for path in (REPO / "tests").rglob("*.py")]
    asked = {name for text in texts for name in re.findall(r'importorskip\(\s*"(\w+)', text)} - {"kd_methods", "pip"}
    assert {"ray", "tensorboard", "onnxruntime"} <= asked
    assert asked | {"accelerate", "lightning"} <= every


def one_line_of_error(result: subprocess.CompletedProcess) -> str:
    """The last line of a refusal."""
    assert (result.returncode, result.stdout) == (2, ""), result
    return result.stderr.splitlines()[-1]


def test_works_from_any_folder_and_through_links(tree: Tree):
    relative = tree.elsewhere / "link to the script"
    relative.symlink_to(Path("..") / tree.repo.name / "reproduce.sh")
    absolute = tree.bin / "kd"
    absolute.symlink_to(relative)
    for script, cwd in [
        (relative, tree.elsewhere),
        (absolute, tree.bin),
        (Path(relative.name), tree.elsewhere),
        (Path("reproduce.sh"), tree.repo),
        (Path("..") / tree.repo.name / "reproduce.sh", tree.elsewhere),
    ]:
        result = tree.run("list", script=script, cwd=cwd, CDPATH="/")
        assert result.stdout == f"{['benchmarks', str(cwd), 'list']}\n", result.stderr
    assert tree.uv_calls() == ["venv -q", "pip install"]


def test_a_package_of_the_same_name_in_the_users_folder_is_not_taken(tree: Tree):
    (tree.elsewhere / "benchmarks").mkdir()
    (tree.elsewhere / "benchmarks" / "__main__.py").write_text("raise SystemExit('the wrong one')")
    assert tree.run("list").returncode == 0


def test_a_clone_that_converts_line_ends_starts(tree: Tree, tmp_path: Path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "core.autocrlf=true"]
    shutil.copy(REPO / ".gitattributes", tree.repo)
    tree.lock("core", "# core\n# of several lines")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"], ["clone", "-q", ".", "../clone"]):
        subprocess.run([*git, *command], cwd=tree.repo, check=True, capture_output=True)
    assert not [path for path in (tmp_path / "clone").glob("*.sh") if b"\r" in path.read_bytes()]
    assert (tmp_path / "clone" / "requirements" / "core.txt").read_bytes() == b"# core\n# of several lines\n"
    result = tree.run("list", script=tmp_path / "clone" / "reproduce.sh")
    assert result.stdout == f"{['benchmarks', str(tree.elsewhere), 'list']}\n", result.stderr


def test_tests_run_in_the_repository_with_the_dev_lock(tree: Tree):
    result = tree.run("test", "-k", "a or b")
    assert result.stdout == f"{['pytest', str(tree.repo), *SHARED, '-k', 'a or b']}\n", result.stderr
    assert "requirements/dev.txt" in result.stderr
    assert tree.run("test", "exit", "5").stdout.startswith("['pytest'")
    assert tree.uv_calls() == ["venv -q", "pip install"]
    # dev holds core: nothing more to install.
    assert tree.run("list").stderr == ""
    assert tree.uv_calls() == []


def test_set_up_once_and_again_when_the_lock_changes(tree: Tree):
    first = tree.run("list")
    assert first.stderr == "Setting up .venv from requirements/core.txt (once; a few minutes) ...\n"
    assert tree.run("list").stderr == ""
    assert tree.uv_calls() == ["venv -q", "pip install"]

    os.utime(tree.repo / "requirements" / "core.txt")
    assert tree.run("list").stderr == ""

    tree.lock("core", "# core, changed")
    assert "requirements/core.txt" in tree.run("list").stderr
    assert tree.run("list").stderr == ""
    assert tree.uv_calls() == ["pip install"]

    # The next lock adds to the same .venv, and both stay.
    tree.run("test")
    tree.run("list")
    tree.run("test")
    assert tree.uv_calls() == ["pip install"]


def test_going_back_to_an_older_lock_installs_it_again(tree: Tree):
    tree.run("test")
    tree.lock("core", "# core, changed")
    tree.lock("dev", "# dev, changed")
    tree.run("list")
    tree.lock("core", "# core")
    tree.lock("dev", "# dev")
    tree.uv_calls()
    tree.run("test")  # the stamp of this lock was once there, but core has since been replaced
    assert tree.uv_calls() == ["pip install"]


def test_installs_by_hash_and_without_resolving(tree: Tree):
    tree.run("list", PIP_FIND_LINKS="/wheels /more")
    shutil.rmtree(tree.repo / ".venv")
    tree.run("list", PIP_FIND_LINKS="/wheels", UV_FIND_LINKS="/own")
    first, second = Path(f"{tree.log}.how").read_text().splitlines()
    assert " --require-hashes " in first and " --no-deps " in first
    assert first.endswith("requirements/core.txt find-links:/wheels,/more")
    assert second.endswith(" find-links:/own")


def test_failed_installation_is_shown_and_tried_again(tree: Tree):
    result = tree.run("list", UV_DOES="echo 'no route to host' >&2; exit 1")
    assert (result.returncode, result.stdout) == (2, "")
    assert "no route to host" in result.stderr
    assert "installing requirements/core.txt failed" in result.stderr.splitlines()[-1]
    assert tree.uv_calls() == ["venv -q", "pip install"]
    assert tree.run("list").returncode == 0
    assert tree.uv_calls() == ["pip install"]  # nothing had been touched: the .venv was good

    # An update that fails before it touched anything leaves the older state usable, offline too.
    tree.lock("core", "# core, changed")
    assert tree.run("list", UV_DOES="exit 1").returncode == 2
    tree.lock("core", "# core")
    assert tree.run("list").stderr == ""


def test_killed_installation_is_redone_from_nothing(tree: Tree):
    half_written = tree.repo / ".venv" / "lib" / "python3" / "site-packages" / "torch"
    kill = f"mkdir '{half_written}'; kill -KILL 0"  # the whole process group: uv and the script
    process = subprocess.Popen(tree.command("list"), env={**tree.env, "UV_DOES": kill}, start_new_session=True)
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert half_written.exists()
    tree.uv_calls()
    assert tree.run("list").returncode == 0
    assert tree.uv_calls() == ["venv -q", "pip install"]
    assert not half_written.exists()


def test_two_first_starts_at_once_set_up_once(tree: Tree):
    env = {**tree.env, "UV_DOES": "sleep 0.5"}
    starts = [
        subprocess.Popen(tree.command("list"), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ends = [start.communicate(timeout=60) for start in starts]
    assert [start.returncode for start in starts] == [0, 0, 0]
    assert all(out.startswith("['benchmarks'") for out, _ in ends)
    assert tree.uv_calls() == ["venv -q", "pip install"]
    assert sorted("Waiting for another" in err for _, err in ends) == [False, True, True]


def test_venv_whose_python_is_gone_is_made_anew(tree: Tree):
    tree.run("list")
    python = tree.repo / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(tree.bin / "removed")
    tree.uv_calls()
    assert tree.run("list").returncode == 0
    assert tree.uv_calls() == ["venv -q", "pip install"]


def test_foreign_broken_venv_is_left_alone(tree: Tree):
    keep = tree.repo / ".venv" / "pyvenv.cfg"
    keep.parent.mkdir()
    keep.write_text("somebody's")
    assert "move it away" in one_line(tree.run("list"))
    assert keep.read_text() == "somebody's"


def test_missing_lock_is_named(tree: Tree):
    (tree.repo / "requirements" / "dev.txt").unlink()
    assert "requirements/dev.txt is missing" in one_line(tree.run("test"))


def test_python_missing_or_too_old(tree: Tree):
    old = "#!/bin/sh\necho 3.8.18\necho /usr/bin/python3\nexit 1\n"
    (tree.bin / "uv").unlink()

    assert "KDBENCH_PYTHON=nowhere does not run" in one_line(tree.run("list", KDBENCH_PYTHON="nowhere"))
    line = one_line(tree.run("list", KDBENCH_PYTHON=""))
    assert "needs Python 3.11 or newer, found none" in line and "KDBENCH_PYTHON=" in line

    tree.executable("python3", old)
    assert "found 3.8.18" in one_line(tree.run("list", KDBENCH_PYTHON=""))
    assert "KDBENCH_PYTHON=python3 is Python 3.8.18" in one_line(tree.run("list", KDBENCH_PYTHON="python3"))
    assert not (tree.repo / ".venv").exists()


def test_newer_python_is_found_behind_an_old_one_and_a_stand_in(tree: Tree):
    tree.executable("python3", "#!/bin/sh\necho 3.8.18\necho /usr/bin/python3\nexit 1\n")
    tree.executable("python3.13", "#!/bin/sh\necho 'python3.13: command not found' >&2\nexit 127\n")
    tree.executable("python3.12", f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    result = tree.run("list", KDBENCH_PYTHON="")
    assert result.returncode == 0, result.stderr
    assert "stand-in" not in result.stderr and "command not found" not in result.stderr


def test_no_venv_uses_the_python_at_hand(tree: Tree):
    tree.executable("python", f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    for env in ({"KDBENCH_PYTHON": ""}, {}):
        result = tree.run("list", KDBENCH_NO_VENV="1", **env)
        assert result.stdout == f"{['benchmarks', str(tree.elsewhere), 'list']}\n", result.stderr
        assert result.stderr == ""
    assert tree.run("test", KDBENCH_NO_VENV="1").stdout == f"{['pytest', str(tree.repo), *SHARED]}\n"
    assert not (tree.repo / ".venv").exists()
    assert tree.run("list", KDBENCH_NO_VENV="0").returncode == 0
    assert (tree.repo / ".venv").exists()


def test_sh_is_forgiven(tree: Tree):
    result = subprocess.run(["sh", tree.script, "a b"], env=tree.env, capture_output=True, text=True, timeout=60)
    assert "'a b'" in result.stdout, result.stderr


def test_continuous_integration_runs_the_test_command(tree: Tree):
    (tree.repo / ".ci").mkdir()
    script = Path(shutil.copy(REPO / ".ci" / "run", tree.repo / ".ci"))
    (tree.repo / "pytest.py").write_text("import os, sys; print(os.environ['CI'], os.getcwd(), repr(sys.stdin.read()))")
    result = tree.run(script=script)
    assert result.stdout == f"true {tree.repo} ''\n", result.stderr


def test_interrupted_by_the_user(tree: Tree):
    stop = "kill -INT 0; sleep 5"  # what Ctrl-C does: the signal goes to the whole process group
    env = {**tree.env, "UV_DOES": stop}
    listening = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  # it may be ignored where tests run
    process = subprocess.Popen(
        tree.command("list"), env=env, start_new_session=True, stderr=subprocess.PIPE, text=True, preexec_fn=listening
    )
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the next start does it again" in errors.splitlines()[-1]
    tree.uv_calls()
    assert tree.run("list").returncode == 0
    assert tree.uv_calls() == ["venv -q", "pip install"]


def test_with_pip_for_real(tree: Tree):
    (tree.bin / "uv").unlink()
    settings = {"PYTHONPATH": str(tree.elsewhere), "PIP_USER": "1", "PIP_TARGET": str(tree.elsewhere)}
    (tree.repo / "benchmarks" / "__main__.py").write_text("import sys; print(sys.prefix)")
    for message in ("Setting up .venv from requirements/core.txt (once; a few minutes) ...\n", ""):
        result = tree.run("list", **settings)
        assert (result.returncode, result.stderr) == (0, message)
        assert result.stdout == f"{tree.repo / '.venv'}\n"
    assert list(tree.elsewhere.iterdir()) == []

    # What has no hash is refused. (A folder can have none, and needs no look-up.)
    (tree.repo / "package").mkdir()
    (tree.repo / "package" / "pyproject.toml").write_text("[project]\nname = 'package'\nversion = '1'\n")
    tree.lock("core", "./package")
    result = tree.run("list", PIP_NO_INDEX="1", **settings)
    assert result.returncode == 2
    assert "hash" in result.stderr


def pins(path: Path) -> dict[str, set[str]]:
    """Package → its pins with their markers."""
    versions: dict[str, set[str]] = {}
    for name, pin in re.findall(r"^([\w.-]+)==(.+?) *\\$", path.read_text(), re.MULTILINE):
        versions.setdefault(name, set()).add(pin)
    return versions


@pytest.mark.parametrize("path", sorted((REPO / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_lock_files_agree_and_name_no_host(path: Path):
    """The script counts on it: every lock holds the core packages, and two locks never want two versions."""
    text = path.read_text()
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    entries = re.split(r"\n(?=[\w])", text)[1:]
    assert len(entries) > 20
    assert all("==" in entry and "--hash=sha256:" in entry for entry in entries)
    mine, dev = pins(path), pins(REPO / "requirements" / "dev.txt")
    assert pins(REPO / "requirements" / "core.txt").items() <= mine.items()
    versions = lambda pin: {one.partition(" ;")[0] for one in pin}  # noqa: E731  # markers differ with what asks for it
    assert {name: pin for name, pin in mine.items() if name in dev and not versions(pin) <= versions(dev[name])} == {}


def test_message_on_a_read_only_repository(tree: Tree):
    if os.geteuid() == 0:
        # Root may write anywhere; a file in the way has the same effect.
        (tree.repo / ".venv").write_text("")
    else:
        tree.repo.chmod(0o555)
    try:
        assert "KDBENCH_NO_VENV=1" in one_line(tree.run("list"))
    finally:
        tree.repo.chmod(0o755)
