#!/bin/sh
# Tells what Linux does with memory blocks, as it happens: `block SIZE` once, in hexadecimal, then
# lines `ACTION NUMBER` (add, online, offline, remove), for `minivmm trace --details memory`;
# control/guest_watch.py reads them. The variables let tests run this without a virtual machine.

memory=${MINIVMM_SYS:-/sys}/devices/system/memory

if [ "$1" = one ]; then # called by uevent, for every event of the kernel
    case $DEVPATH in
    /devices/system/memory/memory[0-9]*) echo "$ACTION ${DEVPATH##*/memory}" ;;
    esac
    exit 0
fi

read -r size <"$memory/block_size_bytes" && echo "block $size"
exec "${MINIVMM_UEVENT:-uevent}" sh -c "$1" memory_events one
