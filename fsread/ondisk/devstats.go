package ondisk

import "fmt"

// DevErrors are the errors of one device that the kernel has counted and written down since the counters were last
// reset ("btrfs device stats -z"), in the order of enum btrfs_dev_stat_values.
type DevErrors [5]uint64

// DevErrorKinds names the counts of DevErrors: failed writes, failed reads, failed flushes, blocks that did not match
// their checksum, and blocks of a generation that was not theirs.
var DevErrorKinds = [len(DevErrors{})]string{"write", "read", "flush", "corruption", "generation"}

// DecodeDevErrors decodes the payload of a PERSISTENT_ITEM under DevStatsObjectID; the key's offset is the devid. Counts
// that an older kernel did not write are 0, those that a newer one has beyond ours are passed over. The error is
// ErrCorrupt.
//
// struct btrfs_dev_stats_item: values u64[5] @0.
func DecodeDevErrors(item []byte) (DevErrors, error) {
	var e DevErrors
	if len(item) == 0 || len(item)%8 != 0 {
		return e, corrupt("device statistics", "%d bytes", len(item))
	}
	for i := range min(len(e), len(item)/8) {
		e[i] = le.Uint64(item[8*i:])
	}
	return e, nil
}

// String lists the counts that are not zero.
func (e DevErrors) String() string {
	text := ""
	for i, n := range e {
		if n > 0 {
			text += fmt.Sprintf(" %s %d", DevErrorKinds[i], n)
		}
	}
	if text == "" {
		return "none"
	}
	return text[1:]
}
