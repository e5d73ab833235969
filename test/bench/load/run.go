package load

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Main is the load's process: a Job as JSON on in, "ready" on out, a line on in, the Result as JSON on out.
func Main(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	text, err := lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the job: %w", err)
	}
	var j Job
	if err := json.Unmarshal(text, &j); err != nil {
		return fmt.Errorf("job: %w", err)
	}
	p, err := prepare(ctx, j)
	if err != nil {
		return err
	}
	defer p.close()
	if _, err := fmt.Fprintln(out, "ready"); err != nil {
		return err
	}
	if _, err := lines.ReadBytes('\n'); err != nil {
		return fmt.Errorf("wait for the start: %w", err)
	}
	r, err := p.run(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(r)
}

// prepared is a job whose connections stand.
type prepared struct {
	job   Job
	want  []byte
	conns []*conn
}

func prepare(ctx context.Context, j Job) (*prepared, error) {
	if err := j.check(); err != nil {
		return nil, err
	}
	want, err := mapFile(j.Want)
	if err != nil {
		return nil, err
	}
	p := &prepared{job: j, want: want}
	order, err := j.blocks(len(want))
	for i := 0; err == nil && i < j.Connections; i++ {
		err = p.connect(ctx, order, i)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *prepared) connect(ctx context.Context, order []uint32, i int) error {
	c, err := new(net.Dialer).DialContext(ctx, "unix", p.job.Socket)
	if err != nil {
		return err
	}
	p.conns = append(p.conns, newConn(p.job, c, p.want, order, i))
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return err
		}
	}
	return handshake(c, p.job.Export, p.job.Structured)
}

func (p *prepared) close() {
	for _, k := range p.conns {
		_ = k.c.Close()
	}
	_ = unix.Munmap(p.want)
}

func (p *prepared) run(ctx context.Context) (Result, error) {
	before, err := ownCPU()
	if err != nil {
		return Result{}, err
	}
	start := time.Now()
	stop := context.AfterFunc(ctx, func() {
		for _, k := range p.conns {
			_ = k.c.SetDeadline(time.Unix(1, 0))
		}
	})
	defer stop()
	var g errgroup.Group
	for _, k := range p.conns {
		g.Go(func() error { return k.run(start) })
	}
	if err := g.Wait(); err != nil {
		return Result{}, err
	}
	after, err := ownCPU()
	if err != nil {
		return Result{}, err
	}
	r, err := p.sum(start)
	r.CPU = after - before
	return r, err
}

// sum adds up the connections.
func (p *prepared) sum(start time.Time) (Result, error) {
	var r Result
	var latency []time.Duration
	var last time.Time
	for _, k := range p.conns {
		r.Requests += k.counted.Requests
		r.Bytes += k.counted.Bytes
		r.Compared += k.counted.Compared
		latency = append(latency, k.latency...)
		if k.last.After(last) {
			last = k.last
		}
	}
	if r.Requests == 0 {
		return r, errors.New("no reply came in the time that counts")
	}
	slices.Sort(latency)
	r.Took = last.Sub(start) - p.job.Skip
	r.P50, r.P99 = latency[len(latency)/2], latency[len(latency)*99/100]
	return r, nil
}

func ownCPU() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, err
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// mapFile maps a file for reading, every page of it at once.
func mapFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return b, nil
}
