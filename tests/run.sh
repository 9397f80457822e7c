#!/usr/bin/env bash
# Runs every check of the project in a virtualenv of its own; arguments go to pytest.
#   CORTEX_TORCH     what pip is asked for as torch (default: torch==2.13.0)
#   CORTEX_TEST_VENV where the virtualenv is (default: .venv-test; made if it is not there)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${CORTEX_TEST_VENV:-.venv-test}
python=$venv/bin/python

step() { printf '\n== %s\n' "$*"; }

# What the host lacks comes while pip works; each line is a program, and the package it is in.
missing=()
while read -r program package; do
  command -v "$program" >/dev/null || missing+=("$package")
done <<'END'
npm npm
node nodejs
strip binutils
faketime faketime
tmux tmux
ip iproute2
systemd-analyze systemd
rpmbuild rpm
cpio cpio
shellcheck shellcheck
promtool prometheus
END
command -v chromium-headless-shell chromium >/dev/null || missing+=(chromium-headless-shell)
host() {
  if ((${#missing[@]})); then
    step "apt: ${missing[*]}"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}"
  fi
  mkdir -p "$venv-node"
  cp tests/clients/node/package.json "$venv-node"
  npm install --prefix "$venv-node" --no-audit --no-fund --ignore-scripts --loglevel error
}
if [ ! -x "$python" ]; then
  step "virtualenv in $venv"
  python3 -m venv "$venv"
fi
step "install"
"$python" -m pip install --quiet --upgrade 'pip>=25.1'
"$python" -m pip install --quiet "${CORTEX_TORCH:-torch==2.13.0}"
"$python" -m pip install --quiet --group dev \
  --editable '.[torch]' --editable './plugins/cortex-dialect-ollama[test]' \
  --editable './plugins/cortex-eviction-cost[test]' --editable './plugins/cortex-harness-vllm[test]'
mkdir -p "$venv/node"
cp tests/clients/node/package.json "$venv/node"
npm install --prefix "$venv/node" --no-audit --no-fund --ignore-scripts --loglevel error
CORTEX_TEST_NODE=$(cd "$venv/node" && pwd)
export CORTEX_TEST_NODE
PATH=$PWD/$venv/bin:$PATH
[[ $venv = /* ]] && PATH=$venv/bin:$PATH

step "ruff"
ruff format --check .
ruff check .
step "mypy"
mypy
step "import-linter"
lint-imports
step "docs"
python -m sphinx -q -n -W -b html docs docs/_build/html
step "pytest"
python -m pytest -n 2 --dist loadgroup -q "$@"
