//go:build linux

package e2e

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/btrexport/btrexport/export/nbdwire"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// wire passes connections on to a server and keeps what their beginnings said.
type wire struct {
	path string
	wg   sync.WaitGroup

	mu     sync.Mutex
	client []byte // guarded by mu; of all connections, one behind the other
	server []byte // guarded by mu
}

// keptBytes is how much of each direction of a connection is kept.
const keptBytes = 16 << 10

// sniffed is the server behind a wire. The test's end waits for its connections.
func (s *server) sniffed(t *testing.T) (*server, *wire) {
	t.Helper()
	w := &wire{path: filepath.Join(shortDir(t, ""), "wire")}
	l, err := net.Listen("unix", w.path)
	if err != nil {
		t.Fatal(err)
	}
	w.wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", s.socket)
			if err != nil {
				t.Error(err)
				_ = near.Close()
				continue
			}
			w.wg.Go(func() { w.pass(near, far, &w.client) })
			w.wg.Go(func() { w.pass(far, near, &w.server) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); w.wg.Wait() })
	return &server{cmd: s.cmd, socket: w.path, metrics: s.metrics, exited: s.exited}, w
}

// pass copies one direction and closes both ends with it.
func (w *wire) pass(from, to net.Conn, keep *[]byte) {
	defer from.Close()
	defer to.Close()
	var first bytes.Buffer
	_, _ = io.CopyN(io.MultiWriter(to, &first), from, keptBytes) // it may well be shorter
	w.mu.Lock()
	*keep = append(*keep, first.Bytes()...)
	w.mu.Unlock()
	_, _ = io.Copy(to, from)
}

// wantExtended wants extended headers to have been asked for, agreed on and used, in both directions.
func (w *wire) wantExtended(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	ack := nbdwire.AppendOptionReply(nil, nbdwire.OptExtendedHeaders, 1, nil)
	request := nbdwire.AppendExtendedRequest(nil, nbdwire.Request{})[:4]
	chunk := nbdwire.AppendExtendedChunk(nil, nbdwire.Chunk{})[:4]
	for what, found := range map[string]bool{
		"option":  bytes.Contains(w.client, nbdwire.AppendOption(nil, nbdwire.OptExtendedHeaders, nil)),
		"ACK":     bytes.Contains(w.server, ack),
		"request": bytes.Contains(w.client, request),
		"chunk":   bytes.Contains(w.server, chunk),
	} {
		if !found {
			t.Errorf("no %s of extended headers on the wire", what)
		}
	}
}

// QEMU 10, the first client that speaks extended headers with us: maps, copies and reads of every kind of file.
func TestExtendedHeaders(t *testing.T) {
	need(t, "apt-get", "dpkg-deb", "mkfs.btrfs")
	ctx, rng := bounded(t), chance(t)
	useBackport(ctx, t, "qemu-utils")
	version, _, _ := strings.Cut(must(ctx, t, "qemu-img", "--version"), "\n")
	t.Log(version)
	const huge = 5<<30 + 4096
	k := makeTruth(ctx, t, kernelfs.Options{DeviceSize: 512 << 20}, func(tree *kernelfs.Tree) {
		tree.Zoo("zoo")
		tree.Fragment("fragments", 2000, rng.Uint64())
		tree.Truncate("sparse", 48<<20+512)
		tree.WriteAt("sparse", 1<<20+4096, 300_000)
		tree.Fallocate("sparse", 8<<20, 1<<20, true)
		tree.WriteAt("sparse", 40<<20, 4096)
		tree.Truncate("huge", huge)
		tree.WriteAt("huge", 4<<30+8192, 4096)
	})
	files := []served{{name: "fragments", path: "/fragments"}, {name: "sparse", path: "/sparse"}}
	for i, e := range k.regular() {
		if e.Size > 0 && e.Size < 8<<20 && strings.HasPrefix(string(e.Path), "zoo/") && !strings.Contains(string(e.Path), "names/") && i%3 == 0 {
			files = append(files, served{name: filepath.Base(string(e.Path)), path: "/" + string(e.Path)})
		}
	}
	args := append(shuffled(rng, k.fs.Loops()), "-e", "huge=/huge")
	direct := serve(t, append(args, exports(files)...)...)
	s, w := direct.sniffed(t)
	out := filepath.Join(t.TempDir(), "out")
	for _, f := range files {
		f.want = k.read(t, fsreadtest.Name(f.path))
		if len(f.want)%512 == 0 { // QEMU pads others, and says so in its map
			s.checkQEMUMap(ctx, t, f.name, kernelMap(t, k.mnt+f.path))
		}
		s.checkQEMU(ctx, t, f, out)
		s.checkQEMUReads(ctx, t, rng, f)
	}
	s.checkQEMUMap(ctx, t, "huge", []stretch{{0, 4<<30 + 8192, true}, {4<<30 + 8192, 4<<30 + 12288, false}, {4<<30 + 12288, huge, true}})
	list := must(ctx, t, "qemu-nbd", "-L", "-k", s.socket)
	for _, want := range []string{"export: 'sparse'", "transaction size: 64-bit", "base:allocation", "x-btrexport:verified"} {
		if !strings.Contains(list, want) {
			t.Errorf("qemu-nbd -L: no %q in\n%s", want, list)
		}
	}
	w.wantExtended(t)
}
