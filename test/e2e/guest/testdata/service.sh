#!/bin/sh
# Goes on with systemd, which runs /trial and then ends the guest.
mkdir -p /etc/systemd/system /etc/btrexport/attach /run /tmp /var/tmp /root
printf 'root:x:0:0::/root:/bin/sh\nbtrexport:x:800:800::/:/bin/false\n' >/etc/passwd
printf 'root:x:0:\ndisk:x:6:\nbtrexport:x:800:\n' >/etc/group
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
mv /*.service /etc/systemd/system/
mkdir -p /usr/bin
ln -s /bin/btrexport /usr/bin/btrexport
cat >/bin/sudo <<'END'
#!/bin/sh
# What the blocks of the page ask for.
[ "$1" = -u ] || exec "$@"
user=$2
shift 2
exec su -s /bin/sh -- "$user" -c 'exec "$0" "$@"' "$@"
END
chmod +x /bin/sudo
printf 'URI=%svm1\nOPTIONS=--connections 2 --timeout 2s --dead-conn-timeout 100s\n' "$(cat /uri)" >/etc/btrexport/attach/nbd0.conf
printf 'URI=nbd://host:port/\nOPTIONS=\n' >/etc/btrexport/attach/nbd1.conf
cat >/etc/btrexport/btrexport.yaml <<'END'
listen: ["unix:///run/btrexport/nbd.sock"]
filesystems:
  - {name: disks, devices: [/dev/vda, /dev/vdb]}
exports:
  - {name: vm1, path: /@images/vm1.raw}
END
chgrp btrexport /dev/vda /dev/vdb
chmod 640 /dev/vda /dev/vdb
# In the service's cgroup and with all privileges: what the device policy alone leaves.
mkdir /etc/systemd/system/btrexport.service.d
cat >/etc/systemd/system/btrexport.service.d/trial.conf <<'END'
[Service]
ExecStartPost=+/bin/sh /opened
END
cat >/opened <<'END'
PATH=/bin
for disk in vda vdc; do
	dd if=/dev/$disk of=/dev/null bs=4k count=1 2>/dev/null && printf "$disk read "
	dd if=/dev/zero of=/dev/$disk bs=4k count=1 conv=notrunc 2>/dev/null && printf "$disk written "
done >/run/opened
true
END
cat >/etc/systemd/system/trial.service <<'END'
[Unit]
DefaultDependencies=no
SuccessAction=poweroff-immediate
FailureAction=poweroff-immediate
[Service]
Type=oneshot
StandardOutput=tty
StandardError=inherit
TTYPath=/dev/ttyS0
ExecStart=/bin/sh /trial
END
# What units are after; nothing is to be done for it here.
for unit in sysinit.target basic.target shutdown.target network-online.target remote-fs-pre.target remote-fs.target umount.target; do
	printf '[Unit]\nDefaultDependencies=no\n' >"/etc/systemd/system/$unit"
done
exec /lib/systemd/systemd --system --unit=trial.service --log-target=null --show-status=false
