#!/bin/sh
# Tells what Linux knows of memory devices, for `minivmm why`: four arguments for each of them, its
# ID, PCI address, first guest physical address and size in bytes. What cannot be told is left out;
# control/facts.py reads the lines. The variables let tests run this without a virtual machine.

sys=${MINIVMM_SYS:-/sys}
memory=$sys/devices/system/memory

block=
[ -r "$memory/block_size_bytes" ] && read -r block <"$memory/block_size_bytes" &&
    echo "block $((0x$block))"
[ -r "$memory/auto_online_blocks" ] && read -r policy <"$memory/auto_online_blocks" &&
    echo "policy $policy"
while read -r name size _; do
    [ "$name" = MemAvailable: ] && echo "available $((size * 1024))"
done <"${MINIVMM_MEMINFO:-/proc/meminfo}"

# Sets $driver, and $name to what Linux calls the device at PCI address $1.
find_driver() {
    name= driver=missing
    for entry in "$sys/bus/pci/devices/$1"/virtio*; do
        [ -d "$entry" ] && name=${entry##*/}
    done
    [ -d "$sys/bus/virtio/drivers/virtio_mem" ] && driver=unbound
    [ -n "$name" ] && [ -d "$sys/bus/virtio/drivers/virtio_mem/$name" ] && driver=bound
}

# Counts the memory blocks in the $2 bytes from address $1.
count_blocks() {
    online=0 offline=0 kernel=0
    first=$(($1 / 0x$block)) end=$((($1 + $2) / 0x$block))
    for entry in "$memory"/memory[0-9]*; do
        number=${entry##*/memory}
        [ "$number" -ge "$first" ] && [ "$number" -lt "$end" ] || continue
        read -r state <"$entry/state" || continue
        case $state in
        online)
            online=$((online + 1))
            read -r zones <"$entry/valid_zones" && [ "$zones" != Movable ] && kernel=$((kernel + 1))
            ;;
        *) offline=$((offline + 1)) ;;
        esac
    done
    echo "online $online"
    echo "offline $offline"
    echo "kernel $kernel"
}

# The driver's last words about $name, without the numbers that it tells at every change.
tell_log() {
    dmesg | grep "virtio_mem.*$name[: ]" | grep -v -e ': 0x' -e 'nid:' | tail -n 4 |
        while read -r line; do
            echo "log $line"
        done
}

while [ $# -ge 4 ]; do
    echo "device $1"
    find_driver "$2"
    echo "driver $driver"
    [ -n "$block" ] && count_blocks "$3" "$4"
    [ -n "$name" ] && tell_log
    shift 4
done
exit 0
