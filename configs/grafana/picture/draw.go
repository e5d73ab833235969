package main

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"
)

const (
	unitX, unitY           = 50, 28 // of Grafana's grid, pixels
	margin, header, footer = 10, 44, 26

	ground, panelColour = "#111217", "#1c1f24"
	light, grey, faint  = "#d8d9e0", "#9a9ba5", "#34373d"
)

var (
	palette = []string{"#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#fade2a", "#96d98d", "#ffa6b0"}
	colours = map[string]string{"green": "#2f8f3f", "orange": "#d9741a", "red": "#c4162a"}
)

type box struct{ x, y, w, h float64 }

func (b box) inset(n float64) box { return box{b.x + n, b.y + n, b.w - 2*n, b.h - 2*n} }

// svg collects a drawing.
type svg struct{ strings.Builder }

func (s *svg) begin(w, h int) {
	fmt.Fprintf(s, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" font-family=\"Inter, DejaVu Sans, Helvetica, Arial, sans-serif\">\n", w, h, w, h)
	s.rect(box{0, 0, float64(w), float64(h)}, ground)
}

func (s *svg) end() { s.WriteString("</svg>\n") }

func (s *svg) rect(b box, colour string) {
	fmt.Fprintf(s, "<rect x=\"%.0f\" y=\"%.0f\" width=\"%.0f\" height=\"%.0f\" rx=\"3\" fill=\"%s\"/>\n", b.x, b.y, b.w, b.h, colour)
}

func (s *svg) text(x, y float64, size int, colour, anchor, text string) {
	fmt.Fprintf(s, "<text x=\"%.0f\" y=\"%.0f\" font-size=\"%d\" fill=\"%s\" text-anchor=\"%s\">%s</text>\n", x, y, size, colour, anchor, html.EscapeString(text))
}

// stat draws the last value on its threshold's colour.
func (p *picture) stat(x *panel, at box) error {
	list, err := p.query(x.Targets[0].Expr, "", time.Second)
	if err != nil {
		return err
	}
	text, colour := "no data", faint
	if v, ok := lastOf(list); ok {
		text = format("short", v)
		for _, step := range x.FieldConfig.Defaults.Thresholds.Steps {
			if step.Value == nil || v >= *step.Value {
				colour = colours[step.Color]
			}
		}
		for _, m := range x.FieldConfig.Defaults.Mappings {
			if word, ok := m.Options[text]; ok {
				text = word.Text
			}
		}
	}
	p.rect(at, colour)
	p.text(at.x+8, at.y+18, 12, "#ffffff", "start", x.Title)
	p.text(at.x+at.w/2, at.y+at.h/2+24, 34, "#ffffff", "middle", text)
	return nil
}

func lastOf(list []series) (v float64, ok bool) {
	var latest int64
	for _, s := range list {
		for at, n := range s.values {
			if at > latest {
				latest, v, ok = at, n, true
			}
		}
	}
	return v, ok
}

// graph draws lines over a grid, with the names below.
func (p *picture) graph(x *panel, at box) error {
	unit := x.FieldConfig.Defaults.Unit
	step := max(time.Second, (p.last / 200).Round(time.Second))
	var list []series
	for _, t := range x.Targets {
		more, err := p.query(t.Expr, t.LegendFormat, step)
		if err != nil {
			return err
		}
		list = append(list, more...)
	}
	p.rect(at, panelColour)
	p.text(at.x+8, at.y+18, 12, light, "start", x.Title)
	top := 0.0
	for _, s := range list {
		for _, v := range s.values {
			top = max(top, v)
		}
	}
	legend := p.legend(list, at)
	plot := box{at.x + 66, at.y + 30, at.w - 80, at.h - 52 - legend}
	grid := ceiling(top)
	for i := range 4 + 1 {
		y := plot.y + plot.h*float64(4-i)/4
		fmt.Fprintf(p, "<path d=\"M%.1f %.1fh%.1f\" stroke=\"%s\"/>\n", plot.x, y, plot.w, faint)
		p.text(plot.x-6, y+4, 10, grey, "end", format(unit, grid*float64(i)/4))
	}
	from := p.now.Add(-p.last)
	for i, anchor := range []string{"start", "middle", "middle", "end"} {
		p.text(plot.x+plot.w*float64(i)/3, plot.y+plot.h+14, 10, grey, anchor, from.Add(p.last*time.Duration(i)/3).UTC().Format("15:04:05"))
	}
	for i, s := range list {
		p.line(s, plot, from.Unix(), grid, step, palette[i%len(palette)])
	}
	return nil
}

// line leaves gaps where there is no value.
func (p *picture) line(s series, plot box, from int64, grid float64, step time.Duration, colour string) {
	var d strings.Builder
	pen, last := "M", int64(p.last.Seconds())
	for t := int64(0); t <= last; t += int64(step.Seconds()) {
		v, ok := s.values[from+t]
		if !ok {
			pen = "M"
			continue
		}
		fmt.Fprintf(&d, "%s%.1f %.1f", pen, plot.x+plot.w*float64(t)/float64(last), plot.y+plot.h-plot.h*v/grid)
		pen = "L"
	}
	fmt.Fprintf(p, "<path d=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"1.4\"/>\n", d.String(), colour)
}

// legend writes the names at the bottom of a panel and says how high it is.
func (p *picture) legend(list []series, at box) float64 {
	const lineHeight = 14
	lines, x := 1.0, 0.0
	width := func(s series) float64 { return float64(len(s.name))*6 + 26 }
	for _, s := range list {
		if x+width(s) > at.w-16 && x > 0 {
			lines, x = lines+1, 0
		}
		x += width(s)
	}
	x, y := 0.0, at.y+at.h-8-lineHeight*(lines-1)
	for i, s := range list {
		if x+width(s) > at.w-16 && x > 0 {
			x, y = 0, y+lineHeight
		}
		fmt.Fprintf(p, "<path d=\"M%.0f %.0fh10\" stroke=\"%s\" stroke-width=\"3\"/>\n", at.x+10+x, y-4, palette[i%len(palette)])
		p.text(at.x+24+x, y, 10, grey, "start", s.name)
		x += width(s)
	}
	return lineHeight * lines
}

// ceiling is the end of an axis: 1, 2 or 4 times a power of ten, so that its quarters are short numbers.
func ceiling(v float64) float64 {
	if v <= 0 {
		return 1
	}
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 4} {
		if v <= m*p {
			return m * p
		}
	}
	return 10 * p
}

// format writes a number in a unit of Grafana's.
func format(unit string, v float64) string {
	number := func(v float64) string { return strings.TrimSuffix(fmt.Sprintf("%.4g", v), ".0") }
	scaled := func(v float64, names ...string) string {
		i := 0
		for ; v >= 1000 && i < len(names)-1; i++ {
			v /= 1000
		}
		return number(v) + names[i]
	}
	switch {
	case v == 0:
		return "0"
	case unit == "s" && v < 1e-3:
		return number(v*1e6) + " µs"
	case unit == "s" && v < 1:
		return number(v*1e3) + " ms"
	case unit == "s":
		return number(v) + " s"
	case unit == "Bps":
		return scaled(v, " B/s", " kB/s", " MB/s", " GB/s")
	case unit == "bytes":
		return scaled(v, " B", " kB", " MB", " GB")
	case unit == "percentunit":
		return number(v*100) + "%"
	case unit == "reqps":
		return scaled(v, " req/s", "K req/s", "M req/s")
	case unit == "ops" || unit == "iops":
		return scaled(v, " /s", "K /s", "M /s")
	}
	return scaled(v, "", "K", "M")
}
