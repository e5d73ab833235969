// Program grafana writes the dashboards, dashboards/btrexport-*.json, so that what all panels have in common is said
// once: data source, variables, matchers, sizes. Run it in this folder; a test holds the files equal to what it writes.
//
//go:generate go run .
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	for _, d := range dashboards() {
		b, err := d.encode()
		if err == nil {
			err = os.WriteFile(filepath.Join("dashboards", d.uid+".json"), b, 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// dashboard is one file. Its rows stand below each other.
type dashboard struct {
	uid, title, description string
	rows                    []row
}

// row has panels side by side, a new line of them behind each 24 columns.
type row struct {
	title  string
	height int
	panels []panel
}

// panel is one picture of one or several expressions.
type panel struct {
	kind               string // stat, timeseries, heatmap, table
	title, description string
	unit               string
	width              int // of 24 columns
	targets            []target
	steps              []step         // colours; none: green
	words              map[string]any // value mappings of a stat; nil: none
	stack              bool
	columns            []string // of a table, in order; all others are hidden
}

// target is one expression with the name of its series.
type target struct{ expr, legend string }

// step is a colour from a value on.
type step struct {
	from  float64
	color string
}

type object = map[string]any

var source = object{"type": "prometheus", "uid": "${datasource}"}

func (d *dashboard) encode() ([]byte, error) {
	var panels []object
	id, y := 0, 0
	for _, r := range d.rows {
		id++
		panels = append(panels, object{"id": id, "type": "row", "title": r.title, "collapsed": false, "panels": []object{},
			"gridPos": object{"x": 0, "y": y, "w": 24, "h": 1}})
		y++
		x := 0
		for _, p := range r.panels {
			if x+p.width > 24 {
				x, y = 0, y+r.height
			}
			id++
			o := p.object(id)
			o["gridPos"] = object{"x": x, "y": y, "w": p.width, "h": r.height}
			panels = append(panels, o)
			x += p.width
		}
		y += r.height
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(object{
		"uid": d.uid, "title": d.title, "description": d.description, "tags": []string{"btrexport"}, "schemaVersion": 39, "version": 1,
		"editable": false, "graphTooltip": 1, "refresh": "30s", "timezone": "browser", "weekStart": "", "fiscalYearStartMonth": 0,
		"time": object{"from": "now-1h", "to": "now"}, "timepicker": object{}, "annotations": object{"list": []object{}},
		"links": []object{{"type": "dashboards", "title": "btrexport", "tags": []string{"btrexport"}, "asDropdown": false, "includeVars": true,
			"keepTime": true, "targetBlank": false, "icon": "external link", "tooltip": "", "url": ""}},
		"templating": object{"list": variables()}, "panels": panels,
	})
	return b.Bytes(), err
}

func variables() []object {
	list := []object{{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "regex": "", "hide": 0,
		"multi": false, "includeAll": false, "refresh": 1, "options": []object{}, "current": object{}}}
	for _, v := range []struct{ name, label, query string }{
		{"job", "Job", `label_values(btrexport_build_info, job)`},
		{"instance", "Instance", `label_values(btrexport_build_info{job=~"$job"}, instance)`},
		{"filesystem", "Filesystem", `label_values(btrexport_filesystem_info{job=~"$job",instance=~"$instance"}, filesystem)`},
	} {
		list = append(list, object{"name": v.name, "label": v.label, "type": "query", "datasource": source, "definition": v.query,
			"query": object{"query": v.query, "refId": "StandardVariableQuery"}, "refresh": 2, "sort": 1, "multi": true, "includeAll": true, "allValue": ".+",
			"regex": "", "hide": 0, "options": []object{}, "current": object{"selected": true, "text": []string{"All"}, "value": []string{"$__all"}}})
	}
	return list
}

func (p *panel) object(id int) object {
	var targets []object
	for i, t := range p.targets {
		o := object{"refId": string(rune('A' + i)), "datasource": source, "expr": t.expr, "legendFormat": t.legend, "range": true, "instant": false,
			"editorMode": "code", "format": "time_series"}
		switch p.kind {
		case "table":
			o["format"], o["range"], o["instant"] = "table", false, true
		case "stat":
			o["range"], o["instant"] = false, true
		case "heatmap":
			o["format"] = "heatmap"
		}
		targets = append(targets, o)
	}
	defaults := object{"unit": p.unit, "min": 0, "color": object{"mode": "palette-classic"}, "mappings": []object{}, "thresholds": p.thresholds()}
	o := object{"id": id, "type": p.kind, "title": p.title, "description": p.description, "datasource": source, "targets": targets,
		"fieldConfig": object{"defaults": defaults, "overrides": []object{}}}
	switch p.kind {
	case "stat":
		defaults["color"], defaults["decimals"] = object{"mode": "thresholds"}, 0
		if p.words != nil {
			defaults["mappings"] = []object{{"type": "value", "options": p.words}}
		}
		o["options"] = object{"colorMode": "background", "graphMode": "none", "justifyMode": "auto", "textMode": "auto", "orientation": "auto",
			"reduceOptions": object{"calcs": []string{"lastNotNull"}, "fields": "", "values": false}}
	case "timeseries":
		custom := object{"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": false, "stacking": object{"mode": "none", "group": "A"}}
		if p.stack {
			custom["stacking"], custom["fillOpacity"] = object{"mode": "normal", "group": "A"}, 40
		}
		defaults["custom"] = custom
		o["options"] = object{"tooltip": object{"mode": "multi", "sort": "desc"}, "legend": object{"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []string{}}}
	case "heatmap":
		o["options"] = object{"calculate": false, "cellGap": 1, "yAxis": object{"unit": p.unit, "axisPlacement": "left"}, "legend": object{"show": true},
			"color": object{"mode": "scheme", "scheme": "Oranges", "fill": "dark-orange", "reverse": false, "steps": 64, "exponent": 0.5}, "tooltip": object{"mode": "single", "yHistogram": true}}
	case "table":
		delete(defaults, "min")
		o["options"] = object{"showHeader": true, "cellHeight": "sm"}
		o["transformations"] = p.pick()
	}
	return o
}

// pick shows a table's columns in their order.
func (p *panel) pick() []object {
	include := object{}
	order := object{}
	for i, c := range p.columns {
		include[c], order[c] = true, i
	}
	return []object{{"id": "merge", "options": object{}}, {"id": "organize", "options": object{"includeByName": include, "indexByName": order,
		"renameByName": object{}, "excludeByName": object{}}}}
}

func (p *panel) thresholds() object {
	steps := []object{{"color": "green", "value": nil}}
	for _, s := range p.steps {
		steps = append(steps, object{"color": s.color, "value": s.from})
	}
	return object{"mode": "absolute", "steps": steps}
}
