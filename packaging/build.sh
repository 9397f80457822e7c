#!/usr/bin/env bash
# Makes packages of the single file; `--help` says how.
set -euo pipefail

usage() {
  cat <<'END'
usage: packaging/build.sh [--pyz FILE] [--python FILE] [--output DIR] [deb] [rpm]

Makes cortex-fleet_VERSION_ARCH.deb and cortex-fleet-VERSION-1.ARCH.rpm, or the one that is named,
of the single file and packaging/.  Wants dpkg-deb, and rpmbuild, which Debian's package rpm has.

  --pyz FILE     the single file (default: dist/cortex.pyz in the checkout)
  --python FILE  a Python of the version it was built for (default: python3); the packages will want
                 the same version, as /usr/bin/pythonX.Y
  --output DIR   where they go (default: dist in the checkout)
  --help         print this
END
}

fail() {
  printf 'build.sh: %s\n' "$1" >&2
  exit "${2:-1}"
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(dirname "$here")
pyz=$checkout/dist/cortex.pyz python=python3 output=$checkout/dist
kinds=()
while (($#)); do
  case $1 in
    --pyz | --python | --output)
      [[ -n ${2-} ]] || fail "$1 needs a value" 2
      declare "${1#--}=$2"
      shift
      ;;
    deb | rpm) kinds+=("$1") ;;
    --help) usage && exit ;;
    *) fail "no option $1; --help lists them" 2 ;;
  esac
  shift
done
((${#kinds[@]})) || kinds=(deb rpm)

name=cortex-fleet
summary='one reliable LLM endpoint out of a handful of GPU boxes'
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Nothing of the time and the host of the build is in a package.
SOURCE_DATE_EPOCH=$(git -C "$checkout" log -1 --format=%ct 2>/dev/null || echo 1580601600)
export SOURCE_DATE_EPOCH
umask 022

stage=$scratch/stage
said=$(bash "$here/install.sh" --pyz "$pyz" --python "$python" --prefix /usr --root "$stage") || exit
[[ $said =~ ^cortex\ ([^ ]+)\ \(Python\ ([0-9]+\.[0-9]+) ]] || fail "$pyz says it is: $said"
version=${BASH_REMATCH[1]} needs=python${BASH_REMATCH[2]}
sed -i "s#:-[^}]*}#:-/usr/bin/$needs}#" "$stage/usr/bin/cortex"
find "$stage" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
mapfile -t settings < <(cd "$stage" && find etc -type f -printf '/%p\n' | sort)
mkdir -p "$output"

deb() {
  local control=$scratch/stage-deb/DEBIAN arch
  arch=$(dpkg-deb --version >/dev/null && dpkg --print-architecture)
  cp -a "$stage" "$scratch/stage-deb"
  mkdir "$control"
  cat >"$control/control" <<END
Package: $name
Version: $version
Architecture: $arch
Maintainer: cortex <root@localhost>
Installed-Size: $(du -sk --apparent-size "$stage" | cut -f1)
Depends: $needs
Recommends: systemd
Section: net
Priority: optional
Description: $summary
 A gateway speaks the APIs of OpenAI and Anthropic, a neuron on each GPU box runs the models; the
 command is cortex.  A neuron takes torch from the Python that CORTEX_PYTHON in
 /etc/cortex/neuron.env names.
END
  printf '%s\n' "${settings[@]}" >"$control/conffiles"
  (cd "$stage" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$control/md5sums"
  install -m 0755 "$here/after-install.sh" "$control/postinst"
  install -m 0755 "$here/before-remove.sh" "$control/prerm"
  install -m 0755 "$here/after-remove.sh" "$control/postrm"
  dpkg-deb --build --root-owner-group -Zgzip "$scratch/stage-deb" "$output/${name}_${version}_$arch.deb"
}

rpm() {
  local spec=$scratch/$name.spec
  cat >"$spec" <<END
Name: $name
Version: $version
Release: 1
Summary: $summary
License: GPL-3.0-or-later
Requires: /usr/bin/$needs
Requires(post): systemd
AutoReqProv: no
%define __os_install_post %{nil}
%define _build_id_links none
%define _binary_payload w6.gzdio
%define _buildhost localhost
%define clamp_mtime_to_source_date_epoch 1
%define use_source_date_epoch_as_buildtime 1
%description
A gateway speaks the APIs of OpenAI and Anthropic, a neuron on each GPU box runs the models; the
command is cortex.  A neuron takes torch from the Python that CORTEX_PYTHON in
/etc/cortex/neuron.env names.
%install
cp -a "$stage/." "%{buildroot}"
%post
$(tail -n +2 "$here/after-install.sh")
%preun
$(tail -n +2 "$here/before-remove.sh")
%postun
$(tail -n +2 "$here/after-remove.sh")
%files
%defattr(-,root,root)
%dir /etc/cortex
$(printf '%%config(noreplace) %s\n' "${settings[@]}")
%dir /usr/lib/cortex
%dir /usr/share/doc/$name
$(cd "$stage" && find usr -type f -printf '/%p\n' | sort)
END
  rpmbuild -bb --quiet --define "_topdir $scratch/rpm" --define "_rpmdir $scratch/rpms" \
    --define "_rpmfilename %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm" "$spec"
  mv "$scratch"/rpms/*.rpm "$output"
}

for kind in "${kinds[@]}"; do
  "$kind"
done
find "$output" -maxdepth 1 -newer "$scratch/stage" \( -name "$name*.deb" -o -name "$name*.rpm" \) -printf '%p: %s bytes\n'
