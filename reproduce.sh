#!/usr/bin/env bash
# The one entry: sets up <repository>/.venv from the lock files when that is needed, then hands over.
#
#   ./reproduce.sh test [pytest arguments]      the test suite (lock: requirements/dev.txt)
#   ./reproduce.sh ANYTHING ELSE ...            python -m benchmarks ANYTHING ELSE ... (lock: requirements/core.txt,
#                                               or that of the extra which the table names, as in `extra: text`)
#
# KDBENCH_PYTHON=python3.12   the Python that .venv is made with (to change it later, remove .venv first)
# KDBENCH_NO_VENV=1           no set-up: use KDBENCH_PYTHON, or the `python` at hand, with whatever it has installed

# `sh reproduce.sh` is a habit of many; the rest needs bash (3.2, as macOS has it, is enough).
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }
die() { say "reproduce.sh: $*"; exit 2; }

# The repository, also when this script was reached through symbolic links. (readlink -f is missing on older macOS.)
script=${BASH_SOURCE[0]}
while [[ -L $script ]]; do
    target=$(readlink -- "$script")
    [[ $target == /* || $script != */* ]] || target=${script%/*}/$target
    script=$target
done
[[ $script == */* ]] || script=./$script
repo=$(CDPATH='' cd -P -- "${script%/*}" && pwd)
venv=$repo/.venv
python=$venv/bin/python
state=$venv/.kdbench        # what the set-up remembers: NAME.sha256 (installed locks), unfinished, lock, setup.log

# --- Python and uv ---------------------------------------------------------------------------------------------------

# Prints version and path, and says whether it is new enough; in words that Python 2 knows too, so that it can be named.
version_check='
import sys
print("%d.%d.%d" % sys.version_info[:3])
print(sys.executable)
sys.exit(sys.version_info < (3, 11))
'

