package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/test/bench/load"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// flags are what the command line says.
type flags struct {
	scenario, servers, dir, json, program, beside string
	rounds, size                                  int // size in MiB
	seconds                                       float64
	seed                                          uint64
	quick, list                                   bool
	re, only                                      *regexp.Regexp // scenario and servers
}

func main() {
	runtime.LockOSThread() // children die with the thread that started them
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 1 && args[0] == loadArgument {
		return load.Main(ctx, os.Stdin, os.Stdout)
	}
	f, err := parse(args)
	if err != nil {
		return err
	}
	list := chosen(f.re)
	if len(list) == 0 {
		return fmt.Errorf("-scenario %s matches nothing (-list shows what there is)", f.scenario)
	}
	if f.list {
		for _, s := range list {
			for _, r := range s.rows {
				fmt.Printf("%s: %s\n", s.name, r.name)
			}
		}
		return nil
	}
	if err := kernelfs.Usable(); err != nil {
		return err
	}
	return f.bench(ctx, list)
}

func parse(args []string) (flags, error) {
	var f flags
	set := flag.NewFlagSet("bench", flag.ExitOnError)
	set.StringVar(&f.scenario, "scenario", "", "regular `expression`: run the rows whose \"scenario: row\" it matches")
	set.StringVar(&f.servers, "servers", "", "regular `expression`: the servers to run")
	set.IntVar(&f.rounds, "rounds", 7, "rounds of each scenario")
	set.Float64Var(&f.seconds, "seconds", 2, "bound of one measurement; one that has read the whole file ends earlier")
	set.IntVar(&f.size, "size", 1024, "`MiB` of the file that is served")
	set.StringVar(&f.dir, "dir", "/dev/shm", "directory for the images; it takes five times the file, at most")
	set.StringVar(&f.program, "program", "", "btrexport to measure; left out: built from this module")
	set.Uint64Var(&f.seed, "seed", uint64(time.Now().UnixNano()), "of contents, orders and offsets")
	set.StringVar(&f.json, "json", "", "`file` for every single measurement")
	set.StringVar(&f.beside, "beside", "", "shell `command` that runs beside each measurement of btrexport, whose process is $pid; SIGINT ends it")
	set.BoolVar(&f.quick, "quick", false, "one short round on a small file: shows that all works, its figures mean nothing")
	set.BoolVar(&f.list, "list", false, "show the rows and end")
	if err := set.Parse(args); err != nil {
		return f, err
	}
	if f.quick {
		f.rounds, f.seconds, f.size = 1, 0.1, 32
	}
	var err, err2 error
	f.re, err = regexp.Compile(f.scenario)
	f.only, err2 = regexp.Compile(f.servers)
	switch {
	case err != nil || err2 != nil:
		return f, errors.Join(err, err2)
	case set.NArg() > 0:
		return f, fmt.Errorf("%s: no argument is taken", set.Arg(0))
	case f.rounds < 1 || f.seconds <= 0 || f.size < 16:
		return f, errors.New("-rounds, -seconds or -size is too small")
	}
	return f, nil
}

// bench runs the scenarios and prints the tables of what was measured, also where something failed.
func (f flags) bench(ctx context.Context, list []scenario) (err error) {
	if f.dir, err = filepath.Abs(f.dir); err != nil {
		return err
	}
	if err := f.room(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(f.dir, "btrexport-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{dir: dir, program: f.program, beside: f.beside, only: f.only, seconds: time.Duration(f.seconds * float64(time.Second))}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.program == "" {
		b.program = filepath.Join(dir, "btrexport")
		if text, err := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.program, "github.com/btrexport/btrexport/cmd/btrexport").CombinedOutput(); err != nil {
			return fmt.Errorf("go build: %w: %s", err, text)
		}
	}
	b.lib = &library{dir: dir, size: int64(f.size) << 20, seed: f.seed, made: make(map[content]*book)}
	defer b.lib.close()
	f.header()
	start := time.Now()
	for _, s := range list {
		if ctx.Err() != nil {
			break
		}
		err := b.scenario(ctx, s, f.rounds, f.seed, os.Stderr)
		switch {
		case ctx.Err() != nil: // the tables of what was measured follow
		case errors.Is(err, errNoThrottle):
			fmt.Printf("\nleft out: %v\n", err)
		case err != nil:
			b.failed = append(b.failed, err)
		}
	}
	report(os.Stdout, b.lines(list))
	fmt.Printf("\n%.0f s; load average at the end %s; other processes took %s\n", time.Since(start).Seconds(), loadAverage(), b.others())
	if f.json != "" {
		b.failed = append(b.failed, b.dump(f.json))
	}
	return errors.Join(append(b.failed, context.Cause(ctx))...)
}

// room refuses a directory in which the images would not fit.
func (f flags) room() error {
	var st unix.Statfs_t
	if err := unix.Statfs(f.dir, &st); err != nil {
		return fmt.Errorf("%s: %w", f.dir, err)
	}
	if free, need := int64(st.Bavail)*st.Bsize, 5*int64(f.size)<<20; free < need {
		return fmt.Errorf("%s: %d MiB free, %d are needed (take a smaller -size or another -dir)", f.dir, free>>20, need>>20)
	}
	return nil
}

func (f flags) header() {
	var u unix.Utsname
	_ = unix.Uname(&u)
	fmt.Printf("seed %d, %d rounds, at most %gs each, file of %d MiB in %s\n", f.seed, f.rounds, f.seconds, f.size, f.dir)
	fmt.Printf("Linux %s, %d cores, %s; load average %s\n", unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), runtime.Version(), loadAverage())
	for _, c := range contenders() {
		if c.tool == "" || c.noCache {
			continue
		}
		version := "not installed, left out"
		if text, err := exec.Command(c.tool, "--version").Output(); err == nil {
			version, _, _ = strings.Cut(string(text), "\n")
		}
		fmt.Printf("%s: %s\n", c.name, version)
	}
}

// others words the CPU time of whom the measurements had to share the machine with.
func (b *bench) others() string {
	var v []float64
	for _, s := range b.samples {
		v = append(v, max(0, float64(s.MachineCPU-s.ServerCPU-s.KernelCPU-s.CPU))/float64(s.Took))
	}
	o := spreadOf(v)
	return fmt.Sprintf("%.2f cores meanwhile (median; %.2f to %.2f)", o.median, o.low, o.high)
}

// dump writes the samples.
func (b *bench) dump(path string) error {
	text, err := json.MarshalIndent(b.samples, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
