package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrexport/btrexport/export/nbdclient"
)

const (
	probeBlock   = 4096    // bytes of a timed read
	probeChunk   = 1 << 20 // bytes of a read of the whole
	probeDepth   = 8       // of those, at a time
	probeConnect = 10 * time.Second
)

func (a *app) probeCommand() *cobra.Command {
	var reads int
	var quick bool
	var secure tlsFlags
	cmd := &cobra.Command{
		Use:   "probe NBD-URI",
		Short: "Ask any NBD server what it offers, time some reads, hash the export",
		Long: "probe connects to one export, shows its size, flags, block sizes and metadata contexts, times small reads at random places one by one, " +
			"then reads the whole export and prints its SHA-256.\n\n" + exitHelp,
		Example: "  btrexport probe nbd://127.0.0.1/vm1\n  btrexport probe 'nbd+unix:///vm1?socket=/run/btrexport/nbd.sock'\n" +
			"  btrexport probe 'nbds://vmhost/vm1?tls-certificates=/etc/btrexport/pki'",
		Args: arguments(1, 1, "one NBD-URI"),
	}
	cmd.Flags().IntVar(&reads, "reads", 1000, "how many small reads to time")
	cmd.Flags().BoolVar(&quick, "quick", false, "do not read the whole export")
	secure.add(cmd)
	a.jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		t, err := secure.target(args[0], uriForms)
		if err != nil {
			return err
		}
		if reads < 0 {
			return usagef("--reads %d: is negative (write 0 or more)", reads)
		}
		r, err := probe(cmd.Context(), t, reads, !quick)
		if err != nil {
			return fmt.Errorf("probe %s: %w", args[0], err)
		}
		if a.json {
			return printJSON(a.out, r)
		}
		return r.print(a.out)
	}
	return cmd
}

// probed is what a probe found. Sizes in bytes.
type probed struct {
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	Size        uint64   `json:"size"`
	ReadOnly    bool     `json:"read_only"`
	MultiConn   bool     `json:"multi_conn"`
	MinBlock    uint32   `json:"min_block"`
	Preferred   uint32   `json:"preferred_block"`
	MaxBlock    uint32   `json:"max_block"`
	Reads       int      `json:"reads"`
	ReadBytes   int      `json:"read_bytes"` // of each
	P50         float64  `json:"p50_seconds"`
	P99         float64  `json:"p99_seconds"`
	TLS         bool     `json:"tls"`
	Structured  bool     `json:"structured_replies"`
	Contexts    []string `json:"meta_contexts,omitempty"`
	Seconds     float64  `json:"whole_seconds,omitempty"`
	SHA256      string   `json:"sha256,omitempty"`
}

func probe(ctx context.Context, t nbdclient.Target, reads int, whole bool) (*probed, error) {
	dial, cancel := context.WithTimeout(ctx, probeConnect)
	defer cancel()
	c, err := nbdclient.Dial(dial, t)
	if err != nil {
		return nil, connectKind{err}
	}
	defer c.Close()
	// A read waits for the server; closing the connection ends it.
	defer context.AfterFunc(ctx, func() { c.Close() })()
	i := c.Info()
	p := &probed{Name: i.Name, Description: i.Description, Size: i.Size, ReadOnly: i.ReadOnly(), MultiConn: i.MultiConn(),
		TLS: t.TLS.On, Structured: i.Structured, Contexts: i.Contexts,
		MinBlock: i.Blocks.Minimum, Preferred: i.Blocks.Preferred, MaxBlock: i.Blocks.Maximum}
	if err := p.timeReads(c, reads); err != nil {
		return nil, err
	}
	if !whole {
		return p, nil
	}
	start := time.Now()
	sum := sha256.New()
	if err := hashWhole(c, i.Size, sum); err != nil {
		return nil, err
	}
	p.Seconds, p.SHA256 = time.Since(start).Seconds(), hex.EncodeToString(sum.Sum(nil))
	return p, nil
}

// timeReads makes n reads of a block at random aligned places, one after the other.
func (p *probed) timeReads(r io.ReaderAt, n int) error {
	block := max(probeBlock, int(min(p.MinBlock, probeChunk)))
	places := p.Size / uint64(block)
	if places == 0 || n == 0 {
		return nil
	}
	b := make([]byte, block)
	took := make([]time.Duration, n)
	for i := range took {
		off := int64(rand.Uint64N(places)) * int64(block)
		start := time.Now()
		if _, err := r.ReadAt(b, off); err != nil {
			return err
		}
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	p.Reads, p.ReadBytes = n, block
	p.P50, p.P99 = took[n/2].Seconds(), took[n*99/100].Seconds()
	return nil
}

// chunk is one read of hashWhole.
type chunk struct {
	b    []byte
	err  error
	done chan struct{}
}

// hashWhole reads everything, several chunks at a time, and hashes it in order.
func hashWhole(r io.ReaderAt, size uint64, sum hash.Hash) error {
	var queue []*chunk
	var failed error
	for off := uint64(0); ; {
		for ; failed == nil && off < size && len(queue) < probeDepth; off += probeChunk {
			queue = append(queue, startChunk(r, off, min(probeChunk, size-off)))
		}
		if len(queue) == 0 {
			return failed
		}
		k := queue[0]
		queue = queue[1:]
		<-k.done
		if failed == nil {
			failed = k.err
		}
		sum.Write(k.b)
	}
}

func startChunk(r io.ReaderAt, off, n uint64) *chunk {
	k := &chunk{b: make([]byte, n), done: make(chan struct{})}
	go func() {
		defer close(k.done)
		_, k.err = r.ReadAt(k.b, int64(off))
	}()
	return k
}

func (p *probed) print(w io.Writer) error {
	access, conns := "read-write", "single-conn"
	if p.ReadOnly {
		access = "read-only"
	}
	if p.MultiConn {
		conns = "multi-conn"
	}
	name := "(default)"
	if p.Name != "" {
		name = shown(p.Name)
	}
	secure := ""
	if p.TLS {
		secure = "  TLS"
	}
	fmt.Fprintf(w, "%s  %s  %s  %s  block %d/%d/%d%s\n", name, iec(p.Size), access, conns, p.MinBlock, p.Preferred, p.MaxBlock, secure)
	if p.Description != "" {
		fmt.Fprintf(w, "%s\n", shown(p.Description))
	}
	if p.Structured {
		fmt.Fprint(w, "structured replies")
		for i, c := range p.Contexts {
			sep := ", "
			if i == 0 {
				sep = "; contexts "
			}
			fmt.Fprint(w, sep, shown(c))
		}
		fmt.Fprintln(w)
	}
	if p.Reads > 0 {
		fmt.Fprintf(w, "%d reads of %s: p50 %s  p99 %s\n", p.Reads, iec(uint64(p.ReadBytes)), duration(p.P50), duration(p.P99))
	}
	if p.SHA256 == "" {
		return nil
	}
	speed := ""
	if p.Seconds > 0 && p.Size > 0 {
		speed = "sequential " + iec(uint64(float64(p.Size)/p.Seconds)) + "/s   "
	}
	_, err := fmt.Fprintf(w, "%ssha256 %s\n", speed, p.SHA256)
	return err
}

// duration is a time in seconds with three digits.
func duration(s float64) string {
	d := time.Duration(s * float64(time.Second))
	for _, unit := range []time.Duration{time.Second, time.Millisecond, time.Microsecond} {
		if d >= 100*unit {
			return d.Round(unit).String()
		}
		if d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}
