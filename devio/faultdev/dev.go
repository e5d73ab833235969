package faultdev

import (
	"slices"
	"sync"
	"time"

	"github.com/btrexport/btrexport/devio"
)

// Dev is a device that fails by rules. Reads that no rule concerns go to the device below.
//
// It counts for itself and does not pass Observe down, so that an observer sees the errors that
// were made here, and not the success that the device below had with the same read.
type Dev struct {
	counters
	inner Device // immutable

	mu      sync.Mutex
	rules   []*Rule                  // guarded by mu
	reads   int                      // guarded by mu; submitted so far
	record  bool                     // guarded by mu; log is kept
	log     []Access                 // guarded by mu
	hanging []*pending               // guarded by mu
	delayed map[*pending]*time.Timer // guarded by mu; whoever removes one goes on with it
	closed  bool                     // guarded by mu
	timers  sync.WaitGroup           // of delayed
}

// Access is one read as it was submitted.
type Access struct {
	Off  devio.Physical
	Size int
}

// New puts a Dev without rules in front of inner, which it then owns.
func New(inner Device) *Dev {
	return &Dev{inner: inner, delayed: map[*pending]*time.Timer{}}
}

// Size is the device's below.
func (d *Dev) Size() uint64 { return d.inner.Size() }

// Align is the device's below.
func (d *Dev) Align() int { return d.inner.Align() }

// Name is the device's below.
func (d *Dev) Name() string { return d.inner.Name() }

// Reads is the number of reads that have been submitted.
func (d *Dev) Reads() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reads
}

// Record starts a new log of the reads that are submitted.
func (d *Dev) Record() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.record, d.log = true, nil
}

// Log returns the reads that have been submitted since Record, in order.
func (d *Dev) Log() []Access {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.log)
}

// Clear removes every rule. Reads that hang go on to hang.
func (d *Dev) Clear() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rules = nil
}

// arm puts r in force.
func (d *Dev) arm(r *Rule) *Rule {
	r.dev = d
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rules = append(d.rules, r)
	return r
}

func (d *Dev) remove(r *Rule) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.rules, r); i >= 0 {
		d.rules = slices.Delete(d.rules, i, i+1)
	}
}
