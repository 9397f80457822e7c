#!/usr/bin/env bash
# From a checkout to a first answer; `--help` says how.  What an earlier run left is used again.
set -euo pipefail

usage() {
  cat <<'END'
usage: bash examples/quickstart.sh [--once]

Sets up a virtualenv, builds dist/cortex.pyz, fetches the demo model smollm2-135m, starts a neuron
and a gateway on loopback, asks one question and prints the answer.  Stays up until Ctrl-C.

  --once  stop everything after the answer
  --help  print this

Environment:
  PYTHON           makes the virtualenv (default: python3); 3.11 or newer
  CORTEX_VENV      the virtualenv (default: .venv in the checkout)
  CORTEX_TORCH     what pip installs as torch (default: torch==2.13.0; on a host with an NVIDIA GPU: torch)
  CORTEX_PIP_ARGS  more arguments for pip install.  On x86-64 Linux torch comes with CUDA, gigabytes
                   without use where no GPU is: '--extra-index-url URL', with the URL PyTorch's
                   installation page gives for CPU builds, avoids that
  CORTEX_PORT      the gateway's port (default: a free one)
  NEURON_PORT      the neuron's port (default: a free one)
  CORTEX_CACHE     where weights are kept (default: ~/.cache/cortex)
END
}

bold='' dim='' plain=''
if [[ -t 1 && -z ${NO_COLOR-} ]]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; fi
say() { printf '%s\n' "$bold$*$plain"; }
die() { printf 'quickstart: %s\n' "$1" >&2 && exit 1; }
fail() { # SENTENCE LOG: die, after the end of the log, which is kept
  keep=yes
  { printf '\nThe end of %s:\n' "$2" && tail -n 12 "$2" | cut -c -160 | sed 's/^/  /'; } >&2
  die "$1"
}

# Programs run in the background, each in a process group of its own: so a signal reaches this
# script at once, and what a program started ends with it.
declare -A running=()
start() { # NAME COMMAND...
  set -m
  "${@:2}" </dev/null &
  running[$1]=$!
  set +m
}
alive() { kill -0 "${running[$1]}" 2>/dev/null; }
finish() { # NAME: wait for its end, return its status
  local status=0
  wait "${running[$1]}" || status=$?
  unset "running[$1]"
  return "$status"
}
leave() {
  trap '' INT TERM HUP
  exec 2>/dev/null # bash would say whom it ended
  local signal pid try
  for signal in INT TERM KILL; do # at INT pip clears away its temporary files
    for pid in "${running[@]}"; do kill "-$signal" -- "-$pid" || true; done
    for pid in "${running[@]}"; do
      for ((try = 0; try < 100; try++)); do
        kill -0 -- "-$pid" || break
        sleep 0.1
      done
    done
  done
  [[ -n ${keep-} || -z ${temp-} ]] || rm -rf "$temp"
}
trap leave EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

