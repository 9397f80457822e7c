#!/usr/bin/env bash
# Puts cortex and its services on a host without packages, or takes them away; `--help` says how.
set -euo pipefail

usage() {
  cat <<'END'
usage: packaging/install.sh [--uninstall] [--pyz FILE] [--python FILE] [--prefix DIR] [--root DIR]

Installs the single file, /etc/cortex, the units, their users and what firewalld has to know.
Starts nothing: `systemctl enable --now cortex-gateway cortex-neuron` does.
Does it again without harm; what is in /etc/cortex stays as it is.

  --pyz FILE     the single file (default: dist/cortex.pyz in the checkout)
  --python FILE  the Python that runs it, of the version it was built for (default: python3)
  --prefix DIR   where programs go (default: /usr/local); /usr is a package's
  --root DIR     install below DIR, and make no users there: for packages and tests
  --uninstall    stop the services and remove all but /etc/cortex, state and users
  --help         print this
END
}

fail() {
  printf 'install.sh: %s\n' "$1" >&2
  exit "${2:-1}"
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(dirname "$here")
pyz=$checkout/dist/cortex.pyz python=python3 prefix=/usr/local root='' uninstall=''
while (($#)); do
  case $1 in
    --pyz | --python | --prefix | --root)
      [[ -n ${2-} ]] || fail "$1 needs a value" 2
      declare "${1#--}=$2"
      shift
      ;;
    --uninstall) uninstall=yes ;;
    --help) usage && exit ;;
    *) fail "no option $1; --help lists them" 2 ;;
  esac
  shift
done
[[ $prefix = /* ]] || fail "--prefix: expected an absolute path, got $prefix" 2
if [[ -z $root && $(id -u) != 0 ]]; then fail "only root can install below /; or use --root DIR"; fi

base=/etc # what an administrator puts there goes before what a package has below /usr/lib
[[ $prefix != /usr ]] || base=/usr/lib
units=$base/systemd/system
lib=$prefix/lib/cortex
doc=$prefix/share/doc/cortex-fleet
services=(cortex-gateway cortex-neuron)
zones=(cortex-gateway cortex-gateway-metrics cortex-neuron)

put() { # MODE SOURCE TARGET
  install -D --mode="$1" "$2" "$root$3"
}

keep() { # as put, unless it is there
  [[ -e $root$3 ]] || put "$@"
}

remove() {
  if [[ -z $root ]]; then sh "$here/before-remove.sh" remove; fi
  rm -f "$root$prefix/bin/cortex" "$root$base/sysusers.d/cortex.conf"
  for name in "${services[@]}"; do rm -f "$root$units/$name.service"; done
  for name in "${zones[@]}"; do rm -f "$root$base/firewalld/services/$name.xml"; done
  rm -rf "$root${lib:?}" "$root${doc:?}"
  if [[ -z $root ]]; then sh "$here/after-remove.sh" remove; fi
  echo "cortex is removed; left are $root/etc/cortex, /var/lib/cortex-* and /var/cache/cortex-*"
}

if [[ $uninstall ]]; then
  remove
  exit
fi

[[ -f $pyz ]] || fail "no file $pyz; \`python -m cortex.zipapp slim\` builds it" 2
interpreter=$(command -v "$python") || fail "--python: no program $python" 2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
SHIV_ROOT=${SHIV_ROOT:-$scratch/shiv} "$interpreter" "$pyz" --version >"$scratch/version" || exit 2

put 0644 "$pyz" "$lib/cortex.pyz"
cat >"$scratch/cortex" <<END
#!/bin/sh
exec "\${CORTEX_PYTHON:-$interpreter}" $lib/cortex.pyz "\$@"
END
put 0755 "$scratch/cortex" "$prefix/bin/cortex"
for name in "${services[@]}"; do
  sed "s#/usr/bin/cortex #$prefix/bin/cortex #; s#/usr/share/doc/cortex-fleet#$doc#" \
    "$here/systemd/$name.service" >"$scratch/unit"
  put 0644 "$scratch/unit" "$units/$name.service"
done
put 0644 "$here/systemd/sysusers.conf" "$base/sysusers.d/cortex.conf"
for name in "${zones[@]}"; do
  put 0644 "$here/firewalld/$name.xml" "$base/firewalld/services/$name.xml"
done
for name in cortex models neuron; do
  keep 0644 "$checkout/examples/$name.toml" "/etc/cortex/$name.toml"
done
for name in gateway neuron; do keep 0600 "$here/$name.env" "/etc/cortex/$name.env"; done
put 0644 "$checkout/README.md" "$doc/README.md"
put 0644 "$checkout/LICENSE" "$doc/copyright"
for name in alerts.yml grafana.json prometheus.yml; do
  put 0644 "$checkout/examples/$name" "$doc/examples/$name"
done
if [[ -z $root ]]; then sh "$here/after-install.sh"; fi
echo "$(<"$scratch/version") is in $root$prefix/bin; nothing was started"
