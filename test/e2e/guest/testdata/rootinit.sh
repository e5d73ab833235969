#!/bin/sh
# The first process of the machine that boots from the image: shows what it holds, and leaves a file behind.
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
echo "@payload $(sha256sum /payload | cut -d ' ' -f 1)"
echo "@before $(cat /written 2>/dev/null)"
if echo kept 2>/dev/null >/written; then echo "@write done"; else echo "@write refused"; fi
sync
echo "@end"
poweroff -f
