//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// stretch is a range of a file that has data, or reads as zeroes.
type stretch struct {
	from, to int64
	zero     bool
}

// stretches joins neighbours of one kind.
func stretches(list []stretch) []stretch {
	var out []stretch
	for _, s := range list {
		if i := len(out) - 1; i >= 0 && out[i].zero == s.zero && out[i].to == s.from {
			out[i].to = s.to
		} else if s.from < s.to {
			out = append(out, s)
		}
	}
	return out
}

// kernelMap is what lseek says of a file. btrfs calls preallocated ranges holes there.
func kernelMap(t *testing.T, path string) []stretch {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var list []stretch
	for at := int64(0); at < st.Size(); {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			data = st.Size()
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, stretch{at, data, true})
		if at = data; at == st.Size() {
			break
		}
		hole, err := unix.Seek(int(f.Fd()), at, unix.SEEK_HOLE)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, stretch{at, hole, false})
		at = hole
	}
	return stretches(list)
}

// extent is what nbdinfo prints of one.
type extent struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Type   uint32 `json:"type"`
}

// nbdMap is what nbdinfo says of an export in a metadata context.
func (s *server) nbdMap(ctx context.Context, t *testing.T, name, metadata string) []extent {
	t.Helper()
	text := must(ctx, t, "nbdinfo", "--map="+metadata, "--json", s.uri(name))
	var list []extent
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatalf("%s: nbdinfo --map: %v\n%s", name, err, text)
	}
	return list
}

// checkMap compares base:allocation with the kernel's map, as nbdinfo and QEMU show it.
func (s *server) checkMap(ctx context.Context, t *testing.T, name string, want []stretch) {
	t.Helper()
	var got []stretch
	for _, x := range s.nbdMap(ctx, t, name, "base:allocation") {
		got = append(got, stretch{x.Offset, x.Offset + x.Length, x.Type&2 != 0})
	}
	if got = stretches(got); !slices.Equal(got, want) {
		t.Errorf("%s: nbdinfo --map: got %v, want %v", name, got, want)
	}
	s.checkQEMUMap(ctx, t, name, want)
}

// checkQEMUMap compares QEMU's map with the kernel's.
func (s *server) checkQEMUMap(ctx context.Context, t *testing.T, name string, want []stretch) {
	t.Helper()
	var list []struct {
		Start, Length int64
		Zero          bool
	}
	text := must(ctx, t, "qemu-img", "map", "-f", "raw", "--output=json", s.uri(name))
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	var got []stretch
	end := want[len(want)-1].to
	for _, x := range list {
		got = append(got, stretch{x.Start, min(x.Start+x.Length, end), x.Zero}) // QEMU pads the size
	}
	if got = stretches(slices.DeleteFunc(got, func(s stretch) bool { return s.from >= end })); !slices.Equal(got, want) {
		t.Errorf("%s: qemu-img map: got %v, want %v", name, got, want)
	}
}

