package parttable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/btrexport/btrexport/devio/parttable/parttabletest"
)

type parts = []parttabletest.Part

// of reads from memory, and counts how often.
func of(disk []byte, reads *int) ReadAt {
	return func(p []byte, off uint64) error {
		*reads++
		if off+uint64(len(p)) > uint64(len(disk)) {
			return fmt.Errorf("read of %d at %d: %w", len(p), off, io.ErrUnexpectedEOF)
		}
		copy(p, disk[off:])
		return nil
	}
}

func read(disk []byte) ([]Partition, error) { return Read(of(disk, new(int)), uint64(len(disk))) }

func TestRead(t *testing.T) {
	const size = 4 << 20
	p := func(n int, start, length uint64) Partition { return Partition{n, start * 512, length * 512} }
	for _, c := range []struct {
		name  string
		write func(d []byte)
		want  []Partition
	}{
		{"nothing", func([]byte) {}, nil},
		{"MBR", func(d []byte) { parttabletest.MBR(d, parts{{63, 100}, {2048, 6144}}, nil) }, []Partition{p(1, 63, 100), p(2, 2048, 6144)}},
		{"MBR over the end", func(d []byte) { parttabletest.MBR(d, parts{{8191, 1}, {8191, 2}, {8192, 1}}, nil) }, []Partition{p(1, 8191, 1)}},
		{"logical partitions", func(d []byte) { parttabletest.MBR(d, parts{{63, 100}}, parts{{1001, 10}, {2001, 20}, {3001, 30}}) },
			[]Partition{p(1, 63, 100), p(5, 1001, 10), p(6, 2001, 20), p(7, 3001, 30)}},
		{"a chain that leads back", func(d []byte) {
			parttabletest.MBR(d, nil, parts{{1001, 10}, {2001, 20}})
			link := d[2000*512+446+16:]
			link[4] = 0x05
			binary.LittleEndian.PutUint32(link[8:], 0)
		}, []Partition{p(5, 1001, 10), p(6, 2001, 20)}},
		{"a chain off the disk", func(d []byte) {
			parttabletest.MBR(d, nil, parts{{1001, 10}, {2001, 20}})
			binary.LittleEndian.PutUint32(d[1000*512+446+16+8:], 1<<32-1)
		}, []Partition{p(5, 1001, 10)}},
		{"GPT", func(d []byte) { parttabletest.GPT(d, 512, parts{{40, 1}, {2048, 4096}}) }, []Partition{p(1, 40, 1), p(2, 2048, 4096)}},
		{"GPT with sectors of 4096", func(d []byte) { parttabletest.GPT(d, 4096, parts{{10, 1}, {256, 512}}) }, []Partition{p(1, 80, 8), p(2, 2048, 4096)}},
		{"GPT without its MBR", func(d []byte) { parttabletest.GPT(d, 512, parts{{40, 1}}); clear(d[:512]) }, []Partition{p(1, 40, 1)}},
		{"GPT's copy", func(d []byte) { parttabletest.GPT(d, 512, parts{{40, 1}}); d[512+72]++ }, []Partition{p(1, 40, 1)}},
		{"GPT with a wrong entry", func(d []byte) { parttabletest.GPT(d, 512, parts{{40, 1}}); d[1024+40]++; d[size-512-16384+40]++ }, nil},
		{"GPT over the end", func(d []byte) { parttabletest.GPT(d, 512, parts{{40, 1}, {8191, 2}, {1 << 63, 4}}) }, []Partition{p(1, 40, 1)}},
		{"boot sector", func(d []byte) {
			for i := range 510 {
				d[i] = byte(i)
			}
			d[510], d[511] = 0x55, 0xaa
		}, nil},
	} {
		disk := make([]byte, size)
		c.write(disk)
		got, err := read(disk)
		if !slices.Equal(got, c.want) || (err != nil) != (c.want == nil) || err != nil && !errors.Is(err, ErrNone) {
			t.Errorf("%s: got %v, %v\nwant %v", c.name, got, err, c.want)
		}
	}
}

