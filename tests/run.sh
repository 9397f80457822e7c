#!/usr/bin/env bash
# Runs every check of the project in a virtualenv of its own; arguments go to pytest.
#   CORTEX_TORCH     what pip is asked for as torch (default: torch==2.13.0)
#   CORTEX_TEST_VENV where the virtualenv is (default: .venv-test; made if it is not there)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONDONTWRITEBYTECODE # tests start programs all the time

venv=${CORTEX_TEST_VENV:-.venv-test}
python=$venv/bin/python

NEEDS_GIB=6 # the virtualenv takes 3

step() { printf '\n== %s\n' "$*"; }

missing=()
while read -r program packages; do
  read -ra packages <<<"$packages"
  command -v "$program" >/dev/null || missing+=("${packages[@]}")
done <<'END'
npm nodejs npm
strip binutils
faketime faketime
tmux tmux
ip iproute2
systemd-analyze systemd
rpmbuild rpm
cpio cpio
shellcheck shellcheck
END
bare=() # without what apt recommends beside them
command -v promtool >/dev/null || bare+=(prometheus)
command -v chromium-headless-shell chromium >/dev/null || bare+=(chromium-headless-shell)

host() { # what tests need beside Python
  if ((${#missing[@]} + ${#bare[@]})); then
    step "apt: ${missing[*]} ${bare[*]}"
    apt-get -qq update
    ((${#missing[@]} == 0)) || apt-get -qq install -y "${missing[@]}"
    ((${#bare[@]} == 0)) || apt-get -qq install -y --no-install-recommends "${bare[@]}"
  fi
  mkdir -p "$venv/node"
  cp tests/clients/node/package.json "$venv/node"
  npm install --prefix "$venv/node" --no-audit --no-fund --ignore-scripts --loglevel error
}

if [ ! -x "$python" ]; then
  for folder in . "${TMPDIR:-/tmp}"; do # a disk that fills up later fails tests in odd ways
    free=$(($(df -k --output=avail "$folder" | tail -n 1) >> 20))
    ((free >= NEEDS_GIB)) || {
      echo "tests/run.sh: $NEEDS_GIB GiB are needed in $folder, $free are free" >&2
      exit 1
    }
  done
  step "virtualenv in $venv"
  python3 -m venv "$venv"
fi
step "install"
trap wait EXIT # it is not left behind, nor ended amid an installation
host &         # beside pip and the checks
host=$!
"$python" -m pip install --quiet --upgrade 'pip>=25.1'
"$python" -m pip install --quiet --no-compile --group dev "${CORTEX_TORCH:-torch==2.13.0}" \
  --editable '.[torch]' --editable './plugins/cortex-dialect-ollama[test]' \
  --editable './plugins/cortex-eviction-cost[test]' --editable './plugins/cortex-harness-vllm[test]'
{ "$python" -m compileall -qq "$venv/lib" || true; } & # what pip would, beside the checks
compiled=$!
PATH=$PWD/$venv/bin:$PATH
[[ $venv = /* ]] && PATH=$venv/bin:$PATH

step "ruff"
ruff format --check .
ruff check .
step "mypy"
mypy
step "import-linter"
lint-imports
wait "$host"
wait "$compiled"
CORTEX_TEST_NODE=$(cd "$venv/node" && pwd)
export CORTEX_TEST_NODE
step "pytest" # which builds the docs, too
python -m pytest -n 2 --dist loadgroup -q "$@"