// Every kind of file: the maps that clients get are the kernel's, and copies made by them are the file.
// nbdkit stacked on the server passes both on.
func TestExtents(t *testing.T) {
	need(t, append(foreignTools, "mkfs.btrfs", "nbdkit")...)
	ctx, rng := bounded(t), chance(t)
	const huge = 5<<30 + 5
	k := makeTruth(ctx, t, kernelfs.Options{DeviceSize: 512 << 20}, func(tree *kernelfs.Tree) {
		tree.Zoo("zoo")
		tree.Fragment("fragments", 3000, rng.Uint64())
		tree.Plain("packed", 0)
		tree.Xattr("packed", "btrfs.compression", []byte("zstd"))
		tree.WriteString("packed", strings.Repeat("packed by the kernel ", 40000))
		tree.Truncate("huge", huge)
		tree.WriteAt("huge", 4<<30+8192, 4096)
		tree.Sync()
	})
	var files []served
	for i, e := range k.regular() {
		if e.Size > 0 && e.Size < 64<<20 && !strings.Contains(string(e.Path), "names/") {
			files = append(files, served{name: fmt.Sprintf("%d-%s", i, filepath.Base(string(e.Path))), path: "/" + string(e.Path), want: k.read(t, e.Path)})
		}
	}
	args := slices.Concat(shuffled(rng, k.fs.Loops()), exports(files), []string{"-e", "huge=/huge"})
	s := serve(t, args...)
	out := filepath.Join(t.TempDir(), "out")
	for i, f := range files {
		s.checkMap(ctx, t, f.name, kernelMap(t, k.mnt+f.path))
		s.checkCopies(ctx, t, f, out)
		if i%4 == 0 {
			s.checkQEMU(ctx, t, f, out)
			s.checkQEMUReads(ctx, t, rng, f)
			s.checkStacked(ctx, t, f, out)
		}
		switch {
		case strings.HasSuffix(f.name, "-packed"):
			for _, x := range s.nbdMap(ctx, t, f.name, "x-btrexport:compression") {
				if x.Type != 3 {
					t.Errorf("%s: compression %+v, want 3 (zstd)", f.name, x)
				}
			}
		case strings.HasSuffix(f.name, "-nocow"), strings.HasSuffix(f.name, "-xattr"):
			want := uint32(1)
			if strings.HasSuffix(f.name, "-nocow") {
				want = 0
			}
			if list := s.nbdMap(ctx, t, f.name, "x-btrexport:verified"); len(list) != 1 || list[0].Type != want {
				t.Errorf("%s: verified %+v, want %d", f.name, list, want)
			}
		}
	}
	s.checkMap(ctx, t, "huge", []stretch{{0, 4<<30 + 8192, true}, {4<<30 + 8192, 4<<30 + 12288, false}, {4<<30 + 12288, huge, true}})
	commands := []string{"block_status", "read"}
	if s.checkOutOfSpec(ctx, t) {
		commands = append(commands, "cache", "flush")
	}
	m := s.scrape(ctx, t)
	for _, command := range commands {
		if m.sum("btrexport_nbd_requests_total", `command="`+command+`"`, `result="ok"`) == 0 {
			t.Errorf("no %s was counted", command)
		}
	}
}

// checkStacked copies through nbdkit's nbd plugin.
func (s *server) checkStacked(ctx context.Context, t *testing.T, f served, out string) {
	t.Helper()
	must(ctx, t, "nbdkit", "-U", "-", "-r", "nbd", "uri="+s.uri(f.name), "--run", `nbdcopy "$uri" `+out)
	sameFile(t, f.path+": nbdcopy through nbdkit", out, f.want)
	if err := os.Remove(out); err != nil {
		t.Fatal(err)
	}
}

// outOfSpec sends with libnbd what a client should not, to an export with data at 4 GiB and 8 KiB.
const outOfSpec = `
import errno, nbd, sys
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
h.set_strict_mode(0)
size, data = h.get_size(), (4 << 30) + 8192
def fails(want, what, *args):
    try:
        what(*args)
    except nbd.Error as e:
        if e.errnum != want:
            sys.exit("%s%r: errno %d, want %d" % (what.__name__, args[:2], e.errnum, want))
    else:
        sys.exit("%s%r: succeeded, want errno %d" % (what.__name__, args[:2], want))
    h.pread(16, 0)
nothing = lambda *a: 0
fails(errno.EINVAL, h.pread, 1024, size - 512)
fails(errno.EINVAL, h.pread, 16, 1 << 63)
fails(errno.EINVAL, h.pread, 16, 0, 1 << 4)
fails(errno.EPERM, h.pwrite, b"x" * 512, 0)
fails(errno.EPERM, h.zero, 512, 0)
fails(errno.EPERM, h.trim, 512, 0)
fails(errno.EINVAL, h.cache, 65536, size)
fails(errno.EINVAL, h.block_status, 4096, size, nothing)
h.flush()
h.cache(65536, data)
chunks = []
seen = lambda b, off, status, err: chunks.append((off - data, len(b), status)) or 0
h.pread_structured(12288, data - 4096, seen)
if sorted(chunks) != [(-4096, 4096, nbd.READ_HOLE), (0, 4096, nbd.READ_DATA), (4096, 4096, nbd.READ_HOLE)]:
    sys.exit("chunks %r" % chunks)
chunks = []
h.pread_structured(12288, data - 4096, seen, nbd.CMD_FLAG_DF)
if chunks != [(-4096, 12288, nbd.READ_DATA)]:
    sys.exit("chunks under DF %r" % chunks)
h.shutdown()
`

// checkOutOfSpec runs outOfSpec where libnbd's bindings are, and tells whether they are.
func (s *server) checkOutOfSpec(ctx context.Context, t *testing.T) bool {
	t.Helper()
	if o := run(ctx, t, "/usr/bin/python3", "-c", "import nbd"); o.status != 0 {
		t.Logf("libnbd's Python bindings are not here: %s", o.errOut)
		return false
	}
	must(ctx, t, "/usr/bin/python3", "-c", outOfSpec, s.uri("huge"))
	return true
}
