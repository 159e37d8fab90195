# shellcheck shell=sh
# shellcheck disable=SC2034 # variables are for the scripts that source this
#
# The table of settings, and how to read, judge, raise and write one. Sourced by check, apply, revert.
#
# Left out on purpose: net.ipv4.tcp_tw_reuse (connections are kept, so few are in TIME-WAIT) and
# vm.max_map_count (the 16 KiB stacks of greenlets lie side by side and are one mapping to the kernel:
# 120,000 greenlets in a process had 176 mappings, 3,383 after half of 20,000 ended, of 65,530 allowed).

# Put before every path below; the tests' way to keep off this machine's own files.
ROOT=${SYSCONFIG_ROOT:-}
PROC_SYS=$ROOT/proc/sys

# What apply remembers for revert: "saved" has the old values, "made" the files and directories that --persist
# made. In /run it is gone after a reboot, as are the settings; what outlives it is remembered in /var/lib.
STATE_UNTIL_REBOOT=$ROOT/run/parked-sysconfig
STATE_LASTING=$ROOT/var/lib/parked-sysconfig
if [ -d "$STATE_LASTING" ]; then STATE=$STATE_LASTING; else STATE=$STATE_UNTIL_REBOOT; fi

DEFAULT_CONNECTIONS=400000
MAX_CONNECTIONS=10000000
PORTS_BY_DEFAULT=28232   # 60999 - 32768 + 1
LISTENING=5557,8000,8089 # Locust's master, the server, Locust's web page

