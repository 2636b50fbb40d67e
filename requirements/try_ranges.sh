#!/usr/bin/env bash
# Tries the ranges of pyproject.toml: the quick tests of losses, networks and a small table, each time in a virtual environment of its own.
#
#   requirements/try_ranges.sh lowest [FOLDER] [pytest arguments]    every dependency of its own at its lower bound
#   requirements/try_ranges.sh newest [FOLDER] [pytest arguments]    all at their newest
#
# FOLDER keeps the environments (by default one for temporary files). KDBENCH_PYTHON names the Python: by default 3.11,
# the lower bound, for `lowest`, and the newest one at hand for `newest`. Needs uv; each environment takes 6 GB of disk.
set -euo pipefail

which=${1:-}
[[ $which == lowest || $which == newest ]] || { printf 'requirements/try_ranges.sh lowest|newest [FOLDER] …\n' >&2; exit 2; }
folder=${2:-${TMPDIR:-/tmp}/kdbench-ranges}
shift $(($# < 2 ? $# : 2))
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

extras=(text detection track dev)
resolution=highest versions=(3.14 3.13 3.12 3.11)
[[ $which == newest ]] || resolution=lowest-direct versions=(3.11)
for version in ${KDBENCH_PYTHON:-"${versions[@]}"}; do
    ! python=$(uv python find --no-python-downloads "$version" 2>/dev/null) || break
done
[[ $python ]] || { printf 'no Python %s at hand; name one with KDBENCH_PYTHON\n' "${KDBENCH_PYTHON:-${versions[*]}}" >&2; exit 2; }
mkdir -p -- "$folder"
uv pip compile -q --python "$python" --resolution "$resolution" "${extras[@]/#/--extra=}" --annotation-style line --no-header \
    pyproject.toml -o "$folder/$which.txt"
uv venv -q --clear --python "$python" "$folder/$which"
uv pip sync -q --python "$folder/$which/bin/python" "$folder/$which.txt"

printf '%s, %s: ' "$which" "$("$folder/$which/bin/python" --version)"
grep 'kd-benchmark' "$folder/$which.txt" | grep -oE '^[^ ]+==[^ ]+' | tr '\n' ' ' # what pyproject.toml itself names
printf '\n'
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$folder/$which/bin/python" -m pytest -n 0 -p no:cacheprovider tests/methods tests/networks tests/driver/test_calls.py "$@"
