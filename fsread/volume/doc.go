// Package volume is the stripe engine: it turns logical ranges of a btrfs filesystem into
// reads of physical devices, checks what comes back and asks the next copy where that fails.
// It knows blocks and copies, not trees and files.
//
// A filesystem is opened in two steps, since the chunk tree that maps logical addresses is
// itself stored at logical addresses: Scan reads the superblocks and picks the one to trust,
// Set.Bootstrap gives a Volume that maps the system chunks alone, and Volume.WithChunks gives
// the whole one once its caller has read the chunk tree. A Volume is immutable and may be
// used concurrently.
//
// A filesystem that has sprouted from a seed goes on reading the seed's devices, which keep an
// fsid and a generation of their own. Scan takes them along by their flag alone; WithChunks then
// holds each against the chunk tree, which knows a device by devid, uuid and fsid.
//
// Verify and retry is one mechanism for data and metadata. A Request is a logical range, a
// unit (sector or node) and a Verifier that says whether a unit is good. The first round
// reads the whole range in few, large, vectored reads; every unit whose read or check failed
// is read again from its other copies, each round asking one more copy of each, until the
// Verifier accepts it or no copy is left. Nothing waits: rounds are driven by completions.
//
// An Audit is for those who want to know: it reads every copy of a range, and the rows of RAID5 and RAID6 that
// it lies in, and says of each block on each device whether it is right (verify*.go).
//
// Where a RAID stripe tree maps a chunk, its items come with the Request: who reads trees has looked them
// up. Each stands for a small chunk of its own, and the rest is as everywhere.
//
// What lies on RAID5 or RAID6 has one copy and its row's parity. A unit whose own column failed, or is on a device
// that is not to be asked, is made from the same part of the other columns (rebuild.go): columns that could not be
// read are left out, and columns that may be silently wrong in turn, until the unit's check accepts it. Where there
// is no check, only columns that their own checksums do not refuse count, and P and Q must agree. What a batch
// rebuilds from, because devices are missing or doubted, and what it reads for itself is read once (share.go).
//
// A device that takes longer than Options.SlowRead is not waited for as long as there is another copy (late.go): the
// request moves into another buffer, the late read keeps the old one, and what it brings still counts when all else
// failed. Devices that keep failing are asked last, and now and then again; but on RAID5 and RAID6 first for what has
// no check, since nothing would tell that parity is wrong.
package volume
