package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// speed words a rate in bytes a second: small requests are counted, long ones weighed.
func (r row) speed(rate float64) string {
	if r.work.block == 4096 {
		return fmt.Sprintf("%.1f k/s", rate/4096/1e3)
	}
	return fmt.Sprintf("%.0f MB/s", rate/1e6)
}

// cpuText words CPU time in nanoseconds a byte.
func (r row) cpuText(ns float64) string {
	if r.work.block == 4096 {
		return fmt.Sprintf("%.1f us", ns*4096/1e3)
	}
	return fmt.Sprintf("%.0f ms/GB", ns*1e3)
}

// mark says which target a figure meets. less: smaller is better.
func mark(v, must, aim float64, less bool) string {
	if less {
		v, must, aim = -v, -must, -aim
	}
	switch {
	case must == 0:
		return ""
	case v >= aim:
		return "aim"
	case v >= must:
		return "must"
	}
	return "**missed**"
}

// report prints the tables in Markdown.
func report(w io.Writer, lines []line) {
	speedTable(w, lines)
	costTable(w, lines)
	memoryTable(w, lines)
}

func table(w io.Writer, columns ...string) {
	fmt.Fprintf(w, "\n| %s |\n|%s\n", strings.Join(columns, " | "), strings.Repeat(" --- |", len(columns)))
}

func cells(w io.Writer, c ...string) { fmt.Fprintf(w, "| %s |\n", strings.Join(c, " | ")) }

// servers words one figure of every server; a dash where there is none.
func servers(l line, figure func(sample) float64, word func(float64) string) []string {
	var out []string
	for _, c := range contenders() {
		if len(l.samples[c.name]) == 0 {
			out = append(out, "-")
			continue
		}
		out = append(out, word(l.over(c.name, figure).median))
	}
	return out
}

func serverNames() []string {
	var out []string
	for _, c := range contenders() {
		out = append(out, c.name)
	}
	return out
}

func speedTable(w io.Writer, lines []line) {
	head := append([]string{"throughput"}, serverNames()...)
	table(w, append(head, "ratio", "rounds: median (min to max)", "must", "aim", "met")...)
	for _, l := range lines {
		medians, rounds := l.ratio(sample.rate)
		c := append([]string{l.title()}, servers(l, sample.rate, l.row.speed)...)
		if l.best() == "" {
			cells(w, c...)
			continue
		}
		c = append(c, fmt.Sprintf("%.2f", medians), fmt.Sprintf("%.2f (%.2f to %.2f)", rounds.median, rounds.low, rounds.high))
		v, of := medians, ""
		if l.row.share {
			v, of = l.share(), fmt.Sprintf(" of the devices: %.2f", l.share())
		}
		cells(w, append(c, number(l.row.must), number(l.row.aim), mark(v, l.row.must, l.row.aim, false)+of)...)
	}
}

func (l line) title() string { return l.scenario.name + ": " + l.row.name }

func number(v float64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprint(v)
}

func costTable(w io.Writer, lines []line) {
	head := append([]string{"CPU of server and kernel (server alone)"}, serverNames()...)
	table(w, append(head, "ratio", "must", "aim", "met", "p50, p99 us", "best other's", "read from devices / served", "best other's")...)
	for _, l := range lines {
		ratio, _ := l.ratio(sample.cpu)
		c := append([]string{l.title()}, servers(l, sample.cpu, l.row.cpuText)...)
		for i, alone := range servers(l, sample.serverCPU, l.row.cpuText) {
			if alone != "-" {
				c[i+1] += " (" + strings.Fields(alone)[0] + ")"
			}
		}
		if l.best() == "" {
			cells(w, c...)
			continue
		}
		c = append(c, fmt.Sprintf("%.2f", ratio), number(l.row.cpuMust), number(l.row.cpuAim), mark(ratio, l.row.cpuMust, l.row.cpuAim, true))
		us, them := contenders()[0].name, l.best()
		cells(w, append(c, l.latency(us), l.latency(them), l.fromDevices(us), l.fromDevices(them))...)
	}
}

func (l line) latency(server string) string {
	if l.row.work.nbdcopy > 0 || len(l.samples[server]) == 0 {
		return ""
	}
	us := func(d time.Duration) float64 { return float64(d) / 1e3 }
	return fmt.Sprintf("%.0f, %.0f", l.over(server, func(s sample) float64 { return us(s.P50) }).median,
		l.over(server, func(s sample) float64 { return us(s.P99) }).median)
}

func (l line) fromDevices(server string) string {
	if len(l.samples[server]) == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", l.over(server, sample.fromDevices).median)
}

// memoryTable: our bounds are 40 MiB (aim: 24) + the cache + 8 MiB (4) for each connection.
func memoryTable(w io.Writer, lines []line) {
	head := append([]string{"peak memory, MiB"}, serverNames()...)
	table(w, append(head, "must", "aim", "met")...)
	for _, l := range lines {
		size := func(s sample) float64 { return float64(s.Memory) / (1 << 20) }
		c := append([]string{l.title()}, servers(l, size, func(v float64) string { return fmt.Sprintf("%.0f", v) })...)
		cache, conns := float64(l.cache())/(1<<20), float64(l.row.work.conns())
		must, aim := 40+cache+8*conns, 24+cache+4*conns
		peak := l.over(contenders()[0].name, size).high
		cells(w, append(c, fmt.Sprintf("%.0f", must), fmt.Sprintf("%.0f", aim), mark(peak, must, aim, true))...)
	}
}
