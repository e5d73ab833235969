//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// SIGTERM while clients read, and while others are connected and ask nothing: every reply until then
// is right, the process ends with status 0, and its sockets are gone.
func TestTerminateUnderLoad(t *testing.T) {
	need(t, "gcc")
	ctx, rng := bounded(t), chance(t)
	k := makeTruth(ctx, t, kernelfs.Options{Devices: 2, DeviceSize: 512 << 20, Data: "raid1", Metadata: "raid1"}, func(tree *kernelfs.Tree) {
		tree.Plain("big", 16<<20+5)
	})
	f := served{name: "big", path: "/big", want: k.read(t, "big")}
	for round := range 3 * rounds() {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			s := launch{command: []string{program(t, raceBinary)}}.serve(t,
				append(append(shuffled(rng, k.fs.Loops()), exports([]served{f})...), "--drain-timeout", "2s")...)
			s.dial(ctx, t, f.name) // idle to the end
			var reads atomic.Int64
			enough := make(chan struct{})
			var clients sync.WaitGroup
			for range 16 {
				c, seed := s.dial(ctx, t, f.name), rng.Uint64()
				clients.Go(func() { readToTheEnd(t, c, f, seed, &reads, enough) })
			}
			select {
			case <-enough:
			case <-ctx.Done():
				t.Fatal(ctx.Err())
			}
			if status := s.terminate(t); status != 0 {
				t.Errorf("exit status: got %d, want 0\n%s", status, s.logged())
			}
			clients.Wait()
			for _, path := range []string{s.socket, s.metrics} {
				if _, err := os.Lstat(path); !os.IsNotExist(err) {
					t.Errorf("%s: got %v, want that it is gone", path, err)
				}
			}
		})
	}
}

// readToTheEnd reads until the server refuses or is gone. The first client that has seen 200 replies
// of all clients closes enough.
func readToTheEnd(t *testing.T, c *nbdclient.Client, f served, seed uint64, reads *atomic.Int64, enough chan struct{}) {
	rng := rand.New(rand.NewPCG(seed, 1))
	buf := make([]byte, 1<<20)
	for {
		off, n := randomRange(rng, len(f.want), len(buf))
		got, err := c.ReadAt(buf[:n], int64(off))
		if err != nil {
			var refused *nbdclient.ReadError
			if errors.Is(err, nbdclient.ErrProtocol) || errors.As(err, &refused) && refused.Errno != 108 { // NBD_ESHUTDOWN
				t.Errorf("while the server ends: %v", err)
			}
			return
		}
		if d := diff(buf[:got], f.want[off:off+n]); d != "" {
			t.Errorf("offset %d length %d: %s", off, n, d)
			return
		}
		if reads.Add(1) == 200 {
			close(enough)
		}
	}
}

// The list of exports over TCP, as the kernel client's tool asks for it.
func TestListOverTCP(t *testing.T) {
	need(t, "nbd-client", "nbdinfo")
	ctx := bounded(t)
	img := fsreadtest.Load(t, "raid0-3")
	path, _ := largest(t, img)
	port := freePort(ctx, t)
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	dir := shortDir(t, "")
	config := dir + "/btrexport.yaml"
	text := fmt.Sprintf("listen: [\"tcp://%s\"]\nfilesystems:\n  - name: tank\n    devices: [%q, %q, %q]\n"+
		"exports:\n  - {name: one, path: %q, description: \"the first\"}\n  - {name: two, path: %q, round_up: 4096}\n",
		address, img.Devices[2], img.Devices[0], img.Devices[1], path, path)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	must(ctx, t, program(t, plainBinary), "check-config", config)
	s := serve(t, "-c", config, "-l", "tcp://"+address)
	out := must(ctx, t, "nbd-client", "-l", "127.0.0.1", strconv.Itoa(port))
	for _, want := range []string{"one", "the first", "two"} {
		if !strings.Contains(out, want) {
			t.Errorf("nbd-client -l: got\n%s\nwant %q in it", out, want)
		}
	}
	must(ctx, t, program(t, plainBinary), "probe", "nbd://"+address+"/one")
	size, err := strconv.Atoi(strings.TrimSpace(must(ctx, t, "nbdinfo", "--size", "nbd://"+address+"/two")))
	if err != nil || size == 0 || size%4096 != 0 {
		t.Errorf("size with round_up 4096: got %d, error %v", size, err)
	}
	s.end(t)
}

// freePort is a TCP port of 127.0.0.1 that nobody listens on at this moment.
func freePort(ctx context.Context, t *testing.T) int {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
