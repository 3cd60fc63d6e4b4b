#!/bin/sh
# Runs commands for the host: reads lines from the control port (descriptor 3), answers there, and
# gives each command three stream ports. The protocol is described in minivmm/control/agent.py.
#
#   agent                                      serves the control port
#   agent session ID IN OUT ERR SCRIPT         runs one command; started by the former
#
# The variables let tests run this without a virtual machine.

ports=${MINIVMM_PORTS:-/sys/class/virtio-ports}
devices=${MINIVMM_DEVICES:-/dev}
running=${MINIVMM_RUN:-/run}/agent      # a file for each output port in use: "ID PID"

# Sets $port to the device of the port named $1; fails if there is none.
find_port() {
    for entry in "$ports"/*; do
        [ -f "$entry/name" ] || continue
        read -r name <"$entry/name"
        port=$devices/${entry##*/}
        [ "$name" = "$1" ] && return 0
    done
    return 1
}

# Sends the line $*. It leaves in one write, so lines of different processes do not mix.
tell() {
    echo "$*" >&3
}

# Sends signal $2 to all processes of session $1. Runs in the background, since it waits for a
# session that is only just starting: it has no process group yet.
send_signal() {
    for entry in "$running"/*; do
        while read -r session pid <"$entry" && [ "$session" = "$1" ]; do
            [ -n "$pid" ] && kill "-$2" "-$pid" && return
            sleep 0.05
        done
    done
}

# Kills all commands that were begun so far: whoever they were for is gone.
kill_sessions() {
    for entry in "$running"/*; do
        if read -r session _ <"$entry" && [ -n "$session" ]; then
            send_signal "$session" KILL &
        fi
    done
}

serve() {
    # The driver learns of its ports one by one, which may take longer than booting did.
    set -- 0.02 0.05 0.1 0.2 0.5
    until find_port minivmm.control; do
        sleep "${1:-1}"
        [ $# -gt 0 ] && shift
    done
    exec 3<>"$port"
    read -r release </proc/sys/kernel/osrelease
    tell ready "$release"
    while read -r verb id in out err script <&3; do
        case $verb in
        exec) start_session ;;
        abandon) kill_sessions 2>/dev/null ;;
        hello) tell here "$release" ;;  # suspend and resume reset the driver, which we do not see
        kill) send_signal "$id" "$in" 2>/dev/null & ;;
        quit) poweroff -f ;;            # syncs first
        esac
    done
    # The host has closed the port. init starts the agent again; its greeting waits for the host.
}

start_session() {
    echo "$id" >"$running/$out"
    # The first setsid makes a process group leader, so the second has to fork and returns at once.
    # Unlike the shell's &, that leaves SIGINT and SIGQUIT as they should be for commands.
    setsid setsid sh "$0" session "$id" "$in" "$out" "$err" "$script" 2>/dev/null ||
        tell failed "$id" "cannot start a process (is the script too long?)"
}

run_session() {
    id=$1 in=$2 out=$3 err=$4 script=$5 note=$running/$3
    exec 2>/dev/null    # the shell's own complaints, and its obituaries of killed commands
    if ! open_streams; then
        : >"$note"
        tell failed "$id" "$why"
        return
    fi
    # A relay may start late, and what a former session noted must not pass for it: see settle.
    : >"$running/.out.$out"
    : >"$running/.err.$out"
    # Between command and ports lie pipes: a port cannot be opened a second time, and that is what
    # writing to /dev/stdout or /dev/stderr does. Descriptor 7 is the output's pipe on its way, 8 the
    # error output's: 2 is still where the shell complains.
    {
        run_command 8>&1 >&7 7>&- | relay err >&6 7>&-
    } 7>&1 | relay out >&5
}

# Runs the command, with standard output and error as they are, and tells its end.
run_command() {
    # It must not inherit our descriptors: a port is free when the last of them closes. The
    # subshell's number, read from /proc since $$ is not it, stays with it as it becomes setsid, then
    # the leader of a session and process group, then the command.
    (
        read -r pid _ </proc/self/stat
        echo "$id $pid" >"$note"
        exec setsid sh -c "$(printf %b "$script")"
    ) <&4 2>&8 3>&- 4>&- 5>&- 6>&- 8>&-
    status=$?
    exec >&- 8>&-
    settle out
    settle err
    : >"$note"
    tell exit "$id" "$status"
}

# Passes a pipe on to a port, until nobody holds the pipe any more.
relay() {
    read -r pid _ </proc/self/stat
    echo "$pid" >"$running/.$1.$out"
    exec cat 3>&- 4>&- 5>&- 6>&-
}

# Waits until relay $1 has passed on all it was given: it is gone, or waits for more. The latter is
# the case if the command left processes behind that hold its output; they are not waited for.
settle() {
    until read -r pid <"$running/.$1.$out"; do sleep 0.01; done
    while [ -d "/proc/$pid" ]; do
        place=
        read -r place <"/proc/$pid/wchan"
        case $place in *pipe_read*) return ;; esac
        sleep 0.01
    done
}

# Opens ports $in (or - for none), $out and $err as descriptors 4, 5 and 6; or fails and sets $why.
# `command` keeps a failing exec from ending the shell.
open_streams() {
    find_stream "$out" && command exec 5>"$port" || return
    find_stream "$err" && command exec 6>"$port" || return
    if [ "$in" = - ]; then
        exec 4</dev/null
    else
        find_stream "$in" && command exec 4<>"$port" || return
        # Tells the host that it may send. What arrives before a port is open would be lost.
        printf . >&4
    fi
}

# Sets $port to the device of stream $1, and $why for the case that it cannot be used.
find_stream() {
    why="there is no stream $1"
    find_port "minivmm.stream.$1" || return
    why="stream $1 is in use"
}

cd /
[ -d "$running" ] || mkdir -p "$running"
case $1 in
session) shift && run_session "$@" ;;
*) serve ;;
esac
