package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/btrexport/btrexport/test/bench/load"
)

// sample is one measurement: one server, one row, one round.
type sample struct {
	Scenario, Row, Server string
	Round                 int
	load.Result
	cost
	Memory int64 // peak resident set of the server, bytes
}

// rate is in bytes a second.
func (s sample) rate() float64 { return float64(s.Bytes) / s.Took.Seconds() }

// cpu is what the server and the kernel's threads used, in nanoseconds a byte.
func (s sample) cpu() float64 { return float64(s.ServerCPU+s.KernelCPU) / float64(s.Compared) }

// serverCPU is what the server used alone.
func (s sample) serverCPU() float64 { return float64(s.ServerCPU) / float64(s.Compared) }

// fromDevices is what was read from the devices for each byte that was served.
func (s sample) fromDevices() float64 { return float64(s.DeviceBytes) / float64(s.Compared) }

// bench is a whole run.
type bench struct {
	dir     string
	program string
	self    string         // this program, which is the load as well
	only    *regexp.Regexp // the servers to run
	beside  string         // a shell command to observe ours with; empty: none
	seconds time.Duration
	lib     *library

	samples []sample
	failed  []error
}

// loadArgument makes this program the load.
const loadArgument = "load"

// measure lets c serve the row of s's filesystem, once.
func (b *bench) measure(ctx context.Context, c contender, f *filesystem, r row, seed uint64) (s sample, err error) {
	dir, err := os.MkdirTemp(b.dir, "run")
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	t := target{program: b.program, dir: dir, socket: filepath.Join(dir, "nbd.sock"), fs: f, row: r}
	args, err := c.command(t)
	if err != nil {
		return s, err
	}
	if !r.buffered {
		if err := writeFile("/proc/sys/vm/drop_caches", "3"); err != nil {
			return s, err
		}
	}
	srv, err := startServer(ctx, args, t.socket)
	if err != nil {
		return s, err
	}
	defer func() {
		if e := srv.stop(); e != nil && ctx.Err() == nil {
			err = errors.Join(err, e)
		}
	}()
	if r.buffered {
		if _, err := b.load(ctx, srv, f, b.job(t, sequential, seed, time.Hour)); err != nil {
			return s, fmt.Errorf("warming up: %w", err)
		}
	}
	if b.beside != "" && c.tool == "" {
		end, err := observe(ctx, b.beside, srv.cmd.Process.Pid)
		if err != nil {
			return s, err
		}
		defer end()
	}
	if r.work.nbdcopy > 0 {
		s, err = b.copy(ctx, srv, t)
	} else {
		s, err = b.load(ctx, srv, f, b.job(t, r.work, seed, b.seconds))
	}
	if err == nil {
		s.Memory, err = peakMemory(srv.cmd.Process.Pid)
	}
	return s, err
}

// job is the load's part of a row.
func (b *bench) job(t target, w work, seed uint64, limit time.Duration) load.Job {
	j := load.Job{Socket: t.socket, Export: exportName, Want: t.fs.want.path, Structured: w.structured,
		Connections: w.connections, Depth: w.depth, Block: w.block, Random: w.random, Seed: seed, Limit: limit + w.skip, Skip: w.skip}
	if burst := w.skip.Seconds() * t.fs.rate(); float64(len(t.fs.want.bytes)) < 2*burst {
		j.Skip, j.Limit = 0, limit // a small file is read before the burst ends
	}
	if w.part > 0 {
		const patience = 20 // the work is fixed: who is slow takes longer, up to here
		j.Requests, j.Limit = len(t.fs.want.bytes)/w.block/w.part, patience*limit
	}
	return j
}

// load runs one job in a process of its own.
func (b *bench) load(ctx context.Context, srv *server, f *filesystem, j load.Job) (s sample, err error) {
	const grace = time.Minute // what was sent is still answered
	ctx, cancel := context.WithTimeout(ctx, j.Limit+grace)
	defer cancel()
	cmd := command(ctx, []string{b.self, loadArgument})
	var problem strings.Builder
	cmd.Stderr = &problem
	in, err := cmd.StdinPipe()
	if err != nil {
		return s, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return s, err
	}
	if err := cmd.Start(); err != nil {
		return s, err
	}
	err = b.talk(srv, f, j, in, bufio.NewReader(out), &s)
	_ = in.Close()
	if e := cmd.Wait(); e != nil {
		err = errors.Join(fmt.Errorf("load: %w: %s", e, problem.String()), context.Cause(ctx))
	}
	return s, err
}

// talk gives the job, and reads the counters where it begins and where it ends.
func (b *bench) talk(srv *server, f *filesystem, j load.Job, in io.Writer, out *bufio.Reader, s *sample) error {
	if err := json.NewEncoder(in).Encode(j); err != nil {
		return err
	}
	if _, err := out.ReadString('\n'); err != nil {
		return fmt.Errorf("load did not get ready: %w", err)
	}
	before, err := readCounters(srv.cmd.Process.Pid, f.fs.Loops())
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(in, "go"); err != nil {
		return err
	}
	result, err := out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("load gave no result: %w", err)
	}
	after, err := readCounters(srv.cmd.Process.Pid, f.fs.Loops())
	if err != nil {
		return err
	}
	s.cost = after.since(before)
	return json.Unmarshal(result, &s.Result)
}

// copy lets nbdcopy read the whole file.
func (b *bench) copy(ctx context.Context, srv *server, t target) (s sample, err error) {
	const patience = 5 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	n := t.row.work.nbdcopy
	cmd := command(ctx, []string{"nbdcopy", "--no-extents", fmt.Sprintf("--connections=%d", n), fmt.Sprintf("--threads=%d", n),
		"nbd+unix:///" + exportName + "?socket=" + t.socket, "null:"})
	before, err := readCounters(srv.cmd.Process.Pid, t.fs.fs.Loops())
	if err != nil {
		return s, err
	}
	start := time.Now()
	if text, err := cmd.CombinedOutput(); err != nil {
		return s, fmt.Errorf("nbdcopy: %w: %s", err, text)
	}
	s.Took = time.Since(start)
	after, err := readCounters(srv.cmd.Process.Pid, t.fs.fs.Loops())
	if err != nil {
		return s, err
	}
	s.Bytes, s.Compared = int64(len(t.fs.want.bytes)), int64(len(t.fs.want.bytes))
	s.CPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	s.cost = after.since(before)
	return s, nil
}

// installed tells whether a contender can run here.
func (c contender) installed() bool {
	_, err := exec.LookPath(c.tool)
	return c.tool == "" || err == nil
}
