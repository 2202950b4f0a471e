#!/usr/bin/env bash
# Installs the packages of debian-packages.txt that are missing. Who may not install is told their names; the tests that need them then fail.
set -euo pipefail
command -v dpkg-query >/dev/null || { echo "not Debian: see tests/debian-packages.txt for the programs that tests need" >&2; exit 0; }
missing=()
while read -r package _; do
  dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done < <(grep -Ev '^(#|$)' "$(dirname "$0")/debian-packages.txt")
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" = 0 ]; then as_root=(env)
elif sudo -n true 2>/dev/null; then as_root=(sudo -n env)
else echo "tests need Debian packages: apt-get install ${missing[*]}" >&2; exit 0
fi
"${as_root[@]}" apt-get update -qq
# RUNLEVEL=1: no service is started by its installation, the tests start their own.
"${as_root[@]}" DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