# Sets `host_python` to a Python >= 3.11 outside .venv. A name on PATH proves nothing (version managers put empty
# stand-ins there), so each candidate is run.
find_python() {
    local candidate answer seen=
    if [[ -n ${KDBENCH_PYTHON:-} ]]; then
        if answer=$("$KDBENCH_PYTHON" -c "$version_check" 2>/dev/null); then host_python=${answer#*$'\n'}; return; fi
        [[ -n $answer ]] || die "KDBENCH_PYTHON=$KDBENCH_PYTHON does not run; it must name a Python 3.11 or newer"
        die "KDBENCH_PYTHON=$KDBENCH_PYTHON is Python ${answer%%$'\n'*}; 3.11 or newer is needed"
    fi
    for candidate in "$@" python3 python3.13 python3.12 python3.11; do
        if answer=$("$candidate" -c "$version_check" 2>/dev/null); then host_python=${answer#*$'\n'}; return; fi
        seen=${seen:-${answer%%$'\n'*}}
    done
    # uv may have Pythons of its own that are not on PATH.
    if has_uv && host_python=$(uv python find --no-python-downloads '>=3.11' 2>/dev/null); then return; fi
    die "needs Python 3.11 or newer, found ${seen:-none}; install one, or name it: KDBENCH_PYTHON=/path/to/python"
}

has_uv() { command -v uv >/dev/null 2>&1; }

venv_usable() { [[ -x $python ]] && "$python" -c "$version_check" >/dev/null 2>&1; }

# --- The set-up ------------------------------------------------------------------------------------------------------

# sha256 of a file, into `digest`: the one program that a start on a set-up tree runs. (macOS has only shasum.)
digest_of() {
    digest=$(sha256sum 2>/dev/null <"$1" || shasum -a 256 <"$1")
    digest=${digest%% *}
}

# Does the stamp of the lock NAME fit the lock as it is now?
stamped() {
    local stamp=
    [[ -f $state/$1.sha256 && -f $repo/requirements/$1.txt ]] || return 1
    read -r stamp <"$state/$1.sha256" || true
    digest_of "$repo/requirements/$1.txt"
    [[ -n $digest && $stamp == "$digest" ]]
}

# `unfinished` is there while packages are being changed, and after a kill.
installed() { [[ -x $python && ! -e $state/unfinished ]] && stamped "$1"; }

write_stamp() {
    digest_of "$repo/requirements/$1.txt"
    printf '%s\n' "$digest" >"$state/$1.tmp"
    mv -f -- "$state/$1.tmp" "$state/$1.sha256"
}

# Runs a command in the repository (uv reads settings of the folder it is called in) with its output in setup.log, and
# without those settings of the user's that would put packages elsewhere or show pip packages outside .venv.
quietly() (
    cd -- "$repo"
    unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER
    if [[ -z ${UV_FIND_LINKS:-} && -n ${PIP_FIND_LINKS:-} ]]; then
        export UV_FIND_LINKS=${PIP_FIND_LINKS// /,}      # pip separates with spaces, uv with commas
    fi
    "$@" >>"$state/setup.log" 2>&1 </dev/null
)

failed() {
    tail -n 20 -- "$state/setup.log" >&2
    die "$*; its last words are above, all of them in .venv/.kdbench/setup.log; the next start tries again"
}

make_venv() {
    # Everything but our own folder: the lock in it is held.
    find "$venv/" -mindepth 1 -maxdepth 1 ! -name .kdbench -exec rm -rf {} +
    rm -f -- "$state"/*.sha256
    if has_uv; then
        quietly uv venv -q --allow-existing --python "$host_python" "$venv" || failed "uv could not make .venv"
    else
        # venv refuses a folder whose path has the separator of PATH in it, where it could not be put; nor is it here.
        quietly "$host_python" -c 'import os, venv; os.pathsep = "\n"; venv.main()' "$venv" ||
            failed "python -m venv could not make .venv"
    fi
}

# The lock holds every package with its exact version and hash; --no-deps: nothing beyond it.
install() {
    if has_uv; then
        # pip compiles what it installs, uv only when told to: without it every first import would be slow.
        quietly uv pip install -q --python "$python" --require-hashes --no-deps --compile-bytecode -r "$1"
    else
        # A .venv made by uv has no pip.
        quietly "$python" -m pip --version || quietly "$python" -m ensurepip || return
        quietly "$python" -m pip install -q --no-input --disable-pip-version-check --require-hashes --no-deps -r "$1"
    fi
}

# One set-up at a time. The lock belongs to descriptor 9 of this shell, so it outlives the Python that takes it and is
# gone with the last process that has it open: this shell, or a pip that it left behind when killed.
take_turn() {
    exec 9>"$state/lock"
    "$1" -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Waiting for another set-up of .venv ...", file=sys.stderr, flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
except OSError:
    pass  # a file system without locks
'
}

set_up() {
    local name=$1 lock=$repo/requirements/$1.txt site stamp other
    if [[ -e $venv/pyvenv.cfg && ! -d $state ]] && ! venv_usable; then
        die ".venv is not of this script's making and has no working Python 3.11 or newer; move it away"
    fi
    host_python=
    venv_usable || find_python
    if ! mkdir -p -- "$state" 2>/dev/null || [[ ! -w $state ]]; then
        die "cannot write to $venv; make the repository writable, or set KDBENCH_NO_VENV=1"
    fi
    take_turn "${host_python:-$python}"
    if installed "$name"; then exec 9>&-; return; fi     # done by whoever had the turn before

    say "Setting up .venv from requirements/$name.txt (once; a few minutes) ..."
    trap 'say "Set-up interrupted; the next start does it again."; exit 130' INT
    : >"$state/setup.log"
    # A package that was being written when its installer was killed can look complete: begin from nothing.
    if [[ -e $state/unfinished ]] || ! venv_usable; then
        [[ -n $host_python ]] || find_python
        : >"$state/unfinished"
        make_venv
    fi
    : >"$state/unfinished"
    if ! install "$lock"; then
        # Failed before any package was touched (no network, say): what was installed before is as good as it was.
        for site in "$venv"/lib/python3*/site-packages; do
            [[ $site -nt $state/unfinished ]] || rm -f -- "$state/unfinished"
        done
        failed "installing requirements/$name.txt failed"
    fi
    # Stamps of locks that have changed since say nothing any more: this lock may have replaced their packages. Locks of
    # one commit agree on every version, so the other stamps stay true.
    for stamp in "$state"/*.sha256; do
        [[ -e $stamp ]] || continue
        other=${stamp##*/}
        stamped "${other%.sha256}" || rm -f -- "$stamp"
    done
    write_stamp core                                     # every lock contains core
    [[ $name == core ]] || write_stamp "$name"
    if [[ $name == dev ]]; then                          # and this one all the others
        for other in "$repo"/requirements/*.txt; do
            other=${other##*/}
            write_stamp "${other%.txt}"
        done
    fi
    rm -f -- "$state/unfinished"
    trap - INT
    exec 9>&-
}

# Makes sure that .venv has what requirements/NAME.txt says. Each such file holds the core packages and one extra's.
ensure_lock() {
    [[ -f $repo/requirements/$1.txt ]] || die "requirements/$1.txt is missing from $repo"
    installed "$1" || set_up "$1"
}

# The extra that a table's file names, or else the shipped table that it extends. (Those that extend each other in a
# circle, which are refused later, end here after a few turns.)
extra_of() {
    local line extra='' base='' turn=${2:-1}
    while IFS= read -r line || [[ -n $line ]]; do
        if [[ $line =~ ^extra:[[:space:]]*[\"\']?([a-z]+) ]]; then
            extra=${BASH_REMATCH[1]}
        elif [[ $line =~ ^extends:[[:space:]]*[\"\']?([A-Za-z0-9_.-]+) ]]; then
            base=$repo/tables/${BASH_REMATCH[1]}.yaml
        fi
    done <"$1"
    if [[ -z $extra && -f $base && $turn -lt 20 ]]; then extra_of "$base" $((turn + 1)); else printf '%s' "$extra"; fi
}

# --- What was asked for ----------------------------------------------------------------------------------------------

lock=core beside=
if [[ ${1:-} == test ]]; then
    lock=dev
else
    # A table may need an extra; it says so in a line of its own. Detection is planned without its extra.
    case " $* " in *' --dry-run '*) dry=yes ;; *) dry= ;; esac
    for word in "$@"; do
        for table in "$repo/tables/$word.yaml" "$word"; do
            [[ $table == *.y*ml && -f $table ]] || continue
            extra=$(extra_of "$table")
            [[ -n $extra ]] || continue
            if [[ -n $dry && $extra == detection ]] && ! installed detection; then
                say "$word needs the extra [detection]; a run installs it from requirements/detection.txt."
                continue
            fi
            lock=$extra
            [[ ${KDBENCH_NO_VENV:-0} != 0 ]] || installed "$lock" || say "$word needs the extra [$lock]."
        done
    done
    # Beside it: an executor, a tracker or a form of networks that needs an extra of its own.
    while read -r option value extra; do
        case " $* " in *" --$option $value "* | *" --$option=$value "*) beside+=" $extra" ;; esac
    done <<<$'executor ray cluster\ntrack tensorboard track\nto onnx onnx'
fi

if [[ ${KDBENCH_NO_VENV:-0} != 0 ]]; then
    find_python python
    python=$host_python
else
    ensure_lock "$lock"
    for extra in $beside; do ensure_lock "$extra"; done
fi

# Threads of OpenMP that wait for each other spin, by default for so long that on a machine with other work a training
# step of a small network takes up to 15 times as long. A short spin is a safe choice: docs/cost.md says what it costs.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-5000}
if [[ ${1:-} == test ]]; then
    shift
    cd -- "$repo"
    # Tests share the cores, with a thread each; `-n 0` runs all in one process, as a debugger wants it.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    exec "$python" -m pytest -n auto --maxprocesses 8 --dist worksteal "$@"
fi
# The user's folder stays the current one, so that relative paths mean what was typed; -P keeps a `benchmarks` that lies
# there from being taken for ours. The repository is named by itself: PYTHONPATH would be split at a colon in its path.
exec "$python" -P -c '
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
' "$repo" "$@"
