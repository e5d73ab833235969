package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"regexp"
)

// chosen are the scenarios with the rows whose "scenario: row" re matches.
func chosen(re *regexp.Regexp) []scenario {
	var list []scenario
	for _, s := range scenarios() {
		var rows []row
		for _, r := range s.rows {
			if re.MatchString(s.name + ": " + r.name) {
				rows = append(rows, r)
			}
		}
		if s.rows = rows; len(rows) > 0 {
			list = append(list, s)
		}
	}
	return list
}

// scenario makes the filesystem and measures its rows, round by round. What fails is kept in b.failed.
func (b *bench) scenario(ctx context.Context, s scenario, rounds int, seed uint64, progress io.Writer) (err error) {
	want, err := b.lib.get(s.layout.content)
	if err != nil {
		return err
	}
	f, err := build(ctx, b.dir, s.layout, want, seed)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if s.rate > 0 {
		t, err := newThrottle(f.fs.Loops(), s.rate)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		f.slow = s.rate
		defer func() { err = errors.Join(err, t.close()) }() // a limit outlives the device's image
	}
	rng := rand.New(rand.NewPCG(seed, 3))
	for round := range rounds {
		for _, r := range s.rows {
			if err := b.row(ctx, s, f, r, round, rng, progress); err != nil {
				return err
			}
		}
	}
	return nil
}

// row measures every server once, in random order, under the same requests. Only ctx's end is an error.
func (b *bench) row(ctx context.Context, s scenario, f *filesystem, r row, round int, rng *rand.Rand, progress io.Writer) error {
	list := contenders()
	rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	seed := rng.Uint64()
	for _, c := range list {
		if !b.only.MatchString(c.name) || !c.installed() || c.noCache && r.buffered {
			continue
		}
		m, err := b.measure(ctx, c, f, r, seed)
		for again := 0; err == nil && r.buffered && m.fromDevices() > 0.01 && again < 3; again++ {
			fmt.Fprintf(progress, "%s: %s: %s: not warm, somebody emptied the page cache: once more\n", s.name, r.name, c.name)
			m, err = b.measure(ctx, c, f, r, seed)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			err = fmt.Errorf("%s: %s: %s: %w", s.name, r.name, c.name, err)
			fmt.Fprintln(progress, err)
			b.failed = append(b.failed, err)
			continue
		}
		m.Scenario, m.Row, m.Server, m.Round = s.name, r.name, c.name, round
		fmt.Fprintf(progress, "round %d  %s: %s: %s: %s, %s\n", round+1, s.name, r.name, c.name, r.speed(m.rate()), r.cpuText(m.cpu()))
		b.samples = append(b.samples, m)
	}
	return nil
}

// lines gathers the samples by rows, in the order of the scenarios.
func (b *bench) lines(list []scenario) []line {
	var out []line
	for _, s := range list {
		for _, r := range s.rows {
			l := line{scenario: s, row: r, size: b.lib.size, samples: make(map[string][]sample)}
			for _, m := range b.samples {
				if m.Scenario == s.name && m.Row == r.name {
					l.samples[m.Server] = append(l.samples[m.Server], m)
				}
			}
			if len(l.samples) > 0 {
				out = append(out, l)
			}
		}
	}
	return out
}
