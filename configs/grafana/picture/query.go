package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// series is one line: a value for each step, by Unix time in seconds.
type series struct {
	name   string
	values map[int64]float64
}

// client gives up on a Prometheus that does not answer.
var client = http.Client{Timeout: 30 * time.Second}

var label = regexp.MustCompile(`\{\{([a-z_]+)\}\}`)

// query gives the series of an expression over the time shown, step apart.
func (p *picture) query(expr, legend string, step time.Duration) ([]series, error) {
	variables := strings.NewReplacer("$__rate_interval", seconds(p.interval), "$__range", seconds(p.last), "$job", ".+", "$instance", ".+", "$filesystem", ".+")
	v := url.Values{"query": {variables.Replace(expr)}, "start": {fmt.Sprint(p.now.Add(-p.last).Unix())}, "end": {fmt.Sprint(p.now.Unix())}, "step": {seconds(step)}}
	resp, err := client.Get(p.source + "/api/v1/query_range?" + v.Encode())
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct {
			Result []struct {
				Metric map[string]string
				Values [][2]any
			}
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, err
	}
	if answer.Status != "success" {
		return nil, fmt.Errorf("%s: %s", expr, answer.Error)
	}
	var list []series
	for _, r := range answer.Data.Result {
		s := series{name: label.ReplaceAllStringFunc(legend, func(m string) string { return r.Metric[m[2:len(m)-2]] }), values: map[int64]float64{}}
		for _, v := range r.Values {
			at, _ := v[0].(float64)
			text, _ := v[1].(string)
			if n, err := strconv.ParseFloat(text, 64); err == nil && n == n {
				s.values[int64(at)] = n
			}
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b series) int { return strings.Compare(a.name, b.name) })
	return list, nil
}

func seconds(d time.Duration) string { return fmt.Sprintf("%ds", max(1, int(d.Seconds()))) }
