// Command bench measures btrexport against other NBD servers, as root on Linux:
//
//	go run ./test/bench
//
// It makes btrfs filesystems on loop devices with the running kernel, mounts them read-only, and lets three servers
// serve one file: btrexport from the devices, nbdkit's file plugin and qemu-nbd from the kernel's mount. Each
// measurement is one fresh server under one load (package load, or nbdcopy); those that belong together follow each
// other in random order, round by round, so that a machine whose speed drifts favours nobody. Every byte is compared,
// but for those that nbdcopy reads. The tables give medians, ratios to the fastest other server, CPU time, memory and
// what was read from the devices. docs/performance.md has the figures that were seen and tells how to read them.
//
// It detaches, unmounts, kills and removes what it made, and nothing else, also after SIGINT. It empties the page
// cache of the machine (drop_caches) before every cold measurement.
package main