// A disk that can't be read is told, and not taken for one without a table.
func TestReadErrors(t *testing.T) {
	disk := make([]byte, 1<<20)
	parttabletest.GPT(disk, 512, parts{{40, 1}})
	broken := errors.New("broken")
	total := 0
	if _, err := Read(of(disk, &total), uint64(len(disk))); err != nil {
		t.Fatal(err)
	}
	for fail := 1; fail <= total; fail++ {
		n := 0
		got, err := Read(func(p []byte, off uint64) error {
			if n++; n == fail {
				return broken
			}
			copy(p, disk[off:])
			return nil
		}, uint64(len(disk)))
		if !errors.Is(err, broken) {
			t.Errorf("read %d of %d fails: got %v, %v", fail, total, got, err)
		}
	}
}

// TestReadRandom writes tables of random partitions and finds them again.
func TestReadRandom(t *testing.T) {
	rng := newRand(t)
	for range 300 {
		var list parts
		at, end := uint64(40), uint64(4000)
		for at += 1 + rng.Uint64N(200); at < end && len(list) < 20; at += 2 + rng.Uint64N(200) {
			n := 1 + rng.Uint64N(min(300, end-at))
			list = append(list, parttabletest.Part{at, n})
			at += n
		}
		disk := make([]byte, 4096*512)
		number := func(i int) int { return i + 1 }
		if rng.IntN(2) == 0 {
			parttabletest.GPT(disk, 512, list)
		} else {
			primary := rng.IntN(min(4, len(list)+1))
			parttabletest.MBR(disk, list[:primary], list[primary:])
			number = func(i int) int {
				if i < primary {
					return i + 1
				}
				return 5 + i - primary
			}
		}
		var want []Partition
		for i, p := range list {
			want = append(want, Partition{number(i), p[0] * 512, p[1] * 512})
		}
		if got, err := read(disk); !slices.Equal(got, want) || (err != nil) != (want == nil) {
			t.Fatalf("got %v, %v\nwant %v", got, err, want)
		}
	}
}

func newRand(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	if v := os.Getenv("BTREXPORT_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("BTREXPORT_SEED: %v", err)
		}
	}
	t.Logf("BTREXPORT_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// FuzzRead: whatever a disk holds, the table is read in a bounded number of reads, and every partition lies on the disk.
func FuzzRead(f *testing.F) {
	for _, write := range []func([]byte){
		func([]byte) {},
		func(d []byte) { parttabletest.MBR(d, parts{{63, 10}}, parts{{81, 2}, {91, 5}}) },
		func(d []byte) { parttabletest.GPT(d, 512, parts{{40, 1}, {50, 20}}) },
	} {
		disk := make([]byte, 100<<10)
		write(disk)
		f.Add(disk)
	}
	f.Fuzz(func(t *testing.T, disk []byte) {
		repair(disk)
		reads, size := 0, uint64(len(disk))
		list, err := Read(of(disk, &reads), size)
		if reads > maxLogical+16 || len(list) > maxEntries || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%d reads, %d partitions, %v", reads, len(list), err)
		}
		for _, p := range list {
			if p.Start == 0 || p.Size == 0 || p.Start > size || p.Size > size-p.Start {
				t.Fatalf("partition %d at %d of %d bytes, on a disk of %d", p.Number, p.Start, p.Size, size)
			}
		}
	})
}

// repair makes the checksum of a mutated GPT right, where it has one.
func repair(disk []byte) {
	if len(disk) < 2*512 || string(disk[512:520]) != "EFI PART" {
		return
	}
	h := disk[512:1024]
	at, n := binary.LittleEndian.Uint64(h[72:]), uint64(binary.LittleEndian.Uint32(h[80:]))*uint64(binary.LittleEndian.Uint32(h[84:]))
	if at < uint64(len(disk))/512 && n <= uint64(len(disk))-at*512 {
		binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(disk[at*512:][:n]))
	}
	if size := binary.LittleEndian.Uint32(h[12:]); size <= 512 {
		clear(h[16:20])
		binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:size]))
	}
}
