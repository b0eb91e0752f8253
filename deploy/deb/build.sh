#!/bin/sh
# Makes the Debian packages retinue, retinue-controller, retinue-agent and retinue-managers in build/deb, of the tree as
# it is, with what they need from PyPI inside, pinned by hash. For Debian 12 and this machine's architecture.
#
#     deploy/deb/build.sh BIN      BIN: the folder of a Python environment made by `make install`
set -eu
bin=$1
out=build/deb
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
architecture=$(dpkg --print-architecture)
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}"
umask 022
rm -rf "$out"
mkdir -p "$out"

# control PACKAGE DEPENDS RECOMMENDS SUMMARY: one sentence more comes from standard input.
control() {
    mkdir -p "$out/$1/DEBIAN"
    {
        echo "Package: $1"
        echo "Version: $version"
        echo "Architecture: $architecture"
        echo "Section: net"
        echo "Priority: optional"
        echo "Maintainer: The retinue maintainers <retinue@localhost>"
        echo "Depends: $2"
        [ -z "$3" ] || echo "Recommends: $3"
        echo "Description: $4"
        sed 's/^/ /'
    } > "$out/$1/DEBIAN/control"
    cp deploy/deb/"$1".* "$out/$1/DEBIAN/"
    for script in "$out/$1/DEBIAN/$1".*; do
        mv "$script" "$out/$1/DEBIAN/${script##*.}"
        chmod 755 "$out/$1/DEBIAN/${script##*.}"
    done
    install -D -m 644 LICENSE "$out/$1/usr/share/doc/$1/copyright"
}

# package_of SERVICE: controller and agent have one each, the two managers one together.
package_of() {
    case $1 in
        mobility | resource) echo retinue-managers ;;
        *) echo "retinue-$1" ;;
    esac
}

control retinue "python3 (>= 3.11), python3 (<< 3.12)" "man-db" \
    "live migration of VMs whose network moves with them" <<'EOF'
The command, and the program that controller and agents run. What it needs from PyPI is in it.
EOF
control retinue-controller "retinue (= $version), openvswitch-common, systemd" "" \
    "controller of retinue: the network's bindings and flow entries" <<'EOF'
The service that programs the Open vSwitch bridges of a data-centre network, and keeps its database.
EOF
control retinue-agent "retinue (= $version), openvswitch-switch, iproute2, systemd" \
    "qemu-system-x86, python3-libvirt" "agent of retinue on a server that runs VMs" <<'EOF'
The service that runs and migrates this server's VMs through QEMU or libvirt. Its VMs outlive it.
EOF
control retinue-managers "retinue (= $version), systemd" "" \
    "mobility manager and resource manager of retinue, apart" <<'EOF'
The two services for domains whose controllers do not choose the servers of their VMs by themselves.
EOF

site="$out/retinue/usr/lib/retinue"
"$bin/python" deploy/deb/runtime_lock.py < requirements.lock > "$out/runtime.lock"
pip="$bin/pip --disable-pip-version-check -qq install --no-compile --target $site"
$pip --require-hashes --no-deps --only-binary=:all: --implementation cp --python-version 3.11 -r "$out/runtime.lock"
$pip --no-deps --no-build-isolation --upgrade .
rm -rf "$site/bin" build/lib
find "$site" -name direct_url.json -delete

install -D -m 755 deploy/deb/retinue-command "$out/retinue/usr/bin/retinue"
"$bin/python" -m retinue.cli.manual "$out/retinue/usr/share/man/man1"
PYTHONPATH="tests${PYTHONPATH:+:$PYTHONPATH}" "$bin/python" -m docsite --man "$out/man"
install -D -m 644 -t "$out/retinue/usr/share/man/man5" "$out"/man/*.5
for service in controller agent mobility resource; do
    install -D -m 644 -t "$out/$(package_of $service)/usr/share/man/man8" "$out/man/retinue-$service.8"
done
gzip -9n "$out"/retinue*/usr/share/man/man*/*
completions="$out/retinue/usr/share/bash-completion/completions"
mkdir -p "$completions"
SHELL=/bin/bash _RETINUE_COMPLETE=source_bash "$bin/retinue" > "$completions/retinue"
for service in controller agent mobility resource; do
    install -D -m 644 "deploy/systemd/retinue-$service.service" \
        "$out/$(package_of $service)/lib/systemd/system/retinue-$service.service"
done
install -D -m 644 deploy/systemd/retinue.sysusers "$out/retinue-controller/usr/lib/sysusers.d/retinue.conf"
install -D -m 644 deploy/systemd/retinue.sysusers "$out/retinue-managers/usr/lib/sysusers.d/retinue-managers.conf"

for package in retinue retinue-controller retinue-agent retinue-managers; do
    find "$out/$package" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --root-owner-group -Zzstd -z9 --build "$out/$package" "$out/${package}_${version}_$architecture.deb" > /dev/null
    rm -rf "${out:?}/$package"
done
ls "$out"/*.deb
