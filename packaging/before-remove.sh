#!/bin/sh
# Before the files go for good; not before others take their place.
set -e
case ${1-remove} in remove | 0) ;; *) exit 0 ;; esac
if [ -z "${DPKG_ROOT-}" ] && [ -d /run/systemd/system ]; then
  systemctl --quiet disable --now cortex-gateway.service cortex-neuron.service || true
fi
