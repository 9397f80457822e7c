#!/usr/bin/env bash
# Runs every check of the project in a virtualenv of its own; arguments go to pytest.
#   CORTEX_TORCH     what pip is asked for as torch (default: torch==2.13.0)
#   CORTEX_TEST_VENV where the virtualenv is (default: .venv-test; made if it is not there)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${CORTEX_TEST_VENV:-.venv-test}
python=$venv/bin/python

step() { printf '\n== %s\n' "$*"; }

command -v npm >/dev/null || { step "apt: npm"; apt-get -qq update; apt-get -qq install -y nodejs npm; }
command -v strip >/dev/null || { step "apt: binutils"; apt-get -qq update; apt-get -qq install -y binutils; }
command -v faketime >/dev/null || { step "apt: faketime"; apt-get -qq update; apt-get -qq install -y faketime; }
command -v tmux >/dev/null || { step "apt: tmux"; apt-get -qq update; apt-get -qq install -y tmux; }
command -v ip >/dev/null || { step "apt: iproute2"; apt-get -qq update; apt-get -qq install -y iproute2; }
command -v systemd-analyze >/dev/null || { step "apt: systemd"; apt-get -qq update; apt-get -qq install -y systemd; }
command -v rpmbuild >/dev/null || { step "apt: rpm"; apt-get -qq update; apt-get -qq install -y rpm; }
command -v cpio >/dev/null || { step "apt: cpio"; apt-get -qq update; apt-get -qq install -y cpio; }
command -v shellcheck >/dev/null || { step "apt: shellcheck"; apt-get -qq update; apt-get -qq install -y shellcheck; }
command -v promtool >/dev/null || { step "apt: promtool"; apt-get -qq update; apt-get -qq install -y --no-install-recommends prometheus; }
command -v chromium-headless-shell chromium >/dev/null || { step "apt: chromium"; apt-get -qq update; apt-get -qq install -y --no-install-recommends chromium-headless-shell; }
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
