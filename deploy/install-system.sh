#!/bin/sh
# Installs the Debian packages of a list (apt-packages.txt) that are missing. Does nothing when all are there.
set -eu
list=${1:-$(dirname "$0")/apt-packages.txt}
missing=""
for package in $(sed 's/#.*//' "$list"); do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "These Debian packages are missing:$missing. Run as root, or: apt-get install$missing" >&2
    exit 1
fi
echo "Installing Debian packages:$missing"
# Services of these packages must not start on this machine: the lab runs its own, inside its sandbox.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086
apt-get install -q -y --no-install-recommends $missing
