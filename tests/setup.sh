# SPDX-License-Identifier: MIT
# `source tests/setup.sh EXTRA`, from a bash script: a virtual environment with torch, with lowbit as
# its sources stand in this folder, and with what pyproject.toml lists under EXTRA. Quick when nothing
# has changed since the last time. Afterwards the folder is the repository's root, $PYTHON the
# environment's python, and its programs come first in PATH.
#
#   PYTHON         makes the environment (python3)
#   LOWBIT_VENV    where it is (.venv in the repository's root)
#   LOWBIT_TORCH   the torch to install, in pip's words (torch==2.13.0)

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${LOWBIT_VENV:-$PWD/.venv}
torch=${LOWBIT_TORCH:-torch==2.13.0}

stop() {
    echo "${0##*/}: $*" >&2
    exit 1
}

make_environment() {
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null ||
        stop "$python not found: install Python >= 3.10, or name one in PYTHON"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        stop "$("$python" --version) is too old: install Python >= 3.10, or name one in PYTHON"
    "$python" -c 'import ensurepip' 2>/dev/null ||
        stop "$python makes no virtual environments: install its venv module (Debian: apt-get install python3-venv)"
    echo "== Making $venv"
    "$python" -m venv "$venv"
}

install_lowbit() {
    local compiler quiet=
    [ ! -f "$stamp" ] || quiet=--quiet # all but lowbit is there already, and pip would list it
    for compiler in "${CC:-cc}" "${CXX:-c++}"; do
        command -v "${compiler%% *}" >/dev/null ||
            stop "$compiler not found: install a C and C++ compiler (Debian: apt-get install build-essential)"
    done
    echo "== Installing $torch and the build tools"
    "$PYTHON" -m pip install $quiet "$torch" scikit-build-core cmake ninja
    echo "== Building lowbit, and installing what its extra $1 needs"
    "$PYTHON" -m pip install $quiet --no-build-isolation ".[$1]"
}

checksum_of_sources() {
    find CMakeLists.txt pyproject.toml kernels ops shim torch_plugin -type f \
        ! -path '*/__pycache__/*' -exec cksum {} + | LC_ALL=C sort | cksum
}

[ -x "$venv/bin/python" ] || make_environment
PYTHON=$venv/bin/python
PATH=$venv/bin:$PATH
stamp=$venv/lowbit-installed
installed="$torch, $(checksum_of_sources)"
case $(cat "$stamp" 2>/dev/null) in
"$installed, $1" | "$installed, test") ;; # the extra "test" holds the others
*)
    install_lowbit "$1"
    echo "$installed, $1" >"$stamp"
    ;;
esac
