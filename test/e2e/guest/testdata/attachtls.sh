#!/bin/sh
# What TestAttachTLS wants done. The host kills the server at "@kill" and starts it again at "@start".
uri=$(cat /uri)
tls='?tls-certificates=/pki&tls-hostname=localhost'

say() { echo "@$1 $2"; }
sum() { sha256sum "$1" | cut -d ' ' -f 1; }
cold() { echo 3 >/proc/sys/vm/drop_caches; }
# pids of the relays: the brackets keep grep from finding itself.
pids() { grep -l 'relay-connection[s]' /proc/[0-9]*/cmdline 2>/dev/null | cut -d / -f 3; }
relays() { pids | wc -l; }
settled() { # NUMBER: waits until so many relays run
	for _ in $(seq 300); do
		[ "$(relays)" = "$1" ] && break
		sleep 0.1
	done
	relays
}
ready() { btrexport status "${uri}vm1$tls" >/dev/null 2>&1; }
kill_server() {
	echo "@kill"
	while ready; do sleep 0.1; done
}
start_server() {
	echo "@start"
	until ready; do sleep 0.1; done
}
attach() { btrexport attach --timeout 2s --dead-conn-timeout 2s "$@"; }

until ready; do sleep 0.1; done
say probe "$(btrexport probe --reads 0 "${uri}vm1$tls" | sed -n 's/.*sha256 //p')"
say stranger "$(btrexport probe "${uri}vm1" 2>&1)"

say attach "$(attach --connections 4 "${uri}vm1$tls" /dev/nbd0 2>/log)"
say log "$(grep -c 'msg="relayed in the background" device=/dev/nbd0 pid=' /log)"
say size "$(cat /sys/block/nbd0/size)"
say ro "$(cat /sys/block/nbd0/ro)"
say sum "$(sum /dev/nbd0)"
cold
for i in 1 2 3 4; do sum /dev/nbd0 >/sum.$i & done
wait
say parallel "$(cat /sum.1 /sum.2 /sum.3 /sum.4 | tr '\n' ' ')"
dd if=/dev/zero of=/dev/nbd0 bs=512 count=1 conv=notrunc >/dev/null 2>&1
say write $?
say relays "$(relays)"
pid=$(pids)
say stdio "$(for i in 0 1 2; do readlink "/proc/$pid/fd/$i"; done | tr '\n' ' ')"
say again "$(attach --connections 4 "${uri}vm1$tls" /dev/nbd0 2>/dev/null)"
say again-relays "$(settled 1)"
cold
say again-sum "$(sum /dev/nbd0)"
say detach "$(btrexport detach /dev/nbd0)"
say detach-relays "$(settled 0)"
say refused "$(attach "${uri}other$tls" /dev/nbd1 2>&1; echo $?)" | tr '\n' ' ' && echo
say refused-relays "$(settled 0)"

# The server dies: reads fail, in bounded time, and the relay ends. It comes back: the same attach again is all it takes.
btrexport attach --timeout 2s --dead-conn-timeout 2s "${uri}vm1$tls" /dev/nbd0 >/dev/null 2>&1
kill_server
cold
if dd if=/dev/nbd0 of=/dev/null bs=1M count=1 >/dev/null 2>&1; then say dead read; else say dead failed; fi
say dead-relays "$(settled 0)"
start_server
say renewed "$(attach "${uri}vm1$tls" /dev/nbd0 2>/dev/null)"
cold
say renewed-sum "$(sum /dev/nbd0)"
btrexport detach /dev/nbd0

# With --reconnect attach relays itself, and reads go on across a restart.
btrexport attach --reconnect --connections 2 --timeout 2s --dead-conn-timeout 100s "${uri}vm1$tls" /dev/nbd0 >/attached 2>/dev/null &
watcher=$!
until [ -s /attached ]; do sleep 0.1; done
say alive "$(sum /dev/nbd0)"
say reconnect-relays "$(relays)"
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
btrexport detach /dev/nbd0
wait $watcher
say watcher $?

# As the page says.
cold
sh /block >&2
say page $?
say page-sum "$(sum /dev/nbd0)"
btrexport detach /dev/nbd0
