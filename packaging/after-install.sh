#!/bin/sh
# Once the files are there: makes the users, and says who may read the configuration.  Starts nothing.
# Of an administrator's choice nothing is changed: only files that are still root:root are given away.
set -e
root=${DPKG_ROOT-}

give() { # FILE to the group NAME, with MODE
  gid=$(sed -n "s/^$2:[^:]*:\([0-9]*\):.*/\1/p" "$root/etc/group")
  [ -n "$gid" ] && [ "$(stat -c %u:%g "$root$1")" = 0:0 ] || return 0
  chgrp "$gid" "$root$1"
  chmod "$3" "$root$1"
}

if command -v systemd-sysusers >/dev/null; then
  systemd-sysusers --root="${root:-/}" cortex.conf
else
  echo "cortex: no systemd-sysusers here; the services want users cortex-gateway and cortex-neuron" >&2
fi
if [ "$(id -u)" = 0 ]; then
  give /etc/cortex/cortex.toml cortex-gateway 0640
  give /etc/cortex/neuron.toml cortex-neuron 0640
fi
if [ -z "$root" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
