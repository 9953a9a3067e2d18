# Make the root folder $1 of Debian with the packages in the other arguments: the base of all images.
# Runs in mount and PID namespaces of its own, with root's rights. $CA_BUNDLE: certificates of this machine.
set -eu
root=$1
shift
debootstrap --variant=minbase --include=ca-certificates bookworm "$root"
mount -t proc proc "$root/proc"
cp /etc/resolv.conf "$root/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"  # no package starts its service
chmod 755 "$root/usr/sbin/policy-rc.d"
mkdir -p "$root/usr/share/man/man1"  # the JRE's alternatives need it
DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install --yes --quiet --no-install-recommends "$@"
chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/*
cp "$CA_BUNDLE" "$root/etc/ssl/certs/ca-certificates.crt"
umount "$root/proc"
