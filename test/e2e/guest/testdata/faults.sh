#!/bin/sh
# What TestFaults wants done: the kernel refuses, ruins, holds or delays reads of devid 1, and our program copies,
# verifies and serves a file.
say() { echo "@$1 $2"; }
sum() { sha256sum "$1" | cut -d ' ' -f 1; }
# blocks STATE: how many of devid 1's blocks were in this state, by the summary of verify.
blocks() { sed -n 's/.*"message_type":"summary".*"devices":\[{"devid":1,[^}]*"'"$1"'":\([0-9]*\).*/\1/p' /verified; }

# check NAME PATH ARGUMENT...: copies a file and verifies it, and says what came of both.
check() {
	name=$1 path=$2
	shift 2
	rm -f /copy
	btrexport cp --json "$@" "$path" /copy >/copied 2>/errors
	say "$name-cp" "$? $(sum /copy)"
	say "$name-repaired" "$(sed -n 's/.*"repaired_blocks":\([0-9]*\).*/\1/p' /copied)"
	cat /errors
	BTREXPORT_PROGRESS_INTERVAL=0 btrexport verify --json "$@" "$path" >/verified 2>/errors
	say "$name-verify" "$? bad $(blocks bad) unreadable $(blocks unreadable)"
	say "$name-range" "$(sed -n 's/.*"kind":"\([^"]*\)","offset":\([0-9]*\),"length":\([0-9]*\),.*"devid":1,.*"error":"\([^"]*\)".*/\1 \2+\3 \4/p' /verified | head -n 1)"
	cat /errors
}

# extent PATH ARGUMENT...: sets first and behind, in sectors of 512 bytes, to where devid 1 holds parts of the file,
# the last of them taken as 64 KiB.
extent() {
	path=$1
	shift
	places=$(btrexport map --json "$@" "$path" | grep -o '"devid":1,"device":"[^"]*","physical":[0-9]*' | sed 's/.*://' | sort -n)
	first=$(($(echo "$places" | head -n 1) / 512))
	behind=$(($(echo "$places" | tail -n 1) / 512 + 128))
}

# table DEVICE TARGET PARAMETERS: a table of the device mapper that is the device, but from first to behind of this
# target. %s in its parameters stands for the device and first.
table() {
	size=$(cat "/sys/block/${1#/dev/}/size")
	[ "$first" = 0 ] || echo "0 $first linear $1 0"
	# shellcheck disable=SC2059 # the parameters are a format on purpose
	echo "$first $((behind - first)) $2 $(printf "$3" "$1 $first")"
	[ "$behind" = "$size" ] || echo "$behind $((size - behind)) linear $1 $behind"
}
# mapped is /dev/dm-0 with such a table.
mapped() { table "$@" | dmsetup create --noudevsync fault; }
unmapped() { dmsetup remove --noudevsync --retry fault; }

for module in /late/*; do
	case $module in
	*-scsi_debug.ko) insmod "$module" dev_size_mb=128 delay=0 ;;
	*) insmod "$module" ;; # "File exists" for what the guest has already
	esac
done
tries=0
until [ -b /dev/sda ] || [ $((tries += 1)) -gt 300 ]; do sleep 0.1; done
btrexport sample /demo >/dev/null
dd if=/demo/disk0.img of=/dev/sda bs=1M 2>/dev/null
sync
plain=/@images/plain.raw
raid1() { check "$1" $plain -d "$2" -d /demo/disk1.img --slow-read 500ms; }

raid1 whole /dev/sda
extent $plain -d /dev/sda -d /demo/disk1.img

# A MEDIUM ERROR for the eight sectors of one block in the middle of the file.
bad=$((first + 800)) parameters=/sys/module/scsi_debug/parameters
echo $bad >$parameters/medium_error_start
echo 8 >$parameters/medium_error_count
echo 2 >$parameters/opts
dd if=/dev/sda of=/dev/null bs=4k skip=$((bad / 8)) count=1 iflag=direct 2>/dev/null
say medium-direct $?
raid1 medium /dev/sda
echo 0 >$parameters/opts

# The device mapper, over the file's first 512 KiB: an error for each read; the same in a flaky device's time of
# being down; bytes from another place without an error.
behind=$((first + 1024))
mapped /dev/sda error ""
raid1 error /dev/dm-0
unmapped
mapped /dev/sda flakey "%s 0 3600"
raid1 flakey /dev/dm-0
unmapped
mapped /dev/sda linear "/dev/sda 0"
raid1 misdirected /dev/dm-0
unmapped

# The same of a RAID5, whose file goes over every device.
raid5() { check "$1" /rotations -d "$2" -d /dev/vdb -d /dev/vdc --slow-read 500ms; }
raid5 raid5-whole /dev/vda
extent /rotations -d /dev/vda -d /dev/vdb -d /dev/vdc
mapped /dev/vda error ""
raid5 raid5-error /dev/dm-0
unmapped
mapped /dev/vda linear "/dev/vda 0"
raid5 raid5-misdirected /dev/dm-0
unmapped

# Served to the kernel's client while each read of the device hangs; then it is gone, and what hung fails.
sectors=$(($(stat -c %s /copy) / 512))
right() {
	echo 3 >/proc/sys/vm/drop_caches
	head -c $((sectors * 512)) /copy | cmp - /dev/nbd0 >&2 && echo right
}
# retries REASON: whether reads were asked of another device than devid 1 for this reason.
retries() { wget -q -O - http://127.0.0.1:9810/metrics | sed -n 's/^btrexport_read_retries_total{.*devid="1".*reason="'"$1"'".* [1-9].*/yes/p'; }
mapped /dev/vda linear "%s"
btrexport serve -d /dev/dm-0 -d /dev/vdb -d /dev/vdc --slow-read 500ms -e f=/rotations -l unix:///nbd.sock --metrics 127.0.0.1:9810 2>/served &
server=$!
until btrexport attach 'nbd+unix:///f?socket=nbd.sock' /dev/nbd0 2>/dev/null; do sleep 0.1; done
say hung-size "$(($(cat /sys/block/nbd0/size) - sectors))"
dmsetup suspend --noudevsync fault
say hung "$(right)"
say hung-slow "$(retries slow)"
table /dev/vda error "" | dmsetup load fault
dmsetup resume --noudevsync fault
say gone "$(right)"
btrexport detach /dev/nbd0
kill $server
wait $server
say gone-stopped $?
cat /served
unmapped

# Each read of a device takes more than a second, by the kernel's own account of them too: reads and their
# milliseconds are the first and the fourth number of the device's stat.
first=0 behind=$((128 << 11))
delayed() { awk '$1 > 0 && $4 >= 1000 * $1 { print "yes" }' /sys/block/dm-0/stat; }
mapped /dev/sda delay "%s 1200"
raid1 delay /dev/dm-0
say delay-fired "$(delayed)"
unmapped
mapped /dev/vda delay "%s 1200"
raid5 raid5-delay /dev/dm-0
say raid5-delay-fired "$(delayed)"
unmapped
