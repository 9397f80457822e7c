#!/bin/sh
# After the files are gone.  State stays unless Debian's purge asks for its end; the users stay.
set -e
if [ "${1-}" = purge ]; then
  rm -rf "${DPKG_ROOT-}"/var/lib/cortex-gateway "${DPKG_ROOT-}"/var/lib/cortex-neuron \
    "${DPKG_ROOT-}"/var/cache/cortex-gateway "${DPKG_ROOT-}"/var/cache/cortex-neuron
fi
if [ -z "${DPKG_ROOT-}" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
