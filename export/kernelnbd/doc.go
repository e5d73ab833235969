// Package kernelnbd puts exports at /dev/nbdN: the kernel's own NBD client, driven by generic netlink.
//
// The handshake is ours (nbdclient.HandOff); the kernel gets the sockets at the start of transmission and
// keeps them when the program has ended. It speaks no TLS: there it gets one end of a pair of sockets, and a
// relay, which must go on, copies between the other end and the server (Relays, Background). What a device is
// and does is read from sysfs.
//
//	wire.go        netlink messages and attributes; pure
//	message.go     the messages of the family "nbd"; pure
//	conn.go        the netlink socket: one request at a time, and the multicast group
//	device.go      sysfs, /dev and what holds a device
//	attach.go      Attach and Detach
//	relay.go       connections under TLS, copied to and from the kernel
//	background.go  the same, in a process of its own
//	watch.go       connections that died are replaced
//
// Attributes and their meaning: the kernel's include/uapi/linux/nbd-netlink.h and, for what they do,
// drivers/block/nbd.c. Not done: the older ioctls.
package kernelnbd