quietly() { # WHAT LOG COMMAND...: its words go to the log; a terminal sees the last of them
  local began=$SECONDS why=''
  say "$1 ..."
  start step "${@:3}" >>"$2" 2>&1
  while [[ -t 1 ]] && alive step; do
    printf '\r\e[K%s' "$dim  $((SECONDS - began)) s  $(tail -n 1 "$2" | cut -c -60)$plain"
    sleep 0.5
  done
  [[ ! -t 1 ]] || printf '\r\e[K'
  finish step && return
  case $(<"$2") in
    *"No space left on device"*) why=": the disk is full" ;;
    *"onnection broken"* | *"Max retries"* | *"from versions: none"*)
      why=": pip cannot reach its package index, is the network up?" ;;
  esac
  fail "$1 failed$why" "$2"
}
writable() { # FOLDER
  { mkdir -p "$1" && : >"$1/.quickstart" && rm "$1/.quickstart"; } 2>/dev/null ||
    die "cannot write to $1"
}
port() { # VARIABLE: print the port it names; 0 is any free one
  local port=${!1:-0}
  if [[ ! $port =~ ^[0-9]{1,5}$ ]] || ((10#$port > 65535)); then die "$1 is no port: $port"; fi
  if ((10#$port)) && (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    die "port $port is taken: stop what listens there, or name another with $1"
  fi
  echo "$port"
}
address() { # NAME: wait until it says where it listens, and set `url` to that
  local log=$temp/$1.log try
  for ((try = 0; try < 600; try++)); do
    url=$(sed -n "s/^cortex $1 listens on \(http[^ ]*\).*/\1/p" "$log")
    [[ -z $url ]] || return 0
    alive "$1" || fail "the $1 did not start" "$log"
    sleep 0.1
  done
  fail "the $1 does not listen after 60 s" "$log"
}

once=''
case ${1-} in
  --help | -h) usage && exit ;;
  --once) once=yes ;;
  ?*) usage >&2 && exit 2 ;;
esac
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$(realpath -ms "${CORTEX_VENV:-$checkout/.venv}")
python=$venv/bin/python pyz=$checkout/dist/cortex.pyz
cortex=("$python" "$pyz")
cd "$checkout"
neuron_port=$(port NEURON_PORT)
gateway_port=$(port CORTEX_PORT)
temp=$(mktemp -d 2>/dev/null) || die "cannot write to ${TMPDIR:-/tmp}"
for folder in "$checkout/dist" "${SHIV_ROOT:-${HOME:-$checkout/dist}}"; do writable "$folder"; done

# 1. A virtualenv with all that pyproject.toml asks for.
modern() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
complete() {
  "$python" - 2>/dev/null <<'END'
import sys, tomllib
from importlib.metadata import version
from packaging.requirements import Requirement

with open("pyproject.toml", "rb") as file:
    asked = tomllib.load(file)
needs = [*asked["project"]["dependencies"], *asked["project"]["optional-dependencies"]["torch"]]
for need in map(Requirement, ["pip", *needs, *asked["dependency-groups"]["build"]]):
    if not need.specifier.contains(version(need.name), prereleases=True):
        sys.exit(1)
END
}
if ! complete; then
  writable "$venv"
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    base=${PYTHON:-python3}
    modern "$base" ||
      die "$base is missing or too old: install Python 3.11 or newer, and name it with PYTHON"
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
      die "$base has no venv module: install it (Debian and Ubuntu: apt install python3-venv)"
    quietly "making the virtualenv $venv" "$temp/pip.log" "$base" -m venv "$venv"
  fi
  modern "$python" || die "$venv is of a Python before 3.11: remove it, or name another with CORTEX_VENV"
  torch=torch==2.13.0
  if nvidia-smi -L >/dev/null 2>&1; then
    torch=torch
  elif [[ $(uname -m) == x86_64 && -z ${CORTEX_TORCH-}${CORTEX_PIP_ARGS-} ]]; then
    echo "  no NVIDIA GPU here: if torch comes with gigabytes of CUDA, see CORTEX_PIP_ARGS in --help"
  fi
  read -ra torch <<<"${CORTEX_TORCH:-$torch}"
  read -ra more <<<"${CORTEX_PIP_ARGS-}"
  install=("$python" -m pip install --no-input "${more[@]}")
  quietly "installing a pip that knows dependency groups" "$temp/pip.log" "${install[@]}" 'pip>=25.1'
  quietly "installing ${torch[*]} and what cortex needs" "$temp/pip.log" \
    "${install[@]}" "${torch[@]}" --editable '.[torch]' --group build
fi

# 2. dist/cortex.pyz, unless it is of these sources and this Python.
sources() {
  "$python" -V
  find cortex LICENSE README.md pyproject.toml shiv.toml -name __pycache__ -prune -o \
    -type f -print0 | sort -z | xargs -0 sha256sum
}
stamp=$checkout/dist/.quickstart-sources
if [[ ! -f $pyz || $pyz -nt $stamp ]] || ! sources | cmp -s - "$stamp"; then
  quietly "building dist/cortex.pyz" "$temp/build.log" "$python" -m cortex.zipapp slim
  sources >"$stamp"
fi

# 3. The weights.  A terminal gets a bar; cortex says itself what goes wrong.
say "fetching smollm2-135m ..."
start pull "${cortex[@]}" pull smollm2-135m
finish pull || exit

# 4. A neuron, and a gateway that knows of it and of the model.
say "starting a neuron and a gateway ..."
echo "listen = '127.0.0.1:$neuron_port'" >"$temp/neuron.toml"
start neuron "${cortex[@]}" neuron --config "$temp/neuron.toml" >"$temp/neuron.log" 2>&1
address neuron
cat >"$temp/cortex.toml" <<END
[gateway]
listen = "127.0.0.1:$gateway_port"
metrics_listen = "127.0.0.1:0"
state_path = "state.json"  # another gateway of this user may run

[[neurons]]
name = "here"
endpoint = "$url"
END
printf '[[models]]\nid = "smollm2-135m"\n' >"$temp/models.toml"
start gateway "${cortex[@]}" serve --config "$temp/cortex.toml" >"$temp/gateway.log" 2>&1
address gateway
export CORTEX_URL=$url
for ((try = 0; ; try++)); do
  [[ $("${cortex[@]}" status --json 2>/dev/null) != *'"healthy": true'* ]] || break
  ((try < 30)) || fail "the gateway does not reach the neuron" "$temp/gateway.log"
  sleep 1
done

# 5. One question.  The gateway loads the model because someone asks for it.
question="What is the capital of France?"
say "$question"
start chat "${cortex[@]}" chat -m smollm2-135m --temperature 0 --max-tokens 64 --stats "$question"
finish chat || fail "no answer came" "$temp/neuron.log"

[[ -z $once ]] || exit 0
say "Ask it yourself:"
printf "curl -N %s/v1/chat/completions -H 'content-type: application/json' -d '%s'\n" "$url" \
  '{"model": "smollm2-135m", "messages": [{"role": "user", "content": "Name a river in France."}], "stream": true, "max_tokens": 200}'
say "Or talk to it:"
echo "CORTEX_URL=$url $python $pyz chat"
say "Logs are in $temp.  Ctrl-C stops everything."
wait -n "${running[neuron]}" "${running[gateway]}" || true
alive neuron || fail "the neuron ended" "$temp/neuron.log"
fail "the gateway ended" "$temp/gateway.log"
