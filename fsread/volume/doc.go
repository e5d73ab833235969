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
// Where a RAID stripe tree maps a chunk, its items come with the Request: who reads trees has looked them
// up. Each stands for a small chunk of its own, and the rest is as everywhere.
//
// Not done: parity profiles, which are refused by name; writing.
package volume