# settings CONNECTIONS ROW: calls ROW NAME SCOPE KIND NEEDED WHY SYMPTOM DOCUMENT for each that this machine
# has. SCOPE says whose it is: "namespace" (each network namespace, so each container, has its own), "host" or
# "process"; measured on Linux 6.18. KIND says how found and needed compare, see is_enough. Both ends of each
# connection are taken to be on this machine.
settings() {
    connections=$1
    row=$2

    # Before the port range, so that no port listened on is ever free to be taken.
    "$row" net.ipv4.ip_local_reserved_ports namespace ports $LISTENING \
        "these ports are listened on; connect() must not choose them as a connection's own port" \
        "a restart fails with EADDRINUSE, or a connection reaches itself" \
        Documentation/networking/ip-sysctl.rst

    # Widest range above the privileged ports: 65535 - 1024 + 1 = 64512.
    if [ "$connections" -gt $PORTS_BY_DEFAULT ]; then range='1024 65535'; else range='32768 60999'; fi
    "$row" net.ipv4.ip_local_port_range namespace range "$range" \
        "to one server port, each source address has as many connections as there are local ports" \
        "connect() fails with EADDRNOTAVAIL, unless more source addresses share the connections" \
        Documentation/networking/ip-sysctl.rst

    # Default 4096 since Linux 5.4, before 128. In a ramp of 4,000 a second, one second's connections.
    "$row" net.core.somaxconn namespace atleast 4096 \
        "caps listen()'s queue, which holds the new connections while a worker is busy" \
        "ListenOverflows in nstat; each dropped SYN costs its client a second" \
        Documentation/networking/ip-sysctl.rst

    # tcp_conn_request() looks at it only without SYN cookies, which are on by default.
    if [ "$(read_setting net.ipv4.tcp_syncookies)" = 0 ]; then
        "$row" net.ipv4.tcp_max_syn_backlog namespace atleast 4096 \
            "without SYN cookies (net.ipv4.tcp_syncookies=0) it caps half-open connections" \
            "SYNs are dropped in a ramp; each costs its client a second" \
            Documentation/networking/ip-sysctl.rst
    fi

    # Packets on loopback wait here for their CPU: 4 a request (both ways, and their ACKs), one request a
    # connection every 50 s (think 10-90 s), for 0.1 s in which ksoftirqd is not scheduled: N / 125.
    "$row" net.core.netdev_max_backlog host atleast "$(at_least 1000 $((connections / 125)))" \
        "packets on loopback wait in a queue for each CPU while ksoftirqd waits for its turn" \
        "dropped packets (second column of /proc/net/softnet_stat), latencies of 200 ms and more" \
        Documentation/admin-guide/sysctl/net.rst

    # Pages. A connection has one request under way at most; unread, the longest response (10 KB) takes 3
    # pages, an idle connection none (measured on Linux 6.18; before 6.0 a socket keeps about one). The
    # three limits are 3/4, 1 and 3/2 of that, the kernel's own proportion.
    "$row" net.ipv4.tcp_mem host atleast "$((connections * 9 / 4)) $((connections * 3)) $((connections * 9 / 2))" \
        "pages for all unread data; a stall of every connection takes 3 each; a limit, no reservation" \
        "after a stall, windows shrink and segments are dropped ('TCP: out of memory' in dmesg)" \
        Documentation/networking/ip-sysctl.rst

    # Minimum, default, maximum of one socket, bytes. On loopback 10 KB came in one piece with a default of
    # 16384, in three with 8192; packets of 1500 bytes take twice the room. More is no better: an idle
    # socket uses none of it, and a stalled one could then take more of tcp_mem.
    "$row" net.ipv4.tcp_rmem namespace atleast '4096 32768 32768' \
        "the first window must hold a whole response of 10 KB" \
        "responses arrive in pieces, each a wake-up more" \
        Documentation/networking/ip-sysctl.rst
    "$row" net.ipv4.tcp_wmem namespace atleast '4096 16384 32768' \
        "a response of 10 KB must leave in one send" \
        "partial sends, after which the server has to wait for the socket" \
        Documentation/networking/ip-sysctl.rst

    "$row" fs.file-max host atleast $((2 * connections + 100000)) \
        "open files of the whole machine: two sockets per connection, and 100000 for everything else" \
        "ENFILE in every process, also in those that have nothing to do with this" \
        Documentation/admin-guide/sysctl/fs.rst

    # At most 64 processes an end, each with 500 descriptors beside its connections.
    descriptors=$(at_least 4096 $((connections / 64 + 500)))
    "$row" fs.nr_open host atleast "$descriptors" \
        "the highest descriptor limit that a process may be given" \
        "ulimit -n fails with EPERM also for root" \
        Documentation/admin-guide/sysctl/fs.rst
    "$row" nofile process limit "$descriptors" \
        "descriptors of one process; the fewer, the more processes of 4 MB (server) and 15 MB (client)" \
        "EMFILE at accept() or socket()" \
        "getrlimit(2)"

    # A connection on loopback is tracked once for both ends.
    if [ -e "$PROC_SYS/net/netfilter/nf_conntrack_max" ]; then
        "$row" net.netfilter.nf_conntrack_max host atleast $((connections + 10000)) \
            "entries for tracked connections; it only matters where a firewall rule tracks these" \
            "'nf_conntrack: table full, dropping packet' in dmesg" \
            Documentation/networking/nf_conntrack-sysctl.rst
    fi
}

at_least() {
    if [ "$1" -gt "$2" ]; then echo "$1"; else echo "$2"; fi
}

# setting_path NAME: sets $path
setting_path() {
    path=$PROC_SYS
    set -- "$1."
    while [ -n "$1" ]; do
        path=$path/${1%%.*}
        set -- "${1#*.}"
    done
}

# read_setting NAME: its value, tabs and all; nothing if it is not there or not readable.
read_setting() {
    if [ "$1" = nofile ]; then
        # shellcheck disable=SC3045 # ulimit -S and -H -n: dash, busybox and bash have them
        echo "soft $(ulimit -Sn) hard $(ulimit -Hn)"
    else
        setting_path "$1"
        cat "$path" 2>/dev/null || :
    fi
}

