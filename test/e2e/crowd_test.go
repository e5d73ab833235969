//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// A thousand exports and 256 connections: most read here and there, some keep sixteen long reads in flight, and one asks
// for a block at a time. Every byte is right, memory is bounded, and the one gets its turn beside the greedy.
func TestCrowd(t *testing.T) {
	need(t)
	const (
		small, greedy, modest = 999, 31, 224
		depth, asks           = 16, 300
		bound                 = 512 << 20 // of memory, where a connection may have 8 MiB
	)
	ctx, rng := bounded(t), chance(t)
	k := makeTruth(ctx, t, kernelfs.Options{DeviceSize: 768 << 20}, func(tree *kernelfs.Tree) {
		tree.Plain("big", 32<<20)
		for i := range small {
			tree.Plain(fmt.Sprintf("small-%d", i), 4096+rng.Int64N(128<<10))
		}
	})
	files := []served{{name: "big", path: "/big", want: k.read(t, "big")}}
	for i := range small {
		name := fmt.Sprintf("small-%d", i)
		files = append(files, served{name: name, path: "/" + name, want: k.read(t, fsreadtest.Name(name))})
	}
	var text strings.Builder
	text.WriteString("limits: {connections: 300}\nfilesystems:\n" + filesystemYAML("tank", false, k.fs.Loops()...) + "exports:\n")
	for _, f := range files {
		text.WriteString(exportYAML("tank", f))
	}
	config := filepath.Join(t.TempDir(), "btrexport.yaml")
	writeConfig(t, config, text.String())
	s := serve(t, "-c", config)

	busy, stop := context.WithCancel(ctx)
	defer stop()
	var taken atomic.Int64 // by the greedy, since the one began
	g, gctx := errgroup.WithContext(busy)
	for range greedy {
		seed := rng.Uint64()
		g.Go(func() error { return greedyReads(gctx, s, files[0], seed, depth, &taken) })
	}
	for range modest {
		seed := rng.Uint64()
		g.Go(func() error { return wander(gctx, s, files[1:], seed) })
	}
	one := s.dial(ctx, t, files[1].name)
	for taken.Load() < greedy*depth { // all are there
		if time.Sleep(time.Millisecond); gctx.Err() != nil {
			t.Fatal(g.Wait())
		}
	}
	taken.Store(0)
	if err := readRandom(one, files[1].want, rng.Uint64(), asks, 1, 4096); err != nil {
		t.Error(err)
	}
	got, fair := taken.Load(), int64(greedy*depth*asks)
	t.Logf("%d long reads of %d clients while one did %d short ones", got, greedy, asks)
	if got > 2*fair {
		t.Errorf("each of the greedy got %d reads in while one got %d, of %d that it had in flight each time", got/greedy, asks, depth)
	}
	stop()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	s.checkHealthy(ctx, t, bound)
}

// greedyReads keeps so many reads of 256 KiB in flight until ctx ends.
func greedyReads(ctx context.Context, s *server, f served, seed uint64, depth int, taken *atomic.Int64) error {
	c, err := nbdclient.Dial(ctx, nbdclient.Target{Network: "unix", Address: s.socket, Export: f.name})
	if err != nil {
		return over(ctx, err)
	}
	defer c.Close()
	var g errgroup.Group
	for w := range depth {
		g.Go(func() error {
			rng, buf := rand.New(rand.NewPCG(seed, uint64(w))), make([]byte, 256<<10)
			for ctx.Err() == nil {
				if err := readEqual(c, f.want, rng.IntN(len(f.want)-len(buf)), buf); err != nil {
					return err
				}
				taken.Add(1)
			}
			return nil
		})
	}
	return g.Wait()
}

// wander reads a little of one export after the other until ctx ends, each by a connection of its own.
func wander(ctx context.Context, s *server, files []served, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 0))
	for ctx.Err() == nil {
		f := files[rng.IntN(len(files))]
		c, err := nbdclient.Dial(ctx, nbdclient.Target{Network: "unix", Address: s.socket, Export: f.name})
		if err != nil {
			return over(ctx, err)
		}
		if err := errors.Join(readRandom(c, f.want, rng.Uint64(), 20, 2, 32<<10), c.Close()); err != nil {
			return err
		}
	}
	return nil
}

// over is err unless that is because ctx has ended.
func over(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
