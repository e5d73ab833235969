// Program picture draws the first rows of a dashboard as an SVG from what a running Prometheus answers: the panels of the
// JSON file, their expressions, units and colours. It is no Grafana: sizes and shapes are alike, not the same.
//
//	go run ./configs/grafana/picture -prometheus http://127.0.0.1:9090 -last 10m -o overview.svg
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"
)

func main() {
	var p picture
	file := flag.String("dashboard", "configs/grafana/dashboards/btrexport-overview.json", "the dashboard's file")
	out := flag.String("o", "overview.svg", "the file to write")
	flag.StringVar(&p.source, "prometheus", "http://127.0.0.1:9090", "where Prometheus answers")
	flag.DurationVar(&p.last, "last", 10*time.Minute, "the time to show, up to now")
	flag.DurationVar(&p.interval, "interval", time.Minute, "what stands for $__rate_interval")
	flag.IntVar(&p.rows, "rows", 3, "how many rows to draw")
	flag.Parse()
	if err := p.run(*file, *out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// dashboard is what is drawn of a file.
type dashboard struct {
	Title  string
	Panels []panel
}

type panel struct {
	Type, Title string
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct{ Expr, LegendFormat string }
	FieldConfig struct {
		Defaults struct {
			Unit       string
			Thresholds struct {
				Steps []struct {
					Color string
					Value *float64
				}
			}
			Mappings []struct {
				Options map[string]struct{ Text string }
			}
		}
	}
}

// picture is one drawing.
type picture struct {
	source         string
	last, interval time.Duration
	rows           int
	now            time.Time
	svg
}

func (p *picture) run(file, out string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var d dashboard
	if err := json.Unmarshal(b, &d); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if p.now.IsZero() {
		p.now = time.Now()
	}
	if err := p.draw(&d); err != nil {
		return err
	}
	return os.WriteFile(out, []byte(p.String()), 0o644)
}

// shown are the panels of the first rows.
func (p *picture) shown(d *dashboard) []panel {
	rows := 0
	for i := range d.Panels {
		if d.Panels[i].Type == "row" {
			if rows++; rows > p.rows {
				return d.Panels[:i]
			}
		}
	}
	return d.Panels
}

func (p *picture) draw(d *dashboard) error {
	panels := p.shown(d)
	bottom := 0
	for _, x := range panels {
		bottom = max(bottom, x.GridPos.Y+x.GridPos.H)
	}
	p.begin(24*unitX+2*margin, bottom*unitY+header+footer)
	p.text(margin+4, 28, 18, light, "start", d.Title)
	p.text(24*unitX+margin-4, 28, 12, grey, "end", "last "+strings.TrimSuffix(p.last.String(), "0s"))
	for i := range panels {
		if err := p.panel(&panels[i]); err != nil {
			return fmt.Errorf("%s: %w", panels[i].Title, err)
		}
	}
	p.text(margin+4, float64(bottom*unitY+header+15), 11, grey, "start",
		"Drawn from the dashboard's own panels and a real Prometheus by configs/grafana/picture; Grafana draws them finer.")
	p.end()
	return nil
}

func (p *picture) panel(x *panel) error {
	g := x.GridPos
	at := box{float64(g.X*unitX + margin), float64(g.Y*unitY + header), float64(g.W * unitX), float64(g.H * unitY)}.inset(3)
	switch x.Type {
	case "row":
		p.text(at.x+2, at.y+18, 14, light, "start", x.Title)
		return nil
	case "stat":
		return p.stat(x, at)
	case "timeseries":
		return p.graph(x, at)
	}
	p.rect(at, panelColour)
	p.text(at.x+8, at.y+18, 12, light, "start", x.Title+" ("+x.Type+", not drawn)")
	return nil
}
