package main

import "github.com/spf13/cobra"

// topics are what help tells beside commands.
func topics() []*cobra.Command {
	return []*cobra.Command{
		{Use: "formats", Short: "What can be read: devices, profiles, checksums, compression", Long: formatsTopic},
		{Use: "uris", Short: "How to name an export, a device, a path, an address", Long: urisTopic},
		{Use: "metrics", Short: "What serve tells Prometheus, and what to look at first", Long: metricsTopic},
		{Use: "recovery", Short: "Getting files out of a damaged filesystem, step by step", Long: recoveryTopic},
	}
}

const formatsTopic = `What btrexport reads:

  devices      block devices and image files; FILE@OFFSET for a partition in a disk's image
  profiles     single, DUP, RAID0, RAID1, RAID1C3, RAID1C4, RAID10, RAID5, RAID6, several side by side
  checksums    crc32c, xxhash64, sha256, blake2b; files without (NODATASUM) are served unverified
  extents      inline, plain, preallocated, holes, reflinks; compressed by zlib, lzo, zstd
  namespace    subvolumes, snapshots, nested ones; symbolic links that stay inside
  state        clean or not unmounted (its log is replayed in memory), with devices missing (--degraded),
               stale or hanging, with a ruined primary superblock, older states (--generation)

Refused by name, before a byte is read: zoned, extent-tree-v2, and features that this version does not know.
What it writes: nothing to a device, ever. serve gives out raw bytes (to QEMU: format=raw); every command
with --json prints one object per line, sizes in bytes, times as RFC 3339.
`

const urisTopic = `Exports, as NBD URIs (probe, attach, status; QEMU, nbdcopy and nbdinfo take them too):

  nbd://HOST[:PORT]/NAME                 TCP, port 10809 if left out
  nbds://HOST[:PORT]/NAME?tls-certificates=DIR
  nbd+unix:///NAME?socket=PATH           a unix socket
  nbds+unix:///NAME?socket=PATH          a unix socket, under TLS
                                         NAME is percent-encoded: vm%201 for "vm 1"

Addresses to listen on (-l, --metrics):

  unix:///PATH[?mode=0660&user=U&group=G]
  tcp://HOST[:PORT]                      tcp://:10809 is every interface; --metrics HOST:PORT

Devices (-d, BTREXPORT_DEVICES, devices:):

  /dev/sdb   disk.img   disk.img@1MiB    what begins at an offset: a partition

Paths inside the filesystem begin in the default subvolume, or in that of --subvol PATH or --subvolid ID:

  btrexport ls -d disk.img --subvol /@images /vm1.raw
`

const metricsTopic = `btrexport serve --metrics 127.0.0.1:9810 serves /metrics, /-/healthy and /-/ready. To look at first:

  btrexport_reads_lost_total             blocks that no copy could serve: data is lost
  btrexport_reads_repaired_total         blocks served from another copy, or rebuilt: a copy is bad
  btrexport_checksum_failures_total      which device delivered wrong bytes
  btrexport_device_read_errors_total     which device failed reads
  btrexport_filesystem_degraded          1: served without one of its devices
  btrexport_config_last_reload_successful  0: a configuration was refused, the one before is served

Is data being lost?

  sum by (filesystem) (increase(btrexport_reads_lost_total[5m])) > 0

All of them: btrexport-metrics(7). Dashboards, alerts and what to do about each: docs/monitoring.md.
`

const recoveryTopic = `Nothing here writes to a device. Copy to another disk.

 1. A disk that is dying: copy it first (ddrescue /dev/sdb sdb.img sdb.map), and give the image instead.
 2. export BTREXPORT_DEVICES=/dev/sdb:/dev/sdc    or -d for each device, in any order
 3. btrexport info                                which devices are there, missing, stale
 4. btrexport info --degraded                     with one missing: what can't be read without it
 5. btrexport verify --degraded /                 every copy of every block: what is bad, what is lost
 6. btrexport cp --degraded /PATH DEST            every block verified; an error instead of a wrong byte
 7. btrexport cp --skip-bad /PATH DEST            zeroes where no copy is good, with a list of those
 8. btrexport info                                lists older roots: ls --generation N, cp --generation N

A whole disk with partitions: the error of ls -d disk.img says which one to name. More: docs/recovery.md.
`
