#!/usr/bin/env bash
# Creates .venv and installs exactly what requirements.lock says, with the build of torch that suits this machine.
# A second call with nothing changed returns at once. Settings, all optional:
#   PYTHON=python3.12   the interpreter to build .venv with (3.11 or later)
#   VENV=folder         where to put it (default .venv)
#   EXTRAS=gpu,small    further groups of pyproject.toml to install
set -euo pipefail
cd "$(dirname "$0")/.."

torch=2.13.0
venv=${VENV:-.venv}
stamp=$venv/.workbench-setup

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

fresh_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        "$PYTHON" -c '' 2>/dev/null || die "PYTHON=$PYTHON does not start; give the path of a Python 3.11 or later"
        fresh_enough "$PYTHON" || die "$PYTHON is $("$PYTHON" -V); set PYTHON to one that is 3.11 or later"
        echo "$PYTHON"
        return
    fi
    local name
    for name in python3 python3.13 python3.12 python3.11 python; do
        if command -v "$name" >/dev/null && fresh_enough "$name"; then echo "$name"; return; fi
    done
    die "found no Python 3.11 or later; install one, or name it: make setup PYTHON=/path/to/python3.11"
}

venv_python() { if [ -x "$venv/Scripts/python.exe" ]; then echo "$venv/Scripts/python.exe"; else echo "$venv/bin/python"; fi; }

# true when an installed torch lies in the range of pyproject.toml: whoever chose it had a reason
torch_fits() {
    "$py" - <<'PY' 2>/dev/null
import sys, tomllib
from importlib.metadata import version
from pip._vendor.packaging.requirements import Requirement
wanted = map(Requirement, tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"])
sys.exit(not any(r.name == "torch" and r.specifier.contains(version("torch"), prereleases=True) for r in wanted))
PY
}

# quiet but for errors, with a word now and then that it is alive
pip_install() {
    local beat status=0
    (trap 'kill "$nap" 2>/dev/null; exit' TERM; n=0; while :; do
        sleep 20 & nap=$!; wait "$nap"; n=$((n + 20)); say "... still installing, $n s"; done) &
    beat=$!
    "$py" -m pip install --disable-pip-version-check -qq "$@" || status=$?
    kill "$beat" 2>/dev/null; wait "$beat" 2>/dev/null || true
    return "$status"
}

install_torch() {
    if torch_fits; then
        say "keeping the torch that is installed"
    elif [ "$(uname -s)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1; then
        say "no NVIDIA GPU: installing torch $torch for the CPU"
        # the index in use may carry the CPU build; PyTorch's own does; the default build works too but is huge
        pip_install "torch==$torch+cpu" 2>/dev/null ||
            pip_install "torch==$torch+cpu" --extra-index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
            { say "no CPU build to be had here: taking the default one, several GB"; pip_install "torch==$torch"; } ||
            die "could not install torch $torch; install a torch of your own into $venv and start again"
    else
        say "installing torch $torch"
        pip_install "torch==$torch" || die "could not install torch $torch; install one of your own into $venv and start again"
    fi
}

wanted=$(cat requirements.lock pyproject.toml scripts/setup.sh | cksum)
py=$(venv_python)
if [ -z "${EXTRAS:-}" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && [ -x "$py" ]; then exit 0; fi

if [ -x "$py" ] && ! fresh_enough "$py"; then
    say "$venv holds a Python that does not start or is older than 3.11: making it anew"
    rm -rf "$venv"
fi
if [ ! -x "$py" ]; then
    base=$(find_python)
    say "creating $venv with $("$base" -V)"
    "$base" -m venv "$venv" || die "could not create $venv; on Debian and Ubuntu: apt install python3-venv"
    py=$(venv_python)
fi
rm -f "$stamp"
install_torch
say "installing the packages of requirements.lock; this takes a few minutes the first time"
pip_install -r requirements.lock || die "could not install requirements.lock; is there a network, and room on the disk?"
pip_install --no-deps --no-build-isolation -e .
if [ -n "${EXTRAS:-}" ]; then
    say "installing the extras $EXTRAS"
    pip_install -c requirements.lock --no-build-isolation -e ".[$EXTRAS]"
fi
echo "$wanted" >"$stamp"
say "ready: $("$py" -V) in $venv, torch $("$py" -c 'from importlib.metadata import version; print(version("torch"))')"