# is_readable NAME: not where the network namespace does not have it, or a container hides it
is_readable() {
    [ "$1" = nofile ] || { setting_path "$1" && [ -r "$path" ]; }
}

# whose NAME SCOPE VALUE: what to do about a setting that can't be changed from here
whose() {
    case $2 in
    namespace)
        echo "give it to the container as it is made (--sysctl $1='$3', in Kubernetes" \
            "securityContext.sysctls), or as root outside of it"
        ;;
    *) echo "the host must set it: sysctl -w $1='$3' there" ;;
    esac
}

# write_setting NAME VALUE: false if the kernel refuses
write_setting() {
    setting_path "$1"
    printf '%s\n' "$2" >"$path"
} 2>/dev/null

# is_enough KIND FOUND NEEDED
#   atleast  each number is at least its counterpart
#   range    first and last: at least as wide
#   ports    a list like 80,8000-8010 that contains each port
#   limit    the hard limit at least
is_enough() {
    case $1 in
    atleast) [ "$(raised "$@")" = "$(one_line "$2")" ] ;;
    range)
        # shellcheck disable=SC2086 # two numbers each
        set -- $2 $3
        [ "$1" -le "$3" ] && [ "$2" -ge "$4" ]
        ;;
    ports) [ -z "$(missing_ports "$2" "$3")" ] ;;
    limit) [ "${2##* }" = unlimited ] || [ "${2##* }" -ge "$3" ] ;;
    esac
}

# raised KIND FOUND NEEDED: what to set, keeping whatever is there and higher
raised() {
    case $1 in
    atleast)
        needed=$3
        new=''
        for number in $2; do
            new="$new $(at_least "$number" "${needed%% *}")"
            needed=${needed#* }
        done
        echo "${new# }"
        ;;
    range)
        # shellcheck disable=SC2086 # two numbers each
        set -- $2 $3
        echo "$(if [ "$1" -lt "$3" ]; then echo "$1"; else echo "$3"; fi) $(at_least "$2" "$4")"
        ;;
    ports) echo "${2:+$2,}$(missing_ports "$2" "$3")" ;;
    esac
}

missing_ports() (
    missing=''
    IFS=,
    for port in $2; do
        for reserved in $1; do
            [ "$port" -ge "${reserved%-*}" ] && [ "$port" -le "${reserved#*-}" ] && continue 2
        done
        missing=$missing,$port
    done
    echo "${missing#,}"
)

# One space between numbers, where the kernel has tabs; no pathnames can come of numbers.
one_line() {
    # shellcheck disable=SC2086
    echo $1
}

# took KIND KEPT WANTED: whether the kernel took it; of ports it joins neighbours to ranges
took() {
    if [ "$1" = ports ]; then is_enough ports "$2" $LISTENING; else [ "$(one_line "$2")" = "$3" ]; fi
}

# The comment that a script opens with is its help.
help() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit 0
}

usage_error() {
    echo "${0##*/}: $1; see ${0##*/} --help" >&2
    exit 2
}

# parse_connections WORD: what follows -c; compared as text first, for it may be too long for a number
parse_connections() {
    case $1 in
    *[kK]) set -- "${1%?}" "$1" && unit=1000 ;;
    *[mM]) set -- "${1%?}" "$1" && unit=1000000 ;;
    *) set -- "$1" "$1" && unit=1 ;;
    esac
    case $1 in
    '' | 0* | *[!0-9]* | ?????????*) ;;
    *)
        CONNECTIONS=$(($1 * unit))
        [ "$CONNECTIONS" -gt $MAX_CONNECTIONS ] || return 0
        ;;
    esac
    usage_error "-c wants a number of connections from 1 to $MAX_CONNECTIONS such as 400000 or 400k, not '$2'"
}

require_root() {
    [ "$(id -u)" -eq 0 ] || {
        echo "${0##*/}: needs root to change settings (sudo $0); nothing was changed" >&2
        exit 4
    }
}
