package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reading is what the counters said at one moment.
type reading struct {
	server  time.Duration            // CPU time of the server's process
	kernel  map[string]time.Duration // CPU time of each kernel thread, by its process id
	machine time.Duration            // CPU time of everybody
	devices int64                    // bytes read from the devices
}

// readCounters reads them. The server is a running process.
func readCounters(server int, devices []string) (reading, error) {
	r := reading{kernel: make(map[string]time.Duration)}
	var err error
	if r.server, err = processCPU(server); err != nil {
		return r, err
	}
	if r.machine, err = machineCPU(); err != nil {
		return r, err
	}
	all, err := os.ReadDir("/proc")
	if err != nil {
		return r, err
	}
	for _, e := range all {
		if e.Name()[0] >= '0' && e.Name()[0] <= '9' && isKernelThread(e.Name()) {
			r.kernel[e.Name()] = threadCPU(e.Name())
		}
	}
	for _, d := range devices {
		n, err := bytesRead(d)
		if err != nil {
			return r, err
		}
		r.devices += n
	}
	return r, nil
}

// cost is the difference of two readings.
type cost struct {
	ServerCPU, KernelCPU, MachineCPU time.Duration
	DeviceBytes                      int64
}

// since leaves out kernel threads that ended in between; few do.
func (r reading) since(before reading) cost {
	c := cost{ServerCPU: r.server - before.server, MachineCPU: r.machine - before.machine, DeviceBytes: r.devices - before.devices}
	for pid, t := range r.kernel {
		c.KernelCPU += max(0, t-before.kernel[pid])
	}
	return c
}

// processCPU is the CPU clock of a process, with all its threads, also those that have ended: the clock of
// clock_getcpuclockid(3), to the nanosecond.
func processCPU(pid int) (time.Duration, error) {
	const sched = 2 // CPUCLOCK_SCHED of the kernel
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &t); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// isKernelThread looks at the flags of /proc/PID/stat, the seventh field behind the name.
func isKernelThread(pid string) bool {
	const flagsAt, kthread = 6, 0x00200000 // PF_KTHREAD
	b, _ := os.ReadFile("/proc/" + pid + "/stat")
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) <= flagsAt {
		return false
	}
	flags, _ := strconv.ParseUint(f[flagsAt], 10, 64)
	return flags&kthread != 0
}

// threadCPU is the first field of /proc/PID/schedstat; 0 where the thread is gone.
func threadCPU(pid string) time.Duration {
	b, _ := os.ReadFile("/proc/" + pid + "/schedstat")
	ns, _, _ := strings.Cut(string(b), " ")
	n, _ := strconv.ParseInt(ns, 10, 64)
	return time.Duration(n)
}

// machineCPU adds user, nice, system, irq, softirq and steal of /proc/stat, to 10 ms.
func machineCPU() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	if len(f) < 9 {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	total := int64(0)
	for i, s := range f[1:9] {
		if i == 3 || i == 4 { // idle, iowait
			continue
		}
		n, _ := strconv.ParseInt(s, 10, 64)
		total += n
	}
	return time.Duration(total) * 10 * time.Millisecond, nil
}

// bytesRead is the third field of /sys/block/NAME/stat, in sectors of 512 bytes.
func bytesRead(device string) (int64, error) {
	b, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/stat")
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b))
	if len(f) < 3 {
		return 0, fmt.Errorf("%s: statistics %q", device, b)
	}
	n, err := strconv.ParseInt(f[2], 10, 64)
	return n * 512, err
}

// peakMemory is VmHWM of a process in bytes.
func peakMemory(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("process %d: no VmHWM", pid)
}

// loadAverage is the first figure of /proc/loadavg.
func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(b), " ")
	return first
}
