#!/bin/sh
# The guest's first process: mounts, modules, memory policy; then becomes busybox init, which keeps
# the agent alive, runs the console shell if one is wanted, and reaps. Sessions are in agent.sh.
#
# Every process costs 10 ms and more where the guest itself is emulated, so this uses what is built
# into the shell (read, echo, test) wherever it can.

# Loads the modules named in file $1, which is in the order of their dependencies.
load() {
    [ -f "$1" ] || return 0
    while read -r module; do
        insmod "/lib/modules/$module.ko"
    done <"$1"
}

# Powers off once a power button is pressed. The host's system_powerdown is such a press: ACPI tells
# the module button, which turns it into an input event. Nobody waits for this at boot.
watch_power_button() {
    load /lib/modules/order.power
    for device in /sys/class/input/event*; do
        [ -f "$device/device/name" ] || continue
        read -r name <"$device/device/name"
        [ "$name" = "Power Button" ] || continue
        await_press <"/dev/input/${device##*/}" && poweroff -f &
    done
}

# Reads input events until one says that the power key went down; fails when there are no more. The
# button has another key: Linux reports KEY_WAKEUP with it when it comes back from suspend to idle.
await_press() {
    # An event has 24 bytes and evdev refuses to give less, which rules out the shell's read. Type,
    # code and value come after its time (struct input_event in include/uapi/linux/input.h).
    while event=$(dd bs=24 count=1 2>/dev/null | od -An -tu2 -j16) && [ -n "$event" ]; do
        set -- $event
        [ "$1 $2 $3" = "1 116 1" ] && return 0      # EV_KEY, KEY_POWER, pressed
    done
    return 1
}

echo "minivmm: init"    # the host counts what a boot cost up to here (console_watch.py)
mount -a    # see /etc/fstab; one process for all of them
cp -a /etc/dev/. /dev
mount -t devpts devpts /dev/pts

read -r release </proc/sys/kernel/osrelease
read -r cmdline </proc/cmdline
online= shell=
set -f      # the command line is words, not file name patterns
for word in $cmdline; do
    case $word in
    memhp_default_state=*) online=${word#*=} ;;
    minivmm.shell=*) shell=${word#*=} ;;
    esac
done
set +f

# The kernel knows this option and has done the same; said again, the policy does not depend on that.
# It must be in place before virtio_mem adds the first block.
policy=/sys/devices/system/memory/auto_online_blocks
[ -n "$online" ] && [ -w "$policy" ] && echo "$online" >"$policy"

load /lib/modules/order
for driver in virtio_console virtio_mem; do
    [ -d "/sys/bus/virtio/drivers/$driver" ] ||
        echo "minivmm: kernel $release has no driver $driver"
done

watch_power_button &

# Fails unless console $1 can be opened, soon: a virtio console is set up while we are under way.
await_console() {
    for pause in 0.02 0.05 0.1 0.2 0.5 1 2; do
        (: <"/dev/$1") 2>/dev/null && return
        sleep "$pause"
    done
    echo "minivmm: no console $1: the shell is on ttyS0, try --console ttyS0"
    return 1
}
[ -n "$shell" ] && { await_console "$shell" || shell=ttyS0; }

# busybox init starts what is listed here with fresh signal handlers and in sessions of their own.
# A shell's own & would have the agent and all its commands ignore Ctrl-C (SIGINT) for good.
{
    echo "::respawn:/bin/agent"
    # The shell is a child so that its end, however it comes about, powers the machine off.
    [ -n "$shell" ] && echo "$shell::once:/bin/sh -c '/bin/sh; poweroff -f'"
} >/etc/inittab
exec /sbin/init
