package main

import "slices"

// spread is the median and the ends of some figures.
type spread struct{ median, low, high float64 }

func spreadOf(v []float64) spread {
	if len(v) == 0 {
		return spread{}
	}
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return spread{median: (v[(n-1)/2] + v[n/2]) / 2, low: v[0], high: v[n-1]}
}

// line is all that was measured for one row.
type line struct {
	scenario scenario
	row      row
	size     int64               // of the file in bytes
	samples  map[string][]sample // by server, in the order of the rounds
}

// over gives a figure of one server's samples.
func (l line) over(server string, f func(sample) float64) spread {
	var v []float64
	for _, s := range l.samples[server] {
		v = append(v, f(s))
	}
	return spreadOf(v)
}

// best is the fastest of the others by its median; empty: there was none.
func (l line) best() string {
	name, most := "", 0.0
	for _, c := range contenders()[1:] {
		if m := l.over(c.name, sample.rate).median; m > most {
			name, most = c.name, m
		}
	}
	return name
}

// ratio is ours over the best's: of the medians, and the ratios of the single rounds.
func (l line) ratio(f func(sample) float64) (medians float64, rounds spread) {
	us, them := contenders()[0].name, l.best()
	if them == "" {
		return 0, spread{}
	}
	var v []float64
	for i := range min(len(l.samples[us]), len(l.samples[them])) {
		v = append(v, f(l.samples[us][i])/f(l.samples[them][i]))
	}
	return l.over(us, f).median / l.over(them, f).median, spreadOf(v)
}

// share is ours in proportion to what the devices deliver together.
func (l line) share() float64 {
	devices := float64(max(1, l.scenario.layout.devices) - l.scenario.layout.missing)
	return l.over(contenders()[0].name, sample.rate).median / (devices * l.scenario.rate)
}

// cache is our cache in bytes, as it was set for the samples.
func (l line) cache() int64 { return l.row.cacheSize(l.size) }
