#!/usr/bin/env bash
# Writes requirements.lock anew: exact versions for Linux, macOS and Windows, Python 3.11 and later.
# Versions already in the file are kept where they still fit; `scripts/lock.sh --upgrade` takes the newest.
# torch, and what only its GPU build needs, is left out: scripts/setup.sh chooses the build.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "lock: needs uv; install it with: python -m pip install uv" >&2; exit 1; }

omit=()
for name in torch triton $(uv pip compile pyproject.toml -q --universal --python-version 3.11 --no-annotate --no-header \
    | sed -nE 's/^(nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+).*/\1/p' | sort -u); do
    omit+=(--no-emit-package "$name")
done
uv pip compile pyproject.toml --extra test --extra small --universal --python-version 3.11 \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links "${omit[@]}" "$@" \
    --output-file requirements.lock -q
sed -i.bak '1i\
# Exact versions of everything that `make setup` installs beside torch. Written by scripts/lock.sh; do not edit.
' requirements.lock && rm requirements.lock.bak
