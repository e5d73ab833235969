package ondisk_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/btrexport/btrexport/fsread/ondisk"
)

func TestBlockGroupUsed(t *testing.T) {
	item := make([]byte, 24)
	binary.LittleEndian.PutUint64(item, 5<<20)
	if n, err := ondisk.BlockGroupUsed(item, 8<<20); n != 5<<20 || err != nil {
		t.Errorf("got %d %v, want 5 MiB", n, err)
	}
	for name, bad := range map[string]struct {
		item   []byte
		length uint64
	}{"more than it holds": {item, 4 << 20}, "too short": {item[:23], 8 << 20}, "too long": {append(item, 0), 8 << 20}} {
		if _, err := ondisk.BlockGroupUsed(bad.item, bad.length); !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("%s: got %v, want ErrCorrupt", name, err)
		}
	}
}
