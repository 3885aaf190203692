#!/bin/bash
# Install those packages of debian.txt that are missing. No service of theirs is started or
# left enabled: the lab runs its own copies in its own namespaces.
set -euo pipefail

here=$(dirname "$0")
mapfile -t wanted < <(grep -v '^#' "$here/debian.txt")

if ! command -v dpkg-query > /dev/null; then
    echo "This is not Debian. Make sure that these are there: ${wanted[*]}" >&2
    exit 0
fi

missing=()
for package in "${wanted[@]}"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2> /dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "Missing Debian packages; as root: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
fi

# A policy of "start nothing" for the time of the installation, unless the machine has its own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet --quiet
apt-get install --quiet --quiet --yes --no-install-recommends "${missing[@]}"

if command -v systemctl > /dev/null; then
    for package in "${missing[@]}"; do
        case $package in
            knot) systemctl disable --quiet knot.service || true ;;
            nginx-light) systemctl disable --quiet nginx.service || true ;;
            openssh-server) systemctl disable --quiet ssh.service || true ;;
        esac
    done
fi
