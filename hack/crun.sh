#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Puts a crun into the folder $1 that knows the OCI runtime-spec as Berth writes it: the one in PATH, or Debian trixie's. Nothing is installed: its packages are unpacked beside it with the
# libraries that it was built for, which crun is told by patchelf, for it runs itself by /proc/self/exe and so cannot be started by another loader.
set -euo pipefail

suite=trixie
packages=(crun libc6 libcap2 libseccomp2 libsystemd0 libyajl2)
out=$(realpath "$1")

if own=$(command -v crun) && "$own" features >/dev/null 2>&1; then
	ln -sfn "$own" "$out/crun"
	exit
fi
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
if ! command -v apt-get >/dev/null 2>&1 || [ ! -e "$keyring" ]; then
	echo "crun is missing or too old, and this is no Debian to take it from: install crun 1.9 or newer" >&2
	exit 1
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp/lists" "$tmp/archives/partial"
echo "deb [signed-by=$keyring] http://deb.debian.org/debian $suite main" >"$tmp/sources.list"
apt=(apt-get -q -o DPkg::Lock::Timeout=300 -o Dir::Etc::sourcelist="$tmp/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$tmp/lists"
	-o Dir::Cache::archives="$tmp/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Get::List-Cleanup=0 -o APT::Sandbox::User=root)
"${apt[@]}" update
(cd "$tmp/archives" && "${apt[@]}" download "${packages[@]}")
rm -rf "$out/root"
mkdir -p "$out/root"
for deb in "$tmp"/archives/*.deb; do
	dpkg-deb -x "$deb" "$out/root"
done
loader=$(find "$out/root/usr/" -name 'ld-linux-*.so.*' | head -n1)
patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$(dirname "$(find "$out/root/usr/lib" -name 'libyajl.so.2')")" "$out/root/usr/bin/crun"
"$out/root/usr/bin/crun" features >/dev/null
ln -sfn root/usr/bin/crun "$out/crun"
