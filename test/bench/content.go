package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// content is a kind of bytes. Block i is a function of the seed and i alone, and differs from every other block.
type content string

const (
	noise content = "noise" // does not shrink
	text  content = "text"  // words of one vocabulary, rare and frequent ones: shrinks to a third or half
)

// library keeps the files of expected bytes, one of each kind, mapped.
type library struct {
	dir  string
	size int64
	seed uint64
	made map[content]*book
}

// book is one of them.
type book struct {
	path  string
	bytes []byte
}

func (l *library) get(c content) (*book, error) {
	if b := l.made[c]; b != nil {
		return b, nil
	}
	path := filepath.Join(l.dir, string(c))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, l.size); err != nil {
		return nil, fmt.Errorf("%s: reserve %d bytes: %w", path, l.size, err)
	}
	p, err := unix.Mmap(int(f.Fd()), 0, int(l.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	l.fill(c, p)
	l.made[c] = &book{path: path, bytes: p}
	return l.made[c], nil
}

func (l *library) close() {
	for _, b := range l.made {
		_ = unix.Munmap(b.bytes)
	}
	l.made = nil
}

// fill writes all blocks, on every core.
func (l *library) fill(c content, p []byte) {
	write := noiseBlock(l.seed)
	if c == text {
		write = textBlock(l.seed)
	}
	var g errgroup.Group
	share := (len(p)/runtime.NumCPU() + kernelfs.BlockSize) &^ (kernelfs.BlockSize - 1)
	for at := 0; at < len(p); at += share {
		part, first := p[at:min(at+share, len(p))], at/kernelfs.BlockSize
		g.Go(func() error {
			for i := 0; i < len(part); i += kernelfs.BlockSize {
				write(uint64(first+i/kernelfs.BlockSize), part[i:min(i+kernelfs.BlockSize, len(part))])
			}
			return nil
		})
	}
	_ = g.Wait() // nothing in it fails
}

func noiseBlock(seed uint64) func(i uint64, b []byte) {
	c := kernelfs.Content{Seed: seed, Noise: true}
	return func(i uint64, b []byte) { c.Block(0, i, b) }
}

// textBlock writes words after the block's number. Word k of the vocabulary comes about as often as 1/k.
func textBlock(seed uint64) func(i uint64, b []byte) {
	const words, longest = 4096, 12
	rng := rand.New(rand.NewPCG(seed, 1))
	var list [words]string
	for k := range list {
		w := make([]byte, 2+rng.IntN(longest-1))
		for j := range w {
			w[j] = byte('a' + min(rng.IntN(26), rng.IntN(26)))
		}
		list[k] = string(w) + " "
	}
	return func(i uint64, b []byte) {
		rng := rand.New(rand.NewPCG(seed, i))
		var number [8]byte
		binary.BigEndian.PutUint64(number[:], i)
		for n := copy(b, number[:]); n < len(b); {
			octave := rng.UintN(13) // 1, 2, 4 ... 4096 words, each octave as likely
			n += copy(b[n:], list[rng.UintN(1<<octave)])
		}
	}
}
