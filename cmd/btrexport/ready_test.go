package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestAskHTTP: only 200 is ready, an answer that never comes ends with the context, and nothing else is
// asked than the server that was named.
func TestAskHTTP(t *testing.T) {
	cases := []struct {
		name   string
		answer http.HandlerFunc
		want   string // a part of the error; empty: ready
	}{
		{"ready", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ready") }, ""},
		{"draining", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "draining\nmore", http.StatusServiceUnavailable)
		}, "not ready: draining"},
		{"another server", http.NotFound, "404 Not Found (is this the metrics address of btrexport?)"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, "302 Found"},
		{"endless", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
			for range 1 << 10 {
				if _, err := w.Write(make([]byte, 1<<10)); err != nil {
					return
				}
			}
		}, "not ready"},
		{"silent", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "too late"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/-/ready" {
					t.Errorf("asked for %s", r.URL.Path)
				}
				tc.answer(w, r)
			}))
			defer s.Close()
			limit := patience
			if tc.want == "too late" {
				limit = 50 * time.Millisecond
			}
			ctx, cancel := context.WithTimeoutCause(t.Context(), limit, errors.New("too late"))
			defer cancel()
			err := askHTTP(ctx, "tcp", strings.TrimPrefix(s.URL, "http://"))
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}
