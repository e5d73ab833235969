#!/bin/sh
# What TestService wants done, under systemd. The host kills the server at "@kill" and starts it again at "@start".
export PATH=/bin
unit=btrexport-attach@nbd0.service

say() { echo "@$1 $2"; }
show() { systemctl show -P "$1" "${2:-$unit}"; }
size() { cat /sys/block/nbd0/size; }
sum() {
	echo 3 >/proc/sys/vm/drop_caches
	sha256sum /dev/nbd0 | cut -d ' ' -f 1
}
# field NAME: of the process's status.
field() { sed -n "s/^$1:[[:space:]]*//p" "/proc/$(show MainPID)/status"; }

# It is started when the device can be used, and not before.
systemctl start $unit
say started $?
say size "$(size)"
say sum "$(sum)"
say ro "$(cat /sys/block/nbd0/ro)"
say caps "$(field CapBnd)"
say seccomp "$(field Seccomp)"
say privileges "$(field NoNewPrivs)"

# The server is started again: reads wait for it.
sum >/sum.restart &
reader=$!
echo "@kill"
while btrexport status "$(cat /uri)vm1" >/dev/null 2>&1; do sleep 0.1; done
echo "@start"
wait $reader
say restart "$(cat /sum.restart)"

# attach crashes: the device stays, and another one looks after it.
pid=$(show MainPID)
kill -ABRT "$pid"
until [ "$(show MainPID)" != "$pid" ] && [ "$(show ActiveState)" = active ]; do sleep 0.2; done
say crashed "$(show NRestarts) $(size)"
say crashed-sum "$(sum)"

# The device has gone away under it.
btrexport detach /dev/nbd0 >/dev/null
until [ "$(show ActiveState)" = inactive ]; do sleep 0.2; done
say detached "$(show Result) $(size)"

systemctl start $unit
systemctl stop $unit
say stop "$? $(show Result) $(size)"

# What can't be right is not tried again and again.
systemctl start btrexport-attach@nbd1.service 2>/dev/null
say wrong "$? $(show ExecMainStatus btrexport-attach@nbd1.service) $(show NRestarts btrexport-attach@nbd1.service)"

# The server on disks that its user may read: it has these and no others, and nobody of its cgroup can write to them.
dd if=/dev/zero of=/dev/vdc bs=4k count=1 conv=notrunc 2>/dev/null && say outside written
systemctl start btrexport.service
say server "$? $(show ActiveState btrexport.service)"
say opened "$(cat /run/opened)"
say server-sum "$(btrexport probe --json 'nbd+unix:///vm1?socket=/run/btrexport/nbd.sock' | sed 's/.*"sha256":"\([0-9a-f]*\)".*/\1/')"
systemctl reload btrexport.service
say reload "$? $(show ActiveState btrexport.service)"

# As the page says, from this server.
sh /attach >&2
say page "$? $(size)"
say page-sum "$(sum)"
systemctl stop $unit
say page-stop "$? $(show Result) $(size)"
systemctl stop btrexport.service
say server-stop "$? $(show Result btrexport.service)"

# As the page says: a rule of udev lets the group read the disks of one filesystem, and nothing else.
access() { stat -c '%U %G %a' "$1"; }
mkdir -p /etc/udev/rules.d
/lib/systemd/systemd-udevd --daemon
udevadm trigger --settle --action=add --subsystem-match=block # as at boot
sudo -u btrexport btrexport info -d /dev/vdd >&2
say closed "$? $(access /dev/vdd)"
sh /rule >&2
say rule "$? $(access /dev/vdd)"
say others "$(access /dev/vdb)"
sudo -u btrexport dd if=/dev/zero of=/dev/vdd bs=4k count=1 conv=notrunc 2>/dev/null
say rule-write $?
echo "@end"
