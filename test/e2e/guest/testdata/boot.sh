#!/bin/sh
# Goes on with the disk as the root filesystem, read-only if it takes no writes.
mount -t ext4 /dev/vda /mnt 2>/dev/null || mount -t ext4 -o ro,noload /dev/vda /mnt
echo "@root $(grep ' /mnt ' /proc/mounts | cut -d ' ' -f 1-3)"
umount /proc /sys
exec switch_root /mnt /sbin/init
