// Package kernelnbd puts exports at /dev/nbdN: the kernel's own NBD client, driven by generic netlink.
//
// The handshake is ours (nbdclient.HandOff); the kernel gets the sockets at the start of transmission and
// keeps them when the program has ended. What a device is and does is read from sysfs.
//
//	wire.go     netlink messages and attributes; pure
//	message.go  the messages of the family "nbd"; pure
//	conn.go     the netlink socket: one request at a time, and the multicast group
//	device.go   sysfs, /dev and what holds a device
//	attach.go   Attach and Detach
//	watch.go    connections that died are replaced
//
// Attributes and their meaning: the kernel's include/uapi/linux/nbd-netlink.h and, for what they do,
// drivers/block/nbd.c. Not done: TLS, which the kernel does not speak, and the older ioctls.
package kernelnbd
