# shellcheck shell=sh
# shellcheck disable=SC2034,SC2154 # variables are shared with the script that sources this
#
# The files that outlive a reboot: what apply --persist writes and revert takes away. Sourced after settings.sh.
# Each is a file of its own that opens with MARK; files of others are never edited.

MARK='# Written by sysconfig/apply --persist; sysconfig/revert takes it away.'

SYSCTL_FILE=/etc/sysctl.d/90-parked.conf
LIMITS_FILE=/etc/security/limits.d/90-parked.conf
SYSTEMD_FILE=/etc/systemd/system.conf.d/90-parked.conf

# systemd's own DefaultLimitNOFILE is 1024:524288 since version 240: a lower hard limit would take from services,
# a higher soft one breaks programs that use select().
SYSTEMD_SOFT=1024
SYSTEMD_HARD=524288

limit_kept=no # whether a file gives new logins or services the descriptors

# persist_all NOFILE: everything that was ever raised and not reverted, as it is now, and NOFILE if not empty
persist_all() {
    if [ "$dry_run" = yes ]; then
        [ "$changed" -eq 0 ] || echo "$SYSCTL_FILE: would be written"
    elif [ -s "$STATE/saved" ]; then
        persist_file $SYSCTL_FILE "$(sysctl_lines)"
        warn_of_others
    fi
    [ -z "$1" ] || persist_limit "$1"
}

sysctl_lines() {
    while IFS='=' read -r name _; do
        echo "$name = $(one_line "$(read_setting "$name")")"
    done <"$STATE/saved"
}

# A file that is read later wins at boot. systemd-sysctl and procps read in the order of the names, with
# /etc/sysctl.conf last (on Debian and Fedora by a link 99-sysctl.conf).
warn_of_others() {
    while IFS='=' read -r name _; do
        for file in "$ROOT"/etc/sysctl.d/*.conf "$ROOT/etc/sysctl.conf"; do
            [ "$file" != "$ROOT$SYSCTL_FILE" ] || continue
            ! grep -qs "^[[:space:]]*${name}[[:space:]]*=" "$file" ||
                echo "note: $name is also set in ${file#"$ROOT"}, which may win at boot" >&2
        done
    done <"$STATE/saved"
}

# persist_limit NOFILE: pam_limits for logins ("*" leaves root out, limits.conf(5)), systemd for services. Hard
# limits only: the programs raise their own soft one.
persist_limit() {
    if [ -d "$ROOT/etc/security" ]; then
        before=$(sed -n 's/^root hard nofile //p' "$ROOT$LIMITS_FILE" 2>/dev/null) || before=''
        hard=$(at_least "$1" "${before:-0}")
        persist_file $LIMITS_FILE "* hard nofile $hard
root hard nofile $hard"
    fi
    if [ -d "$ROOT/run/systemd/system" ]; then # systemd runs, sd_booted(3)
        before=$(sed -n 's/^DefaultLimitNOFILE=.*://p' "$ROOT$SYSTEMD_FILE" 2>/dev/null) || before=''
        persist_file $SYSTEMD_FILE "[Manager]
DefaultLimitNOFILE=$SYSTEMD_SOFT:$(at_least "$(at_least "$1" $SYSTEMD_HARD)" "${before:-0}")"
    fi
    [ $limit_kept = yes ] || echo "nofile: neither PAM (/etc/security) nor systemd here; with OpenRC:" \
        "rc_ulimit='-n $1' in /etc/rc.conf" >&2
}

# persist_file PATH LINES: written anew if it is not there or has other lines
persist_file() {
    [ "$1" = $SYSCTL_FILE ] || limit_kept=yes
    lines="$MARK
$2"
    if [ -e "$ROOT$1" ]; then
        [ "$(cat "$ROOT$1")" != "$lines" ] || return 0
        is_ours "$1" || {
            refuse "$1: is there and not ours, left as it is"
            return 0
        }
    fi
    changed=$((changed + 1))
    if [ "$dry_run" = yes ]; then
        echo "$1: would be written"
        return
    fi
    { make_lasting && make_directory "$(dirname "$1")" && note_made "$1" &&
        printf '%s\n' "$lines" >"$ROOT$1.new" && mv "$ROOT$1.new" "$ROOT$1"; } 2>/dev/null || {
        rm -f "$ROOT$1.new"
        refuse "$1: can't be written"
        return 0
    }
    echo "$1: written"
}

is_ours() {
    [ "$(head -n 1 "$ROOT$1" 2>/dev/null)" = "$MARK" ]
}

# From here on the state must outlive a reboot too.
make_lasting() {
    [ "$STATE" != "$STATE_LASTING" ] || return 0
    mkdir -p "$STATE_LASTING.new" || return 1
    [ ! -e "$STATE/saved" ] || cp "$STATE/saved" "$STATE_LASTING.new/saved" || return 1
    mv "$STATE_LASTING.new" "$STATE_LASTING" || return 1
    rm -rf "$STATE_UNTIL_REBOOT"
    STATE=$STATE_LASTING
}

# make_directory PATH: with its parents, each that is new noted
make_directory() {
    [ ! -d "$ROOT$1" ] || return 0
    make_directory "$(dirname "$1")" && note_made "$1" && mkdir "$ROOT$1"
}

note_made() {
    grep -qsx "$1" "$STATE/made" || echo "$1" >>"$STATE/made"
}

# unmake: takes away what was made, the last first; a file that somebody has made theirs stays
unmake() {
    sed '1!G;h;$!d' "$STATE/made" | while read -r path; do
        if [ -d "$ROOT$path" ]; then
            rmdir "$ROOT$path" 2>/dev/null || echo "$path: left, it is not empty" >&2
        elif is_ours "$path"; then
            rm -f "$ROOT$path" && echo "$path: removed"
        elif [ -e "$ROOT$path" ]; then
            echo "$path: left, its first line is no longer ours" >&2
        fi
    done
    rm -f "$STATE/made"
}
