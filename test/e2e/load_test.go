//go:build linux

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// Sixty-four clients that ask for far more at once than the server may hold in memory: every byte
// right, and a bound on its resident set.
func TestManyClients(t *testing.T) {
	need(t, "nbdcopy")
	const clients, bound = 64, 256 << 20
	ctx, rng := bounded(t), chance(t)
	k := makeTruth(ctx, t, kernelfs.Options{Devices: 2, DeviceSize: 512 << 20, Data: "raid1", Metadata: "raid1"}, func(tree *kernelfs.Tree) {
		tree.Plain("big", 64<<20+777)
		tree.Fragment("fragments", 3000, rng.Uint64())
	})
	files := []served{
		{name: "big", path: "/big", want: k.read(t, "big")},
		{name: "fragments", path: "/fragments", want: k.read(t, "fragments")},
	}
	for _, c := range []struct {
		name                 string
		reads, depth, length int // of each client
	}{
		{"256 KiB, 16 in flight", 48, 16, 256 << 10},
		{"32 MiB, 4 in flight", 4, 4, 32 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, append(shuffled(rng, k.fs.Loops()), exports(files)...)...)
			g, gctx := errgroup.WithContext(ctx)
			for i := range clients {
				seed := rng.Uint64()
				switch {
				case i%8 == 7:
					g.Go(func() error { return shortReads(gctx, s, files[i/8%2], seed) })
				default:
					g.Go(func() error { return longReads(gctx, s, files[0], seed, c.reads*rounds(), c.depth, c.length) })
				}
			}
			for i := range 4 {
				out := filepath.Join(t.TempDir(), fmt.Sprint(i))
				g.Go(func() error { return copyAside(gctx, t, s, files[i%2], out) })
			}
			if err := g.Wait(); err != nil {
				t.Error(err)
			}
			s.checkHealthy(ctx, t, bound)
		})
	}
}

// longReads is a client of the first kind: it asks for much and takes what comes.
func longReads(ctx context.Context, s *server, f served, seed uint64, n, depth, length int) error {
	c, err := openStream(ctx, s.socket, f)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	return c.run(rand.New(rand.NewPCG(seed, 0)), n, depth, length)
}

// shortReads is a client of the second kind: small ranges, unaligned.
func shortReads(ctx context.Context, s *server, f served, seed uint64) error {
	c, err := nbdclient.Dial(ctx, nbdclient.Target{Network: "unix", Address: s.socket, Export: f.name})
	if err != nil {
		return err
	}
	defer c.Close()
	return readRandom(c, f.want, seed, 200*rounds(), 16, 64<<10)
}

// copyAside is a foreign client beside them.
func copyAside(ctx context.Context, t *testing.T, s *server, f served, out string) error {
	if text, err := exec.CommandContext(ctx, "nbdcopy", "--no-extents", s.uri(f.name), out).CombinedOutput(); err != nil {
		return fmt.Errorf("nbdcopy of %s: %w: %s", f.path, err, text)
	}
	sameFile(t, "nbdcopy of "+f.path, out, f.want)
	return nil
}
