#!/bin/sh
# Installs libvirt for servers of the laboratory: Debian's packages, and the folders that libvirtd writes to,
# over which the laboratory mounts its own. PIP, the first argument, gets Python's libvirt.
set -eu
here=$(dirname "$0")
sh "$here/install-system.sh" "$here/apt-libvirt.txt"
for folder in /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt; do
    [ -d "$folder" ] || mkdir -p "$folder"
done
"$1" install -qq --disable-pip-version-check --no-deps --require-hashes -r "$here/../requirements-libvirt.txt"
