#!/bin/sh
# The lab machine's first process: KVM's modules, the host's file system as root; then it becomes
# the agent (agent.py). If anything here fails, the kernel panics and the host reports why.
set -e

. /lab.conf     # PYTHON, SOURCE: the host's interpreter, the folder that holds minivmm
                # DEVICES: PCI addresses of what is to be passed on

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys

for device in $DEVICES; do   # before the IOMMU comes: drivers built in may have taken them
    node=/sys/bus/pci/devices/$device
    echo vfio-pci >"$node/driver_override"
    if [ -e "$node/driver" ]; then
        echo "$device" >"$node/driver/unbind"
    fi
done
while read -r module options; do
    # shellcheck disable=SC2086 # the options are words
    insmod "/lib/modules/$module.ko" $options
done </lib/modules/order
for device in $DEVICES; do
    echo "$device" >/sys/bus/pci/drivers_probe
done

mount -t virtiofs host /host
for directory in dev proc sys; do
    mount --move "/$directory" "/host/$directory"
done
mkdir /host/dev/pts /host/dev/shm
mount -t devpts -o ptmxmode=666 devpts /host/dev/pts
mount -t tmpfs -o mode=1777 tmpfs /host/dev/shm
mount -t tmpfs -o mode=755 tmpfs /host/run
mount -t debugfs debugfs /host/sys/kernel/debug
ln -s /proc/self/fd /host/dev/fd
ln -s /proc/self/fd/0 /host/dev/stdin
ln -s /proc/self/fd/1 /host/dev/stdout
ln -s /proc/self/fd/2 /host/dev/stderr

ip link set lo up
hostname lab
ulimit -n 65536     # the kernel's default, 1024, is little for a root with everything in it

set -- /host/dev/vport*p1   # the wire: QEMU has given us no other port
port=${1#/host}

# -S and -E: the agent needs the standard library and minivmm, and should start quickly.
exec switch_root /host "$PYTHON" -S -E -c \
    'import sys; sys.path.insert(0, sys.argv[1]); import minivmm.lab.agent as a; a.main(sys.argv[2])' \
    "$SOURCE" "$port"
