#!/bin/sh
# What TestAttach wants done. The host kills the server at "@kill" and starts it again at "@start".
uri=$(cat /uri)
host=${uri#nbd://}
host=${host%/}

say() { echo "@$1 $2"; }
size() { cat "/sys/block/$1/size"; }
sum() { sha256sum "$1" | cut -d ' ' -f 1; }
# cold: what is cached of the devices is forgotten.
cold() { echo 3 >/proc/sys/vm/drop_caches; }
kill_server() {
	echo "@kill"
	while btrexport status "${uri}vm1" >/dev/null 2>&1; do sleep 0.1; done
}
start_server() {
	echo "@start"
	until btrexport status "${uri}vm1" >/dev/null 2>&1; do sleep 0.1; done
}

nbd-client -N vm1 "${host%:*}" "${host#*:}" /dev/nbd0 >/dev/null 2>&1
say nbd-client $?
say nbd-client-size "$(size nbd0)"
say nbd-client-ro "$(cat /sys/block/nbd0/ro)"
say nbd-client-sum "$(sum /dev/nbd0)"
say nbd-client-detach "$(btrexport detach /dev/nbd0 2>&1)"

cold
say attach "$(btrexport attach --connections 4 "${uri}vm1" /dev/nbd0 2>&1)"
say attach-size "$(size nbd0)"
say attach-ro "$(cat /sys/block/nbd0/ro)"
say attach-sector "$(cat /sys/block/nbd0/queue/logical_block_size)"
say attach-sum "$(sum /dev/nbd0)"
dd if=/dev/zero of=/dev/nbd0 bs=512 count=1 conv=notrunc >/dev/null 2>&1
say write $?
say again "$(btrexport attach --connections 4 "${uri}vm1" /dev/nbd0 2>&1)"
btrexport attach "${uri}vm1" /dev/nbd0 >/dev/null 2>&1
say again-status $?
say in-use "$(btrexport attach "${uri}other" /dev/nbd0 2>&1; echo $?)" | tr '\n' ' ' && echo
say chosen "$(btrexport attach "${uri}other" /dev/nbd 2>/dev/null)"
say chosen-size "$(size nbd1)"
btrexport detach /dev/nbd1

cold
for i in 1 2 3 4; do sum /dev/nbd0 >/sum.$i & done
wait
say parallel "$(cat /sum.1 /sum.2 /sum.3 /sum.4 | tr '\n' ' ')"

mount -t ext4 -o ro,noload /dev/nbd0 /mnt
say mount $?
say file "$(cat /mnt/readme.txt)"
say mounted "$(btrexport detach /dev/nbd0 2>&1; echo $?)" | tr '\n' ' ' && echo
umount /mnt
btrexport detach /dev/nbd0 >/dev/null
say detach $?
say not-detach "$(btrexport detach /dev/nbd0)"

# The server dies: reads fail, in bounded time. It comes back: reads go on, without a hand's turn.
btrexport attach --reconnect --timeout 2s --dead-conn-timeout 2s "${uri}vm1" /dev/nbd0 >/attached &
watcher=$!
until [ -s /attached ]; do sleep 0.1; done
kill_server
cold
if dd if=/dev/nbd0 of=/dev/null bs=1M count=1 >/dev/null 2>&1; then say dead read; else say dead failed; fi
start_server
until dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct >/dev/null 2>&1; do sleep 0.1; done
cold
say alive "$(sum /dev/nbd0)"
btrexport detach /dev/nbd0
wait $watcher
say watcher $?

# With a longer patience reads go on across a restart, those under way too.
rm /attached
btrexport attach --reconnect --connections 2 --timeout 2s --dead-conn-timeout 100s "${uri}vm1" /dev/nbd0 >/attached &
watcher=$!
until [ -s /attached ]; do sleep 0.1; done
{
	for i in 1 2 3; do
		cold
		sum /dev/nbd0
	done
	echo $?
} >/sum.restart &
reader=$!
kill_server
start_server
wait $reader
say restart "$(tr '\n' ' ' </sum.restart)"
kill $watcher
wait $watcher
say stopped $?
btrexport detach /dev/nbd0

# A server on a unix socket of this machine hangs: reads fail, and do not wait for ever. It wakes up: the same
# attach again replaces the dead connection.
btrexport sample /demo >/dev/null
btrexport serve -d /demo/disk0.img -d /demo/disk1.img -e vm1=/@images/vm1.raw -l unix:///nbd.sock 2>/dev/null &
server=$!
until btrexport status 'nbd+unix:///vm1?socket=/nbd.sock' >/dev/null 2>&1; do sleep 0.1; done
local_attach() { btrexport attach --timeout 2s --dead-conn-timeout 2s 'nbd+unix:///vm1?socket=nbd.sock' /dev/nbd0 2>&1; }
say unix "$(local_attach)"
cold
kill -STOP $server
if dd if=/dev/nbd0 of=/dev/null bs=1M count=1 >/dev/null 2>&1; then say hung read; else say hung failed; fi
kill -CONT $server
say woken "$(local_attach)"
say unix-sum "$(sum /dev/nbd0)"
btrexport detach /dev/nbd0

# As the page says, from loading the module on.
modules=/lib/modules/$(uname -r)
mkdir -p "$modules"
for module in /modules/*; do # their names begin with a number
	cp "$module" "$modules/${module#*-}"
done
depmod
rmmod nbd
sh /block >&2
say page $?
say page-size "$(size nbd0)"
