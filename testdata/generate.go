//go:build ignore

// Generate makes the golden images of testdata/images; see README.md beside it. It needs root.
//
//	go run ./testdata/generate.go [-verify] [NAME...]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
	"github.com/btrexport/btrexport/test/e2e/kernelfs/golden"
)

func main() {
	verify := flag.Bool("verify", false, "do not generate: unpack each image, mount it and compare it with its manifest")
	dir := flag.String("dir", filepath.Join("testdata", "images"), "where packages and manifests stand")
	sample := flag.String("sample", filepath.Join("cmd", "btrexport", "sample"), "where those of the image named sample stand")
	work := flag.String("work", os.TempDir(), "directory for the unpacked images")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, job{verify: *verify, dir: *dir, sample: *sample, work: *work}, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

type job struct {
	verify            bool
	dir, sample, work string
}

// run works through the images with the given names, or all, and stops at the first error.
func run(ctx context.Context, j job, names []string) error {
	if err := kernelfs.Usable(); err != nil {
		return err
	}
	specs, err := chosen(names)
	if err != nil {
		return err
	}
	for _, s := range specs {
		start := time.Now()
		size, err := j.one(ctx, s)
		if errors.Is(err, golden.ErrMkfs) {
			fmt.Printf("%-16s left as it is: %v\n", s.Name, err)
			continue
		}
		if err != nil {
			return err
		}
		fmt.Printf("%-16s %8d bytes  %v\n", s.Name, size, time.Since(start).Round(time.Millisecond))
	}
	return nil
}

// one makes or verifies one image and returns the size of its package in bytes.
func (j job) one(ctx context.Context, s golden.Spec) (int64, error) {
	dir := j.dir
	if s.Name == golden.Sample().Name {
		dir = j.sample
	}
	var err error
	if j.verify {
		err = golden.Verify(ctx, s.Name, j.work, dir)
	} else {
		err = s.Build(ctx, j.work, dir)
	}
	if err != nil {
		return 0, err
	}
	info, err := os.Stat(filepath.Join(dir, s.Name+".tar.zst"))
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// chosen returns the recipes with the given names, or all.
func chosen(names []string) ([]golden.Spec, error) {
	specs := append(golden.Specs(), golden.Sample())
	if len(names) == 0 {
		return specs, nil
	}
	var list []golden.Spec
	for _, name := range names {
		i := slices.IndexFunc(specs, func(s golden.Spec) bool { return s.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("no image %q", name)
		}
		list = append(list, specs[i])
	}
	return list, nil
}
