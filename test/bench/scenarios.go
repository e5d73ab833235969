package main

import "time"

// scenario is a filesystem and what is measured on it.
type scenario struct {
	name   string
	layout layout
	rate   float64 // bytes a second that each device delivers; 0: what it can
	rows   []row
}

// row is one line of the tables.
type row struct {
	name     string
	work     work
	buffered bool // our direct_io: false, and everybody's caches warm
	cache    int  // our cache: the file's size divided by this, and half as much again; 0: the default
	share    bool // the targets are for the share of the devices' rates, not for the ratio to the others
	must     float64
	aim      float64
	cpuMust  float64 // most CPU time of ours in proportion to the fastest other's; 0: no target
	cpuAim   float64
}

// work is the load.
type work struct {
	nbdcopy     int // connections of nbdcopy, which then is the load
	connections int
	depth       int
	block       int
	random      bool
	structured  bool
	part        int           // ends after this part of the file's blocks, however long it takes; 0: 1, and the time of -seconds
	skip        time.Duration // not counted: a throttled device starts with a burst
}

// conns is how many connections the server has.
func (w work) conns() int { return max(w.nbdcopy, w.connections) }

const slowDevice = 100e6 // bytes a second

var (
	sequential = work{connections: 1, depth: 16, block: 256 << 10}
	structured = work{connections: 1, depth: 16, block: 256 << 10, structured: true}
	slowly     = work{connections: 1, depth: 16, block: 256 << 10, skip: 500 * time.Millisecond}
	qd1        = work{connections: 1, depth: 1, block: 4096, random: true}
	qd32       = work{connections: 1, depth: 32, block: 4096, random: true}
	qd32x4     = work{connections: 4, depth: 32, block: 4096, random: true}
	inExtents  = work{connections: 1, depth: 32, block: 4096, random: true, part: 8}
)

// scenarios are all of them, with the targets that a release is held against.
func scenarios() []scenario {
	list := []scenario{
		{name: "plain", layout: layout{content: noise}, rows: []row{
			{name: "sequential 256K QD16", work: sequential, must: 1.4, aim: 1.8, cpuMust: 0.7, cpuAim: 0.5},
			{name: "sequential, structured replies", work: structured},
			{name: "nbdcopy, 1 connection", work: work{nbdcopy: 1}, must: 1.25, aim: 1.6},
			{name: "nbdcopy, 4 connections", work: work{nbdcopy: 4}, must: 1.1, aim: 1.4},
			{name: "4K QD1", work: qd1, must: 1, aim: 1.2},
			{name: "4K QD32", work: qd32, must: 2, aim: 3.5, cpuMust: 0.4, cpuAim: 0.25},
			{name: "4K QD32, 4 connections", work: qd32x4, must: 1.5, aim: 2},
			{name: "sequential, warm", work: sequential, buffered: true, must: 1.2, aim: 1.5},
			{name: "4K QD1, warm", work: qd1, buffered: true, must: 1.1, aim: 1.5},
			{name: "4K QD32, warm", work: qd32, buffered: true, must: 2, aim: 3},
		}},
		compressed("zstd", "zstd:3", 0.95, 1.2),
		compressed("lzo", "lzo", 0.85, 1.1),
		compressed("zlib", "zlib:3", 0.65, 1.1),
		{name: "fragmented", layout: layout{content: noise, rewrite: 4}, rows: []row{
			{name: "sequential 256K QD16", work: sequential, must: 1.4, aim: 2},
			{name: "4K QD32", work: qd32, must: 2, aim: 3},
		}},
	}
	for _, sum := range []string{"xxhash", "sha256", "blake2"} {
		list = append(list, scenario{name: sum, layout: layout{csum: sum, content: noise}, rows: []row{{name: "sequential 256K QD16", work: sequential}}})
	}
	for _, s := range []struct {
		name    string
		devices int
		row     row
	}{
		{"raid0-2", 2, row{share: true, must: 0.95, aim: 1}},
		{"raid0-4", 4, row{share: true, must: 0.95, aim: 1}},
		{"raid1-2", 2, row{must: 1.2, aim: 1.3}},
	} {
		s.row.name, s.row.work = "sequential, slow devices", slowly
		list = append(list, scenario{name: s.name, layout: layout{devices: s.devices, data: s.name[:5], content: noise}, rate: slowDevice, rows: []row{s.row}})
	}
	for _, s := range []struct {
		name             string
		devices, missing int
		must, aim        float64
	}{
		{"raid5-3", 3, 0, 1.3, 1.6},
		{"raid6-4", 4, 0, 1.3, 1.6},
		{"raid5-3-missing-1", 3, 1, 3, 6},
		{"raid6-4-missing-1", 4, 1, 3, 6},
		{"raid6-4-missing-2", 4, 2, 3, 8},
	} {
		list = append(list, scenario{name: s.name, layout: layout{devices: s.devices, data: s.name[:5], content: noise, missing: s.missing},
			rows: []row{{name: "sequential 256K QD16", work: sequential, must: s.must, aim: s.aim}}})
	}
	return list
}

func compressed(name, option string, must, aim float64) scenario {
	return scenario{name: name, layout: layout{mount: "compress-force=" + option, content: text}, rows: []row{
		{name: "sequential 256K QD16", work: sequential, must: must, aim: aim},
		{name: "4K QD32, cache holds the file", work: inExtents, cache: 1, must: 0.85, aim: 1.1},
		{name: "4K QD32, cache holds 1/16", work: inExtents, cache: 16, must: 0.25, aim: 0.5},
	}}
}
