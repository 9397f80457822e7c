#!/usr/bin/env bash
# Installs real coding agents and runs each against a gateway and a neuron whose model says what a
# script says; arguments name some of them (default: all).  One line an agent and turn.
#   CORTEX_CLIENTS   where everything is installed and every home is (default: ~/.cache/cortex/clients)
# It downloads; the agents themselves run with an environment of their own and see no other server.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

prefix=${CORTEX_CLIENTS:-$HOME/.cache/cortex/clients}
mkdir -p "$prefix"
prefix=$(cd "$prefix" && pwd)
python=$prefix/cortex/bin/python

npm_install() {  # into the folder $1, what follows
  local folder=$prefix/$1
  shift
  mkdir -p "$folder"
  npm install --prefix "$folder" --no-audit --no-fund --no-update-notifier --loglevel error "$@"
}

echo "== install in $prefix"
[ -x "$python" ] || python3 -m venv "$prefix/cortex"
"$python" -m pip install --quiet --upgrade 'pip>=25.1'
"$python" -m pip install --quiet --editable .
npm_install node node@24  # agents want a newer node than many hosts have, and so the newest of them
PATH=$prefix/node/node_modules/node/bin:$PATH
npm_install agents @anthropic-ai/claude-code@latest @openai/codex@latest opencode-ai@latest \
  @qwen-code/qwen-code@latest @mariozechner/pi-coding-agent@latest
[ -x "$prefix/aider/bin/python" ] || python3 -m venv "$prefix/aider"
"$prefix/aider/bin/python" -m pip install --quiet --upgrade aider-chat

echo "== agents"
exec "$python" -m tests.clients.trials "$prefix" "$@"
